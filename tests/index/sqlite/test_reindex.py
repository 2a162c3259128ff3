"""A library changes over to another checkpoint at one stroke, or not at all."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index import CheckpointMismatch, Clip, LibraryError, NewClip, SqliteLibrary, StorageFull
from index.quantization import encode_frames
from index.sqlite.reader import LibraryReader
from index.sqlite.reindex import SideDatabase, side_path
from tests.support.clips import nearest_hits

REPO = Path(__file__).parents[3]
OLD, NEW, NEW_DIM = "checkpoint-a", "checkpoint-b", 24
ROUNDS = 12


def again(sha256: str) -> tuple[np.ndarray, np.ndarray]:
    """What the new checkpoint makes of an audio file: clip (D,), frames (T, D)."""
    rng = np.random.default_rng(int(sha256[:8], 16))
    vectors = rng.standard_normal((4, NEW_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[0], vectors[1:]


def embed_again(folder: Path, clips: list[Clip]) -> None:
    with SideDatabase(folder, NEW, NEW_DIM) as side:
        for clip in clips:
            vector, frames = again(clip.sha256)
            side.add(clip.sha256, vector, encode_frames(frames), 0.32)


@pytest.fixture
def filled(library: SqliteLibrary, new_clip: Callable[..., NewClip]) -> tuple[SqliteLibrary, list[Clip]]:
    """A library of nine clips of ten, so that its rows have a gap."""
    clips = [clip for clip, _ in library.add_many([new_clip(seed, {"seed": seed}) for seed in range(10)])]
    library.delete(clips.pop(3).id)
    return library, clips


def test_everything_but_the_vectors_stays(
    filled: tuple[SqliteLibrary, list[Clip]],
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
    tmp_path: Path,
) -> None:
    library, clips = filled
    embed_again(library.folder, clips)
    assert (
        nearest_hits(library, new_clip(5).embedding, 1)[0].clip == clips[4]
    )  # seed 3 is gone: the old one serves meanwhile
    changed = open_library(dim=NEW_DIM, checkpoint=NEW)
    assert not list(changed.folder.glob("reindex-*")) and changed.recovery_report == []
    assert sorted(changed.list(100)[0], key=lambda c: c.created) == sorted(clips, key=lambda c: c.created)
    assert [hit.clip.filename for hit in changed.search_words("sound 7", again(clips[0].sha256)[0], 1)] == [
        "sound 7.wav"
    ]
    for clip in clips:
        vector, frames = again(clip.sha256)
        np.testing.assert_array_equal(changed.clip_vector(clip.id), vector)
        np.testing.assert_array_equal(changed.frames(clip.id)[0], encode_frames(frames).decode())
        assert changed.frames(clip.id)[1] == 0.32
        assert nearest_hits(changed, vector, 1)[0].clip == clip
        assert changed.search_segments(frames[0], 1)[0].clip == clip
        assert changed.audio_path(clip.id).is_file()
    open_library(dim=NEW_DIM, checkpoint=NEW)
    with pytest.raises(CheckpointMismatch, match="finelap reindex"):
        open_library()


def test_answers_are_those_of_a_library_made_anew(
    filled: tuple[SqliteLibrary, list[Clip]],
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
    tmp_path: Path,
) -> None:
    library, clips = filled
    embed_again(library.folder, clips)
    changed = open_library(dim=NEW_DIM, checkpoint=NEW)
    with SqliteLibrary.open(tmp_path / "anew", dim=NEW_DIM, checkpoint=NEW) as anew:
        for clip in clips:
            vector, frames = again(clip.sha256)
            new = new_clip(clip.metadata["seed"], clip.metadata, embedding=vector, frames=frames, frame_hop=0.32)
            anew.add(new)
        for seed in range(20):
            query = np.random.default_rng(seed).standard_normal(NEW_DIM).astype(np.float32)
            only = {"seed": {"gte": seed % 8}}
            found, expected = nearest_hits(changed, query, 5, only), nearest_hits(anew, query, 5, only)
            assert [(h.clip.sha256, h.similarity) for h in found] == [(h.clip.sha256, h.similarity) for h in expected]
            found, expected = changed.search_segments(query, 5, only), anew.search_segments(query, 5, only)
            assert [(h.clip.sha256, h.similarity) for h in found] == [(h.clip.sha256, h.similarity) for h in expected]


def test_a_clip_that_is_not_there_yet_keeps_the_old_library(
    filled: tuple[SqliteLibrary, list[Clip]],
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
) -> None:
    library, clips = filled
    embed_again(library.folder, clips)
    late = [library.add(new_clip(seed))[0] for seed in (20, 21)]
    library.delete(late[0].id)
    with pytest.raises(CheckpointMismatch, match="remaining 1") as caught:
        open_library(dim=NEW_DIM, checkpoint=NEW)
    assert caught.value.missing == 1
    old = open_library()
    assert nearest_hits(old, new_clip(21).embedding, 1)[0].clip == late[1]
    embed_again(old.folder, late[1:])
    assert len(open_library(dim=NEW_DIM, checkpoint=NEW)) == len(clips) + 1


def test_a_library_of_another_checkpoint_has_no_part_in_it(
    filled: tuple[SqliteLibrary, list[Clip]], open_library: Callable[..., SqliteLibrary]
) -> None:
    library, clips = filled
    embed_again(library.folder, clips)
    with pytest.raises(CheckpointMismatch, match="finelap reindex") as caught:
        open_library(dim=NEW_DIM, checkpoint="checkpoint-c")
    assert caught.value.missing is None
    os.rename(side_path(library.folder, NEW), side_path(library.folder, "checkpoint-c"))
    with pytest.raises(LibraryError, match="remove it"):
        open_library(dim=NEW_DIM, checkpoint="checkpoint-c")
    open_library()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be taken for one" * 100])
def test_invalid_side_databases_are_rejected(
    content: bytes, filled: tuple[SqliteLibrary, list[Clip]], open_library: Callable[..., SqliteLibrary]
) -> None:
    side_path(filled[0].folder, NEW).write_bytes(content)
    with pytest.raises(LibraryError):
        open_library(dim=NEW_DIM, checkpoint=NEW)
    assert len(open_library()) == len(filled[1])


def test_invalid_embeddings_are_rejected(tmp_path: Path) -> None:
    vector, frames = again("0" * 64)
    with SideDatabase(tmp_path, NEW, NEW_DIM) as side:
        for wrong in (vector[:-1], vector * 2, np.full(NEW_DIM, np.nan, np.float32)):
            with pytest.raises(ValueError, match="unit length"):
                side.add("0" * 64, wrong, encode_frames(frames), 0.16)
        with pytest.raises(ValueError, match="frames"):
            side.add("0" * 64, vector, encode_frames(frames[:, 1:]), 0.16)
        assert not side.known
    with pytest.raises(LibraryError, match="remove it"):
        SideDatabase(tmp_path, NEW, NEW_DIM + 1)
    with sqlite3.connect(side_path(tmp_path, OLD)) as other:
        other.execute("CREATE TABLE somebodys (work)")
    other.close()
    with pytest.raises(LibraryError, match="not created by finelap reindex"):
        SideDatabase(tmp_path, OLD, 16)


def test_one_that_still_follows_is_not_in_the_way(
    filled: tuple[SqliteLibrary, list[Clip]], open_library: Callable[..., SqliteLibrary]
) -> None:
    library, clips = filled
    embed_again(library.folder, clips)
    with LibraryReader(library.folder) as reader, SideDatabase(library.folder, NEW, NEW_DIM) as follower:
        assert len(follower.known) == len(clips)
        changed = open_library(dim=NEW_DIM, checkpoint=NEW)
        assert reader.stamp() == (NEW, NEW_DIM)
    assert len(changed) == len(clips)
    assert not list(changed.folder.glob("reindex-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, timeout=10).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=10)


def test_a_takeover_on_a_full_disk(small_disk: Path, new_clip: Callable[..., NewClip]) -> None:
    folder, filler = small_disk / "library", small_disk / "filler"
    track = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    with SqliteLibrary.open(folder, dim=16, checkpoint=OLD) as library:
        clips = [clip for clip, _ in library.add_many([new_clip(seed, frames=track) for seed in range(120)])]
    track = np.random.default_rng(0).standard_normal((500, NEW_DIM)).astype(np.float32)
    with SideDatabase(folder, NEW, NEW_DIM) as side:
        for clip in clips:
            side.add(clip.sha256, again(clip.sha256)[0], encode_frames(track), 0.16)
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 300_000))
    with pytest.raises(StorageFull):
        SqliteLibrary.open(folder, dim=NEW_DIM, checkpoint=NEW)
    with SqliteLibrary.open(folder, dim=16, checkpoint=OLD) as library:
        assert nearest_hits(library, new_clip(7).embedding, 1)[0].clip == clips[7]
    filler.unlink()
    with SqliteLibrary.open(folder, dim=NEW_DIM, checkpoint=NEW) as library:
        assert len(library) == len(clips)
        assert nearest_hits(library, again(clips[7].sha256)[0], 1)[0].clip == clips[7]


CHANGE_OVER = """
import sys
from pathlib import Path
from index import SqliteLibrary
print("begun", flush=True)
SqliteLibrary.open(Path(sys.argv[1]), dim=int(sys.argv[3]), checkpoint=sys.argv[2]).close()
"""


def test_killed_while_it_changes_over(tmp_path: Path, new_clip: Callable[..., NewClip]) -> None:
    """Back and forth between two checkpoints, killed on the way: always one of the two, whole."""
    folder, dims = tmp_path / "library", {OLD: 16, NEW: NEW_DIM}

    def direction(sha256: str, dim: int) -> np.ndarray:
        return np.eye(dim, dtype=np.float32)[int(sha256[:8], 16) % dim]

    with SqliteLibrary.open(folder, dim=16, checkpoint=OLD) as library:
        new = [new_clip(seed) for seed in range(150)]
        new = [replace(c, embedding=direction(c.sha256, 16), frames=[direction(c.sha256, 16)] * 200) for c in new]
        clips = [clip for clip, _ in library.add_many(new)]
    choose, killed, took = random.Random(3), 0, 0.0
    current = OLD
    for turn in range(ROUNDS):
        other = NEW if current == OLD else OLD
        with SideDatabase(folder, other, dims[other]) as side:
            for clip in clips:
                vector = direction(clip.sha256, dims[other])
                side.add(clip.sha256, vector, encode_frames(np.tile(vector, (200, 1))), 0.16)
        process = subprocess.Popen(
            [sys.executable, "-c", CHANGE_OVER, str(folder), other, str(dims[other])],
            stdout=subprocess.PIPE,
            cwd=REPO,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == b"begun\n"
            begun = time.monotonic()
            if turn > 1:
                time.sleep(choose.uniform(0, took * 1.1))
                process.send_signal(signal.SIGKILL)
            code = process.wait(60)
        if turn <= 1:  # the second is as fast as those after it: what the first had to read is in the cache
            took = time.monotonic() - begun
        killed += code == -signal.SIGKILL
        with LibraryReader(folder) as reader:
            stamp = reader.stamp()
        assert stamp in ((OLD, 16), (NEW, NEW_DIM))
        assert stamp == (other, dims[other]) or side_path(folder, other).is_file()  # it can be taken over later
        current = stamp[0]
        with SqliteLibrary.open(folder, dim=stamp[1], checkpoint=current) as library:
            assert library.recovery_report == [] and len(library) == len(clips)
            for clip in clips:
                vector = direction(clip.sha256, stamp[1])
                np.testing.assert_array_equal(library.clip_vector(clip.id), vector)
                np.testing.assert_allclose(library.frames(clip.id)[0], np.tile(vector, (200, 1)), atol=1e-6)
    assert killed > 1
