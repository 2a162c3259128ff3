"""Backups of a library that changes meanwhile, and libraries made of them: whole, of one moment, or not there."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from index import Clip, LibraryError, LibraryInUse, NewClip, SqliteLibrary
from index.sqlite import backup
from index.sqlite.backup import back_up, restore, snapshots
from index.sqlite.reader import exclusive_lock
from tests.support.clips import nearest_hits

REPO = Path(__file__).parents[3]
ROUNDS = 7
Opener = Callable[..., SqliteLibrary]


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def clips_of(folder: Path) -> list[Clip]:
    with SqliteLibrary.open(folder, dim=16, checkpoint="checkpoint-a") as library:
        assert library.recovery_report == []
        clips, _ = library.list(10_000)
        for clip in clips:
            assert library.audio_path(clip.id).is_file()
            assert nearest_hits(library, library.clip_vector(clip.id), 1)[0].clip == clip
        return clips


@pytest.fixture
def filled(library: SqliteLibrary, new_clip: Callable[..., NewClip]) -> SqliteLibrary:
    """A library with thirty clips, open as in a service."""
    library.add_many([new_clip(seed, {"seed": seed}) for seed in range(30)])
    return library


def file_of(library: SqliteLibrary, number: int) -> Path:
    return library.audio_path(library.list(100)[0][number].id)


@pytest.mark.parametrize("copy", [False, True])
def test_what_was_kept_comes_back(filled: SqliteLibrary, tmp_path: Path, copy: bool) -> None:
    done = back_up(filled.folder, tmp_path / "backups", quiet, copy)
    assert (done.files, done.failed, done.snapshot.clips) == (30, {}, 30)
    original = file_of(filled, 0)
    kept = tmp_path / "backups/audio" / original.parent.name / original.name
    assert original.samefile(kept) is not copy
    before = filled.list(100)[0]
    filled.delete(before[3].id)
    filled.update_metadata(before[4].id, {"later": True})
    restored = restore(tmp_path / "backups", tmp_path / "new/library", quiet)
    assert restored.snapshot == done.snapshot
    assert clips_of(tmp_path / "new/library") == before
    assert {p.name for p in (tmp_path / "new/library").iterdir()} >= {"catalog.sqlite3", "audio", "lock"}
    assert not (tmp_path / "new/library/restoring.sqlite3").exists()


def test_the_second_only_adds(filled: SqliteLibrary, new_clip: Callable[..., NewClip], tmp_path: Path) -> None:
    first = back_up(filled.folder, tmp_path / "b", quiet)
    before = filled.list(100)[0]
    kept = {path: path.stat() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    del kept[tmp_path / "b" / "lock"]  # has the process that holds it
    filled.delete(before[0].id)
    filled.add_many([new_clip(seed) for seed in (40, 41)])
    after = filled.list(100)[0]
    second = back_up(filled.folder, tmp_path / "b", quiet)
    assert (second.files, second.snapshot.clips) == (2, 31)
    for path, was in kept.items():
        assert path.stat().st_ino == was.st_ino and path.stat().st_mtime_ns == was.st_mtime_ns
    assert snapshots(tmp_path / "b") == [first.snapshot, second.snapshot]
    restore(tmp_path / "b", tmp_path / "1", quiet, first.snapshot.name)
    restore(tmp_path / "b", tmp_path / "2", quiet)
    assert clips_of(tmp_path / "1") == before and clips_of(tmp_path / "2") == after


def test_a_snapshot_is_of_one_moment(
    filled: SqliteLibrary, new_clip: Callable[..., NewClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adds and deletes of single clips go on all the time: every snapshot is a state that there was meanwhile."""
    monkeypatch.setattr(backup, "_PAGES", 1)
    states = [frozenset(clip.sha256 for clip in filled.list(100)[0])]
    stop = threading.Event()

    def change() -> None:
        choose, mine = random.Random(1), dict.fromkeys(clip.id for clip in filled.list(100)[0])
        seed = 100
        while not stop.is_set():
            if len(mine) < 10 or choose.random() < 0.5:
                clip, _ = filled.add(new_clip(seed))
                mine[clip.id] = None
                states.append(states[-1] | {clip.sha256})
                seed += 1
            else:
                gone = filled.get(choose.choice(list(mine)))
                del mine[gone.id]
                states.append(states[-1] - {gone.sha256})
                filled.delete(gone.id)

    thread = threading.Thread(target=change)
    thread.start()
    spans = []
    try:
        for _ in range(6):
            start = max(0, len(states) - 2)  # a deletion is in `states` before it is done
            back_up(filled.folder, tmp_path / "b", quiet)
            spans.append((start, len(states)))
    finally:
        stop.set()
        thread.join()
    assert sum(stop - start for start, stop in spans) > 12  # it did change meanwhile
    for number, ((start, stop_at), snapshot) in enumerate(zip(spans, snapshots(tmp_path / "b"), strict=True)):
        restore(tmp_path / "b", tmp_path / str(number), quiet, snapshot.name)
        # an added clip is in the database before it is in `states`, so one more may be there
        assert frozenset(clip.sha256 for clip in clips_of(tmp_path / str(number))) in states[start : stop_at + 1]


def test_clips_deleted_between_records_and_audio(
    filled: SqliteLibrary, new_clip: Callable[..., NewClip], tmp_path: Path
) -> None:
    """The snapshot is taken again: it never names a clip whose audio was deleted before it could be kept."""
    late: list[Clip] = []

    def interfere(what: str, done: int, total: int) -> None:
        if what == "records" and done == total and len(late) == 1:
            filled.delete(late[0].id)  # named by this copy, its audio not there yet
            late.append(filled.add(new_clip(51))[0])
        if what == "audio files" and done == total and not late:
            late.append(filled.add(new_clip(50))[0])  # after the first round of audio

    done = back_up(filled.folder, tmp_path / "b", interfere)
    assert len(late) == 2 and done.failed == {}
    restore(tmp_path / "b", tmp_path / "new", quiet)
    assert clips_of(tmp_path / "new") == filled.list(100)[0]


def test_audio_that_the_library_lost(filled: SqliteLibrary, tmp_path: Path) -> None:
    lost, damaged = file_of(filled, 2), file_of(filled, 5)
    lost.unlink()
    damaged.write_bytes(b"other bytes")
    done = back_up(filled.folder, tmp_path / "b", quiet)
    assert done.failed == done.snapshot.missing
    assert {lost.name: "missing", damaged.name: "damaged"}.items() <= {
        name: reason.split()[0] for name, reason in done.failed.items()
    }.items()
    restored = restore(tmp_path / "b", tmp_path / "new", quiet)
    assert restored.failed == {}  # the library is as whole as it was
    with SqliteLibrary.open(tmp_path / "new", dim=16, checkpoint="checkpoint-a") as library:
        assert len(library) == 30 and len([line for line in library.recovery_report if "missing" in line]) == 2


def test_a_damaged_backup_is_not_taken_for_whole(filled: SqliteLibrary, tmp_path: Path) -> None:
    name = back_up(filled.folder, tmp_path / "b", quiet, copy=True).snapshot.name
    kept = [path for path in (tmp_path / "b/audio").rglob("*") if path.is_file()]
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")
    kept[1].unlink()
    with pytest.raises(LibraryError, match=r"incomplete: 2 audio files.*--partial"):
        restore(tmp_path / "b", tmp_path / "new", quiet)
    with pytest.raises(LibraryError, match="is incomplete"):
        SqliteLibrary.open(tmp_path / "new", dim=16, checkpoint="checkpoint-a")
    assert len(restore(tmp_path / "b", tmp_path / "new", quiet, partial=True).failed) == 2
    catalog_file = tmp_path / "b/snapshots" / name / "catalog.sqlite3"
    catalog_file.write_bytes(catalog_file.read_bytes()[:-1] + b"?")
    with pytest.raises(LibraryError, match="damaged"):
        restore(tmp_path / "b", tmp_path / "other", quiet, partial=True)
    assert not (tmp_path / "other/catalog.sqlite3").exists()


def test_invalid_backups_and_targets_are_rejected(filled: SqliteLibrary, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no library"):
        back_up(tmp_path / "nothing", tmp_path / "b", quiet)
    assert not (tmp_path / "b").exists()
    with pytest.raises(LibraryError, match="neither empty"):
        back_up(filled.folder, filled.folder, quiet)
    with pytest.raises(LibraryError, match="is not a folder of backups"):
        restore(filled.folder, tmp_path / "new", quiet)
    done = back_up(filled.folder, tmp_path / "b", quiet)
    with exclusive_lock(tmp_path / "b/lock", ""), pytest.raises(LibraryInUse, match="another backup"):
        back_up(filled.folder, tmp_path / "b", quiet)
    with pytest.raises(LibraryError, match=f"no snapshot yesterday; it has {done.snapshot.name}"):
        restore(tmp_path / "b", tmp_path / "new", quiet, "yesterday")
    with pytest.raises(LibraryError, match="not empty"):
        restore(tmp_path / "b", filled.folder, quiet)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/notes.txt").write_text("mine")
    with pytest.raises(LibraryError, match="not empty"):
        restore(tmp_path / "b", tmp_path / "new", quiet)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["notes.txt"]
    manifest = tmp_path / "b/snapshots" / done.snapshot.name / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(LibraryError, match="newer release"):
        snapshots(tmp_path / "b")
    manifest.write_text("[]")
    with pytest.raises(LibraryError, match="not the manifest"):
        snapshots(tmp_path / "b")


def test_a_database_that_is_damaged_is_not_kept(filled: SqliteLibrary, tmp_path: Path) -> None:
    filled.close()
    path = filled.folder / "catalog.sqlite3"
    with sqlite3.connect(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'clips'").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    content[(root - 1) * 4096 + 8 : (root - 1) * 4096 + 64] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(LibraryError):
        back_up(filled.folder, tmp_path / "b", quiet)
    assert snapshots(tmp_path / "b") == []


RUN = """
import os, signal, sys
from pathlib import Path
from index.sqlite.backup import back_up, restore

steps, last = 0, int(sys.argv[4])

def step(event, arguments):
    global steps
    if event.split(".")[0] in ("open", "os", "shutil", "sqlite3"):  # whatever it does to the disk
        steps += 1
        if steps == last:
            os.write(1, b"x")
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
run = {"backup": back_up, "restore": restore}[sys.argv[1]]
run(Path(sys.argv[2]), Path(sys.argv[3]), lambda *_: None)
print(steps)
"""


def run_until(verb: str, source: Path, target: Path, step: int = 0) -> int:
    """Runs it and kills it before the step of this number, unless 0; how many steps it took, 0 if it was killed."""
    command = [sys.executable, "-c", RUN, verb, str(source), str(target), str(step)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=60
    )
    assert done.returncode == (-signal.SIGKILL if done.stdout == b"x" else 0)
    return 0 if done.stdout == b"x" else int(done.stdout)


def test_killed_at_random_moments(library: SqliteLibrary, new_clip: Callable[..., NewClip], tmp_path: Path) -> None:
    library.add_many([new_clip(seed) for seed in range(12)])
    expected = library.list(1000)[0]
    steps = run_until("backup", library.folder, tmp_path / "whole-b")
    assert steps > 50
    choose, seen = random.Random(5), 0
    moments = sorted(choose.sample(range(1, steps), ROUNDS)) + [steps - 2, steps - 1]
    for step in moments:
        run_until("backup", library.folder, tmp_path / "b", step)
        if (tmp_path / "b/finelap-backups").exists():
            for snapshot in snapshots(tmp_path / "b")[seen:]:  # what is there under its name is whole
                restore(tmp_path / "b", tmp_path / snapshot.name, quiet, snapshot.name)
                assert clips_of(tmp_path / snapshot.name) == expected
                seen += 1
    back_up(library.folder, tmp_path / "b", quiet)
    assert not list((tmp_path / "b").glob("*/.2*")) and not list((tmp_path / "b/audio/.incoming").iterdir())
    assert len(list((tmp_path / "b/audio").glob("??/*"))) == len(expected)

    steps = run_until("restore", tmp_path / "b", tmp_path / "whole-r")
    for number, step in enumerate([*choose.sample(range(1, steps), ROUNDS), steps - 2, steps - 1, steps]):
        target = tmp_path / f"target-{number // 2}"  # each killed twice
        if (target / "catalog.sqlite3").exists():
            continue
        assert not run_until("restore", tmp_path / "b", target, step) or number % 2
        if not (target / "catalog.sqlite3").exists() and (target / "restoring.sqlite3").exists():
            with pytest.raises(LibraryError, match="is incomplete"):
                SqliteLibrary.open(target, dim=16, checkpoint="checkpoint-a")
    for target in sorted(tmp_path.glob("target-*")):
        if not (target / "catalog.sqlite3").exists():
            restore(tmp_path / "b", target, quiet)
        assert clips_of(target) == expected
