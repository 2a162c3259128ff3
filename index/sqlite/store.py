"""The truth on disk: one SQLite file with records, metadata, clip vectors and frame vectors.

Knows SQL and its migrations. Knows no FAISS, no audio file and no policy: the catalog decides what is written when.
A commit is on the disk when it returns (WAL, synchronous=FULL). One writer at a time (the caller sees to that), any
number of readers, each of which sees the library as it was when it began.
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

import numpy as np

from index import text as words
from index.filters import Condition
from index.quantization import FrameCodes
from index.records import Clip, Fact, LibraryDamaged, LibraryError, LibraryUnavailable, StorageFull
from index.segments import cut_segments

APPLICATION_ID = 0x46494E45  # "FINE", in the file's header: this is a library and not some other database

# Each entry takes a library from version n to n + 1 in one transaction. Never edit one that has been released.
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
        name, tags, others, tokenize = '{words.TOKENIZER}'
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
)

_CLIP = "id, filename, sha256, duration, sample_rate, channels, created, metadata"  # as Clip has them
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_MAY_PASS = {  # another process has the lock, the disk is read-only or fails, rights are missing
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
_BUSY_MS = 10_000
_LITTLE_ROOM = 64 * 1024  # bytes free under which a failed write is put down to the disk being full


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns what SQLite and the file system raise into a LibraryError: StorageFull, LibraryDamaged, … by the cause."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # Only some writes that meet a full disk are reported as such; growing the shared memory file, for one, is not.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _room(folder) < _LITTLE_ROOM):
            raise StorageFull(f"no room left in {folder}: the change was not made") from error
        if code in _DAMAGED:
            raise LibraryDamaged(f"the database in {folder} is damaged ({error}): restore a backup of it") from error
        if code in _MAY_PASS:
            raise LibraryUnavailable(f"the library in {folder} cannot do this now: {error}") from error
        raise LibraryError(f"the library's database failed: {error}") from error
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise StorageFull(f"no room left in {folder}: the change was not made") from error
        raise LibraryUnavailable(f"the library's folder failed: {error}") from error


def _room(folder: Path) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return _LITTLE_ROOM
    return status.f_bavail * status.f_frsize


class Store:
    """The open database. Rows are the integer keys that the vector index shares."""

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        """Opens or creates the file and brings it to the newest version.

        Raises LibraryError when it is not a library, or one that a newer release has written.
        """
        self.path = path
        self._readers: list[sqlite3.Connection] = []  # idle ones
        self._pool = threading.Lock()
        self._closed = False
        self._damage: LibraryDamaged | None = None  # once it was met
        with self._errors():
            self._writer = self._connect()
            try:
                self._prepare(migrations)
                self._inode = path.stat().st_ino
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        # A connection is used by one thread at a time, though not always by the same.
        connection = sqlite3.connect(self.path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.create_function("words_of", 3, _words_of, deterministic=True)  # for migrations
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
                f"the library in {self.path.parent} has format {version} and this release reads up to "
                f"{len(migrations)}: it was written by a newer release, use that one or a newer one still"
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
        """One transaction, on the disk when the block ends, undone when it raises. One caller at a time."""
        if self._closed:
            raise LibraryError("the library is closed")
        with self._errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite undoes some failures by itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Gives the tables of another database to `write` under `name` for as long as the block; not inside `write`."""
        with self._errors():
            self._writer.execute(f"ATTACH ? AS {name}", (str(path),))
            try:
                yield
            finally:
                self._writer.execute(f"DETACH {name}")

    def shrink_log(self) -> None:
        """Gives back the room of the write-ahead log, which keeps the size of the largest transaction."""
        with self._errors():
            self._writer.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A view of the library as it is when the first statement runs; later commits do not show in it."""
        with self._pool:
            if self._closed:
                raise LibraryError("the library is closed")
            connection = self._readers.pop() if self._readers else None
        with self._errors():
            if connection is None:
                connection = self._connect()
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
        """Closes every connection; readers still at work close theirs when they are done."""
        with self._pool:
            self._closed = True
            idle, self._readers = self._readers, []
        for connection in idle:
            connection.close()
        self._writer.close()

    def check(self) -> None:
        """Raises LibraryError unless the database answers, was whole so far, and is still the file that was opened."""
        if self._damage is not None:
            raise LibraryDamaged(str(self._damage)) from self._damage
        with self.read() as connection:
            connection.execute("SELECT dim FROM library").fetchone()
            if self.path.stat().st_ino != self._inode:
                raise LibraryError(f"{self.path} was replaced while it was open")


# Statements. Each takes the connection of a transaction that the caller holds.


def stamp(connection: sqlite3.Connection) -> tuple[str, int] | None:
    """(checkpoint, dim) that made the vectors; None in a library that has not been used."""
    found = connection.execute("SELECT checkpoint, dim FROM library").fetchone()
    return (found[0], found[1]) if found else None


def set_stamp(connection: sqlite3.Connection, checkpoint: str, dim: int) -> None:
    connection.execute("INSERT OR REPLACE INTO library (only, checkpoint, dim) VALUES (1, ?, ?)", (checkpoint, dim))


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM clips").fetchone()[0])


def count_vectors(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])


def insert(
    connection: sqlite3.Connection,
    clip: Clip,
    metadata: str,
    facts: Iterator[Fact],
    embedding: bytes,
    hop: float,
    codes: bytes,
    segments: bytes,
) -> int:
    """Adds a clip whole; its new row."""
    [(row,)] = connection.execute(
        "INSERT INTO clips (id, sha256, filename, duration, sample_rate, channels, created, metadata) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING row",
        (clip.id, clip.sha256, clip.filename, clip.duration, clip.sample_rate, clip.channels, clip.created, metadata),
    ).fetchall()
    connection.execute("INSERT INTO vectors (row, embedding) VALUES (?, ?)", (row, embedding))
    connection.execute("INSERT INTO frames (row, hop, codes) VALUES (?, ?, ?)", (row, hop, codes))
    connection.execute("INSERT INTO segments (row, codes) VALUES (?, ?)", (row, segments))
    _insert_facts(connection, row, facts)
    _insert_words(connection, row, clip.filename, clip.metadata)
    return int(row)


def _insert_words(connection: sqlite3.Connection, row: int, filename: str, metadata: dict) -> None:
    connection.execute(
        "INSERT INTO words (rowid, name, tags, others) VALUES (?, ?, ?, ?)", (row, *words.columns(filename, metadata))
    )


def _words_of(filename: str, metadata: str, column: int) -> str:
    return words.columns(filename, json.loads(metadata))[column]


def _segments_of(codes: bytes, hop: float, dim: int) -> bytes:
    return cut_segments(FrameCodes.from_bytes(codes, dim), hop).to_bytes()


def _insert_facts(connection: sqlite3.Connection, row: int, facts: Iterator[Fact]) -> None:
    connection.executemany(  # OR IGNORE: a list may hold a value twice
        "INSERT OR IGNORE INTO facts (key, kind, value, row) VALUES (?, ?, ?, ?)", ((*fact, row) for fact in facts)
    )


def replace_metadata(
    connection: sqlite3.Connection, row: int, clip: Clip, metadata: str, facts: Iterator[Fact]
) -> None:
    """Gives the row's clip the metadata that `clip` has, which is `metadata` as JSON."""
    connection.execute("UPDATE clips SET metadata = ? WHERE row = ?", (metadata, row))
    connection.execute("DELETE FROM facts WHERE row = ?", (row,))
    _insert_facts(connection, row, facts)
    connection.execute("DELETE FROM words WHERE rowid = ?", (row,))
    _insert_words(connection, row, clip.filename, clip.metadata)


def delete(connection: sqlite3.Connection, row: int) -> None:
    connection.execute("DELETE FROM words WHERE rowid = ?", (row,))  # a virtual table, which no cascade reaches
    connection.execute("DELETE FROM clips WHERE row = ?", (row,))  # the other tables follow


def by_id(connection: sqlite3.Connection, clip_id: str) -> tuple[int, Clip] | None:
    """(row, clip)."""
    return _one(connection, "id", clip_id) if clip_id.isascii() else None


def by_sha256(connection: sqlite3.Connection, sha256: str) -> tuple[int, Clip] | None:
    """(row, clip)."""
    return _one(connection, "sha256", sha256)


def _one(connection: sqlite3.Connection, column: str, value: str) -> tuple[int, Clip] | None:
    found = connection.execute(f"SELECT row, {_CLIP} FROM clips WHERE {column} = ?", (value,)).fetchone()
    return (found[0], _clip(found[1:])) if found else None


def _clip(columns: Sequence) -> Clip:
    clip_id, filename, sha256, duration, sample_rate, channels, created, metadata = columns
    return Clip(clip_id, filename, sha256, duration, sample_rate, channels, created, json.loads(metadata))


def by_rows(connection: sqlite3.Connection, rows: np.ndarray) -> dict[int, Clip]:
    """Row → clip, for those of the rows that are there."""
    found = connection.execute(  # one JSON parameter, as the number of plain ones is limited
        f"SELECT row, {_CLIP} FROM clips WHERE row IN (SELECT value FROM json_each(?))",
        (json.dumps(rows.tolist()),),
    )
    return {columns[0]: _clip(columns[1:]) for columns in found}


def _passing(conditions: list[Condition]) -> tuple[str, list[object]]:
    """A query for the rows that pass every condition (at least one)."""
    queries: list[str] = []
    parameters: list[object] = []
    for condition in conditions:
        query, values = _passing_one(condition)
        queries.append(f"SELECT row FROM ({query})")
        parameters += values
    return " INTERSECT ".join(queries), parameters


def _passing_one(condition: Condition) -> tuple[str, list[object]]:
    """One query for each kind of value, as the index of facts is on (key, kind, value)."""
    if condition.bounds:
        column = condition.key if condition.field else "value"
        within = " AND ".join(f"{column} {operator} ?" for operator, _ in condition.bounds)
        bounds: list[object] = [value for _, value in condition.bounds]
        if condition.field:
            return f"SELECT row FROM clips WHERE {within}", bounds
        return f"SELECT row FROM facts WHERE key = ? AND kind = ? AND {within}", [
            condition.key,
            condition.kind,
            *bounds,
        ]
    if condition.field:
        marks = ", ".join("?" * len(condition.facts))
        return f"SELECT row FROM clips WHERE {condition.key} IN ({marks})", [value for _, _, value in condition.facts]
    by_kind: dict[str, list[object]] = {}
    for _, kind, value in condition.facts:
        by_kind.setdefault(kind, []).append(value)
    any_of, parameters = [], []
    for kind, values in by_kind.items():
        marks = ", ".join("?" * len(values))
        any_of.append(f"SELECT row FROM facts WHERE key = ? AND kind = ? AND value IN ({marks})")
        parameters += [condition.key, kind, *values]
    return " UNION ".join(any_of), parameters


def rows_passing(connection: sqlite3.Connection, conditions: list[Condition]) -> np.ndarray:
    """Rows (M,) int64 of all clips that pass every condition (at least one)."""
    query, parameters = _passing(conditions)
    return np.fromiter((row for (row,) in connection.execute(query, parameters)), dtype=np.int64)


def rows_matching(
    connection: sqlite3.Connection, match: str, k: int, conditions: list[Condition]
) -> list[tuple[int, float]]:
    """The best k (row, relevance) for an FTS5 match among clips that pass; BM25, larger is better.

    A word counts double in the name and three times in the tags.
    """
    where = ""
    parameters: list[object] = []
    if conditions:
        query, parameters = _passing(conditions)
        where = f" AND rowid IN ({query})"
    found = connection.execute(
        f"SELECT rowid, bm25(words, 2, 3, 1) AS relevance FROM words WHERE words MATCH ?{where} "
        "ORDER BY relevance, rowid LIMIT ?",
        [match, *parameters, k],
    )
    return [(int(row), -float(relevance)) for row, relevance in found]


SORTS = ("created", "filename", "duration")


def page(
    connection: sqlite3.Connection,
    limit: int,
    conditions: list[Condition],
    *,
    by: str = "created",
    descending: bool = True,
    after: tuple[object, int] | None = None,
) -> list[tuple[int, Clip]]:
    """Up to `limit` (row, clip) that pass, in order of one of SORTS and then of arrival.

    `after`: the (value, row) of the last clip of the page before. In order of creation the value is the row.
    """
    if by not in SORTS:
        raise ValueError(f"clips are sorted by {', '.join(SORTS)}, not by {by!r}")
    column = "row" if by == "created" else by
    order, beyond = ("DESC", "<") if descending else ("ASC", ">")
    where: list[str] = ["TRUE"]
    parameters: list[object] = []
    if after is not None:
        where.append(f"({column}, row) {beyond} (?, ?)")
        parameters += after
    if conditions:
        query, values = _passing(conditions)
        where.append(f"row IN ({query})")
        parameters += values
    found = connection.execute(
        f"SELECT row, {_CLIP} FROM clips WHERE {' AND '.join(where)} ORDER BY {column} {order}, row {order} LIMIT ?",
        [*parameters, limit],
    )
    return [(columns[0], _clip(columns[1:])) for columns in found]


def vector(connection: sqlite3.Connection, row: int) -> np.ndarray:
    """(D,) float32."""
    blob = connection.execute("SELECT embedding FROM vectors WHERE row = ?", (row,)).fetchone()[0]
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def vectors(connection: sqlite3.Connection, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Row → (D,) float32, for those of the rows that are there."""
    found = connection.execute(
        "SELECT row, embedding FROM vectors WHERE row IN (SELECT value FROM json_each(?))", (json.dumps(rows.tolist()),)
    )
    return {row: np.frombuffer(blob, dtype="<f4").astype(np.float32) for row, blob in found}


def segments(connection: sqlite3.Connection, row: int) -> bytes:
    """What FrameCodes.to_bytes made of the clip's segments."""
    return bytes(connection.execute("SELECT codes FROM segments WHERE row = ?", (row,)).fetchone()[0])


def all_segments(
    connection: sqlite3.Connection, dim: int, batch: int = 1024
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of the rows (N,) int64 that segments belong to, and of those segments (N, D) float32, in row order."""
    found = connection.execute("SELECT row, codes FROM segments ORDER BY row")
    while chunk := found.fetchmany(batch):
        parts = [FrameCodes.from_bytes(codes, dim).decode() for _, codes in chunk]
        yield np.repeat([row for row, _ in chunk], [len(part) for part in parts]), np.concatenate(parts)


def frame_codes(connection: sqlite3.Connection, row: int) -> tuple[bytes, float]:
    """(what FrameCodes.to_bytes made, hop in seconds)."""
    codes, hop = connection.execute("SELECT codes, hop FROM frames WHERE row = ?", (row,)).fetchone()
    return codes, hop


def frame_codes_of(connection: sqlite3.Connection, clip_ids: Sequence[str]) -> list[tuple[str, bytes, float]]:
    """(id, what FrameCodes.to_bytes made, hop in seconds) of those of the clips that are there."""
    return connection.execute(
        "SELECT id, codes, hop FROM clips JOIN frames USING (row) WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(clip_ids)),),
    ).fetchall()


def vectors_of(connection: sqlite3.Connection, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows that are there: rows (M,) int64, ascending, and vectors (M, D) float32."""
    found = connection.execute(
        "SELECT row, embedding FROM vectors WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
        (json.dumps(rows.tolist()),),
    )
    return _stacked(found.fetchall(), dim)


def vectors_after(connection: sqlite3.Connection, row: int, limit: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `limit` rows above `row`: rows (N,) int64, ascending, and vectors (N, D) float32."""
    found = connection.execute("SELECT row, embedding FROM vectors WHERE row > ? ORDER BY row LIMIT ?", (row, limit))
    return _stacked(found.fetchall(), dim)


def _stacked(found: list[tuple[int, bytes]], dim: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([row for row, _ in found], dtype=np.int64)
    return rows, np.frombuffer(b"".join(blob for _, blob in found), dtype="<f4").reshape(len(found), dim)


def row_keys(connection: sqlite3.Connection) -> tuple[np.ndarray, np.ndarray]:
    """All rows (N,) int64, ascending, and of each 64 bits of its clip's id (N,) uint64."""
    rows: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    found = connection.execute("SELECT row, id FROM clips ORDER BY row")
    while chunk := found.fetchmany(65536):
        rows.append(np.array([row for row, _ in chunk], dtype=np.int64))
        text = np.array([clip_id for _, clip_id in chunk], dtype="S16")
        keys.append(np.bitwise_xor.reduce(text.view("<u8").reshape(-1, 2) * np.array([1, 3], np.uint64), axis=1))
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *rows]), np.concatenate([empty.astype(np.uint64), *keys])


def all_sha256(connection: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """(sha256, id, filename) of every clip."""
    yield from connection.execute("SELECT sha256, id, filename FROM clips")
