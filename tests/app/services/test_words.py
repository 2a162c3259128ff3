"""The words of a query: which carry its meaning, which are misspelled, and which a clip has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.inference.engine import Engine
from app.services import words
from app.services.words import QueryWords, content_words, coverage, has_all_words, read_words
from index import STOP_WORDS, Clip, SqliteLibrary, stem_words, words_of
from model.tokenizer import read_fast
from tests.support.clips import DIM, make_clip


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("dog barking", ["dog", "barking"]),
        ("The sound of a dog", ["dog"]),
        ("noise of rain on the roof", ["rain", "roof"]),
        ("white noise", ["white", "noise"]),
        ("someone's footsteps, sound effect", ["footsteps"]),
        ("DogBark 50Hz dog", ["dog", "bark", "50", "hz"]),
        ("the of", ["the", "of"]),
        ("a sound", ["a", "sound"]),
        ("犬の声", ["犬", "の", "声"]),
        ("🐕 ???", []),
    ],
)
def test_content_words_tell_sounds_apart(query: str, expected: list[str]) -> None:
    assert content_words(query) == expected


def test_the_list_of_sound_words_is_that_of_the_phrase_bank(repo_dir: Path) -> None:
    """To write it again: save `expected` below."""
    counts: Counter[str] = Counter()
    for line in (repo_dir / "training/data/phrase_bank.jsonl").read_text(encoding="utf-8").splitlines():
        cluster = json.loads(line)
        for phrase in dict.fromkeys([cluster["phrase"], *cluster["alternatives"]]):
            found = {word for word in words_of(phrase) if word.isalpha() and len(word) > 1}
            counts.update(found - STOP_WORDS)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    expected = (
        "# Words of training/data/phrase_bank.jsonl that name sounds, with the number of phrases that have them.\n"
    )
    expected += "".join(f"{word} {count}\n" for word, count in ordered)
    assert (repo_dir / "app/data" / words.SOUND_WORDS).read_text(encoding="utf-8") == expected


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteLibrary]:
    names = ["Hund bellt.wav", "Krähe.wav", "tonnerre lointain.wav", "Zorgblat_01.wav", "dog.wav", "dog bark.wav"]
    with SqliteLibrary.open(tmp_path_factory.mktemp("words"), dim=DIM, checkpoint="c") as library:
        library.add_many([make_clip(number, filename=name) for number, name in enumerate(names)])
        yield library


@pytest.fixture
def read(library: SqliteLibrary, fake_model: Any, small_checkpoint: Path) -> Callable[..., Any]:
    """Reads the words of a query, with the library and the bundled checkpoint's tokenizer."""
    tokenizer = read_fast(small_checkpoint)
    assert tokenizer is not None

    def tokenise(texts: list[str]) -> tuple[Any, Any]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    fake_model.tokenise = tokenise
    engine = Engine(fake_model)

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    state: Any = SimpleNamespace(engine=engine, library=library, read=call)

    async def read_text(text: str) -> QueryWords:
        return await read_words(state, text)

    return read_text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dog barkng", "dog barking"),
        ("thunderstrom", "thunderstorm"),
        ("footsetps", "footsteps"),
        ("glas breaking", "glass breaking"),
        ("motorcyle", "motorcycle"),
        ("keybord typing", "keyboard typing"),
        ("The sound of a HELICOPTR", "The sound of a helicopter"),
        ("explotion, far away", "explosion, far away"),
        ("zorgblatt", "zorgblat"),
    ],
)
async def test_misspelled_words_are_corrected(read: Callable[..., Any], typed: str, meant: str) -> None:
    found = await read(typed)
    assert (found.text, found.corrected, found.known) == (meant, True, True)


@pytest.mark.parametrize(
    "query",
    ["hoover", "whoosh", "didgeridoo", "klaxon", "theremin", "UI click", "riser", "kettles", "Hund bellt", "krähe"]
    + ["Krahe", "tonnerre lointain", "zorgblat", "white noise", "engine idling at 3000 rpm", "dogs barked"],
)
async def test_known_words_are_left_alone(read: Callable[..., Any], query: str) -> None:
    found = await read(query)
    assert (found.text, found.corrected, found.known) == (query, False, True)


@pytest.mark.parametrize("query", ["asdfgh", "xqzt wvvk", "the qqqq", "𒀀𒁀", "???", "🐕"])
async def test_nonsense_is_not_known(read: Callable[..., Any], query: str) -> None:
    found = await read(query)
    assert (found.text, found.corrected, found.known) == (query, False, False)
    assert (await read(f"{query} dog")).known


async def test_letters_that_only_resemble_a_misspelled_word_are_left_alone(read: Callable[..., Any]) -> None:
    found = await read("gla\u017f breaking")  # a long s, which counts as an s when case is ignored
    assert (found.text, found.corrected) == ("gla\u017f breaking", False)


async def test_rare_words_weigh_more(read: Callable[..., Any]) -> None:
    found = await read("a dog bellt")  # two clips have "dog", one has "bellt"
    assert found.stems == ("dog", "bellt") and sum(found.weights) == pytest.approx(1)
    assert found.weights[1] / found.weights[0] == pytest.approx(np.log(7) / np.log(4))
    assert (await read("dogs dog")).stems == ("dog",)


def clip(name: str, **metadata: Any) -> Clip:
    return Clip("1", name, "", 1.0, 16_000, 1, "", metadata)


def test_coverage_is_the_weight_of_the_words_that_a_clip_has() -> None:
    query = QueryWords("dogs barking loudly", False, ("dog", "bark", "loudli"), (0.5, 0.3, 0.2), True)
    for found, expected in (
        (clip("DogBark_01.wav"), 0.8),
        (clip("x.wav", tags=["dogs", "loudly"]), 0.7),
        (clip("dog.wav", tags=["dog"], description="a dog barks"), 0.5 + 0.3 * 0.6),
        (clip("Dögge.wav"), 0.0),
    ):
        assert coverage(query, found, (1.0, 1.0, 0.6)) == pytest.approx(expected)
    assert coverage(QueryWords("?", False, (), (), False), clip("dog.wav"), (1, 1, 1)) == 0


def test_clips_with_a_word_pass_the_quick_test() -> None:
    every = [word for word in words.sound_words() if word.isalpha()]
    for word, stem in zip(every, stem_words(every), strict=True):
        query = QueryWords(word, False, (stem,), (1.0,), True)
        assert coverage(query, clip(f"{word.upper()}_01.wav"), (1, 1, 1)) == 1, word
    for name in ("Café.wav", "cafe\u0301.wav", "ＣＡＦＥ.wav", "MyCafe2.wav"):
        assert coverage(QueryWords("cafés", False, ("cafe",), (1.0,), True), clip(name), (1, 1, 1)) == 1, name


def test_all_words_of_a_text_in_name_and_tags() -> None:
    assert has_all_words("the barking of dogs", clip("Dog.wav", tags=["bark"]))
    assert not has_all_words("dog barking", clip("Dog.wav", description="it barks"))
    assert not has_all_words("???", clip("Dog.wav"))


async def test_tokens_of_a_byte_level_vocabulary(fake_model: Any) -> None:
    """A word is a token with a space before it, and unknown characters are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    merged = ["Ġd", "Ġdo", "Ġdog", "ca", "cat"]
    vocabulary = {token: number for number, token in enumerate([*sorted(alphabet), *merged])}
    merges = [("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g"), ("c", "a"), ("ca", "t")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_padding()

    def tokenise(texts: list[str]) -> tuple[Any, Any]:
        encoded = tokenizer.encode_batch(texts)
        return np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])

    fake_model.tokenise = tokenise
    engine = Engine(fake_model)
    assert await engine.single_tokens(["dog", "cat", "do", "𒀀"]) == {"dog", "do"}
    fake_model.tokenise = None
    assert await engine.single_tokens(["dog", "cat"]) == {"dog"}, "remembered"


async def test_a_model_without_a_tokenizer_has_no_tokens(fake_model: Any) -> None:
    assert await Engine(fake_model).single_tokens(["dog"]) == set()
