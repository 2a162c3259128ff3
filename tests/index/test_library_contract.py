"""What every store of a library must do, tried on each: SQLite with FAISS, with its audio in a folder or in S3, and
Milvus (the server of milvus-lite).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import (
    AudioMissing,
    CheckpointMismatch,
    ClipNotFound,
    ConceptExists,
    ConceptNotFound,
    ContradictoryExamples,
    ExampleNotFound,
    ExampleSound,
    InvalidCursor,
    InvalidFilter,
    InvalidMetadata,
    LibraryError,
    NewClip,
    NewExample,
    NewSound,
    SqliteLibrary,
    TooManyExamples,
)
from index.library import Library
from index.quantization import encode_frames
from index.segments import cut_segments
from index.vectors.exact import ExactLibrary, matches
from tests.support.clips import nearest_hits, unit

DIM = 16
Make = Callable[..., NewClip]
Open = Callable[..., Library]


@pytest.fixture(params=["sqlite", "sqlite-s3", "milvus"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's library, each time the same one; the one opened before is closed first."""
    opened: list[Library] = []
    url = request.getfixturevalue("milvus_url")() if request.param == "milvus" else ""
    files = ""
    if request.param == "sqlite-s3":
        request.getfixturevalue("s3")
        files = "s3://finelap-test/library"

    def open_it(dim: int = DIM, checkpoint: str = "checkpoint-a") -> Library:
        if opened:
            opened[-1].close()
        if url:
            from index.milvus.library import MilvusLibrary

            opened.append(MilvusLibrary.open(url, tmp_path / "library", dim=dim, checkpoint=checkpoint))
        else:
            opened.append(SqliteLibrary.open(tmp_path / "library", dim=dim, checkpoint=checkpoint, files=files))
        return opened[-1]

    yield open_it
    for library in opened:
        library.close()


@pytest.fixture
def library(open_store: Open) -> Library:
    return open_store()


def _objects(library: Library, tmp_path: Path) -> list[str]:
    """The hashes that the names of audio files begin with, sorted."""
    if isinstance(library, SqliteLibrary):
        return sorted(library._audio.names())
    return sorted(file.name[:64] for file in (tmp_path / "library" / "audio").glob("??/*"))


# Adding


def test_frames_of_several_clips_at_once(library: Library, new_clip: Make) -> None:
    ids = [clip.id for clip, _ in library.add_many([new_clip(seed) for seed in range(4)])]
    gone = ids.pop()
    library.delete(gone)
    found = library.frame_codes_of([ids[2], gone, ids[0], "0" * 32, 'no"id'])
    assert found.keys() == {ids[0], ids[2]} and library.frame_codes_of([]) == {}
    for clip_id, (codes, hop) in found.items():
        frames, its_hop = library.frames(clip_id)
        np.testing.assert_array_equal(codes.decode(), frames)
        assert hop == its_hop


def test_added_clips_are_found(library: Library, new_clip: Make) -> None:
    new = new_clip(1, {"tags": ["dog", "bark"], "deep": {"a": [1, None]}, "ütf": "ß\u0000\U0001f415", "q\"'\\": 1})
    clip, created = library.add(new)
    assert created
    assert (clip.filename, clip.sha256, clip.duration) == (new.filename, new.sha256, new.duration)
    assert (clip.sample_rate, clip.channels, clip.metadata) == (44_100, 2, new.metadata)
    assert library.get(clip.id) == library.find(new.sha256) == clip
    assert library.find_many(["0" * 64, new.sha256, "no hash"]) == {new.sha256: clip}
    assert library.audio_path(clip.id).read_bytes() == new.audio
    np.testing.assert_allclose(library.clip_vector(clip.id), new.embedding, atol=1e-7)
    frames, hop = library.frames(clip.id)
    assert hop == new.frame_hop and frames.dtype == np.float32
    np.testing.assert_array_equal(frames, encode_frames(new.frames).decode())
    codes, _ = library.frame_codes(clip.id)
    np.testing.assert_array_equal(codes.decode(0, 1), frames[:1])
    [hit] = nearest_hits(library, new.embedding, 5)
    assert hit.clip == clip and hit.similarity == pytest.approx(1, abs=1e-5)
    assert len(library) == 1
    library.check()


def test_audio_comes_from_files_too(library: Library, new_clip: Make) -> None:
    audio = b"x" * 3_000_000
    file = io.BytesIO(audio)
    file.seek(5)
    clip, _ = library.add(replace(new_clip(1), audio=file, sha256=hashlib.sha256(audio).hexdigest()))
    assert library.audio_path(clip.id).read_bytes() == audio


def test_the_same_audio_twice_is_one_clip(library: Library, new_clip: Make, tmp_path: Path) -> None:
    first, _ = library.add(new_clip(1, {"a": 1}))
    again, created = library.add(replace(new_clip(1, {"a": 2}), filename="other name.wav"))
    assert (again, created) == (first, False)
    assert len(library) == 1 and len(nearest_hits(library, new_clip(1).embedding, 5)) == 1
    assert _objects(library, tmp_path) == [first.sha256]


def test_many_at_once(library: Library, new_clip: Make, tmp_path: Path) -> None:
    old, _ = library.add(new_clip(2))
    results = library.add_many([new_clip(1), new_clip(2), new_clip(3), new_clip(1)])
    assert [created for _, created in results] == [True, False, True, False]
    assert results[1][0] == old and results[3][0] == results[0][0]
    assert len(library) == 3
    assert library.add_many([]) == []
    assert _objects(library, tmp_path) == sorted(new_clip(i).sha256 for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metadata": {"x": float("nan")}}, InvalidMetadata),
        ({"metadata": ["not an object"]}, InvalidMetadata),
        ({"filename": "\udcff.wav"}, InvalidMetadata),
        ({"embedding": np.ones(DIM + 1, np.float32)}, ValueError),
        ({"embedding": np.ones(DIM, np.float32)}, ValueError),
        ({"frames": np.ones((0, DIM), np.float32)}, ValueError),
        ({"frames": np.full((2, DIM), np.inf, np.float32)}, ValueError),
        ({"frame_hop": 0.0}, ValueError),
        ({"sha256": "0" * 64}, ValueError),
    ],
)
def test_a_clip_that_is_refused_takes_its_whole_batch_with_it(
    library: Library, new_clip: Make, tmp_path: Path, changes: dict, error: type[Exception]
) -> None:
    with pytest.raises(error):
        library.add_many([new_clip(1), replace(new_clip(2), **changes)])
    assert len(library) == 0 and library.list(10) == ([], None)
    assert _objects(library, tmp_path) == []
    assert library.add(new_clip(1))[1]


def test_file_names_are_kept_in_any_script(library: Library, new_clip: Make, tmp_path: Path) -> None:
    for seed, name in enumerate(["雷雨.wav", "../../etc/passwd", "", "собака лает.ogg", "a\nb.wav", '"] or true']):
        clip, _ = library.add(replace(new_clip(seed), filename=name))
        assert library.get(clip.id).filename == name
        assert library.audio_path(clip.id).is_relative_to(tmp_path / "library")
        assert [found.id for found in library.list(5, None, {"filename": name})[0]] == [clip.id]


def test_a_record_without_audio_can_be_given_it_back(library: Library, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1, {"precious": "note"}))
    if isinstance(library, SqliteLibrary):
        library._audio.remove(clip.sha256)
    else:
        library.audio_path(clip.id).unlink()
    with pytest.raises(AudioMissing):
        library.audio_path(clip.id)
    with pytest.raises(ValueError):
        library.add(replace(new_clip(1), audio=b"something else"))
    assert library.get(clip.id) == clip
    assert library.add(new_clip(1)) == (clip, False)
    assert library.audio_path(clip.id).read_bytes() == new_clip(1).audio
    assert len(library.frames(clip.id)[0]) == 2


# Deleting and updating


def test_deleted_clips_are_gone(library: Library, new_clip: Make, tmp_path: Path) -> None:
    clip, _ = library.add(new_clip(1, {"a": 1}))
    other, _ = library.add(new_clip(2, {"a": 1}))
    library.delete(clip.id)
    assert _objects(library, tmp_path) == [other.sha256]
    assert library.find(clip.sha256) is None and len(library) == 1
    for filter in (None, {"a": 1}):
        assert [hit.clip for hit in nearest_hits(library, new_clip(1).embedding, 5, filter)] == [other]
    for ask in (library.get, library.delete, library.audio_path, library.frames, library.clip_vector):
        with pytest.raises(ClipNotFound):
            ask(clip.id)
    back, created = library.add(new_clip(1))
    assert created and back.id != clip.id


def test_unknown_ids_are_rejected(library: Library, new_clip: Make) -> None:
    library.add(new_clip(1))
    for clip_id in ("", "0" * 32, "../x", "\ud800", "ö", '" or id > "'):
        for ask in (library.get, library.delete, library.audio_path, library.frame_codes, library.clip_vector):
            with pytest.raises(ClipNotFound):
                ask(clip_id)
        with pytest.raises(ClipNotFound):
            library.update_metadata(clip_id, {})
    assert library.find("0" * 64) is None
    assert library.find_many(["0" * 64]) == library.find_many([]) == {}


def test_metadata_is_merged(library: Library, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1, {"tags": ["a"], "n": 1, "o": {"x": 1, "y": 2}}))
    changed = library.update_metadata(clip.id, {"n": None, "tags": ["b"], "o": {"x": None}, "new": True})
    assert changed == replace(clip, metadata={"tags": ["b"], "o": {"y": 2}, "new": True})
    assert library.get(clip.id) == changed
    for filter, found in [({"tags": "a"}, 0), ({"n": 1}, 0), ({"tags": "b"}, 1), ({"new": True}, 1)]:
        assert len(nearest_hits(library, new_clip(1).embedding, 5, filter)) == found
    for bad in ([1], "x", {"a": float("inf")}):
        with pytest.raises(InvalidMetadata):
            library.update_metadata(clip.id, bad)  # type: ignore[arg-type]
    assert library.get(clip.id) == changed
    np.testing.assert_allclose(library.clip_vector(clip.id), new_clip(1).embedding, atol=1e-7)
    assert [hit.clip.id for hit in library.search_words("sound", np.ones(DIM), 5)] == [clip.id]


# Searching


def test_searches_equal_the_reference(library: Library, new_clip: Make) -> None:
    """Beside a dictionary and a NumPy product, through additions, changes and deletions."""
    rng = np.random.default_rng(5)
    reference = ExactLibrary()
    for turn in range(4):
        news = [new_clip(100 * turn + i, {"n": i, "tags": [f"t{i % 3}", f"t{i % 4}"]}) for i in range(30)]
        for new, (clip, _) in zip(news, library.add_many(news), strict=True):
            reference.add(clip.id, new.embedding, clip.metadata)
        for clip_id in [list(reference.vectors)[i] for i in rng.choice(len(reference.vectors), 5, replace=False)]:
            library.delete(clip_id)
            reference.delete(clip_id)
        for clip_id in list(reference.vectors)[::9]:
            reference.metadata[clip_id] = library.update_metadata(clip_id, {"n": 1000 + turn}).metadata
        assert len(library) == len(reference.vectors)
        for filter in (None, {"tags": ["t1", "t2"]}, {"n": {"gte": 1000}}, {"tags": "t0", "n": {"lt": 10}}):
            query = new_clip(int(rng.integers(1 << 30))).embedding
            hits = nearest_hits(library, query, 10, filter)
            expected = reference.search(query, 10, filter)
            assert [hit.clip.id for hit in hits] == [clip_id for clip_id, _ in expected]
            np.testing.assert_allclose([hit.similarity for hit in hits], [s for _, s in expected], atol=1e-5)
            assert [clip.id for clip in library.list(1000, None, filter)[0]] == reference.passing(filter)


def test_a_filter_is_applied_before_the_best_are_taken(library: Library, new_clip: Make) -> None:
    news = [new_clip(i, {"n": i, "odd": bool(i % 2), "tags": ["all", f"t{i % 10}"]}) for i in range(60)]
    library.add_many(news)
    query = news[0].embedding
    worst = sorted(news, key=lambda new: float(new.embedding @ query))[:3]
    hits = nearest_hits(library, query, 3, {"n": [new.metadata["n"] for new in worst], "tags": "all"})
    assert [hit.clip.filename for hit in hits] == [new.filename for new in reversed(worst)]
    assert len(nearest_hits(library, query, 100, {"odd": True, "tags": ["t1", "t2"]})) == 6
    assert nearest_hits(library, query, 10, {"tags": "none"}) == []
    assert len(nearest_hits(library, query, 1000)) == 60
    for bad in ({"tags": {"$ne": "a"}}, {"n": []}, {"n": None}, [1]):
        for ask in (library.nearest, lambda q, k, f: library.search_words("sound", q, k, f)):
            with pytest.raises(InvalidFilter):
                ask(query, 10, bad)


CASES: list[tuple[dict, dict, bool]] = [
    ({"tags": ["dog", "animal"]}, {"tags": "animal"}, True),
    ({"tags": ["dog", "animal"]}, {"tags": ["cat", "dog"]}, True),
    ({"tags": "dog"}, {"tags": ["cat", "dog"]}, True),
    ({"tags": ["dog"]}, {"tags": "do"}, False),
    ({"n": 1}, {"n": 1.0}, True),
    ({"n": 1.0}, {"n": 1}, True),
    ({"n": 1}, {"n": True}, False),
    ({"n": True}, {"n": 1}, False),
    ({"n": "1"}, {"n": 1}, False),
    ({"n": -0.25}, {"n": {"lt": -0.2, "gte": -0.25}}, True),
    ({"n": 1e300}, {"n": {"gt": 1e299}}, True),
    ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ({}, {"a": 1}, False),
    ({"a": None}, {}, True),
    ({"n": 3}, {"n": {"gte": 3}}, True),
    ({"n": 3}, {"n": {"gt": 3}}, False),
    ({"n": [1, 9]}, {"n": {"gt": 2, "lt": 8}}, False),
    ({"n": [1, 5, 9]}, {"n": {"gt": 2, "lt": 8}}, True),
    ({"n": ["a", 5, "z"]}, {"n": {"gt": "m"}}, True),
    ({"n": "3"}, {"n": {"gte": 3}}, False),
    ({"n": True}, {"n": {"gte": 0}}, False),
    ({"s": "b"}, {"s": {"gte": "a", "lt": "c"}}, True),
    ({"s": "ß"}, {"s": {"gt": "z"}}, True),
    ({"s": "\U0001f415"}, {"s": {"gt": "\uffff"}}, True),
    ({"s": 'say "hi" \\ \n'}, {"s": 'say "hi" \\ \n'}, True),
    ({'k"] > 0 or true or x["': 1}, {'k"] > 0 or true or x["': {"gt": 5}}, False),
    ({"s": "x"}, {"s": '"] or true or facts in ["'}, False),
    ({"duration": 1000}, {"duration": {"lt": 5}}, True),
    ({"duration": 1000}, {"metadata.duration": {"gte": 5}}, True),
    ({}, {"filename": ["x", "sound.wav"]}, True),
    ({"filename": "x"}, {"filename": "x"}, False),
    ({}, {"filename": {"gte": "sound", "lt": "sounx"}}, True),
    ({}, {"sample_rate": 44_100, "channels": {"gt": 1.5}}, True),
    ({}, {"sample_rate": [8000, 48_000]}, False),
    ({}, {"created": {"gte": "2020-01-01", "lt": "2999-01-01"}}, True),
    ({}, {"created": {"lt": "2020-01-01"}}, False),
]


def test_filters_mean_what_the_reference_says(library: Library, new_clip: Make) -> None:
    record = {"filename": "sound.wav", "duration": 1.5, "sample_rate": 44_100, "channels": 2}
    news = [new_clip(i, {**metadata, "case": i}, **record) for i, (metadata, _, _) in enumerate(CASES)]
    clips = [clip for clip, _ in library.add_many(news)]
    for i, (metadata, filter, passes) in enumerate(CASES):
        assert matches(metadata, filter, {**record, "created": clips[i].created}) is passes, (metadata, filter)
        here = {**filter, "case": i}
        assert len(library.list(5, None, here)[0]) == passes, (metadata, filter)
        assert len(nearest_hits(library, news[i].embedding, 5, here)) == passes, (metadata, filter)
        assert len(library.search_words("sound", news[i].embedding, 5, here)) == passes, (metadata, filter)


def test_clips_are_found_by_their_nearest_segment(library: Library, new_clip: Make) -> None:
    """Beside all segments compared one by one, some of them in one long recording that takes the first places."""
    rng = np.random.default_rng(9)
    unit = rng.standard_normal((80, DIM)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    long = np.repeat(unit[:1] + 0.3 * unit, 3, axis=0)
    long /= np.linalg.norm(long, axis=1, keepdims=True)
    news = [new_clip(0, {"n": 0}, frames=long)] + [
        new_clip(i, {"n": i}, frames=np.repeat(unit[4 * i : 4 * i + 4], 3, axis=0)) for i in range(1, 20)
    ]
    clips = [clip for clip, _ in library.add_many(news)]
    gone = clips.pop(7)
    library.delete(gone.id)
    nearest = {clip.id: cut_segments(encode_frames(news[clip.metadata["n"]].frames), 0.16).decode() for clip in clips}
    for query in (unit[0], unit[33], unit[29]):
        for low, k in ((0, 3), (0, 50), (5, 4), (19, 4), (30, 4)):
            passing = [clip for clip in clips if clip.metadata["n"] >= low]
            expected = sorted(((float((nearest[c.id] @ query).max()), c) for c in passing), key=lambda pair: -pair[0])
            hits = library.search_segments(query, k, {"n": {"gte": low}} if low else None)
            assert [hit.clip for hit in hits] == [clip for _, clip in expected[:k]]
            np.testing.assert_allclose([hit.similarity for hit in hits], [s for s, _ in expected[:k]], atol=2e-3)
    for bad in (np.ones(DIM - 1), np.full(DIM, np.nan)):
        with pytest.raises(ValueError):
            library.search_segments(bad, 1)


def test_nearest_clips_without_records(library: Library, new_clip: Make) -> None:
    durations = [2.0 + 3 * (i % 3 + i % 2) for i in range(24)]
    news = [new_clip(i, {"n": i % 12}, duration=seconds) for i, seconds in enumerate(durations)]
    clips = [clip for clip, _ in library.add_many(news)]
    library.delete(clips.pop().id)
    for seed, filter in ((50, None), (51, {"n": {"lt": 5}})):
        query = new_clip(seed).embedding
        hits = [hit for hit in library.search_segments(query, 99, filter) if hit.clip.duration > 5]
        found = library.nearest_segments(query, 2, filter)
        assert found == [(hit.clip.id, pytest.approx(hit.similarity, abs=1e-6)) for hit in hits[:2]]
        for ask in (library.nearest, library.nearest_segments):
            found = ask(query, 4, filter)
            assert len(found) == (4 if ask == library.nearest else min(4, len(hits)))
            assert ask(query, 99, filter, found[2][1]) == found[:3]
    assert library.clips([clips[3].id, "0" * 32, 'no"id', clips[1].id]) == {c.id: c for c in (clips[3], clips[1])}
    assert library.clips([]) == {}


def test_similarities_are_those_of_the_clip_and_its_best_segment(library: Library, new_clip: Make) -> None:
    rng = np.random.default_rng(3)
    durations = [6.0, 6.0, 6.0, 5.0]
    news = [new_clip(i, frames=unit(rng.standard_normal((9, DIM))), duration=durations[i]) for i in range(4)]
    clips = [clip for clip, _ in library.add_many(news)]
    vectors = unit(rng.standard_normal((3, DIM)))
    found = library.similarities([clips[2].id, "0" * 32, clips[0].id], vectors)
    assert found.keys() == {clips[2].id, clips[0].id} and library.similarities([], vectors) == {}
    (short,) = library.similarities([clips[3].id], vectors).values()
    np.testing.assert_allclose(short, [vectors @ news[3].embedding, [np.nan] * 3], atol=1e-6)
    for number in (0, 2):
        segments = cut_segments(encode_frames(news[number].frames), 0.16).decode()
        expected = np.stack([vectors @ news[number].embedding, (segments @ vectors.T).max(axis=0)])
        np.testing.assert_allclose(found[clips[number].id], expected, atol=2e-3)


def test_words_are_counted_by_stem(library: Library, new_clip: Make) -> None:
    library.add(new_clip(1, {"tags": ["Theremin"]}, filename="DogBarking_01.wav"))
    (clip, _) = library.add(new_clip(2, {"note": "a dog barks"}, filename="take 2.wav"))
    counts = library.word_counts(["dogs", "bark", "theremin", "zebra"])
    if isinstance(library, SqliteLibrary):
        assert counts == {"dogs": 2, "bark": 2, "theremin": 1, "zebra": 0}
        assert library.similar_words("barkng", 1) == {"barking": 2}
        assert library.similar_words("thermin", 1) == {"theremin": 1} and library.similar_words("zebra", 1) == {}
    else:
        assert counts == {"dogs": 1, "bark": 1, "theremin": 1, "zebra": 0}
        assert library.similar_words("thermin", 1) == {}
    library.update_metadata(clip.id, {"note": "zebra"})
    assert library.word_counts(["zebra"]) == {"zebra": 1} and library.word_counts([]) == {}


def test_invalid_queries_are_rejected(library: Library) -> None:
    for vector in (np.ones(DIM - 1), np.ones((1, DIM)), np.full(DIM, np.nan)):
        with pytest.raises(ValueError):
            nearest_hits(library, vector, 1)
        with pytest.raises(ValueError):
            library.search_words("x", vector, 1)
    with pytest.raises(ValueError):
        nearest_hits(library, np.ones(DIM), 0)
    with pytest.raises(ValueError):
        library.list(0)
    assert nearest_hits(library, np.ones(DIM), 5) == []


def _names(library: Library, query: str, k: int = 10, **options: Any) -> list[str]:
    return [hit.clip.filename for hit in library.search_words(query, np.ones(DIM), k, **options)]


def test_words_find_names_tags_and_descriptions(library: Library, new_clip: Make) -> None:
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
    assert set(_names(library, "barking dogs")) == {"DogBarking_01.wav", "take 7.wav", "take 8.wav"}
    assert _names(library, "barking dogs")[-1] == "take 8.wav"
    assert _names(library, "the dog and the car")[0] == "take 8.wav"
    assert _names(library, "goteborg") == ["rain.flac"]
    assert _names(library, "叫声") == ["狗叫声.ogg"]
    assert _names(library, "50 hz") == _names(library, "50Hz") == ["hum 50Hz.wav"]
    assert _names(library, "bark", 1) == _names(library, "bark")[:1]
    for nothing in ("", " ", "???", '"', "*", "zebra", "(" * 100, "\u0000"):
        assert _names(library, nothing) == []
    query = new_clip(77).embedding
    exact = {hit.clip.id: hit.similarity for hit in nearest_hits(library, query, 10)}
    for hit in library.search_words("dog", query, 10):
        assert hit.similarity == pytest.approx(exact[hit.clip.id], abs=1e-5)
    (rain,) = library.search_words("rain", np.ones(DIM), 5)
    library.update_metadata(rain.clip.id, {"tags": ["thunderstorm"], "place": None})
    assert _names(library, "thunderstorms") == ["rain.flac"] and _names(library, "goteborg") == []
    assert _names(library, "take", filter={"tags": "dog"}) == ["take 7.wav"]
    library.delete(rain.clip.id)
    assert _names(library, "rain thunderstorm") == []


# Listing


@pytest.mark.parametrize("window", [None, 16])
def test_pages_in_any_order_while_clips_come_and_go(library: Library, new_clip: Make, window: int | None) -> None:
    if window is not None:
        if isinstance(library, SqliteLibrary):
            pytest.skip("only a store that does not sort looks through windows")
        library.window = window  # type: ignore[attr-defined]
    news = [new_clip(i, {"odd": bool(i % 2)}, filename=f"name {i % 5}.wav") for i in range(60)]
    clips = [clip for clip, _ in library.add_many(news)]
    for sort in ("created", "-created", "filename", "-filename", "duration", "-duration"):
        field = sort.removeprefix("-")
        there = [library.get(clip.id) for clip in clips if library.find(clip.sha256)]
        expected = sorted(there, key=lambda c: (getattr(c, field), clips.index(c)), reverse=sort.startswith("-"))  # noqa: B023
        page, cursor = library.list(7, sort=sort)
        seen = list(page)
        gone = [expected[6], expected[9], expected[-1]]  # the one the cursor stands on, and two to come
        for clip in gone:
            library.delete(clip.id)
        while cursor:
            page, cursor = library.list(7, cursor, sort=sort)
            seen += page
        assert seen == [clip for clip in expected if clip not in gone[1:]]
        odd = [clip for clip in expected if clip.metadata["odd"] and clip not in gone]
        first, cursor = library.list(5, None, {"odd": True}, sort)
        assert first + library.list(5, cursor, {"odd": True}, sort)[0] == odd[:10]
        with pytest.raises(InvalidCursor):
            library.list(5, cursor, sort="-filename" if sort == "filename" else "filename")
    with pytest.raises(ValueError):
        library.list(5, sort="loudness")


def test_newest_first_clips_that_come_later_are_not_in_the_pages(library: Library, new_clip: Make) -> None:
    first = [clip for clip, _ in library.add_many([new_clip(i) for i in range(25)])]
    page, cursor = library.list(10)
    seen = list(page)
    library.add_many([new_clip(100 + i) for i in range(5)])
    while cursor:
        page, cursor = library.list(10, cursor)
        seen += page
    assert seen == first[::-1]
    assert library.list(30)[1] is None  # exactly full: no empty page to follow


def test_invalid_cursors_are_rejected(library: Library) -> None:
    for sort in ("-created", "filename", "duration"):
        forged = [[sort, value, 5, "0" * 32] for value in ('" or true', "0g", 1.5, 6, None, [], float("inf"))]
        forged += [[sort, 5, 5, 'x" or true'], [sort, 5, -5, "0" * 32], [sort]]
        texts = [base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=") for parts in forged]
        if sort == "duration":
            texts.pop(2)  # 1.5 is one
        for cursor in ["", "!", "x", "YmVmb3JlOg", "YmVmb3JlOi01", "YWZ0ZXI6NQ", "ä", "A" * 5000, *texts]:
            with pytest.raises(InvalidCursor):
                library.list(5, cursor, sort=sort)


# Opening again


def test_everything_survives_reopening(open_store: Open, new_clip: Make) -> None:
    library = open_store()
    news = [new_clip(i, {"n": i}) for i in range(20)]
    clips = [clip for clip, _ in library.add_many(news)]
    library.delete(clips[4].id)
    library.update_metadata(clips[5].id, {"n": "changed"})
    before, found = library.list(100), nearest_hits(library, news[7].embedding, 20)
    library = open_store()
    assert library.list(100) == before and len(library) == 19
    assert [hit.clip for hit in nearest_hits(library, news[7].embedding, 20)] == [hit.clip for hit in found]
    assert library.audio_path(clips[0].id).read_bytes() == news[0].audio
    assert [hit.clip.id for hit in nearest_hits(library, news[5].embedding, 5, {"n": "changed"})] == [clips[5].id]


def test_a_library_belongs_to_the_checkpoint_that_made_it(open_store: Open, new_clip: Make) -> None:
    clip, _ = open_store().add(new_clip(1))
    with pytest.raises(CheckpointMismatch, match="checkpoint-a.*checkpoint-b"):
        open_store(checkpoint="checkpoint-b")
    with pytest.raises(CheckpointMismatch):
        open_store(dim=DIM * 2)
    assert open_store().get(clip.id) == clip


def test_a_closed_library_raises(open_store: Open, new_clip: Make) -> None:
    library = open_store()
    clip, _ = library.add(new_clip(1))
    library.close()
    library.close()
    for ask in (lambda: library.get(clip.id), lambda: library.add(new_clip(2)), library.check):
        with pytest.raises(LibraryError):
            ask()


# Threads


def test_many_threads_add_search_and_delete(library: Library, new_clip: Make, tmp_path: Path) -> None:
    def work(seed: int) -> None:
        clip, created = library.add(new_clip(seed, {"seed": seed}))
        assert created
        [hit] = nearest_hits(library, new_clip(seed).embedding, 1, {"seed": seed})
        assert hit.clip == clip
        assert library.update_metadata(clip.id, {"seen": True}).metadata == {"seed": seed, "seen": True}
        if seed % 2:
            library.delete(clip.id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert len(library) == len(library.list(1000)[0]) == 20
    assert _objects(library, tmp_path) == sorted(new_clip(seed).sha256 for seed in range(0, 40, 2))


def test_the_same_audio_from_many_threads_is_one_clip(library: Library, new_clip: Make, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: library.add(new_clip(1)), range(12)))
    assert sum(created for _, created in results) == 1
    assert len({clip.id for clip, _ in results}) == 1
    assert len(_objects(library, tmp_path)) == 1


# Concepts


def _sound(seed: int) -> NewSound:
    rng = np.random.default_rng(seed)
    audio = b"example %d" % seed
    frames = encode_frames(unit(rng.standard_normal((5, DIM))))
    sha256 = hashlib.sha256(audio).hexdigest()
    return NewSound(ExampleSound(sha256, 0.8, unit(rng.standard_normal(DIM)), frames, 0.16), audio)


def test_concepts_and_examples_are_kept(open_store: Open, new_clip: Make) -> None:
    library = open_store()
    clip, _ = library.add(new_clip(1))
    sound = _sound(1)
    examples = [
        NewExample(True, clip.filename, clip.id),
        NewExample(False, "n.wav", sound=_sound(2)),
        NewExample(True, "ünïcode.wav", sound=sound),
    ]
    made = library.concepts.create('Türklingel\'s "bell"', "a bell", examples)
    library.concepts.create("another", None, [NewExample(True, clip.filename, clip.id, 0.1, 0.4)])
    library.concepts.save_fit(made.id, "fingerprint", '{"vector": [1]}')
    library.concepts.save_fit("0" * 32, "fingerprint", "of a concept that was deleted")
    library = open_store()
    store = library.concepts
    assert [concept.name for concept in store.list()] == ['Türklingel\'s "bell"', "another"]
    found = store.get(made.name)
    assert found == store.get(made.id) and (found.text, found.created) == ("a bell", made.created)
    assert (found.fitted_to, found.fit) == ("fingerprint", '{"vector": [1]}')
    kept = store.examples(made.id)
    assert [(e.label, e.clip_id, e.filename) for e in kept] == [
        (True, clip.id, clip.filename),
        (False, None, "n.wav"),
        (True, None, "ünïcode.wav"),
    ]
    (part,) = store.examples("another")
    assert (part.start, part.end) == (0.1, 0.4)
    assert store.audio(made.id, kept[2].id) == sound.audio
    (loaded,) = store.sounds([sound.sound.sha256, "f" * 64]).values()
    assert (loaded.duration, loaded.frame_hop) == (0.8, 0.16)
    np.testing.assert_allclose(loaded.embedding, sound.sound.embedding, atol=1e-7)
    np.testing.assert_array_equal(loaded.frames.decode(), sound.sound.frames.decode())
    vectors = store.vectors([clip.id, "0" * 32])
    np.testing.assert_allclose(vectors[clip.id].vector, new_clip(1).embedding, atol=1e-7)
    assert vectors.keys() == {clip.id} and [one.id for one in store.sample(10)] == [clip.id]
    store.delete(made.id)
    assert [concept.name for concept in store.list()] == ["another"] and not store.sounds([sound.sound.sha256])
    for call in (store.get, store.examples, store.delete, store.removed):
        with pytest.raises(ConceptNotFound):
            call(made.name)


def test_changes_of_concepts(library: Library, new_clip: Make) -> None:
    store = library.concepts
    clips = [library.add(new_clip(seed))[0] for seed in range(3)]
    made = store.create("a", None, [NewExample(True, "x", clips[0].id)])
    with pytest.raises(ConceptExists):
        store.create("a", "text", [])
    renamed = store.update("a", name="b", text="text")
    assert (renamed.id, renamed.name, renamed.text) == (made.id, "b", "text") and renamed.updated > made.updated
    store.create("a", "again", [])
    with pytest.raises(ConceptExists):
        store.update("b", name="a")
    assert store.update("b", text="").text is None
    assert renamed.threshold is None and store.update("b", threshold=0.3).threshold == 0.3
    assert store.update("b", name="c").threshold == store.get("c").threshold == store.list()[-1].threshold == 0.3
    assert store.update("c", name="b", threshold=0.0).threshold is None
    store.update("b", threshold=0.4)
    (added,) = store.add_examples("b", [NewExample(True, "y", clips[1].id, 0.2, 0.4)])
    (same,) = store.add_examples("b", [NewExample(True, "y", clips[1].id, 0.2, 0.4)])
    assert same.id == added.id and len(store.examples("b")) == 2
    contradictory = NewExample(False, "y", clips[1].id, 0.1, 0.35)
    for new in ([contradictory], [NewExample(True, "z", clips[2].id), NewExample(False, "z", clips[2].id)]):
        with pytest.raises(ContradictoryExamples):
            store.add_examples("b", new)
    assert len(store.examples("b")) == 2, "none of them"
    store.add_examples("b", [NewExample(False, "y", clips[1].id, 0.35, 0.6), NewExample(False, "z", clips[2].id)])
    with pytest.raises(TooManyExamples):
        store.add_examples("b", [NewExample(True, "x", clips[0].id, n, n + 1) for n in range(2000)])
    store.delete_example("b", added.id)
    with pytest.raises(ExampleNotFound):
        store.delete_example("b", added.id)
    with pytest.raises(ExampleNotFound):
        store.audio("b", store.examples("b")[0].id)
    assert store.get("b").threshold == 0.4, "examples change nothing of it"
    library.delete(clips[2].id)
    assert [one.clip_id for one in store.examples("b")] == [clips[0].id, clips[1].id] and store.removed("b") == 1


def test_several_people_teach_one_concept(library: Library, new_clip: Make) -> None:
    clips = [library.add(new_clip(seed))[0] for seed in range(8)]
    store = library.concepts
    store.create("shared", "text", [])

    def teach(number: int) -> None:
        own = NewExample(number % 2 == 0, "x", clips[number].id)
        store.add_examples("shared", [own, NewExample(True, "s", sound=_sound(1))])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(teach, range(8)))
    found = store.examples("shared")
    assert sorted(one.clip_id for one in found if one.clip_id) == sorted(clip.id for clip in clips)
    assert len(found) == 9, "the sound that all of them gave is one example"
