"""The library's behaviour as its callers see it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import (
    AudioMissing,
    CheckpointMismatch,
    Clip,
    ClipNotFound,
    InvalidCursor,
    InvalidFilter,
    InvalidMetadata,
    LibraryError,
    LibraryInUse,
    NewClip,
    SqliteLibrary,
    StorageFull,
)
from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles
from index.vectors.index import Limits
from tests.support.clips import nearest_hits

DIM = 16
Make = Callable[..., NewClip]
Open = Callable[..., SqliteLibrary]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "audio").rglob("*") if path.is_file())


def _audio_names(library: SqliteLibrary, clips: Sequence[NewClip | Clip]) -> None:
    assert _files(library.folder) == sorted(clip.sha256 for clip in clips)


# Adding


def test_the_files_of_a_batch_are_written_side_by_side(
    library: SqliteLibrary, new_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the disk, and one commit of the file system serves all that wait."""
    together, stage = threading.Barrier(8), AudioFiles.stage

    def stage_together(*args: Any) -> Path:
        together.wait(30)
        return stage(*args)

    monkeypatch.setattr(AudioFiles, "stage", stage_together)
    clips = [new_clip(seed) for seed in (*range(16), 3)]
    assert [created for _, created in library.add_many(clips)] == [True] * 16 + [False]
    _audio_names(library, clips[:16])


def test_a_batch_with_audio_of_another_hash_leaves_nothing(library: SqliteLibrary, new_clip: Make) -> None:
    clips = [new_clip(seed) for seed in range(30)]
    clips[7] = replace(clips[7], sha256="0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        library.add_many(clips)
    assert len(library) == 0 and not _files(library.folder)


def test_added_clips_are_found(library: SqliteLibrary, new_clip: Make) -> None:
    new = new_clip(1, {"tags": ["dog", "bark"], "deep": {"a": [1, None]}, "ütf": "ß\u0000\U0001f415"})
    clip, created = library.add(new)
    assert created
    assert (clip.filename, clip.sha256, clip.duration) == (new.filename, new.sha256, new.duration)
    assert (clip.sample_rate, clip.channels, clip.metadata) == (44_100, 2, new.metadata)
    assert re.fullmatch(r"[0-9a-f]{32}", clip.id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", clip.created)
    assert library.get(clip.id) == library.find(new.sha256) == clip
    assert library.audio_path(clip.id).read_bytes() == new.audio
    np.testing.assert_array_equal(library.clip_vector(clip.id), new.embedding)
    frames, hop = library.frames(clip.id)
    assert hop == new.frame_hop and frames.dtype == np.float32
    np.testing.assert_allclose(frames, new.frames, atol=5e-3)
    [hit] = nearest_hits(library, new.embedding, 5)
    assert hit.clip == clip and hit.similarity == pytest.approx(1, abs=1e-5)
    assert len(library) == 1
    library.check()


def test_the_same_audio_twice_is_one_clip(library: SqliteLibrary, new_clip: Make) -> None:
    first, _ = library.add(new_clip(1, {"a": 1}))
    again, created = library.add(replace(new_clip(1, {"a": 2}), filename="other name.wav"))
    assert (again, created) == (first, False)
    assert len(library) == 1 and len(nearest_hits(library, new_clip(1).embedding, 5)) == 1
    _audio_names(library, [new_clip(1)])


def test_many_at_once(library: SqliteLibrary, new_clip: Make) -> None:
    old, _ = library.add(new_clip(2))
    results = library.add_many([new_clip(1), new_clip(2), new_clip(3), new_clip(1)])
    assert [created for _, created in results] == [True, False, True, False]
    assert results[1][0] == old and results[3][0] == results[0][0]
    assert len(library) == 3
    assert library.add_many([]) == []
    _audio_names(library, [new_clip(i) for i in (1, 2, 3)])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metadata": {"x": float("nan")}}, InvalidMetadata),
        ({"metadata": ["not an object"]}, InvalidMetadata),
        ({"filename": "\udcff.wav"}, InvalidMetadata),
        ({"embedding": np.ones(DIM + 1, np.float32)}, ValueError),
        ({"embedding": np.ones(DIM, np.float32)}, ValueError),
        ({"embedding": np.full(DIM, np.nan, np.float32)}, ValueError),
        ({"frames": np.ones((0, DIM), np.float32)}, ValueError),
        ({"frames": np.full((2, DIM), np.inf, np.float32)}, ValueError),
        ({"frames": np.ones(DIM, np.float32)}, ValueError),
        ({"frame_hop": 0.0}, ValueError),
        ({"sha256": "0" * 64}, ValueError),
    ],
)
def test_a_clip_that_is_refused_takes_its_whole_batch_with_it(
    library: SqliteLibrary, new_clip: Make, changes: dict, error: type[Exception]
) -> None:
    with pytest.raises(error):
        library.add_many([new_clip(1), replace(new_clip(2), **changes)])
    assert len(library) == 0 and library.list(10) == ([], None)
    assert _files(library.folder) == []
    assert library.add(new_clip(1))[1]


def test_file_names_are_kept_in_any_script(library: SqliteLibrary, new_clip: Make) -> None:
    for seed, name in enumerate(["雷雨.wav", "../../etc/passwd", "", "собака лает.ogg", "a\nb.wav"]):
        clip, _ = library.add(replace(new_clip(seed), filename=name))
        assert library.get(clip.id).filename == name
        assert library.audio_path(clip.id).is_relative_to(library.folder / "audio")


# Deleting and updating


def test_deleted_clips_are_gone(library: SqliteLibrary, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1, {"a": 1}))
    other, _ = library.add(new_clip(2, {"a": 1}))
    path = library.audio_path(clip.id)
    library.delete(clip.id)
    assert not path.exists()
    assert library.find(clip.sha256) is None
    assert [hit.clip for hit in nearest_hits(library, new_clip(1).embedding, 5)] == [other]
    assert [hit.clip for hit in nearest_hits(library, new_clip(1).embedding, 5, {"a": 1})] == [other]
    for ask in (library.get, library.delete, library.audio_path, library.frames, library.clip_vector):
        with pytest.raises(ClipNotFound):
            ask(clip.id)
    back, created = library.add(new_clip(1))
    assert created and back.id != clip.id


def test_no_table_remembers_a_deleted_clip(library: SqliteLibrary, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1, {"tags": ["a", "b"]}))
    library.delete(clip.id)
    library.close()
    database = sqlite3.connect(library.folder / "catalog.sqlite3")
    for table in ("clips", "vectors", "frames", "facts"):
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("clip_id", ["", "0" * 32, "../x", "\ud800", "ö"])
def test_unknown_ids_are_rejected(library: SqliteLibrary, clip_id: str) -> None:
    with pytest.raises(ClipNotFound):
        library.get(clip_id)


def test_metadata_is_merged(library: SqliteLibrary, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1, {"tags": ["a"], "n": 1, "o": {"x": 1, "y": 2}}))
    changed = library.update_metadata(clip.id, {"n": None, "tags": ["b"], "o": {"x": None}, "new": True})
    assert changed == replace(clip, metadata={"tags": ["b"], "o": {"y": 2}, "new": True})
    assert library.get(clip.id) == changed
    for filter, found in [({"tags": "a"}, 0), ({"n": 1}, 0), ({"tags": "b"}, 1), ({"new": True}, 1)]:
        assert len(nearest_hits(library, new_clip(1).embedding, 5, filter)) == found
    for bad in ([1], "x", {"a": float("inf")}):
        with pytest.raises(InvalidMetadata):
            library.update_metadata(clip.id, bad)  # type: ignore[arg-type]
    with pytest.raises(ClipNotFound):
        library.update_metadata("0" * 32, {})
    assert library.get(clip.id) == changed


# Searching


def test_a_filter_is_applied_before_the_best_are_taken(library: SqliteLibrary, new_clip: Make) -> None:
    news = [new_clip(i, {"n": i, "odd": bool(i % 2), "tags": ["all", f"t{i % 10}"]}) for i in range(60)]
    library.add_many(news)
    query = news[0].embedding
    worst = sorted(news, key=lambda new: float(new.embedding @ query))[:3]
    hits = nearest_hits(library, query, 3, {"n": [new.metadata["n"] for new in worst], "tags": "all"})
    assert [hit.clip.filename for hit in hits] == [new.filename for new in reversed(worst)]
    assert len(nearest_hits(library, query, 100, {"odd": True, "tags": ["t1", "t2"]})) == 6
    assert nearest_hits(library, query, 10, {"tags": "none"}) == []
    assert len(nearest_hits(library, query, 1000)) == 60
    with pytest.raises(InvalidFilter):
        nearest_hits(library, query, 10, {"tags": {"$ne": "a"}})


def test_invalid_queries_are_rejected(library: SqliteLibrary) -> None:
    for vector in (np.ones(DIM - 1), np.ones((1, DIM)), np.full(DIM, np.nan)):
        with pytest.raises(ValueError):
            nearest_hits(library, vector, 1)
    with pytest.raises(ValueError):
        nearest_hits(library, np.ones(DIM), 0)
    assert nearest_hits(library, np.ones(DIM), 5) == []


# Listing


def test_pages_are_stable_while_clips_come_and_go(library: SqliteLibrary, new_clip: Make) -> None:
    first = [clip for clip, _ in library.add_many([new_clip(i, {"n": i}) for i in range(25)])]
    page, cursor = library.list(10)
    assert [clip.id for clip in page] == [clip.id for clip in reversed(first[15:])]  # newest first
    seen = list(page)
    library.add_many([new_clip(100 + i) for i in range(5)])
    for gone in (first[20], first[15], first[14], first[3]):  # seen, at the page's edge, and to come
        library.delete(gone.id)
    while cursor:
        page, cursor = library.list(10, cursor)
        seen += page
    gone_before_seen = {first[14].id, first[3].id}
    assert [clip.id for clip in seen] == [clip.id for clip in reversed(first) if clip.id not in gone_before_seen]


def test_a_filtered_list(library: SqliteLibrary, new_clip: Make) -> None:
    library.add_many([new_clip(i, {"odd": bool(i % 2), "tags": ["x", "y"]}) for i in range(9)])
    page, cursor = library.list(3, None, {"odd": True, "tags": ["x", "y"]})
    rest, end = library.list(3, cursor, {"odd": True, "tags": ["x", "y"]})
    assert [clip.filename for clip in page + rest] == [f"sound {i}.wav" for i in (7, 5, 3, 1)]
    assert end is None
    assert library.list(4, None, {"odd": True})[1] is None  # exactly full: no empty page to follow


@pytest.mark.parametrize("cursor", ["", "!", "x", "YmVmb3JlOg", "YmVmb3JlOi01", "YWZ0ZXI6NQ", "ä", "A" * 5000])
def test_invalid_cursors_are_rejected(library: SqliteLibrary, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        library.list(5, cursor)


@pytest.mark.parametrize("sort", ["created", "-created", "filename", "-filename", "duration", "-duration"])
def test_pages_in_any_order_while_clips_come_and_go(library: SqliteLibrary, new_clip: Make, sort: str) -> None:
    clips = [clip for clip, _ in library.add_many([new_clip(i, filename=f"name {i % 5}.wav") for i in range(30)])]
    field = sort.removeprefix("-")
    expected = sorted(clips, key=lambda c: (getattr(c, field), clips.index(c)), reverse=sort.startswith("-"))
    page, cursor = library.list(4, sort=sort)
    seen = list(page)
    gone = [expected[3], expected[5], expected[-1]]  # the one the cursor stands on, and two to come
    for clip in gone:
        library.delete(clip.id)
    while cursor:
        page, cursor = library.list(4, cursor, sort=sort)
        seen += page
    assert seen == [clip for clip in expected if clip not in gone[1:]]


def test_a_cursor_goes_with_its_sort(library: SqliteLibrary, new_clip: Make) -> None:
    library.add_many([new_clip(i) for i in range(5)])
    _, cursor = library.list(2, sort="filename")
    for other in ("-filename", "created", "duration"):
        with pytest.raises(InvalidCursor):
            library.list(2, cursor, sort=other)
    with pytest.raises(ValueError):
        library.list(2, sort="loudness")


def test_page_limits_below_one_are_rejected(library: SqliteLibrary) -> None:
    with pytest.raises(ValueError):
        library.list(0)


# Opening again


def test_everything_survives_reopening(open_library: Open, new_clip: Make) -> None:
    library = open_library()
    news = [new_clip(i, {"n": i}) for i in range(20)]
    clips = [clip for clip, _ in library.add_many(news)]
    library.delete(clips[4].id)
    library.update_metadata(clips[5].id, {"n": "changed"})
    before = library.list(100)
    found = nearest_hits(library, news[7].embedding, 20)
    library = open_library()
    assert library.recovery_report == []
    assert library.list(100) == before and len(library) == 19
    assert nearest_hits(library, news[7].embedding, 20) == found
    assert library.audio_path(clips[0].id).read_bytes() == news[0].audio
    assert [hit.clip.id for hit in nearest_hits(library, news[5].embedding, 5, {"n": "changed"})] == [clips[5].id]


def test_a_library_belongs_to_the_checkpoint_that_made_it(open_library: Open, new_clip: Make) -> None:
    clip, _ = open_library().add(new_clip(1))
    with pytest.raises(CheckpointMismatch, match="checkpoint-a.*checkpoint-b"):
        open_library(checkpoint="checkpoint-b")
    with pytest.raises(CheckpointMismatch):
        open_library(dim=DIM * 2)
    library = open_library()
    assert library.get(clip.id) == clip
    library.delete(clip.id)
    library = open_library(checkpoint="checkpoint-b", dim=DIM * 2)  # empty, it may change hands
    library.add(new_clip(1, dim=DIM * 2))
    with pytest.raises(CheckpointMismatch):
        open_library()


def test_a_library_is_open_once(open_library: Open, tmp_path: Path) -> None:
    library = open_library()
    with pytest.raises(LibraryInUse):
        SqliteLibrary.open(library.folder, dim=DIM, checkpoint="checkpoint-a")
    other = (
        "import sys; from pathlib import Path; from index import SqliteLibrary, LibraryInUse\n"
        "try: SqliteLibrary.open(Path(sys.argv[1]), dim=16, checkpoint='checkpoint-a')\n"
        "except LibraryInUse as error: print('refused:', error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", other, str(library.folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert "refused: the library in" in result.stdout
    library.close()
    with SqliteLibrary.open(library.folder, dim=DIM, checkpoint="checkpoint-a") as again:
        assert len(again) == 0


def test_a_refused_opening_keeps_nothing_locked(open_library: Open, new_clip: Make) -> None:
    library = open_library()
    library.add(new_clip(1))
    for _ in range(2):
        with pytest.raises(CheckpointMismatch):
            open_library(checkpoint="checkpoint-b")
    assert len(open_library()) == 1


def test_a_closed_library_raises(library: SqliteLibrary, new_clip: Make) -> None:
    clip, _ = library.add(new_clip(1))
    library.close()
    library.close()
    for ask in (
        lambda: library.get(clip.id),
        lambda: library.add(new_clip(2)),
        lambda: library.delete(clip.id),
        lambda: nearest_hits(library, np.ones(DIM), 1),
        library.check,
    ):
        with pytest.raises(LibraryError, match="closed"):
            ask()


def test_check_notices_that_the_folder_is_gone(library: SqliteLibrary, tmp_path: Path) -> None:
    library.folder.rename(tmp_path / "away")
    with pytest.raises(LibraryError):
        library.check()


# Healing


def test_leftovers_of_a_crash_are_removed_and_nothing_else(open_library: Open, new_clip: Make) -> None:
    library = open_library()
    library.add(new_clip(1))
    audio = AudioFiles(library.folder / "audio")
    orphan = new_clip(2)
    audio.place({orphan.sha256: audio.stage(orphan.audio, orphan.sha256)})
    audio.stage(new_clip(3).audio, new_clip(3).sha256)
    theirs = [audio.root / "notes.txt", audio.root / "ab" / "readme", audio.root / "cd" / ("ab" * 32)]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody's")
    library = open_library()
    assert library.recovery_report == [
        "removed 1 audio file of interrupted uploads",
        "removed 1 audio file without a record",
    ]
    assert _files(library.folder) == sorted([new_clip(1).sha256, *(path.name for path in theirs)])
    assert open_library().recovery_report == []


def test_a_record_without_audio_is_reported_and_can_be_given_it_back(open_library: Open, new_clip: Make) -> None:
    library = open_library()
    clip, _ = library.add(new_clip(1, {"precious": "note"}))
    library.audio_path(clip.id).unlink()
    library = open_library()
    [report] = library.recovery_report
    assert clip.id in report and "sound 1.wav" in report and "missing" in report
    assert [hit.clip for hit in nearest_hits(library, new_clip(1).embedding, 1)] == [clip]
    with pytest.raises(AudioMissing):
        library.audio_path(clip.id)
    assert library.add(new_clip(1)) == (clip, False)
    assert library.audio_path(clip.id).read_bytes() == new_clip(1).audio
    assert open_library().recovery_report == []


@pytest.mark.parametrize("limits", [None, Limits(flat_rows=32)])
def test_clips_without_a_vector_are_reported(library: SqliteLibrary, new_clip: Make, limits: Limits | None) -> None:
    library.add_many([new_clip(seed) for seed in range(40)])
    library.close()
    with SqliteLibrary.open(library.folder, dim=DIM, checkpoint="checkpoint-a", limits=limits) as indexed:
        indexed._index.wait()
    with sqlite3.connect(library.folder / "catalog.sqlite3") as database:
        database.execute("INSERT INTO clips SELECT 99, 'id99', 'f' || substr(sha256, 2), filename, duration, "
                         "sample_rate, channels, created, metadata FROM clips WHERE row = 1")  # fmt: skip
    with SqliteLibrary.open(library.folder, dim=DIM, checkpoint="checkpoint-a", limits=limits) as damaged:
        assert "1 clips have no vector, so searches do not find them" in damaged.recovery_report
        assert len(damaged.nearest(np.ones(DIM), 99)) == 40


def test_segments_of_long_clips_are_found_without_reading_those_of_short_ones(
    library: SqliteLibrary, new_clip: Make
) -> None:
    """Steps of SQLite's virtual machine count what is read."""
    library.add_many([new_clip(seed, duration=1.0 if seed else 60.0) for seed in range(200)])
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with library._store.read() as view:
        view.set_progress_handler(count, 1)
        [(rows, _, seconds)] = queries.long_segments(view, DIM, 5.0)
        assert set(rows) == {1} and set(seconds) == {60.0}
        assert steps < 200
        view.set_progress_handler(None, 1)


def test_the_keys_of_clips_are_read_in_parts(
    library: SqliteLibrary, new_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip for clip, _ in library.add_many([new_clip(seed) for seed in range(20)])]
    for clip in clips[3:9:2]:
        library.delete(clip.id)
    with library._store.read() as view:
        expected = dict(view.execute("SELECT row, id FROM clips").fetchall())
        for size in (1, 7, 17, 65_536):
            monkeypatch.setattr(queries, "_JOINED", size)
            rows, keys = queries.row_keys(view)
            assert rows.tolist() == sorted(expected)
            halves = [np.frombuffer(expected[row][:16].encode(), "<u8") for row in rows.tolist()]
            assert keys.tolist() == [(int(first) ^ 3 * int(second)) % 2**64 for first, second in halves]


def test_audio_without_its_database_is_not_taken_for_leftovers(open_library: Open, new_clip: Make) -> None:
    library = open_library()
    library.add(new_clip(1))
    library.close()
    database = library.folder / "catalog.sqlite3"
    database.rename(library.folder / "lost")
    for _ in range(2):
        with pytest.raises(LibraryError, match="put the database back"):
            open_library()
    _audio_names(library, [new_clip(1)])
    (library.folder / "lost").rename(database)
    assert len(open_library()) == 1


# Failures


def test_a_full_database_refuses_whole_and_goes_on(library: SqliteLibrary, new_clip: Make) -> None:
    kept, _ = library.add(new_clip(1))
    writer = library._store._writer
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0] + 2}")
    big = {"note": "x" * 100_000}
    with pytest.raises(StorageFull):
        library.add_many([new_clip(2), new_clip(3, big)])
    with pytest.raises(StorageFull):
        library.update_metadata(kept.id, big)
    assert library.list(10) == ([kept], None)
    assert [hit.clip for hit in nearest_hits(library, new_clip(2).embedding, 5)] == [kept]
    _audio_names(library, [new_clip(1)])
    writer.execute("PRAGMA max_page_count = 1000000")
    assert library.add(new_clip(3, big))[1]
    library.check()


@pytest.mark.parametrize("step", ["stage", "place"])
def test_a_full_disk_while_writing_audio(
    library: SqliteLibrary, new_clip: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kept, _ = library.add(new_clip(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if step == "stage" else "replace", full)
        with pytest.raises(StorageFull):
            library.add_many([new_clip(2), new_clip(3)])
    assert library.list(10) == ([kept], None)
    _audio_names(library, [new_clip(1)])
    assert library.add(new_clip(2))[1]


def test_a_delete_that_cannot_be_committed_leaves_the_clip_findable(
    library: SqliteLibrary, new_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, _ = library.add(new_clip(1))
    writer = library._store._writer
    writer.execute("CREATE TEMP TRIGGER refuse BEFORE DELETE ON clips BEGIN SELECT RAISE(ABORT, 'refused'); END")
    with pytest.raises(LibraryError, match="refused"):
        library.delete(clip.id)
    writer.execute("DROP TRIGGER refuse")
    assert [hit.clip for hit in nearest_hits(library, new_clip(1).embedding, 1)] == [clip]
    assert library.audio_path(clip.id).exists()
    library.delete(clip.id)
    assert len(library) == 0


def _mount(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    if not _mount(disk, "4m"):
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=10)


def _fill(library: SqliteLibrary, new_clip: Make) -> list[Clip]:
    """Adds clips until not even the smallest fits; those that were accepted."""
    kept, seed = [], 0
    for size in (100_000, 20_000, 3000, 1):
        with pytest.raises(StorageFull):
            while True:
                seed += 1
                kept.append(library.add(new_clip(seed, audio=b"%d" % seed + bytes(size)))[0])
    return kept


def test_a_disk_that_is_really_full(small_disk: Path, new_clip: Make) -> None:
    """What was accepted is whole, what was refused is not there; searches go on, and clips can be deleted."""
    folder = small_disk / "library"
    for reopened in (False, True):
        library = SqliteLibrary.open(folder, dim=DIM, checkpoint="a")
        kept = _fill(library, new_clip)
        assert len(kept) > 15
        for round in range(2 if reopened else 1):
            if round:
                (small_disk / "filler").write_bytes(bytes(_room(small_disk)))  # somebody else's file takes the rest
                library.close()
                library = SqliteLibrary.open(folder, dim=DIM, checkpoint="a")
            assert {hit.clip.id for hit in nearest_hits(library, new_clip(0).embedding, 10_000)} == {
                clip.id for clip in kept
            }
            assert {clip.id for clip in library.list(10_000)[0]} == {clip.id for clip in kept}
            for clip in kept:
                assert hashlib.sha256(library.audio_path(clip.id).read_bytes()).hexdigest() == clip.sha256
            library.check()
        _audio_names(library, kept)
        for clip in kept:
            library.delete(clip.id)
        assert _files(folder) == []
        (small_disk / "filler").unlink(missing_ok=True)
        assert library.add(new_clip(0, audio=bytes(100_000)))[1]
        library.delete(library.list(1)[0][0].id)
        library.close()


def _room(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


# Threads


def test_many_threads_add_search_and_delete(library: SqliteLibrary, new_clip: Make) -> None:
    def work(seed: int) -> None:
        clip, created = library.add(new_clip(seed, {"seed": seed}))
        assert created
        [hit] = nearest_hits(library, new_clip(seed).embedding, 1, {"seed": seed})
        assert hit.clip == clip
        assert library.update_metadata(clip.id, {"seen": True}).metadata == {"seed": seed, "seen": True}
        if seed % 2:
            library.delete(clip.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(120)))
    assert len(library) == 60
    assert len(library.list(1000)[0]) == 60
    assert len(library._store._readers) <= 8


def test_the_same_audio_from_many_threads_is_one_clip(library: SqliteLibrary, new_clip: Make) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: library.add(new_clip(1)), range(40)))
    assert sum(created for _, created in results) == 1
    assert len({clip.id for clip, _ in results}) == 1
    _audio_names(library, [new_clip(1)])


def test_the_same_audio_added_and_deleted_from_many_threads_stays_whole(library: SqliteLibrary, new_clip: Make) -> None:
    def work(turn: int) -> None:
        clip, _ = library.add(new_clip(turn % 2))
        if turn % 3 == 0:
            try:
                library.delete(clip.id)
            except ClipNotFound:
                return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(200)))
    clips, _ = library.list(10)
    assert len(library) == len(clips)
    for clip in clips:
        assert hashlib.sha256(library.audio_path(clip.id).read_bytes()).hexdigest() == clip.sha256
    assert _files(library.folder) == sorted(clip.sha256 for clip in clips)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_open_files_do_not_add_up(library: SqliteLibrary, new_clip: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(50):
        with ThreadPoolExecutor(2) as pool:  # new threads each time, as a web server's come and go
            list(pool.map(library.add, [new_clip(2 * seed), new_clip(2 * seed + 1)]))
    assert len(os.listdir("/proc/self/fd")) < before + 20
