"""Measures how long a library takes to switch to another checkpoint, and to be backed up and restored.

    python -m benchmarks.index.maintenance FOLDER [--clips 100000] [--files 2000] [--dim 384] [--frames 64]

FOLDER is created, and removed at the end. The library that switches has `--clips` clips of random vectors without
audio, which switching does not read; the one that is backed up has `--files` files of 200 kB. For comparison, writing
as many bytes as the database has to the same disk, with fsync, is timed too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from index import NewClip, SideDatabase, SqliteLibrary, back_up, encode_frames, restore, side_path
from index.sqlite.reindex import take_over
from index.sqlite.store import Store

HOP = 0.16  # seconds
FILE_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--frames", type=int, default=64)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        switch(args.folder / "library", args.clips, args.dim, args.frames)
        back_up_and_restore(args.folder, args.files, args.dim)
    finally:
        shutil.rmtree(args.folder)


def switch(folder: Path, clips: int, dim: int, frames: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    some = [clip_of(rng, dim, frames) for _ in range(200)]  # reused, because their content does not matter
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(clips)]
    with SideDatabase(folder, "new", dim) as side:
        for number, sha256 in enumerate(names):
            vector, track = some[number % len(some)]
            side.add(sha256, vector, track, HOP)
    copy_as_library(folder, names, dim)
    size = (folder / "catalog.sqlite3").stat().st_size
    written = timed(lambda: write(folder / "plain", size))
    database = Store(folder / "catalog.sqlite3")
    try:
        took = timed(lambda: take_over(database, folder, "new", dim))
    finally:
        database.close()
    print(f"{clips} clips of {dim} dimensions and {frames} frames, {size / 1e9:.2f} GB")
    print(f"switching: {took:.1f} s; writing as many bytes: {written:.1f} s")


def clip_of(rng: np.random.Generator, dim: int, frames: int) -> tuple:
    vectors = rng.standard_normal((frames + 1, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[0], encode_frames(vectors[1:])


def copy_as_library(folder: Path, names: list[str], dim: int) -> None:
    """Creates a library of the same clips as embedded by another checkpoint."""
    Store(folder / "catalog.sqlite3").close()
    with sqlite3.connect(folder / "catalog.sqlite3", isolation_level=None) as library:
        library.execute("ATTACH ? AS side", (str(side_path(folder, "new")),))
        library.execute("BEGIN")
        library.execute("INSERT INTO library VALUES (1, 'old', ?)", (dim,))
        library.executemany(
            "INSERT INTO clips (id, sha256, filename, duration, sample_rate, channels, created, metadata) "
            "VALUES (?, ?, ?, 10, 48000, 2, '2026-01-01T00:00:00Z', '{}')",
            ((name[:32], name, f"{name[:8]}.wav") for name in names),
        )
        for table, columns, made in (
            ("vectors", "embedding", "embedding"),
            ("frames", "hop, codes", "hop, codes"),
            ("segments", "codes", "segments"),
        ):
            library.execute(  # those of the next clip, so that every byte changes
                f"INSERT INTO {table} (row, {columns}) "
                f"SELECT row, {made} FROM clips JOIN side.embedded ON number = 1 + row % {len(names)}"
            )
        library.execute("COMMIT")
    library.close()


def back_up_and_restore(folder: Path, files: int, dim: int) -> None:
    rng = np.random.default_rng(1)
    with SqliteLibrary.open(folder / "kept", dim=dim, checkpoint="new") as library:
        for first in range(0, files, 50):
            library.add_many([new_clip(rng, dim) for _ in range(min(50, files - first))])
        linked = timed(lambda: back_up(library.folder, folder / "linked", lambda *_: None))
        again = timed(lambda: back_up(library.folder, folder / "linked", lambda *_: None))
        copied = timed(lambda: back_up(library.folder, folder / "copied", lambda *_: None, copy=True))
    restored = timed(lambda: restore(folder / "linked", folder / "restored", lambda *_: None))
    print(f"{files} files, {files * FILE_BYTES / 1e9:.2f} GB")
    print(f"backup: {linked:.1f} s with links, {copied:.1f} s with copies, {again:.1f} s when repeated")
    print(f"restoring: {restored:.1f} s")


def new_clip(rng: np.random.Generator, dim: int) -> NewClip:
    vector, frames = clip_of(rng, dim, 64)
    audio = rng.bytes(FILE_BYTES)
    sha256 = hashlib.sha256(audio).hexdigest()
    return NewClip(f"{sha256[:8]}.wav", sha256, 10.0, 48_000, 2, {}, vector, frames, HOP, audio)


def write(path: Path, size: int) -> None:
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
