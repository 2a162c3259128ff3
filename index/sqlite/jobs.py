"""Jobs in the library's database: a row for each job, and a row for each of its clips that has events.

A trigger keeps a job's number of events right when its clips are deleted, which deletes their events too.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from index.filters import parse_filter
from index.jobs import (
    EVENT,
    UNFINISHED,
    Job,
    JobClip,
    JobNotFound,
    JobWork,
    NewJob,
    TooManyJobs,
    pack_rows,
    unpack_rows,
)
from index.quantization import FrameCodes
from index.records import Clip
from index.sqlite import queries
from index.sqlite.store import Store

# In Job's order
_JOB = "id, kind, state, request, done, total, reused, events, seconds, error, checkpoint, created, started, ended"
_UNFINISHED = "state IN ({})".format(", ".join(f"'{state}'" for state in UNFINISHED))


class SqliteJobs:
    """Implements index.jobs.Jobs. `writing` is the lock of the library's one writer, `dim` its dimensions."""

    def __init__(self, store: Store, writing: threading.Lock, dim: int) -> None:
        self._store, self._writing, self._dim = store, writing, dim

    # Creating and deleting

    def create(self, new: NewJob, limit: int) -> Job:
        conditions = parse_filter(new.filter)
        with self._store.read() as view:
            if conditions:
                rows = np.sort(queries.rows_passing(view, conditions))
            else:
                rows = np.fromiter((row for (row,) in view.execute("SELECT row FROM clips ORDER BY row")), np.int64)
            source, scored = _best_source(view, new.key, rows)
        rows = np.concatenate([rows[scored], rows[~scored]])  # what another job has scored first
        reused = int(scored.sum())
        job_id = uuid.uuid4().hex
        with self._writing, self._store.write() as change:
            _make_room(change, limit)
            change.execute(
                "INSERT INTO jobs (id, kind, state, request, key, checkpoint, texts, clips, total, reused, source, "
                "created) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    new.kind,
                    _dump(new.request),
                    new.key,
                    new.checkpoint,
                    new.texts.astype("<f4").tobytes(),
                    pack_rows(rows),
                    len(rows),
                    reused,
                    source,
                    _now(),
                ),
            )
            return _job(change, job_id)

    def get(self, job_id: str) -> Job:
        with self._store.read() as view:
            return _job(view, job_id)

    def list(self) -> list[Job]:
        with self._store.read() as view:
            return [_read(columns) for columns in view.execute(f"SELECT {_JOB} FROM jobs ORDER BY number DESC")]

    def next(self) -> Job | None:
        with self._store.read() as view:
            found = view.execute(f"SELECT {_JOB} FROM jobs WHERE {_UNFINISHED} ORDER BY number LIMIT 1").fetchone()
            return _read(found) if found else None

    def cancel(self, job_id: str) -> Job:
        with self._writing, self._store.write() as change:
            change.execute(
                f"UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND {_UNFINISHED}", (_now(), job_id)
            )
            return _job(change, job_id)

    def delete(self, job_id: str) -> None:
        with self._writing, self._store.write() as change:
            if not change.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount:
                raise JobNotFound(job_id)

    # Running

    def start(self, job_id: str) -> JobWork | None:
        with self._writing, self._store.write() as change:
            change.execute(
                f"UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE id = ? AND {_UNFINISHED}",
                (_now(), job_id),
            )
            found = change.execute(
                f"SELECT clips, texts, source, {_JOB} FROM jobs WHERE id = ? AND state = 'running'", (job_id,)
            ).fetchone()
        if found is None:
            return None
        texts = np.frombuffer(found[1], dtype="<f4").astype(np.float32)
        return JobWork(_read(found[3:]), unpack_rows(found[0]), texts.reshape(-1, self._dim), found[2])

    def restart(self, job_id: str, new: NewJob) -> None:
        with self._writing, self._store.write() as change:
            change.execute("DELETE FROM job_events WHERE job = (SELECT number FROM jobs WHERE id = ?)", (job_id,))
            change.execute(
                "UPDATE jobs SET request = ?, checkpoint = ?, key = ?, texts = ?, done = 0, reused = 0, events = 0, "
                f"seconds = 0, source = NULL WHERE id = ? AND {_UNFINISHED}",
                (_dump(new.request), new.checkpoint, new.key, new.texts.astype("<f4").tobytes(), job_id),
            )

    def finish(self, job_id: str, error: str | None = None) -> None:
        with self._writing, self._store.write() as change:
            change.execute(
                f"UPDATE jobs SET state = ?, error = ?, ended = ? WHERE id = ? AND {_UNFINISHED}",
                ("done" if error is None else "failed", error, _now(), job_id),
            )

    def frames(self, rows: np.ndarray) -> Iterator[JobClip]:
        for row in rows.tolist():  # a transaction each, so that a slow reader doesn't pin the write-ahead log
            with self._store.read() as view:
                found = view.execute(
                    "SELECT duration, codes, hop FROM clips JOIN frames USING (row) WHERE row = ?", (row,)
                ).fetchone()
            if found is not None:
                yield JobClip(row, found[0], FrameCodes.from_bytes(found[1], self._dim), found[2])

    def add_events(self, job_id: str, done: int, seconds: float, found: Mapping[int, np.ndarray]) -> bool:
        with self._writing, self._store.write() as change:
            number = _advance(change, job_id, done, seconds)
            if number is None:
                return False
            change.executemany(  # unless the clip was deleted in the meantime
                "INSERT INTO job_events (job, row, count, events) SELECT ?1, row, ?3, ?4 FROM clips WHERE row = ?2",
                ((number, row, len(events), events.tobytes()) for row, events in found.items() if len(events)),
            )
            return True

    def copy_events(self, work: JobWork, rows: np.ndarray, done: int) -> bool:
        wanted = json.dumps(rows.tolist())
        with self._writing, self._store.write() as change:
            found = change.execute("SELECT id FROM jobs WHERE number = ?", (work.source,)).fetchone()
            if found is None:
                raise JobNotFound(f"number {work.source}")
            (seconds,) = change.execute(
                "SELECT coalesce(sum(duration), 0.0) FROM clips WHERE row IN (SELECT value FROM json_each(?))",
                (wanted,),
            ).fetchone()
            number = _advance(change, work.job.id, done, seconds)
            if number is None:
                return False
            change.execute(
                "INSERT INTO job_events (job, row, count, events) SELECT ?, row, count, events FROM job_events "
                "WHERE job = ? AND row IN (SELECT value FROM json_each(?)) ORDER BY row",
                (number, work.source, wanted),
            )
            return True

    # Results

    def results(self, job_id: str, batch: int = 256) -> Iterator[tuple[Clip, np.ndarray]]:
        with self._store.read() as view:
            _job(view, job_id)
            number, clips, done = view.execute(
                "SELECT number, clips, done FROM jobs WHERE id = ?", (job_id,)
            ).fetchone()
        rows = np.sort(unpack_rows(clips)[:done])
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            with self._store.read() as view:
                _job(view, job_id)  # it may be deleted while its events are read
                existing = queries.by_rows(view, part)
                events = dict(
                    view.execute(
                        "SELECT row, events FROM job_events WHERE job = ? AND row BETWEEN ? AND ?",
                        (number, int(part[0]), int(part[-1])),
                    )
                )
            for row in part.tolist():
                if row in existing:
                    yield existing[row], np.frombuffer(events.get(row, b""), dtype=EVENT)


def _job(connection: sqlite3.Connection, job_id: str) -> Job:
    found = None
    if job_id.isascii():
        found = connection.execute(f"SELECT {_JOB} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if found is None:
        raise JobNotFound(job_id)
    return _read(found)


def _read(columns: Sequence[Any]) -> Job:
    values: list[Any] = [*columns]
    values[3] = json.loads(values[3])  # the request
    return Job(*values)


def _dump(request: Mapping[str, Any]) -> str:
    return json.dumps(dict(request), ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _advance(change: sqlite3.Connection, job_id: str, done: int, seconds: float) -> int | None:
    """Notes the progress of a running job. Returns its number; None if it no longer runs."""
    found = change.execute(
        "UPDATE jobs SET done = ?, seconds = seconds + ? WHERE id = ? AND state = 'running' RETURNING number",
        (done, seconds, job_id),
    ).fetchall()
    return int(found[0][0]) if found else None


def _best_source(view: sqlite3.Connection, key: str, rows: np.ndarray) -> tuple[int | None, np.ndarray]:
    """The job with this key that has scored most of these rows, and which of them it has (n,) bool."""
    best, scored = None, np.zeros(len(rows), dtype=bool)
    for number, clips, done in view.execute("SELECT number, clips, done FROM jobs WHERE key = ? AND done > 0", (key,)):
        own = np.isin(rows, unpack_rows(clips)[:done])
        if own.sum() > scored.sum():
            best, scored = number, own
    return best, scored


def _make_room(change: sqlite3.Connection, limit: int) -> None:
    """Deletes the oldest finished jobs so that there is room for one more. Raises TooManyJobs."""
    (count,) = change.execute("SELECT count(*) FROM jobs").fetchone()
    excess = count + 1 - limit
    if excess <= 0:
        return
    change.execute(
        f"DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE NOT {_UNFINISHED} ORDER BY number LIMIT ?)",
        (excess,),
    )
    (left,) = change.execute("SELECT count(*) FROM jobs").fetchone()
    if left >= limit:
        raise TooManyJobs(limit)
