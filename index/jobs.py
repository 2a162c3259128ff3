"""Jobs over the library: what a store keeps of them, and the interface to it.

A job scores a fixed list of clips, those that passed its filter when it was created, and keeps the events that it
found in each. Everything is durable clip by clip, so that a job continues where a crash interrupted it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from index.quantization import FrameCodes
from index.records import Clip, Filter, LibraryError

State = Literal["queued", "running", "done", "failed", "cancelled"]

UNFINISHED: tuple[State, ...] = ("queued", "running")

# One event in a clip: the number of its phrase, its seconds, and its score. Stored as they are, without padding.
EVENT = np.dtype([("phrase", "<u4"), ("onset", "<f8"), ("offset", "<f8"), ("score", "<f4")])


class JobNotFound(LibraryError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job has the id {job_id!r}")
        self.job_id = job_id


class JobsUnsupported(LibraryError):
    """The library's store has no jobs."""


class TooManyJobs(LibraryError):
    """As many jobs as may be kept are queued or running."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} jobs are queued or running, which is the limit; wait for one or cancel one")
        self.limit = limit


@dataclass(frozen=True)
class NewJob:
    """A job to be created. `request`: what the caller asked for, as JSON; of it, `scoring` decides the events.

    `texts`: the vectors (V, D) float32 of its phrases by `checkpoint`, one phrase after another.
    """

    kind: str
    request: Mapping[str, Any]
    scoring: Mapping[str, Any]
    filter: Filter | None
    texts: np.ndarray
    checkpoint: str

    @property
    def key(self) -> str:
        """Equal for jobs that find the same events in a clip."""
        decisive = json.dumps([self.kind, dict(self.scoring), self.checkpoint], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(decisive.encode() + self.texts.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Job:
    """A job's state. `done` of its `total` clips are scored; of those, an earlier job had scored `reused`.

    Clips that are deleted count as done and take their `events` with them.
    """

    id: str
    kind: str
    state: State
    request: dict[str, Any]
    done: int  # clips
    total: int  # clips
    reused: int  # clips
    events: int
    seconds: float  # of audio in the scored clips
    error: str | None  # why it failed
    checkpoint: str  # that embeds its phrases
    created: str  # RFC 3339, UTC; the others too
    started: str | None
    ended: str | None


@dataclass(frozen=True, eq=False)
class JobWork:
    """What running a job takes. Clips are named by `rows` (total,) int64, in the order of work.

    The first `done` are scored. The first `reused` can be copied from the job number `source`.
    """

    job: Job
    rows: np.ndarray
    texts: np.ndarray
    source: int | None


@dataclass(frozen=True, eq=False)
class JobClip:
    """A clip's frames, to be scored."""

    row: int
    duration: float  # seconds
    frames: FrameCodes
    frame_hop: float  # seconds


class Jobs(Protocol):
    """The jobs of a library. All methods block and may be called from any thread; JobNotFound for an unknown id."""

    def create(self, new: NewJob, limit: int) -> Job:
        """Queues a job over the clips that pass its filter now. Beyond `limit` jobs, the oldest finished are deleted.

        Clips that another job with the same key has scored are taken over from it. Raises InvalidFilter, TooManyJobs.
        """

    def get(self, job_id: str) -> Job:
        """Returns a job."""

    def list(self) -> list[Job]:
        """Returns all jobs, newest first."""

    def next(self) -> Job | None:
        """Returns the job to run: the oldest that is not finished."""

    def cancel(self, job_id: str) -> Job:
        """Makes an unfinished job cancelled. A finished one stays as it is."""

    def delete(self, job_id: str) -> None:
        """Deletes a job and its events."""

    def start(self, job_id: str) -> JobWork | None:
        """Makes an unfinished job running and returns its work; None if it is finished, cancelled or deleted."""

    def restart(self, job_id: str, new: NewJob) -> None:
        """Begins an unfinished job anew, with the embeddings of another checkpoint."""

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Makes an unfinished job done, or failed with this error."""

    def frames(self, rows: np.ndarray) -> Iterator[JobClip]:
        """Yields the existing clips among these rows, one in memory at a time."""

    def add_events(self, job_id: str, done: int, seconds: float, found: Mapping[int, np.ndarray]) -> bool:
        """Keeps the events (n,) EVENT of clips, by row, and how many clips are done and their seconds of audio.

        Durable when it returns. Returns False, and changes nothing, if the job is no longer running.
        """

    def copy_events(self, work: JobWork, rows: np.ndarray, done: int) -> bool:
        """Takes the events of these clips over from the job's source. False as in `add_events`.

        Raises JobNotFound, and changes nothing, if the source has been deleted.
        """

    def results(self, job_id: str, batch: int = 256) -> Iterator[tuple[Clip, np.ndarray]]:
        """Yields each scored clip that exists, in the order in which they were added, with its events (n,) EVENT."""


def pack_rows(rows: Sequence[int] | np.ndarray) -> bytes:
    """Rows (n,) int64 in a few bytes: mostly they are consecutive."""
    import zlib

    return zlib.compress(np.diff(np.asarray(rows, dtype="<i8"), prepend=0).astype("<i8").tobytes())


def unpack_rows(packed: bytes) -> np.ndarray:
    """The reverse of `pack_rows`."""
    import zlib

    return np.cumsum(np.frombuffer(zlib.decompress(packed), dtype="<i8"), dtype=np.int64)
