"""Runs jobs in worker processes and appends their results, in order, to a file that survives a killed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from training.checkpointing import PART, write_bytes

AHEAD = 32  # jobs submitted per worker before the first result is awaited

Work = Callable[[Any, Any], dict[str, Any]]  # (job, shared) → row

_work: Callable[[Any, Any], Any]
_shared: Any


class WorkerError(ValueError):
    """A worker process died without returning a result."""


@dataclass(frozen=True)
class Workers:
    """Number of worker processes (1: run in this process), and whether to show progress."""

    count: int = 1
    progress: bool = False


def journal(
    path: Path, jobs: Sequence[Any], work: Work, shared: Any, workers: Workers, title: str
) -> list[dict[str, Any]]:
    """Runs `work(job, shared)` for the jobs that have no row in `path` yet; returns all rows in order of the jobs.

    Rows are appended to a part file, which is renamed to `path` when complete. `title` labels the progress bar.
    """
    from tqdm import tqdm

    rows = rows_of(path)
    if len(rows) >= len(jobs) and path.is_file():
        return rows
    part = path.with_name(path.name + PART)
    write_bytes(part, "".join(line_of(r) for r in rows).encode())  # drops a torn last line
    with (
        part.open("a", encoding="utf-8") as f,
        tqdm(total=len(jobs), initial=len(rows), disable=not workers.progress, mininterval=1) as bar,
    ):
        bar.set_description(title)
        for row in ordered(work, jobs[len(rows) :], shared, workers.count):
            f.write(line_of(row))
            f.flush()
            rows.append(json.loads(line_of(row)))
            bar.update()
    part.replace(path)
    return rows


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a journal or of its part file."""
    part = path.with_name(path.name + PART)
    source = part if part.is_file() else path
    if not source.is_file():
        return []
    text = source.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def line_of(row: dict[str, Any]) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def ordered(work: Callable[[Any, Any], Any], jobs: Sequence[Any], shared: Any, workers: int) -> Iterator[Any]:
    """`work(job, shared)` of each job, in order of the jobs, computed by `workers` processes.

    `shared` is sent to each process once. The first error is raised after the running jobs have ended; WorkerError if a
    process dies. Workers exit when the parent is killed, and leave Ctrl-C to the parent.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from (work(job, shared) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork could copy a lock that another thread holds
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, _initialise, (work, shared))
    waiting: deque[Future[Any]] = deque()
    remaining = iter(jobs)
    try:
        waiting.extend(pool.submit(_run, job) for job in islice(remaining, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_run, job) for job in islice(remaining, 1))
            yield result
    except BrokenProcessPool:
        raise WorkerError("a worker process died without a result, possibly out of memory") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _initialise(work: Callable[[Any, Any], Any], shared: Any) -> None:
    global _work, _shared
    _work, _shared = work, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run(job: Any) -> Any:
    return _work(job, _shared)
