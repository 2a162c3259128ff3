"""Searching a library by words: names cut where people glue them, tags before descriptions, whatever is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import NewClip, SqliteLibrary
from index.sqlite.store import MIGRATIONS, Store
from index.text import TOKENIZER, fts_query, split_words, text_columns
from tests.support.clips import nearest_hits

Make = Callable[..., NewClip]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DogBark_01.wav", "Dog Bark_01.wav"),
        ("AMBRain", "AMB Rain"),
        ("rain2heavy", "rain 2 heavy"),
        ("狗叫声.wav", "狗 叫 声 .wav"),
        ("ÉcoleCloche", "École Cloche"),
        ("plain words", "plain words"),
    ],
)
def test_names_are_split_at_word_boundaries(text: str, words: str) -> None:
    assert split_words(text).split() == words.split()


@pytest.fixture
def library(open_library: Callable[..., SqliteLibrary], new_clip: Make) -> SqliteLibrary:
    library = open_library()
    for seed, (name, metadata) in enumerate(
        [
            ("DogBarking_01.wav", {}),
            ("take 7.wav", {"tags": ["dog", "bark"]}),
            ("take 8.wav", {"description": "A dog barks far away, then a car passes."}),
            ("rain.flac", {"place": {"city": "Göteborg"}}),
            ("狗叫声.ogg", {}),
            ("hum 50Hz.wav", {"tags": "electric"}),
        ]
    ):
        library.add(new_clip(seed, metadata, filename=name))
    return library


def names(library: SqliteLibrary, query: str, k: int = 10, **options: object) -> list[str]:
    return [hit.clip.filename for hit in library.search_words(query, np.ones(16), k, **options)]  # type: ignore[arg-type]


def test_words_find_names_tags_and_descriptions(library: SqliteLibrary) -> None:
    assert set(names(library, "barking dogs")) == {"DogBarking_01.wav", "take 7.wav", "take 8.wav"}
    assert names(library, "barking dogs")[-1] == "take 8.wav"  # a description counts less than a name or a tag
    assert names(library, "the dog and the car")[0] == "take 8.wav"
    assert names(library, "goteborg") == ["rain.flac"]
    assert names(library, "叫声") == ["狗叫声.ogg"]
    assert names(library, "50 hz") == names(library, "50Hz") == ["hum 50Hz.wav"]
    assert names(library, "bark", 1) == names(library, "bark")[:1]


@pytest.mark.parametrize("query", ["", " ", "???", '"', "*", "zebra", "(" * 100])
def test_queries_without_matches(library: SqliteLibrary, query: str) -> None:
    assert names(library, query) == []


def test_similarities_are_those_of_the_vectors(library: SqliteLibrary, new_clip: Make) -> None:
    query = new_clip(77).embedding
    exact = {hit.clip.id: hit.similarity for hit in nearest_hits(library, query, 10)}
    for hit in library.search_words("dog", query, 10):
        assert hit.similarity == pytest.approx(exact[hit.clip.id], abs=1e-6)


def test_words_follow_every_change(library: SqliteLibrary) -> None:
    (rain,) = library.search_words("rain", np.ones(16), 5)
    library.update_metadata(rain.clip.id, {"tags": ["thunderstorm"], "place": None})
    assert names(library, "thunderstorms") == ["rain.flac"] and names(library, "goteborg") == []
    assert names(library, "take", filter={"tags": "dog"}) == ["take 7.wav"]
    library.delete(rain.clip.id)
    assert names(library, "rain thunderstorm") == []


def test_a_library_from_before_has_its_words_after_opening(tmp_path: Path, new_clip: Make) -> None:
    Store(tmp_path / "catalog.sqlite3", MIGRATIONS[:1]).close()
    with sqlite3.connect(tmp_path / "catalog.sqlite3") as old:
        old.execute("INSERT INTO library VALUES (1, 'checkpoint-a', 16)")
        old.execute(
            "INSERT INTO clips VALUES (4, 'x', 'ab', 'OldBell.wav', 1, 16000, 1, '2026-01-01T00:00:00Z', ?)",
            ('{"tags": ["church"]}',),
        )
        old.execute("INSERT INTO vectors VALUES (4, ?)", (np.eye(16, dtype="<f4")[0].tobytes(),))
    old.close()
    with SqliteLibrary.open(tmp_path, dim=16, checkpoint="checkpoint-a") as library:
        assert names(library, "bells") == names(library, "church") == ["OldBell.wav"]


@given(st.text(max_size=60))
def test_any_text_is_a_query_that_fts5_reads(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE VIRTUAL TABLE words USING fts5(name, tags, others, tokenize = '{TOKENIZER}')")
    database.execute(
        "INSERT INTO words VALUES (?, ?, ?)", text_columns(text, {"tags": [text], "x": {"y": [text, 3, None]}})
    )
    query = fts_query(text)
    if query is not None:
        found = database.execute("SELECT count(*) FROM words WHERE words MATCH ?", (query,)).fetchone()[0]
        assert found in (0, 1)
        if all(character.isascii() for character in text):
            assert found == 1 or not any(character.isalnum() for character in text)
    database.close()
