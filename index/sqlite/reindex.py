"""A library's vectors made once more by another checkpoint: kept beside it first, then taken over at one stroke.

Knows the side database (`reindex-….sqlite3`, one a checkpoint: vector, frames and segments of each audio file) and how
a library is changed over to it. Knows no model: `finelap reindex` fills the side database from stored audio, in its own
process, while the library serves and changes; opening the library with the new checkpoint takes it over.

The order of things: everything is in the side database → one transaction gives every clip its new vectors and the
library its new stamp → the side database is removed. A crash leaves the old library with the side database, or
the new one with a side database that the next opening removes.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from pathlib import Path

import numpy as np

from index.quantization import FrameCodes
from index.records import LibraryError
from index.segments import cut_segments
from index.sqlite import store
from index.sqlite.store import Store, storage_errors

_log = logging.getLogger(__name__)

_APPLICATION_ID = 0x46494E52  # "FINR"
_UNIT_TOLERANCE = 1e-2
_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = 1;
CREATE TABLE IF NOT EXISTS made (  -- one row
    only INTEGER PRIMARY KEY CHECK (only = 1),
    checkpoint TEXT NOT NULL,
    dim INTEGER NOT NULL,
    format INTEGER NOT NULL      -- of the library that all this is made for
) STRICT;
CREATE TABLE IF NOT EXISTS embedded (
    number INTEGER PRIMARY KEY,  -- in the order of the library's clips, nearly, so that a takeover reads straight on
    sha256 TEXT NOT NULL UNIQUE, -- of the audio file
    embedding BLOB NOT NULL,     -- as the library's tables have them
    hop REAL NOT NULL,
    codes BLOB NOT NULL,
    segments BLOB NOT NULL
) STRICT;
COMMIT;
"""
# table of the library, its columns, those of `embedded`: what depends on the checkpoint
_TABLES = (
    ("vectors", "embedding", "embedding"),
    ("frames", "hop, codes", "hop, codes"),
    ("segments", "codes", "segments"),
)


def side_path(folder: Path, checkpoint: str) -> Path:
    """Where the side database of this checkpoint's stamp is, or would be."""
    return folder / f"reindex-{hashlib.sha256(checkpoint.encode()).hexdigest()[:16]}.sqlite3"


class SideDatabase:
    """What one checkpoint made of a library's audio so far. One process writes it; close it, or use it as a context.

    A clip is kept when `add` returns, whatever becomes of the process; a power cut may take the last ones.
    """

    def __init__(self, folder: Path, checkpoint: str, dim: int) -> None:
        """Opens it, or begins it. Raises LibraryError when the file is something else, StorageFull."""
        self.path, self.dim = side_path(folder, checkpoint), dim
        with storage_errors(folder):
            self._connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(checkpoint)
                self.known = {sha256 for (sha256,) in self._connection.execute("SELECT sha256 FROM embedded")}
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, checkpoint: str) -> None:
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise LibraryError(f"{self.path} was not made by finelap reindex: move it away")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes is made again
        self._connection.executescript(_SCHEMA)
        wanted = (checkpoint, self.dim, len(store.MIGRATIONS))
        self._connection.execute("INSERT OR IGNORE INTO made VALUES (1, ?, ?, ?)", wanted)
        if self._connection.execute("SELECT checkpoint, dim, format FROM made").fetchone() != wanted:
            raise LibraryError(f"{self.path} is of another checkpoint or another release: remove it")

    def add(self, sha256: str, embedding: np.ndarray, frames: FrameCodes, hop: float) -> None:
        """Keeps what an audio file became: embedding (D,) of unit length, frames, their hop in seconds.

        Raises ValueError for another shape or length, StorageFull.
        """
        vector = np.asarray(embedding, dtype=np.float32)
        if vector.shape != (self.dim,) or not abs(float(np.linalg.norm(vector)) - 1) <= _UNIT_TOLERANCE:
            raise ValueError(f"an embedding must be ({self.dim},) of unit length, not {vector.shape}")
        if frames.dim != self.dim or not len(frames) or not hop > 0:
            raise ValueError(f"frames must be (T, {self.dim}), T ≥ 1, and their hop positive")
        segments = cut_segments(frames, hop)
        with storage_errors(self.path.parent):
            self._connection.execute(
                "INSERT OR IGNORE INTO embedded (sha256, embedding, hop, codes, segments) VALUES (?, ?, ?, ?, ?)",
                (sha256, vector.astype("<f4").tobytes(), float(hop), frames.to_bytes(), segments.to_bytes()),
            )
        self.known.add(sha256)

    def close(self) -> None:
        """Ends the writing; what was added is on the disk."""
        with storage_errors(self.path.parent):
            try:
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._connection.close()

    def __enter__(self) -> SideDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_side(folder: Path, checkpoint: str) -> bool:
    """Removes the side database of this checkpoint; False when there is none."""
    path = side_path(folder, checkpoint)
    found = path.is_file()
    with storage_errors(folder):
        # the log last: a database without its log could still be read, a log without its database is nothing
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return found


def take_over(database: Store, folder: Path, checkpoint: str, dim: int) -> int:
    """Gives every clip the vectors that the side database has, and the library their stamp.

    How many clips the side database lacks: unless that is 0, nothing was changed. One transaction; the side database is
    removed after it. Raises LibraryError when that is something else, StorageFull when the library cannot hold both for
    the moment.
    """
    path, began = side_path(folder, checkpoint), time.monotonic()
    with database.attached(path, "side"):
        with database.write() as change:
            missing = _missing(change, path, checkpoint, dim)
            if missing:
                return missing
            _log.info("taking over the vectors that finelap reindex made of %d clips", store.count(change))
            for table, columns, made in _TABLES:
                change.execute(f"DELETE FROM {table}")
                change.execute(
                    f"INSERT INTO {table} (row, {columns}) SELECT row, {made} FROM clips "
                    "CROSS JOIN side.embedded USING (sha256) ORDER BY row"
                )
            store.set_stamp(change, checkpoint, dim)
        database.shrink_log()
    remove_side(folder, checkpoint)
    _log.info("took them over in %.1f s", time.monotonic() - began)
    return 0


def _missing(connection: sqlite3.Connection, path: Path, checkpoint: str, dim: int) -> int:
    """How many clips the attached side database has not."""
    try:
        made = connection.execute("SELECT checkpoint, dim, format FROM side.made").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:  # anything but "no such table"
            raise
        made = None
    if made != (checkpoint, dim, len(store.MIGRATIONS)):
        raise LibraryError(f"{path} is not of this checkpoint and release: remove it, and run finelap reindex again")
    return int(
        connection.execute(
            "SELECT count(*) FROM clips WHERE sha256 NOT IN (SELECT sha256 FROM side.embedded)"
        ).fetchone()[0]
    )
