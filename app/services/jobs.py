"""Jobs over the library: a queue that scores the stored frames of many clips, one job at a time, behind requests.

The library keeps every job's progress, so that it continues after a restart. Audio is never read: a job costs a small
part of what adding the clips did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.services.audio_source import require_frames
from app.services.detection import DetectionRequest
from app.services.phrases import Phrase, Phrases, resolve
from app.state import AppState
from index import (
    EVENT,
    UNFINISHED,
    Job,
    JobClip,
    JobNotFound,
    Jobs,
    JobsUnsupported,
    JobWork,
    LibraryError,
    NewJob,
    StorageFull,
)
from model.concepts.head import Direction, HeadScores
from model.detection import DetectionSettings, find_events

log = logging.getLogger(__name__)

_BLOCK = 256  # frames scored at once, as in a detection in a clip
_COMMIT_S = 0.5  # of work in a transaction; also what a crash loses
_COPIED = 10_000  # clips taken over from another job in a transaction
_COURTESY_S = 0.003  # that a job waits before each clip while there is work for requests
_RETRY_S = 10.0  # after the library failed
_PAUSE_S = 0.001


@dataclass(frozen=True)
class JobOptions:
    """A detection to run over the clips that pass `filter`; `phrases` and settings are those of `detection`."""

    detection: DetectionRequest
    filter: Mapping[str, Any] | None


def jobs_of(state: AppState) -> Jobs:
    """The library's jobs. Raises JobsUnsupported, NotReady."""
    jobs = state.library.jobs
    if jobs is None:
        raise JobsUnsupported("jobs need a library in SQLite (FINELAP_INDEX_URL=faiss://); this one is in Milvus")
    return jobs


async def create_job(state: AppState, options: JobOptions) -> Job:
    """Queues a detection over the library. Raises InvalidFilter, TooManyJobs, JobsUnsupported, QueueFull, and
    for concepts what `resolve` raises."""
    jobs = jobs_of(state)
    require_frames(state.engine, "A job")
    phrases, detection = await options.detection.resolve(state)
    scoring = _scoring(phrases, [asdict(one) for one in detection.settings])
    request = {**scoring, "filter": None if options.filter is None else dict(options.filter)}
    new = NewJob("detect", request, scoring, options.filter, phrases.vectors, state.engine.stamp)
    return await state.write(jobs.create, new, state.settings.max_jobs)


def _scoring(phrases: Phrases, settings: list[dict[str, Any]]) -> dict[str, Any]:
    """What decides the events besides the phrases' vectors, as JSON; concepts have scores for each of theirs."""
    heads = [[asdict(one.scores) for one in phrase.directions] for phrase in phrases.each]
    return {"phrases": [phrase.text for phrase in phrases.each], "settings": settings, "heads": heads}


def _phrases(engine: Engine, work: JobWork) -> Phrases:
    """The phrases as they were when the job was created, whatever has become of its concepts."""
    request = work.job.request
    vectors = iter(work.texts)
    each = []
    for text, head in zip(request["phrases"], request["heads"], strict=True):
        directions = tuple(Direction(next(vectors), HeadScores.from_json(scores)) for scores in head)
        each.append(Phrase(text, directions[0].vector if directions else next(vectors), directions))
    return Phrases(engine, tuple(each))


def find_clip_events(phrases: Phrases, settings: list[DetectionSettings], clip: JobClip) -> np.ndarray:
    """The events (n,) EVENT that POST /detect finds in a clip for the phrases, in order of time.

    Scores are computed clip by clip, so that they don't depend on what is scored with it.
    """
    parts = [
        phrases.frame_score(clip.frames.decode(start, start + _BLOCK)) for start in range(0, len(clip.frames), _BLOCK)
    ]
    scores = np.concatenate(parts, axis=1)
    # neither a median nor a box scores higher than its best frame
    reached = scores.max(axis=1) >= np.array([own.threshold for own in settings], np.float32)
    found = [
        (number, event.onset, event.offset, event.score)
        for number in np.flatnonzero(reached).tolist()
        for event in find_events(scores[number], settings[number], clip.frame_hop, clip.duration)
    ]
    events = np.array(found, dtype=EVENT)
    return events[np.lexsort((events["phrase"], events["offset"], events["onset"]))]


class JobRunner:
    """Runs the queued jobs, oldest first, from `start` until `close`."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._thread = ThreadPoolExecutor(1, "job")
        self._stopping = threading.Event()
        self._cancelled: set[str] = set()  # ids, so that work in progress ends soon; the library has the state
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to wait for the library, and then for jobs."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops after the clip in progress; the next start of the service continues there."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown, True)

    def wake(self) -> None:
        """Looks for queued jobs; to be called after one was created."""
        self._wake.set()

    async def delete(self, job_id: str) -> Job | None:
        """Cancels a job that isn't finished and returns it; deletes a finished one. Raises JobNotFound."""
        jobs = jobs_of(self._state)
        job = await self._state.read(jobs.get, job_id)
        if job.state in UNFINISHED:
            if job.state == "running":
                self._cancelled.add(job_id)
            return await self._state.write(jobs.cancel, job_id)
        await self._state.write(jobs.delete, job_id)
        return None

    async def _run(self) -> None:
        await self._state.opened.wait()
        jobs = self._state.library.jobs
        if jobs is None:
            return
        while True:
            self._wake.clear()
            try:
                job = await self._call(jobs.next)
                if job is not None:
                    await self._run_job(jobs, job)
                    continue
            except LibraryError as error:
                log.error("jobs wait for the library: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _RETRY_S)
                continue
            await self._wake.wait()

    async def _run_job(self, jobs: Jobs, job: Job) -> None:
        engine = self._state.engine
        try:
            if job.checkpoint != engine.stamp:
                await self._restart(jobs, job)
            work = await self._call(jobs.start, job.id)
            if work is None:
                return
            log.info("job %s: %d of %d clips are left", job.id, work.job.total - work.job.done, work.job.total)
            await self._call(self._work, jobs, work)
        except StorageFull:
            raise  # there may be room later
        except Exception as error:
            log.error("job %s failed", job.id, exc_info=error)
            await self._call(jobs.finish, job.id, str(error) or type(error).__name__)
        self._cancelled.discard(job.id)

    async def _restart(self, jobs: Jobs, job: Job) -> None:
        """The library was embedded by another checkpoint since the job began: nothing of it can be kept."""
        log.warning("job %s starts over: the library has new embeddings (finelap reindex)", job.id)
        phrases = await resolve(self._state, job.request["phrases"], urgency=Urgency.BULK)
        scoring = _scoring(phrases, job.request["settings"])
        new = NewJob(job.kind, {**job.request, **scoring}, scoring, None, phrases.vectors, self._state.engine.stamp)
        await self._call(jobs.restart, job.id, new)

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # On the job's thread

    def _work(self, jobs: Jobs, work: JobWork) -> None:
        """Scores what is left of a job, a transaction at a time, until it is done, cancelled, or the service stops."""
        from model.cpu.threads import limited

        settings = [DetectionSettings(**own) for own in work.job.request["settings"]]
        phrases = _phrases(self._state.engine, work)
        done, source = work.job.done, work.source
        with limited(1):  # the other cores are for requests
            while done < len(work.rows) and not self._stopped(work):
                if done < work.job.reused and source is not None:
                    stop = min(done + _COPIED, work.job.reused)
                    try:
                        if not jobs.copy_events(work, work.rows[done:stop], stop):
                            return
                        done = stop
                    except JobNotFound:
                        source = None
                    continue
                stop, seconds, found = self._score(jobs, work, (phrases, settings), done)
                if not jobs.add_events(work.job.id, stop, seconds, found):
                    return
                done = stop
        if done == len(work.rows) and not self._stopped(work):
            jobs.finish(work.job.id)

    def _score(
        self, jobs: Jobs, work: JobWork, wanted: tuple[Phrases, list[DetectionSettings]], done: int
    ) -> tuple[int, float, dict[int, np.ndarray]]:
        """Scores clips from number `done` on for a while: how many are done then, their seconds, their events."""
        found: dict[int, np.ndarray] = {}
        seconds, until = 0.0, time.monotonic() + _COMMIT_S
        while done < len(work.rows):
            self._give_way()
            for clip in jobs.frames(work.rows[done : done + 1]):
                found[clip.row] = find_clip_events(*wanted, clip)
                seconds += clip.duration
            done += 1
            if time.monotonic() > until or self._stopped(work):
                break
        return done, seconds, found

    def _give_way(self) -> None:
        """Lets requests go ahead: waits while there is work for one, but not for long, so that the job goes on."""
        until = time.monotonic() + _COURTESY_S
        while self._state.busy and not self._stopping.is_set() and time.monotonic() < until:
            time.sleep(_PAUSE_S)

    def _stopped(self, work: JobWork) -> bool:
        return self._stopping.is_set() or work.job.id in self._cancelled


def describe_job(job: Job) -> dict[str, Any]:
    """A job as the API shows it: its state, and what was asked for."""
    settings = [DetectionSettings(**own) for own in job.request["settings"]]
    first = settings[0]  # only thresholds differ between phrases
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "events": job.events,
        "reused": job.reused,
        "seconds": round(job.seconds, 3),
        "error": job.error,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "phrases": job.request["phrases"],
        "filter": job.request["filter"],
        "threshold": [own.threshold for own in settings],
        "low_threshold": [own.low_threshold for own in settings],
        "method": first.method,
        "median_filter": first.median_filter,
        "min_duration": first.min_duration,
        "max_gap": first.max_gap,
        "checkpoint": job.checkpoint,
    }
