"""Re-embedding a library with another checkpoint: a side database first, then a takeover in one transaction.

`finelap reindex` fills the side database (`reindex-….sqlite3`, one per checkpoint: vector, frames and segments of each
audio file) from the stored audio, in its own process, while the library is in use. Opening the library with the new
checkpoint takes it over: one transaction gives every clip its new vectors and the library its new checkpoint, then the
side database is removed. A crash leaves the old library with the side database, or the new library with a side database
that the next opening removes.
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
from index.sqlite import queries
from index.sqlite.store import MIGRATIONS, Store, storage_errors

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
    format INTEGER NOT NULL      -- of the library
) STRICT;
CREATE TABLE IF NOT EXISTS embedded (
    number INTEGER PRIMARY KEY,  -- roughly in the order of the library's clips, so that a takeover reads sequentially
    sha256 TEXT NOT NULL UNIQUE, -- of the audio file
    embedding BLOB NOT NULL,     -- as in the library's tables
    hop REAL NOT NULL,
    codes BLOB NOT NULL,
    segments BLOB NOT NULL
) STRICT;
COMMIT;
"""
# What depends on the checkpoint: a table of the library, its columns, and those of `embedded`
_TABLES = (
    ("vectors", "embedding", "embedding"),
    ("frames", "hop, codes", "hop, codes"),
    ("segments", "codes", "segments"),
)


def side_path(folder: Path, checkpoint: str) -> Path:
    """Returns the path of the checkpoint's side database, whether or not it exists."""
    return folder / f"reindex-{hashlib.sha256(checkpoint.encode()).hexdigest()[:16]}.sqlite3"


class SideDatabase:
    """The embeddings of a library's audio by one checkpoint. Close it, or use it as a context manager.

    One process writes it. A clip survives a crash of the process when `add` returns; a power cut may lose the last
    ones.
    """

    def __init__(self, folder: Path, checkpoint: str, dim: int) -> None:
        """Opens or creates it. Raises LibraryError if the file is something else, StorageFull."""
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
            raise LibraryError(f"{self.path} was not created by finelap reindex: move it away")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")  # what a power cut loses is embedded again
        self._connection.executescript(_SCHEMA)
        wanted = (checkpoint, self.dim, len(MIGRATIONS))
        self._connection.execute("INSERT OR IGNORE INTO made VALUES (1, ?, ?, ?)", wanted)
        if self._connection.execute("SELECT checkpoint, dim, format FROM made").fetchone() != wanted:
            raise LibraryError(f"{self.path} belongs to another checkpoint or release: remove it")

    def add(self, sha256: str, embedding: np.ndarray, frames: FrameCodes, hop: float) -> None:
        """Stores an audio file's embedding (D,) of unit length, its frames and their hop in seconds.

        Raises ValueError for a wrong shape or length, StorageFull.
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
        """Fsyncs and closes the database."""
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
    """Removes the checkpoint's side database. Returns False if there is none."""
    path = side_path(folder, checkpoint)
    found = path.is_file()
    with storage_errors(folder):
        # The log last: a log without its database is harmless, a database without its log is not.
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return found


def take_over(database: Store, folder: Path, checkpoint: str, dim: int) -> int:
    """Replaces every clip's vectors by those of the side database, and the library's checkpoint, in one transaction.

    Concepts are fitted anew when they are used next, because their fits belong to the old checkpoint. Returns the
    number of clips and examples' sounds that the side database lacks; unless it is 0, nothing was changed. The side
    database is removed afterwards. Raises LibraryError if it belongs to another checkpoint, StorageFull if there is no
    space for both.
    """
    path, began = side_path(folder, checkpoint), time.monotonic()
    with database.attached(path, "side"):
        with database.write() as change:
            missing = _missing(change, path, checkpoint, dim)
            if missing:
                return missing
            _log.info("taking over the embeddings of %d clips from finelap reindex", queries.count(change))
            for table, columns, made in _TABLES:
                change.execute(f"DELETE FROM {table}")
                change.execute(
                    f"INSERT INTO {table} (row, {columns}) SELECT row, {made} FROM clips "
                    "CROSS JOIN side.embedded USING (sha256) ORDER BY row"
                )
            change.execute(
                "UPDATE concept_sounds SET embedding = new.embedding, hop = new.hop, codes = new.codes "
                "FROM side.embedded AS new WHERE new.sha256 = concept_sounds.sha256"
            )
            queries.set_stamp(change, checkpoint, dim)
        database.shrink_log()
    remove_side(folder, checkpoint)
    _log.info("took over the embeddings in %.1f s", time.monotonic() - began)
    return 0


def _missing(connection: sqlite3.Connection, path: Path, checkpoint: str, dim: int) -> int:
    """Returns the number of clips and examples' sounds that the attached side database lacks."""
    try:
        made = connection.execute("SELECT checkpoint, dim, format FROM side.made").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:  # anything but "no such table"
            raise
        made = None
    if made != (checkpoint, dim, len(MIGRATIONS)):
        raise LibraryError(f"{path} belongs to another checkpoint or release: remove it and run finelap reindex again")
    return sum(
        connection.execute(
            f"SELECT count(*) FROM {table} WHERE sha256 NOT IN (SELECT sha256 FROM side.embedded)"
        ).fetchone()[0]
        for table in ("clips", "concept_sounds")
    )
