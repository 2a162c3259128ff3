"""Work shared out to processes, results in order. Knows nothing of what the work is.

Workers that outlive a killed parent end by themselves, and Ctrl-C is the parent's to answer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

AHEAD = 32  # jobs handed out for each worker before the first result is taken

_work: Callable[[Any, Any], Any]
_shared: Any


class WorkerError(ValueError):
    """A worker process ended without an answer."""


def ordered(work: Callable[[Any, Any], Any], jobs: Sequence[Any], shared: Any, workers: int) -> Iterator[Any]:
    """`work(job, shared)` of each job, in the jobs' order, by `workers` processes, or in this one if it is one.

    `shared` reaches each process once. The first error is raised here, after the jobs under way have ended.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from (work(job, shared) for job in jobs)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in whatever state they are
    pool = ProcessPoolExecutor(min(workers, len(jobs)), fresh, _begin, (work, shared))
    waiting: deque[Future[Any]] = deque()
    left = iter(jobs)
    try:
        waiting.extend(pool.submit(_do, job) for job in islice(left, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_do, job) for job in islice(left, 1))
            yield result
    except BrokenProcessPool:
        raise WorkerError("a worker process ended without an answer; was there too little memory?") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Any, Any], Any], shared: Any) -> None:
    global _work, _shared
    _work, _shared = work, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(job: Any) -> Any:
    return _work(job, _shared)
