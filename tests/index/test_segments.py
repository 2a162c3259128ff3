"""Segments find what a clip's own vector hides, and go with their clip through every change."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import LibraryError, NewClip, SqliteLibrary
from index.quantization import FrameCodes, encode_frames
from index.segments import SegmentIndex, SegmentIndexes, cut_segments
from index.sqlite import queries
from model.segments import MAX_SECONDS, MIN_ALLOWED, SECONDS_PER_SEGMENT, THRESHOLDS
from tests.support.clips import make_clip, nearest_hits

DIM = 16
HOP = 0.16


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def wandering(rng: np.random.Generator, count: int, step: float) -> np.ndarray:
    """Frames (count, D) that drift: small steps sound alike for long, large ones never."""
    walk = np.cumsum(rng.standard_normal((count, DIM)) * step, axis=0) + rng.standard_normal(DIM)
    return unit(walk)


def slowly(frames: np.ndarray, alike: float, longest: int = round(MAX_SECONDS / HOP)) -> np.ndarray:
    """Segments (S, D) for one level: frames put into lists, one after another."""
    lists: list[list[np.ndarray]] = [[frames[0]]]
    for frame in frames[1:]:
        mean = np.mean(lists[-1], axis=0)
        if len(lists[-1]) < longest and frame @ mean / np.linalg.norm(mean) >= alike:
            lists[-1].append(frame)
        else:
            lists.append([frame])
    return unit(np.stack([np.mean(part, axis=0) for part in lists]))


@pytest.mark.parametrize("step", [0.0, 0.01, 0.05, 0.2, 5.0])
@pytest.mark.parametrize("count", [1, 2, 61, 62, 63, 5000])
def test_segments_are_those_of_the_tightest_level_that_is_allowed(count: int, step: float) -> None:
    codes = encode_frames(wandering(np.random.default_rng(count), count, step))
    allowed = max(MIN_ALLOWED + count * HOP / SECONDS_PER_SEGMENT, count / round(MAX_SECONDS / HOP) + 1)
    tries = [slowly(codes.decode(), level) for level in THRESHOLDS]
    tries.append(slowly(codes.decode(), -2, -(-count // int(allowed))))
    expected = next(segments for segments in tries if len(segments) <= allowed)
    found = cut_segments(codes, HOP).decode()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_a_knock_has_a_segment_of_its_own_and_silence_one_for_each_ten_seconds() -> None:
    rng = np.random.default_rng(0)
    silence, knock = np.eye(DIM, dtype=np.float32)[0], unit(rng.standard_normal(DIM))
    frames = np.tile(silence, (22_500, 1))  # an hour
    frames[10_000:10_003] = knock
    found = cut_segments(encode_frames(frames), HOP).decode()
    assert (found @ knock).max() > 0.999
    assert len(found) <= 3600 / (MAX_SECONDS - HOP) + 3


def test_frames_of_no_length_are_taken() -> None:
    assert len(cut_segments(encode_frames(np.zeros((5, DIM), np.float32)), HOP)) == 1


class Reference:
    """Segments by row, compared one by one."""

    def __init__(self) -> None:
        self.parts: dict[int, np.ndarray] = {}

    def search(self, query: np.ndarray, clips: int, only: np.ndarray | None) -> list[tuple[int, float]]:
        rows = self.parts if only is None else [row for row in self.parts if row in only]
        best = [(row, float((self.parts[row] @ query).max())) for row in rows]
        return sorted(best, key=lambda pair: -pair[1])[:clips]


@pytest.mark.parametrize("apart", [False, True])
def test_the_index_equals_the_reference_through_changes(apart: bool) -> None:
    rng = np.random.default_rng(3)
    index: SegmentIndex | SegmentIndexes = SegmentIndexes(DIM) if apart else SegmentIndex(DIM)
    reference, row = Reference(), 0
    for _ in range(120):
        if reference.parts and rng.random() < 0.3:
            gone = int(rng.choice(list(reference.parts)))
            assert index.remove(gone) == len(reference.parts.pop(gone))
        else:
            added = {}
            for _ in range(rng.integers(1, 4)):
                row += int(rng.integers(1, 3))
                # most have a few segments, some so many, alike, that they fill the first places of a search
                centre = unit(rng.standard_normal(DIM))
                size, spread = (int(rng.integers(60, 90)), 0.05) if rng.random() < 0.2 else (int(rng.integers(1, 6)), 1)
                added[row] = unit(centre + spread * rng.standard_normal((size, DIM)))
            rows = np.repeat(list(added), [len(p) for p in added.values()])
            if isinstance(index, SegmentIndexes):
                index.add(rows, np.concatenate(list(added.values())), seconds=np.where(rows % 3, 2.0, 60.0))
            else:
                index.add(rows, np.concatenate(list(added.values())))
            reference.parts |= added
        assert len(index) == sum(map(len, reference.parts.values()))
        query = unit(rng.standard_normal(DIM))
        if rng.random() < 0.5 and reference.parts:  # one of the many-segment clips, perhaps
            query = next(iter(reference.parts.values()))[0]
        only = None
        if rng.random() < 0.5:
            only = rng.integers(0, row + 3, 10)
        clips = int(rng.integers(1, 9))
        with index.reading():
            rows, similarities = index.search(query, clips, only)
        expected = reference.search(query, clips, only)
        assert len(set(rows.tolist())) == len(rows) and set(rows.tolist()) <= set(reference.parts)
        best = dict(reference.search(query, 10**6, only))  # rounding may exchange neighbours
        np.testing.assert_allclose([best[row] for row in rows.tolist()], similarities, atol=1e-3)
        np.testing.assert_allclose(similarities, [s for _, s in expected], atol=1e-3)
        if isinstance(index, SegmentIndexes):
            with index.reading():
                rows, similarities = index.search_long(query, clips, only)
                middle = float(np.median(similarities)) if len(similarities) else 0.0
                above, their = index.search_long(query, clips, only, least=middle)
            expected = [pair for pair in best.items() if pair[0] % 3 == 0][:clips]
            np.testing.assert_allclose(similarities, [s for _, s in expected], atol=1e-3)
            assert not (rows % 3).any()
            assert above.tolist() == rows[similarities >= middle].tolist()
            assert their.tolist() == similarities[similarities >= middle].tolist()


def test_long_clips_are_those_over_five_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    news = [
        make_clip(i, {"odd": i % 2}, frames=unit(rng.standard_normal((6, DIM))), duration=1.0 + i % 10)
        for i in range(60)
    ]
    with SqliteLibrary.open(tmp_path, dim=DIM, checkpoint="c") as library:
        clips = [clip for clip, _ in library.add_many(news)]
        query = unit(rng.standard_normal(DIM))
        everything = {hit.clip.id: hit.similarity for hit in library.search_segments(query, 60)}
        assert len(everything) == 60, "a search for moments compares all"
        for filter in (None, {"odd": 1}):
            passing = [clip for clip in clips if filter is None or clip.metadata["odd"]]
            long = sorted((everything[clip.id] for clip in passing if clip.duration > 5), reverse=True)
            found = library.nearest_segments(query, 9, filter)
            assert [s for _, s in found] == long[:9]
            assert all(everything[clip_id] == s for clip_id, s in found)
            assert library.nearest_segments(query, 99, filter, long[3]) == library.nearest_segments(query, 4, filter)
        library.delete(found[0][0])
        assert found[0][0] not in dict(library.nearest_segments(query, 9))


def test_an_empty_index_finds_nothing() -> None:
    index = SegmentIndex(DIM)
    with index.reading():
        assert len(index.search(np.ones(DIM, np.float32), 3)[0]) == 0
        assert len(index.search(np.ones(DIM, np.float32), 3, np.array([5]))[0]) == 0
    index.add(np.array([1, 1]), unit(np.ones((2, DIM))))
    with index.reading():
        assert len(index.search(np.ones(DIM, np.float32), 3, np.array([], np.int64))[0]) == 0


def segments_on_disk(library: SqliteLibrary) -> dict[str, np.ndarray]:
    with library._store.read() as view:
        return {
            clip_id: FrameCodes.from_bytes(codes, DIM).decode()
            for clip_id, codes in view.execute("SELECT id, codes FROM segments JOIN clips USING (row)")
        }


def check_agreement(library: SqliteLibrary) -> None:
    """Every clip has on the disk the segments of its frames, and the index has these and no others."""
    clips, _ = library.list(1000)
    there = segments_on_disk(library)
    assert set(there) == {clip.id for clip in clips}
    assert library._filled.wait(60)
    assert len(library._segments) == sum(map(len, there.values()))
    for clip in clips:
        codes, hop = library.frame_codes(clip.id)
        np.testing.assert_array_equal(there[clip.id], cut_segments(codes, hop).decode())
        for segment in there[clip.id][:5]:
            [hit] = library.search_segments(segment, 1)
            assert hit.similarity == pytest.approx(1, abs=1e-3)
            assert hit.clip == clip


def test_segments_come_stay_and_go_with_their_clip(
    library: SqliteLibrary, open_library: Callable[..., SqliteLibrary], new_clip: Callable[..., NewClip]
) -> None:
    clips = [clip for clip, _ in library.add_many([new_clip(seed, {"seed": seed}) for seed in range(12)])]
    check_agreement(library)
    library.add(new_clip(3))  # there already
    library.delete(clips[4].id)
    library.update_metadata(clips[5].id, {"seed": 100})
    check_agreement(library)
    for hit in library.search_segments(np.ones(DIM), 50, {"seed": {"gte": 8}}):
        assert hit.clip.metadata["seed"] >= 8
    assert len(library.search_segments(np.ones(DIM), 50, {"seed": {"gte": 8}})) == 5
    assert library.search_segments(np.ones(DIM), 50, {"seed": 4}) == []
    assert len(library.search_segments(np.ones(DIM), 3)) == 3
    again = open_library()
    check_agreement(again)
    assert len(again) == 11


def test_short_clips_segments_are_read_while_the_library_answers(
    library: SqliteLibrary,
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clips that come and go meanwhile are right, and a search for moments waits for all."""
    clips = [clip for clip, _ in library.add_many([new_clip(seed, duration=1.0 + seed % 8) for seed in range(20)])]
    reading, go = threading.Event(), threading.Event()
    read = queries.short_segments

    def slow(*args: Any) -> Any:
        reading.set()
        assert go.wait(60)
        return read(*args, batch=3)

    monkeypatch.setattr(queries, "short_segments", slow)
    again = open_library()
    with ThreadPoolExecutor(4) as threads:
        assert reading.wait(60)
        assert len(again.nearest(np.ones(DIM), 99)) == 20 and again.nearest_segments(np.ones(DIM), 99)
        waiting = threads.submit(again.search_segments, np.ones(DIM), 99)
        threads.submit(again.delete, clips[0].id)
        threads.submit(again.delete, clips[-1].id)
        added = threads.submit(again.add, new_clip(99, duration=2.0))
        time.sleep(0.1)
        assert not waiting.done()
        go.set()
        waiting.result(60)
        added.result(60)
    assert len(again) == 19
    check_agreement(again)


def test_a_library_that_closes_or_fails_while_segments_are_read(
    library: SqliteLibrary,
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library.add_many([new_clip(seed, duration=1.0) for seed in range(9)])
    read = queries.short_segments

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return read(*args, batch=1)

    monkeypatch.setattr(queries, "short_segments", slow)
    closing = open_library()
    closing.close()
    assert closing._filled.wait(60)

    def fail(*args: Any) -> Any:
        raise sqlite3.DatabaseError("the disk fails")

    monkeypatch.setattr(queries, "short_segments", fail)
    failed = open_library()
    with pytest.raises(LibraryError, match="short clips"):
        failed.search_segments(np.ones(DIM), 3)
    with pytest.raises(LibraryError, match="short clips"):
        failed.check()
    assert len(failed.nearest(np.ones(DIM), 99)) == 9


def test_the_best_stretch_decides_and_questions_are_checked(
    library: SqliteLibrary, new_clip: Callable[..., NewClip]
) -> None:
    rng = np.random.default_rng(8)
    for seed in range(30):
        library.add(new_clip(seed, frames=wandering(rng, 200, 0.1)))
    query = unit(rng.standard_normal(DIM))
    expected = sorted(((clip, (s @ query).max()) for clip, s in segments_on_disk(library).items()), key=lambda p: -p[1])
    hits = library.search_segments(query, 10)
    assert [hit.clip.id for hit in hits] == [clip for clip, _ in expected[:10]]
    np.testing.assert_allclose([hit.similarity for hit in hits], [s for _, s in expected[:10]], atol=1e-3)
    with pytest.raises(ValueError, match="k must"):
        library.search_segments(query, 0)
    with pytest.raises(ValueError, match="query"):
        library.search_segments(query[:3], 1)
    with pytest.raises(LibraryError, match="filter"):
        library.search_segments(query, 1, {"a": None})


def test_a_delete_that_fails_leaves_the_segments(
    library: SqliteLibrary, new_clip: Callable[..., NewClip], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [library.add(new_clip(seed))[0] for seed in range(4)]

    def fail(*_: Any) -> None:
        raise LibraryError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(queries, "delete", fail)
        with pytest.raises(LibraryError, match="gone"):
            library.delete(clips[1].id)
    check_agreement(library)


def test_an_older_library_gets_its_segments_once(
    library: SqliteLibrary, open_library: Callable[..., SqliteLibrary], new_clip: Callable[..., NewClip]
) -> None:
    rng = np.random.default_rng(5)
    for seed in range(20):
        library.add(new_clip(seed, frames=wandering(rng, 5 * seed + 1, 0.1), frame_hop=0.1 + seed / 100))
    expected = segments_on_disk(library)
    library.close()
    old = sqlite3.connect(library.folder / "catalog.sqlite3")
    later = ("segments", "job_events", "jobs", "concept_examples", "concept_sounds", "concepts")
    old.executescript("".join(f"DROP TABLE {table};" for table in later) + "PRAGMA user_version = 2;")
    old.close()
    migrated = open_library()
    assert {clip: part.tolist() for clip, part in segments_on_disk(migrated).items()} == {
        clip: part.tolist() for clip, part in expected.items()
    }
    check_agreement(migrated)


def test_a_knock_in_an_hour_is_found_before_clips_that_are_alike_as_a_whole(
    library: SqliteLibrary, new_clip: Callable[..., NewClip]
) -> None:
    rng = np.random.default_rng(6)
    knock = unit(rng.standard_normal(DIM))
    for seed in range(50):  # a little like it from end to end
        like = unit(knock + 1.5 * unit(rng.standard_normal(DIM)))
        library.add(new_clip(seed, embedding=like, frames=unit(like + 0.05 * rng.standard_normal((60, DIM)))))
    hour = wandering(rng, 22_500, 0.02)
    hour[15_000:15_004] = knock
    there, _ = library.add(new_clip(50, frames=hour, embedding=unit(hour.mean(axis=0)), duration=3600.0))
    assert library.search_segments(knock, 1)[0].clip == there
    assert there.id not in {hit.clip.id for hit in nearest_hits(library, knock, 20)}
