"""SQL statements of the library. Each function takes the connection of a transaction that its caller holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from index.edits import DURATIONS, Facet
from index.filters import COLUMNS, RECORD_FIELDS, Condition
from index.new_clip import EncodedClip
from index.quantization import FrameCodes
from index.records import Clip, Fact, metadata_facts, nfc
from index.sqlite.store import Store
from index.text import text_columns
from index.vectors.index import PAGE_SIZE

_JOINED = 65_536  # clips whose keys SQLite joins at a time
_CLIP = "id, filename, sha256, duration, sample_rate, channels, created, metadata"  # in Clip's order


def stamp(connection: sqlite3.Connection) -> tuple[str, int] | None:
    """Returns the (checkpoint, dim) of the vectors; None in an unused library."""
    found = connection.execute("SELECT checkpoint, dim FROM library").fetchone()
    return (found[0], found[1]) if found else None


def set_stamp(connection: sqlite3.Connection, checkpoint: str, dim: int) -> None:
    connection.execute("INSERT OR REPLACE INTO library (only, checkpoint, dim) VALUES (1, ?, ?)", (checkpoint, dim))


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM clips").fetchone()[0])


def count_sounds(connection: sqlite3.Connection) -> int:
    """Returns the number of sounds that came as examples of concepts."""
    return int(connection.execute("SELECT count(*) FROM concept_sounds").fetchone()[0])


def insert(connection: sqlite3.Connection, new: EncodedClip) -> int:
    """Inserts a clip with its vectors and returns its row."""
    clip = new.clip
    [(row,)] = connection.execute(
        "INSERT INTO clips (id, sha256, filename, duration, sample_rate, channels, created, metadata) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING row",
        (
            clip.id,
            clip.sha256,
            clip.filename,
            clip.duration,
            clip.sample_rate,
            clip.channels,
            clip.created,
            new.metadata,
        ),
    ).fetchall()
    embedding = new.embedding.astype("<f4").tobytes()
    connection.execute("INSERT INTO vectors (row, embedding) VALUES (?, ?)", (row, embedding))
    connection.execute("INSERT INTO frames (row, hop, codes) VALUES (?, ?, ?)", (row, new.frame_hop, new.codes))
    connection.execute("INSERT INTO segments (row, codes) VALUES (?, ?)", (row, new.segments.to_bytes()))
    _insert_facts(connection, row, metadata_facts(clip.metadata))
    _insert_words(connection, row, clip.filename, clip.metadata)
    return int(row)


def _insert_words(connection: sqlite3.Connection, row: int, filename: str, metadata: dict) -> None:
    connection.execute(
        "INSERT INTO words (rowid, name, tags, others) VALUES (?, ?, ?, ?)", (row, *text_columns(filename, metadata))
    )


def _insert_facts(connection: sqlite3.Connection, row: int, facts: Iterator[Fact]) -> None:
    connection.executemany(  # OR IGNORE: a list may hold a value twice
        "INSERT OR IGNORE INTO facts (key, kind, value, row) VALUES (?, ?, ?, ?)", ((*fact, row) for fact in facts)
    )


def replace_record(connection: sqlite3.Connection, row: int, clip: Clip, metadata: str) -> None:
    """Replaces file name and metadata of the row's clip by those of `clip`, whose metadata as JSON is `metadata`."""
    connection.execute("UPDATE clips SET filename = ?, metadata = ? WHERE row = ?", (clip.filename, metadata, row))
    connection.execute("DELETE FROM facts WHERE row = ?", (row,))
    _insert_facts(connection, row, metadata_facts(clip.metadata))
    connection.execute("DELETE FROM words WHERE rowid = ?", (row,))
    _insert_words(connection, row, clip.filename, clip.metadata)


def delete(connection: sqlite3.Connection, row: int) -> None:
    connection.execute("DELETE FROM words WHERE rowid = ?", (row,))  # cascades do not reach virtual tables
    connection.execute("DELETE FROM clips WHERE row = ?", (row,))  # cascades to the other tables


def by_id(connection: sqlite3.Connection, clip_id: str) -> tuple[int, Clip] | None:
    """Returns (row, clip)."""
    return _one(connection, "id", clip_id) if clip_id.isascii() else None


def by_sha256(connection: sqlite3.Connection, sha256: str) -> tuple[int, Clip] | None:
    """Returns (row, clip)."""
    return _one(connection, "sha256", sha256)


def _one(connection: sqlite3.Connection, column: str, value: str) -> tuple[int, Clip] | None:
    found = connection.execute(f"SELECT row, {_CLIP} FROM clips WHERE {column} = ?", (value,)).fetchone()
    return (found[0], _clip(found[1:])) if found else None


def _clip(columns: Sequence) -> Clip:
    clip_id, filename, sha256, duration, sample_rate, channels, created, metadata = columns
    return Clip(clip_id, filename, sha256, duration, sample_rate, channels, created, json.loads(metadata))


def by_rows(connection: sqlite3.Connection, rows: np.ndarray) -> dict[int, Clip]:
    """Returns the existing clips by row."""
    found = connection.execute(  # one JSON parameter: SQLite limits the number of plain ones
        f"SELECT row, {_CLIP} FROM clips WHERE row IN (SELECT value FROM json_each(?))",
        (json.dumps(rows.tolist()),),
    )
    return {columns[0]: _clip(columns[1:]) for columns in found}


def by_ids(connection: sqlite3.Connection, clip_ids: Sequence[str]) -> dict[str, Clip]:
    """Returns the existing clips by id."""
    found = connection.execute(
        f"SELECT {_CLIP} FROM clips WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(clip_ids)),)
    )
    return {columns[0]: _clip(columns) for columns in found}


def by_hashes(connection: sqlite3.Connection, hashes: Sequence[str]) -> dict[str, Clip]:
    """Returns the existing clips by the SHA-256 of their audio."""
    found = connection.execute(
        f"SELECT {_CLIP} FROM clips WHERE sha256 IN (SELECT value FROM json_each(?))", (json.dumps(list(hashes)),)
    )
    return {columns[2]: _clip(columns) for columns in found}


def ids(connection: sqlite3.Connection, rows: np.ndarray) -> dict[int, str]:
    """Returns the ids of the existing clips by row."""
    found = connection.execute(
        "SELECT row, id FROM clips WHERE row IN (SELECT value FROM json_each(?))", (json.dumps(rows.tolist()),)
    )
    return dict(found.fetchall())


def _passing(conditions: list[Condition]) -> tuple[str, list[object]]:
    """Returns a query for the rows that pass all conditions (at least one), with its parameters."""
    queries: list[str] = []
    parameters: list[object] = []
    for condition in conditions:
        query, values = _passing_one(condition)
        queries.append(f"SELECT row FROM ({query})")
        parameters += values
    return " INTERSECT ".join(queries), parameters


def _passing_one(condition: Condition) -> tuple[str, list[object]]:
    """Uses one subquery for each kind of value, because the index of facts is on (key, kind, value)."""
    if condition.bounds:
        column = COLUMNS.get(condition.key, condition.key) if condition.field else "value"
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
        column = COLUMNS.get(condition.key, condition.key)
        return f"SELECT row FROM clips WHERE {column} IN ({marks})", [value for _, _, value in condition.facts]
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
    """Returns the rows (M,) int64 of the clips that pass all conditions (at least one)."""
    query, parameters = _passing(conditions)
    return np.fromiter((row for (row,) in connection.execute(query, parameters)), dtype=np.int64)


def facet(connection: sqlite3.Connection, key: str, conditions: list[Condition], limit: int) -> Facet:
    """Returns the most frequent values of a metadata key or record field among clips that pass, with their numbers."""
    field = key in RECORD_FIELDS
    parameters: list[object] = [] if field else [nfc(key.removeprefix("metadata."))]
    source = "clips WHERE TRUE" if field else "facts WHERE key = ? AND kind IN ('text', 'number')"
    column = COLUMNS.get(key, key) if field else "value"
    if key == "duration":
        column = " ".join(f"WHEN duration >= {low} THEN {low}" for low in reversed(DURATIONS))
        column = f"CASE {column} END"
    if conditions:
        query, values = _passing(conditions)
        source += f" AND row IN ({query})"
        parameters += values
    found = connection.execute(
        f"SELECT {column} AS one, count(*) AS clips FROM {source} GROUP BY one "
        "ORDER BY clips DESC, CAST(one AS TEXT) LIMIT ?",
        [*parameters, limit],
    )
    return [(value, int(count)) for value, count in found]


def rows_matching(
    connection: sqlite3.Connection, match: str, k: int, conditions: list[Condition]
) -> list[tuple[int, float]]:
    """Returns the best k (row, relevance) for an FTS5 query among clips that pass; BM25, larger is better.

    Words in the name weigh 2, words in tags 3, other words 1.
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


def count_terms(connection: sqlite3.Connection, terms: Sequence[str]) -> dict[str, int]:
    """Returns the number of clips with each term of the full-text index, of those that occur."""
    one = "SELECT term, doc FROM vocabulary WHERE term = ?"  # which is a lookup; IN would read all terms
    return {term: count for wanted in terms for term, count in connection.execute(one, (wanted,))}


def all_terms(connection: sqlite3.Connection) -> dict[str, int]:
    """Returns all terms of the full-text index with their numbers of clips."""
    return dict(connection.execute("SELECT term, doc FROM vocabulary").fetchall())


def texts_with(connection: sqlite3.Connection, term: str, limit: int) -> list[str]:
    """Returns texts (file names, tags, other texts) of clips that contain a term of the full-text index."""
    found = connection.execute("SELECT DISTINCT doc, col FROM occurrences WHERE term = ? LIMIT ?", (term, limit))
    return [
        connection.execute(f"SELECT {column} FROM words WHERE rowid = ?", (row,)).fetchone()[0]
        for row, column in found.fetchall()
    ]


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
    """Returns up to `limit` (row, clip) that pass, ordered by one of SORTS and then by row.

    `after`: the (sort value, row) of the previous page's last clip. For "created" the sort value is the row.
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
    """Returns the clip's vector (D,) float32."""
    blob = connection.execute("SELECT embedding FROM vectors WHERE row = ?", (row,)).fetchone()[0]
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def vectors_and_segments(
    connection: sqlite3.Connection, clip_ids: Sequence[str], longer: float
) -> Iterator[tuple[str, np.ndarray, bytes | None]]:
    """Yields (id, vector (D,) float32, segments as FrameCodes.to_bytes) of the existing clips.

    The segments are None for clips that aren't longer than `longer` seconds.
    """
    found = connection.execute(
        "SELECT id, embedding, codes FROM clips JOIN vectors USING (row) "
        "LEFT JOIN segments ON segments.row = clips.row AND duration > ? "
        "WHERE id IN (SELECT value FROM json_each(?))",
        (longer, json.dumps(list(clip_ids))),
    )
    for clip_id, embedding, codes in found:
        yield clip_id, np.frombuffer(embedding, dtype="<f4").astype(np.float32), codes


def segments(connection: sqlite3.Connection, row: int) -> bytes:
    """Returns the clip's segments as FrameCodes.to_bytes."""
    return bytes(connection.execute("SELECT codes FROM segments WHERE row = ?", (row,)).fetchone()[0])


Segments = tuple[np.ndarray, np.ndarray, np.ndarray]  # of each its clip's row (N,), vector (N, D), clip's seconds (N,)


def long_segments(connection: sqlite3.Connection, dim: int, least: float, batch: int = 1024) -> Iterator[Segments]:
    """Yields the segments of clips that last longer than `least` seconds, a batch of clips at a time, in row order."""
    found = connection.execute(  # from the index of durations: reading past the segments of short clips takes longest
        "WITH long AS MATERIALIZED (SELECT row, duration FROM clips WHERE duration > ? ORDER BY row)"
        " SELECT row, codes, duration FROM long CROSS JOIN segments USING (row)",
        (least,),
    )
    while chunk := found.fetchmany(batch):
        yield _segments_of(chunk, dim)


def short_segments(
    connection: sqlite3.Connection, dim: int, most: float, rows: range, batch: int = 1024
) -> tuple[Segments | None, int]:
    """Returns the segments of the first clips in these rows that last at most `most` seconds, None if there are no
    more, and the last clip's row."""
    chunk = connection.execute(
        "SELECT row, codes, duration FROM segments JOIN clips USING (row)"
        " WHERE duration <= ? AND row >= ? AND row < ? ORDER BY row LIMIT ?",
        (most, rows.start, rows.stop, batch),
    ).fetchall()
    return (_segments_of(chunk, dim), chunk[-1][0]) if chunk else (None, rows.stop)


def _segments_of(chunk: list[tuple[int, bytes, float]], dim: int) -> Segments:
    rows, codes, seconds = zip(*chunk, strict=True)
    counts, vectors = FrameCodes.decode_many(codes, dim)
    return np.repeat(np.array(rows, np.int64), counts), vectors, np.repeat(np.array(seconds), counts)


def last_row(connection: sqlite3.Connection) -> int:
    """Returns the highest row of a clip, 0 without clips."""
    return int(connection.execute("SELECT coalesce(max(row), 0) FROM clips").fetchone()[0])


def frame_codes(connection: sqlite3.Connection, row: int) -> tuple[bytes, float]:
    """Returns (frames as FrameCodes.to_bytes, hop in seconds)."""
    codes, hop = connection.execute("SELECT codes, hop FROM frames WHERE row = ?", (row,)).fetchone()
    return codes, hop


def frame_codes_of(connection: sqlite3.Connection, clip_ids: Sequence[str]) -> list[tuple[str, bytes, float]]:
    """Returns (id, frames as FrameCodes.to_bytes, hop in seconds) of the existing clips."""
    return connection.execute(
        "SELECT id, codes, hop FROM clips JOIN frames USING (row) WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(clip_ids)),),
    ).fetchall()


def vectors_of(connection: sqlite3.Connection, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the existing rows (M,) int64, ascending, and their vectors (M, D) float32."""
    found = connection.execute(
        "SELECT row, embedding FROM vectors WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
        (json.dumps(rows.tolist()),),
    )
    return _stacked(found.fetchall(), dim)


def vectors_after(connection: sqlite3.Connection, row: int, limit: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `limit` rows above `row`: rows (N,) int64, ascending, and vectors (N, D) float32."""
    found = connection.execute("SELECT row, embedding FROM vectors WHERE row > ? ORDER BY row LIMIT ?", (row, limit))
    return _stacked(found.fetchall(), dim)


def _stacked(found: list[tuple[int, bytes]], dim: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([row for row, _ in found], dtype=np.int64)
    return rows, np.frombuffer(b"".join(blob for _, blob in found), dtype="<f4").reshape(len(found), dim)


def row_keys(connection: sqlite3.Connection) -> tuple[np.ndarray, np.ndarray]:
    """Returns all rows (N,) int64, ascending, and 64 bits of each clip's id (N,) uint64."""
    rows = [np.empty(0, np.int64)]
    keys = [np.empty(0, np.uint64)]
    last = ""
    while last is not None:  # from the index of ids, a seventh of the table, and joined: half as long as one by one
        numbers, ids, last = connection.execute(
            "SELECT group_concat(row), group_concat(printf('%-16.16s', id), ''), max(id) "
            "FROM (SELECT row, id FROM clips WHERE id > ? ORDER BY id LIMIT ?)",
            (last, _JOINED),
        ).fetchone()
        if last is not None:
            rows.append(np.fromstring(numbers, dtype=np.int64, sep=","))
            halves = np.frombuffer(ids.encode("ascii"), dtype="<u8").reshape(-1, 2)
            keys.append(np.bitwise_xor.reduce(halves * np.array([1, 3], np.uint64), axis=1))
    unordered = np.concatenate(rows)
    order = np.argsort(unordered)
    return unordered[order], np.concatenate(keys)[order]


def all_sha256(connection: sqlite3.Connection) -> Iterator[str]:
    """Yields the hash of every clip."""
    for (sha256,) in connection.execute("SELECT sha256 FROM clips"):
        yield sha256


def sha256_of(connection: sqlite3.Connection, prefix: str) -> set[str]:
    """The hashes of the clips that begin with the prefix, lower-case hexadecimal digits; read from their index."""
    found = connection.execute("SELECT sha256 FROM clips WHERE sha256 >= ? AND sha256 < ?", (prefix, prefix + "g"))
    return {sha256 for (sha256,) in found}


def named_by_sha256(connection: sqlite3.Connection, sha256: str) -> tuple[str, str]:
    """The id and the file name of a clip."""
    found = connection.execute("SELECT id, filename FROM clips WHERE sha256 = ?", (sha256,)).fetchone()
    return found[0], found[1]


class SqliteVectors:
    """Implements index.vectors.index.StoredVectors.

    Each call is a read transaction of its own, so that reading a million vectors does not pin the write-ahead log.
    """

    def __init__(self, database: Store, dim: int) -> None:
        self._database = database
        self._dim = dim

    def count(self) -> int:
        with self._database.read() as view:
            return count(view)

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        with self._database.read() as view:
            return row_keys(view)

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._database.read() as view:
            return vectors_of(view, rows, self._dim)

    def pages(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = -1
        while True:
            with self._database.read() as view:
                rows, vectors = vectors_after(view, last, PAGE_SIZE, self._dim)
            if not len(rows):
                return
            yield rows, vectors
            last = int(rows[-1])
