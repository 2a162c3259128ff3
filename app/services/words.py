"""The words of a query: which of them carry its meaning, how many a clip has, and which are misspelled.

A word is known if a clip has it, if it is the name of a sound (the phrase bank and the UCS list), or if it is a single
token of the model. An unknown word that is close to one of a clip or of a sound is a misspelling of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from app.audio.ucs import categories
from app.state import AppState
from index import STOP_WORDS, Clip, Library, stem_words, text_columns, words_of

SOUND_WORDS = "sound_words.txt"
MAX_WORDS = 32  # content words of a query; further ones don't count
MAX_CORRECTIONS = 4  # unknown words of a query that are compared with known ones

# Words that say that a sound is meant, not which one.
_FILLERS = frozenset(
    ["audio", "effect", "effects", "fx", "recording", "recordings", "sfx", "somebody", "someone", "something"]
    + ["sound", "sounds", "being", "into", "that", "this", "while"]
)
_COMMON = 3  # categories of the UCS list that have a word, so that others can be misspellings of it
_WORDS = re.compile(r"[^\W_]+")
_FRAME = re.compile(r"\b(?:noises?|clips?)\s+(?:of|from)\b", re.IGNORECASE)  # "the noise of"; but not "white noise"


@dataclass(frozen=True)
class QueryWords:
    """The content words of a query.

    text: the query, with misspelled words corrected. stems: of its content words. weights: of the stems, larger for
    rarer words; they add up to 1. known: whether any of the words is known, so that the model can have understood it.
    """

    text: str
    corrected: bool
    stems: tuple[str, ...]
    weights: tuple[float, ...]
    known: bool


async def read_words(state: AppState, text: str) -> QueryWords:
    """Corrects a query and weighs its words."""
    words = content_words(text)
    counts, unknown, clips = await state.read(_look_up, state.library, words)
    if unknown:
        tokens = await state.engine.single_tokens(unknown)
        unknown = [word for word in unknown if word not in tokens]
    corrections = await state.read(_corrections, state.library, unknown[:MAX_CORRECTIONS]) if unknown else {}
    spelled = _replace(text, corrections) if corrections else text
    if spelled != text:
        words = content_words(spelled)
        counts, _, clips = await state.read(_look_up, state.library, words)
    known = any(word not in unknown for word in words)
    stems, weights = _weigh(words, counts, clips)
    return QueryWords(spelled, spelled != text, stems, weights, known)


def _look_up(library: Library, words: Sequence[str]) -> tuple[dict[str, int], list[str], int]:
    """How many clips have each word, the words that neither a clip has nor a sound, and how many clips there are."""
    counts = library.word_counts(words)
    stems = zip(words, stem_words(words), strict=True)
    return counts, [word for word, stem in stems if not counts[word] and stem not in sound_stems()], len(library)


def content_words(text: str) -> list[str]:
    """The distinct words of a query that tell sounds apart, in lower case: no stop words, no "the sound of".

    If there are no others, all of its words.
    """
    words = list(dict.fromkeys(words_of(text)))
    framed = words_of(_FRAME.sub(" ", text))
    content = [
        word
        for word in words
        if word in framed
        and word not in STOP_WORDS
        and word not in _FILLERS
        and not (len(word) == 1 and word.isascii() and word.isalpha())
    ]
    return (content or words)[:MAX_WORDS]


def coverage(words: QueryWords, clip: Clip, columns: Sequence[float]) -> float:
    """The share of the query's words that a clip has, by weight, 0 to 1.

    columns: how much a word counts in the file name, in the tags and in other metadata. A word counts once, where it
    counts most.
    """
    if not _may_cover(words, clip):
        return 0.0
    found: dict[str, float] = {}
    for worth, text in zip(columns, text_columns(clip.filename, clip.metadata), strict=True):
        if text:
            for stem in set(stem_words(_WORDS.findall(text.lower()))).intersection(words.stems):
                found[stem] = max(found.get(stem, 0.0), worth)
    return float(sum(weight * found.get(stem, 0.0) for stem, weight in zip(words.stems, words.weights, strict=True)))


def found_words(words: QueryWords, clip: Clip) -> tuple[list[str], list[str], list[str]]:
    """The words of a clip's file name, tags and other metadata that are among the query's, as the clip has them.

    In lower case, each once, in the order of the text; of other metadata only those that neither name nor tags have,
    because a word counts once.
    """
    if not _may_cover(words, clip):
        return [], [], []
    found: list[dict[str, str]] = []
    for text in text_columns(clip.filename, clip.metadata):
        own = list(dict.fromkeys(_WORDS.findall(text.lower())))
        stems = zip(own, stem_words(own), strict=True)
        found.append({word: stem for word, stem in stems if stem in words.stems})
    name, tags, others = found
    counted = {*name.values(), *tags.values()}
    return list(name), list(tags), [word for word, stem in others.items() if stem not in counted]


def _may_cover(words: QueryWords, clip: Clip) -> bool:
    """Whether the beginning of any stem occurs in a clip's texts: a quick test that most clips fail.

    A stem is its word but for the end, of which the last letter may be changed.
    """
    text = f"{clip.filename} {clip.metadata}".lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    return any(stem[: min(3, max(1, len(stem) - 1))] in text for stem in words.stems)


def has_all_words(text: str, clip: Clip) -> bool:
    """Whether a clip's file name and tags contain all content words of a text."""
    name, tags, _ = text_columns(clip.filename, clip.metadata)
    wanted = set(stem_words(content_words(text)))
    return bool(wanted) and wanted <= set(stem_words(words_of(f"{name}\n{tags}")))


@functools.cache
def sound_words() -> Mapping[str, int]:
    """Words that name sounds, and how often: those of the phrase bank and of the UCS list."""
    found = dict(_bank_words())
    for category in categories().values():
        described = " ".join([category.category, category.subcategory, *category.synonyms])
        for word in set(_WORDS.findall(described.lower())):
            found[word] = found.get(word, 0) + 1
    return found


@functools.cache
def _bank_words() -> Mapping[str, int]:
    """The words of the phrase bank that name sounds, with their number of phrases (app/data/sound_words.txt)."""
    text = resources.files("app").joinpath("data", SOUND_WORDS).read_text(encoding="utf-8")
    return {word: int(count) for word, count in (line.split() for line in text.splitlines()[1:])}


@functools.cache
def sound_stems() -> frozenset[str]:
    """The stems of `sound_words`. The first call takes about 0.2 s."""
    return frozenset(stem_words(list(sound_words())))


def edits_allowed(word: str) -> int:
    """How many edits away a word may be and still be taken for another: none in short words and in numbers."""
    if not word.isalpha() or len(word) < 4:
        return 0
    return 1 if len(word) < 7 else 2


def _corrections(library: Library, words: Sequence[str]) -> dict[str, str]:
    """The misspelled ones of some unknown words, and how they are spelled."""
    found = {word: _spell(word, library) for word in words}
    return {word: spelled for word, spelled in found.items() if spelled is not None}


def _spell(word: str, library: Library) -> str | None:
    """The known word that is meant, or None: the one with fewest edits, of the library rather than of other sounds."""
    from rapidfuzz.distance import DamerauLevenshtein
    from rapidfuzz.process import extract

    allowed = edits_allowed(word)
    if not allowed:
        return None
    own = library.similar_words(word, allowed)
    sounds = sound_words()
    near = extract(word, _spellings(), scorer=DamerauLevenshtein.distance, score_cutoff=allowed, limit=None)
    edits = {other: int(distance) for other, distance, _ in near}
    edits |= {other: DamerauLevenshtein.distance(word, other) for other in own}
    # two edits and another first letter make another word
    likely = [other for other, distance in edits.items() if distance == 1 or other[0] == word[0]]
    return min(
        likely,
        key=lambda other: (edits[other], other not in own, -own.get(other, sounds.get(other, 0)), other),
        default=None,
    )


@functools.cache
def _spellings() -> list[str]:
    """The sound words that an unknown word can be a misspelling of: not the rare ones of the UCS list."""
    bank = _bank_words()
    return [word for word, count in sound_words().items() if edits_allowed(word) and (word in bank or count >= _COMMON)]


def _replace(text: str, corrections: Mapping[str, str]) -> str:
    """The text with whole words replaced, whatever their case."""
    pattern = re.compile(
        r"(?<![^\W_])(" + "|".join(re.escape(word) for word in corrections) + r")(?![^\W_])", re.IGNORECASE
    )
    return pattern.sub(lambda match: corrections.get(match.group().lower(), match.group()), text)


def _weigh(words: Sequence[str], counts: Mapping[str, int], clips: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The distinct stems of the words, and weights that add up to 1: inverse document frequencies."""
    rarity = {
        stem: float(np.log1p(max(clips, 1) / max(counts[word], 1)))
        for stem, word in zip(stem_words(words), words, strict=True)
    }
    total = sum(rarity.values())
    return tuple(rarity), tuple(value / total for value in rarity.values())
