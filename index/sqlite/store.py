"""The library's SQLite database: schema, migrations, connections and transactions.

It holds records, metadata, clip vectors and frame vectors; index/sqlite/queries.py has the statements. A commit is on
disk when it returns (WAL, synchronous=FULL). There is one writer at a time, which the caller ensures, and any number of
readers, each with a snapshot of the library from when it began.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from index.quantization import FrameCodes
from index.records import LibraryDamaged, LibraryError, LibraryUnavailable, StorageFull
from index.segments import cut_segments
from index.text import TOKENIZER, has_folded_letters, text_columns

# In a library's folder:
DATABASE_FILE = "catalog.sqlite3"
AUDIO_FOLDER = "audio"
RESTORING_FILE = "restoring.sqlite3"  # renamed to DATABASE_FILE when a restore is complete

APPLICATION_ID = 0x46494E45  # "FINE", in the file's header: marks the database as a library

# Entry n migrates a library from version n to n + 1 in one transaction. Never edit a released entry.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE library (                     -- one row: what made the vectors
        only INTEGER PRIMARY KEY CHECK (only = 1),
        checkpoint TEXT NOT NULL,
        dim INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE clips (
        row INTEGER PRIMARY KEY AUTOINCREMENT, -- the vector index's number of the clip; never given twice
        id TEXT NOT NULL UNIQUE,
        sha256 TEXT NOT NULL UNIQUE,
        filename TEXT NOT NULL,
        duration REAL NOT NULL,                -- seconds
        sample_rate INTEGER NOT NULL,          -- Hz
        channels INTEGER NOT NULL,
        created TEXT NOT NULL,                 -- RFC 3339, UTC
        metadata TEXT NOT NULL                 -- a JSON object
    ) STRICT;
    CREATE TABLE vectors (                     -- beside clips, so that reading records does not page through them
        row INTEGER PRIMARY KEY REFERENCES clips (row) ON DELETE CASCADE,
        embedding BLOB NOT NULL                -- dim little-endian float32, unit length
    ) STRICT;
    CREATE TABLE frames (
        row INTEGER PRIMARY KEY REFERENCES clips (row) ON DELETE CASCADE,
        hop REAL NOT NULL,                     -- seconds
        codes BLOB NOT NULL                    -- as frames.FrameCodes.to_bytes makes them
    ) STRICT;
    CREATE TABLE facts (                       -- metadata as filters ask for it: one row for each scalar
        key TEXT NOT NULL,
        kind TEXT NOT NULL,                    -- text, number or boolean
        value ANY NOT NULL,
        row INTEGER NOT NULL REFERENCES clips (row) ON DELETE CASCADE,
        PRIMARY KEY (key, kind, value, row)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX facts_of_clip ON facts (row);
    """,
    f"""
    CREATE VIRTUAL TABLE words USING fts5 (    -- what a search by words finds; its rowid is the clip's row
        name, tags, others, tokenize = '{TOKENIZER}'
    );
    INSERT INTO words (rowid, name, tags, others)
        SELECT row, words_of(filename, metadata, 0), words_of(filename, metadata, 1), words_of(filename, metadata, 2)
        FROM clips;
    CREATE INDEX clips_by_duration ON clips (duration);
    CREATE INDEX clips_by_filename ON clips (filename);
    """,
    """
    CREATE TABLE segments (
        row INTEGER PRIMARY KEY REFERENCES clips (row) ON DELETE CASCADE,
        codes BLOB NOT NULL                    -- what segments.cut_segments makes of the frames, as they are kept
    ) STRICT;
    INSERT INTO segments (row, codes)
        SELECT row, segments_of(codes, hop, dim) FROM frames CROSS JOIN library;
    """,
    """
    CREATE TABLE concepts (                    -- sounds that users teach with examples: index.concepts
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        text TEXT,
        created TEXT NOT NULL,                 -- RFC 3339, UTC
        updated TEXT NOT NULL,
        fitted_to TEXT NOT NULL,               -- the fingerprint of what `fit` was fitted to
        fit TEXT NOT NULL                      -- JSON; a cache
    ) STRICT;
    CREATE TABLE concept_examples (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        concept TEXT NOT NULL REFERENCES concepts (id) ON DELETE CASCADE,
        label INTEGER NOT NULL,                -- 1: what the concept is, 0: what it isn't
        clip TEXT,                             -- its id; kept when the clip is deleted, so that the concept can say so
        sha256 TEXT,                           -- or of a sound that came as a file
        filename TEXT NOT NULL,
        start REAL,                            -- seconds; both NULL: the whole recording
        stop REAL,
        created TEXT NOT NULL
    ) STRICT;
    CREATE INDEX examples_of_concept ON concept_examples (concept);
    CREATE TABLE concept_sounds (
        sha256 TEXT PRIMARY KEY,               -- of `audio`
        audio BLOB NOT NULL,                   -- the file
        duration REAL NOT NULL,                -- seconds
        embedding BLOB NOT NULL,               -- as in vectors and frames
        hop REAL NOT NULL,
        codes BLOB NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE jobs (                        -- index.jobs.Job
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        request TEXT NOT NULL,                 -- a JSON object
        key TEXT NOT NULL,                     -- equal for jobs that find the same events in a clip
        checkpoint TEXT NOT NULL,
        texts BLOB NOT NULL,                   -- embeddings of the phrases, little-endian float32
        clips BLOB NOT NULL,                   -- rows of its clips in the order of work, as jobs.pack_rows makes them
        total INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0,
        reused INTEGER NOT NULL,
        source INTEGER,                        -- number of the job that scored the first `reused` clips
        events INTEGER NOT NULL DEFAULT 0,
        seconds REAL NOT NULL DEFAULT 0,
        error TEXT,
        created TEXT NOT NULL,
        started TEXT,
        ended TEXT
    ) STRICT;
    CREATE INDEX jobs_by_key ON jobs (key);
    CREATE TABLE job_events (                  -- one row for each clip in which a job found events
        job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
        row INTEGER NOT NULL REFERENCES clips (row) ON DELETE CASCADE,
        count INTEGER NOT NULL,
        events BLOB NOT NULL,                  -- jobs.EVENT
        PRIMARY KEY (job, row)
    ) STRICT;
    CREATE INDEX job_events_of_clip ON job_events (row);
    CREATE TRIGGER job_event_added AFTER INSERT ON job_events BEGIN
        UPDATE jobs SET events = events + NEW.count WHERE number = NEW.job;
    END;
    CREATE TRIGGER job_event_deleted AFTER DELETE ON job_events BEGIN
        UPDATE jobs SET events = events - OLD.count WHERE number = OLD.job;
    END;
    """,
    """
    UPDATE words SET                           -- index.text folds letters since: "Straße" is "strasse"
        name = (SELECT words_of(filename, metadata, 0) FROM clips WHERE row = words.rowid),
        tags = (SELECT words_of(filename, metadata, 1) FROM clips WHERE row = words.rowid),
        others = (SELECT words_of(filename, metadata, 2) FROM clips WHERE row = words.rowid)
        WHERE rowid IN (SELECT row FROM clips WHERE has_folded(filename || metadata));
    """,
    """
    ALTER TABLE concepts ADD COLUMN threshold REAL;  -- chosen by its users; NULL: as it is fitted
    """,
)

CONCEPTS_VERSION = 4  # the version from which a library has concepts

# The terms of the full-text index, for reading: each term with its number of clips, and where each term occurs.
_VOCABULARY = """
PRAGMA temp_store = MEMORY;
CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, words, row);
CREATE VIRTUAL TABLE temp.occurrences USING fts5vocab(main, words, instance);
"""

_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TRANSIENT = {  # locked by another process, read-only or failing disk, missing permission
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
_BUSY_MS = 10_000
_MIN_FREE = 64 * 1024  # bytes; with less free space, an I/O error counts as a full disk


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Converts errors of SQLite and the file system to LibraryError and its subclasses."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # SQLite reports only some failures on a full disk as such; growing the shared memory file is an I/O error.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _free_bytes(folder) < _MIN_FREE):
            raise StorageFull(f"no space left in {folder}: the change was not made") from error
        if code in _DAMAGED:
            raise LibraryDamaged(f"the database in {folder} is damaged ({error}): restore a backup of it") from error
        if code in _TRANSIENT:
            raise LibraryUnavailable(f"the library in {folder} is unavailable: {error}") from error
        raise LibraryError(f"the library's database failed: {error}") from error
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise StorageFull(f"no space left in {folder}: the change was not made") from error
        raise LibraryUnavailable(f"the library's storage failed: {error}") from error


def _free_bytes(folder: Path) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return _MIN_FREE
    return status.f_bavail * status.f_frsize


class Store:
    """An open database. `row`, the integer key of clips, is the row number in the vector index."""

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        """Opens or creates the file and migrates it to the newest version.

        Raises LibraryError if the file is not a library or was written by a newer release.
        """
        self.path = path
        self._readers: list[sqlite3.Connection] = []  # idle
        self._pool = threading.Lock()
        self._closed = False
        self._damage: LibraryDamaged | None = None
        with self._errors():
            self._writer = self._connect()
            try:
                self._prepare(migrations)
                self._inode = path.stat().st_ino
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        # One thread at a time uses a connection, but not always the same one.
        connection = sqlite3.connect(self.path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.create_function("words_of", 3, _words_of, deterministic=True)  # for migrations
        connection.create_function("has_folded", 1, has_folded_letters, deterministic=True)
        connection.create_function("segments_of", 3, _segments_of, deterministic=True)
        return connection

    def _prepare(self, migrations: Sequence[str]) -> None:
        version = self._scalar("PRAGMA user_version")
        if self._scalar("SELECT count(*) FROM sqlite_master") == 0:
            self._writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        elif self._scalar("PRAGMA application_id") != APPLICATION_ID:
            raise LibraryError(f"{self.path} is a database, but not a FineLAP library")
        if version > len(migrations):
            raise LibraryError(
                f"the library in {self.path.parent} has format {version}, but this release reads formats up to "
                f"{len(migrations)}: use the release that wrote it, or a newer one"
            )
        self._writer.execute("PRAGMA journal_mode = WAL")
        for number, migration in enumerate(migrations[version:], start=version + 1):
            try:
                self._writer.executescript(f"BEGIN IMMEDIATE;\n{migration}\nPRAGMA user_version = {number};\nCOMMIT;")
            except sqlite3.Error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _scalar(self, statement: str) -> int:
        return int(self._writer.execute(statement).fetchone()[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with storage_errors(self.path.parent):
                yield
        except LibraryDamaged as error:
            self._damage = error
            raise

    # Transactions

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Runs one transaction: on disk when the block ends, rolled back if it raises. One caller at a time."""
        if self._closed:
            raise LibraryError("the library is closed")
        with self._errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite rolls back some failures itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Attaches another database under `name` for the block. Not inside `write`."""
        with self._errors():
            self._writer.execute(f"ATTACH ? AS {name}", (str(path),))
            try:
                yield
            finally:
                self._writer.execute(f"DETACH {name}")

    def shrink_log(self) -> None:
        """Truncates the write-ahead log, which otherwise keeps the size of the largest transaction."""
        with self._errors():
            self._writer.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: a view of the library from when its first statement runs."""
        with self._pool:
            if self._closed:
                raise LibraryError("the library is closed")
            connection = self._readers.pop() if self._readers else None
        with self._errors():
            if connection is None:
                connection = self._connect()
                connection.executescript(_VOCABULARY)
                connection.execute("PRAGMA query_only = ON")
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
                with self._pool:
                    keep = not self._closed
                    if keep:
                        self._readers.append(connection)
                if not keep:
                    connection.close()

    def close(self) -> None:
        """Closes all connections; active readers close theirs when they finish."""
        with self._pool:
            self._closed = True
            idle, self._readers = self._readers, []
        for connection in idle:
            connection.close()
        self._writer.close()

    def check(self) -> None:
        """Raises LibraryError if the database does not respond, is damaged, or was replaced on disk."""
        if self._damage is not None:
            raise LibraryDamaged(str(self._damage)) from self._damage
        with self.read() as connection:
            connection.execute("SELECT dim FROM library").fetchone()
            if self.path.stat().st_ino != self._inode:
                raise LibraryError(f"{self.path} was replaced while it was open")


def _words_of(filename: str, metadata: str, column: int) -> str:
    return text_columns(filename, json.loads(metadata))[column]


def _segments_of(codes: bytes, hop: float, dim: int) -> bytes:
    return cut_segments(FrameCodes.from_bytes(codes, dim), hop).to_bytes()
