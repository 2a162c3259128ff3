"""Jobs in the library's database: what is kept, counted and deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import NewClip, SqliteLibrary
from index.jobs import EVENT, Job, JobNotFound, NewJob, TooManyJobs, pack_rows, unpack_rows
from index.records import InvalidFilter
from index.sqlite import backup
from tests.support.clips import DIM, unit


def new_job(filter: dict[str, Any] | None = None, phrase: str = "dog", **changes: Any) -> NewJob:
    scoring = {"phrases": [phrase], "settings": [{}]}
    texts = unit(np.random.default_rng(len(phrase)).standard_normal((1, DIM)))
    return NewJob(**({
        "kind": "detect", "request": scoring, "scoring": scoring, "filter": filter, "texts": texts,
        "checkpoint": "checkpoint-a",
    } | changes))  # fmt: skip


def events(count: int) -> np.ndarray:
    return np.array([(0, number, number + 0.5, 0.75) for number in range(count)], dtype=EVENT)


def score(library: SqliteLibrary, job: Job, until: int | None = None) -> None:
    """Finds as many events in each clip as its row says."""
    work = library.jobs.start(job.id)
    assert work is not None
    for position in range(work.job.done, len(work.rows) if until is None else until):
        row = int(work.rows[position])
        assert library.jobs.add_events(job.id, position + 1, 1.0, {row: events(row)})


def counts(library: SqliteLibrary, job: Job) -> list[tuple[str, int]]:
    return [(clip.filename, len(found)) for clip, found in library.jobs.results(job.id)]


@pytest.fixture
def filled(library: SqliteLibrary, new_clip: Callable[..., NewClip]) -> SqliteLibrary:
    """Four clips, in rows 1 to 4."""
    library.add_many([new_clip(seed, {"odd": bool(seed % 2)}) for seed in range(4)])
    return library


def test_a_job_from_its_creation_to_its_end(filled: SqliteLibrary) -> None:
    job = filled.jobs.create(new_job(), 10)
    assert (job.state, job.done, job.total, job.events, job.reused) == ("queued", 0, 4, 0, 0)
    assert filled.jobs.next() == job
    score(filled, job, until=2)
    half = filled.jobs.get(job.id)
    assert (half.state, half.done, half.events, half.seconds) == ("running", 2, 3, 2.0)
    assert counts(filled, job) == [("sound 0.wav", 1), ("sound 1.wav", 2)]
    score(filled, job)
    filled.jobs.finish(job.id)
    ended = filled.jobs.get(job.id)
    assert (ended.state, ended.done, ended.events) == ("done", 4, 10) and ended.ended is not None
    assert filled.jobs.next() is None and filled.jobs.start(job.id) is None
    assert list(filled.jobs.results(job.id))[3][1].tolist() == events(4).tolist()


def test_what_was_committed_survives_closing(filled: SqliteLibrary, open_library: Callable[..., SqliteLibrary]) -> None:
    job = filled.jobs.create(new_job(), 10)
    score(filled, job, until=3)
    again = open_library()
    work = again.jobs.start(job.id)
    assert work is not None and work.job.done == 3 and work.rows.tolist() == [1, 2, 3, 4]
    assert np.array_equal(work.texts, new_job().texts)
    assert again.jobs.get(job.id).events == 6


def test_a_filter_chooses_the_clips_at_the_beginning(filled: SqliteLibrary, new_clip: Callable[..., NewClip]) -> None:
    job = filled.jobs.create(new_job({"odd": True}), 10)
    filled.add(new_clip(5, {"odd": True}))
    score(filled, job)
    assert counts(filled, job) == [("sound 1.wav", 2), ("sound 3.wav", 4)]
    with pytest.raises(InvalidFilter):
        filled.jobs.create(new_job({"odd": []}), 10)


def test_a_deleted_clip_takes_its_events_with_it(filled: SqliteLibrary) -> None:
    job = filled.jobs.create(new_job(), 10)
    work = filled.jobs.start(job.id)
    ids = [clip.id for clip in filled.list(10, sort="created")[0]]
    assert work is not None
    score(filled, job, until=2)
    filled.delete(ids[1])
    filled.delete(ids[2])
    assert filled.jobs.get(job.id).events == 1
    assert [clip.row for clip in filled.jobs.frames(work.rows)] == [1, 4]
    assert filled.jobs.add_events(job.id, 3, 1.0, {3: events(3)})  # read before it was deleted
    assert filled.jobs.get(job.id).events == 1
    score(filled, job)
    assert counts(filled, job) == [("sound 0.wav", 1), ("sound 3.wav", 4)]
    assert filled.jobs.get(job.id).events == 5 and filled.jobs.get(job.id).done == 4


def test_the_same_job_again_takes_over_what_is_scored(filled: SqliteLibrary, new_clip: Callable[..., NewClip]) -> None:
    first = filled.jobs.create(new_job(), 10)
    score(filled, first, until=3)
    filled.jobs.cancel(first.id)
    filled.add(new_clip(9))
    other = filled.jobs.create(new_job(phrase="cat"), 10)
    assert other.reused == 0
    second = filled.jobs.create(new_job(), 10)
    assert (second.reused, second.total) == (3, 5)
    work = filled.jobs.start(second.id)
    assert work is not None and work.rows.tolist() == [1, 2, 3, 4, 5]
    assert filled.jobs.copy_events(work, work.rows[:3], 3)
    assert filled.jobs.get(second.id).events == 6
    score(filled, second)
    assert [count for _, count in counts(filled, second)] == [1, 2, 3, 4, 5]
    assert filled.jobs.get(first.id).events == 6


def test_a_source_that_was_deleted_is_not_taken_for_empty(filled: SqliteLibrary) -> None:
    first = filled.jobs.create(new_job(), 10)
    score(filled, first)
    second = filled.jobs.create(new_job(), 10)
    work = filled.jobs.start(second.id)
    filled.jobs.cancel(first.id)
    filled.jobs.delete(first.id)
    assert work is not None
    with pytest.raises(JobNotFound):
        filled.jobs.copy_events(work, work.rows, 4)
    assert filled.jobs.get(second.id).done == 0


def test_a_cancelled_job_takes_nothing_more(filled: SqliteLibrary) -> None:
    job = filled.jobs.create(new_job(), 10)
    score(filled, job, until=1)
    assert filled.jobs.cancel(job.id).state == "cancelled"
    assert not filled.jobs.add_events(job.id, 2, 1.0, {2: events(2)})
    assert filled.jobs.get(job.id).done == 1
    filled.jobs.finish(job.id)
    assert filled.jobs.get(job.id).state == "cancelled"
    filled.jobs.delete(job.id)
    for call in (filled.jobs.get, filled.jobs.delete, filled.jobs.cancel, lambda i: list(filled.jobs.results(i))):
        with pytest.raises(JobNotFound):
            call(job.id)


def test_events_of_a_job_that_is_deleted_while_they_are_read(filled: SqliteLibrary) -> None:
    job = filled.jobs.create(new_job(), 10)
    score(filled, job)
    reading = filled.jobs.results(job.id, batch=2)
    next(reading)
    filled.jobs.cancel(job.id)
    filled.jobs.delete(job.id)
    with pytest.raises(JobNotFound):
        list(reading)


def test_old_jobs_make_room_and_waiting_ones_do_not(filled: SqliteLibrary) -> None:
    first = filled.jobs.create(new_job(), 2)
    filled.jobs.start(first.id)
    filled.jobs.finish(first.id)
    second, third = filled.jobs.create(new_job(), 2), filled.jobs.create(new_job(), 2)
    assert [job.id for job in filled.jobs.list()] == [third.id, second.id]
    with pytest.raises(TooManyJobs):
        filled.jobs.create(new_job(), 2)


def test_starting_over_with_another_checkpoint(filled: SqliteLibrary) -> None:
    job = filled.jobs.create(new_job(), 10)
    score(filled, job, until=2)
    filled.jobs.restart(job.id, new_job(checkpoint="checkpoint-b", texts=np.ones((2, 16), np.float32)))
    work = filled.jobs.start(job.id)
    assert work is not None and work.texts.shape == (2, 16)
    assert (work.job.done, work.job.events, work.job.checkpoint) == (0, 0, "checkpoint-b")
    assert counts(filled, job) == []


def test_a_backup_has_the_jobs(filled: SqliteLibrary, tmp_path: Path) -> None:
    job = filled.jobs.create(new_job(), 10)
    score(filled, job, until=2)
    backup.back_up(filled.folder, tmp_path / "backups", lambda *_: None)
    backup.restore(tmp_path / "backups", tmp_path / "restored", lambda *_: None)
    with SqliteLibrary.open(tmp_path / "restored", dim=DIM, checkpoint="checkpoint-a") as restored:
        assert restored.jobs.get(job.id) == filled.jobs.get(job.id)
        score(restored, job)
        assert restored.jobs.get(job.id).events == 10


def test_rows_in_a_few_bytes() -> None:
    rows = np.concatenate([np.arange(5, 100_000), [1, 3]])
    assert np.array_equal(unpack_rows(pack_rows(rows)), rows) and len(pack_rows(rows)) < 2000
    assert not len(unpack_rows(pack_rows([])))
