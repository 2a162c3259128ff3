"""A second thread that helps one caller at a time with work that runs outside Python's lock, as FAISS' does.

Two cores give one search its answer in little more than half the time, as long as nobody else searches; when several
do, each has a core of its own and is better off alone. Knows nothing of what the work is.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class SpareCore:
    """Make one for each thing that is searched; its thread starts when it is first needed and ends with `close`."""

    def __init__(self, cores: int | None = None) -> None:
        """cores: how many this process may use, if not as the system says; with one there is nobody to help."""
        self._pool: ThreadPoolExecutor | None = None
        if (cores or len(os.sched_getaffinity(0))) > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="search-helper")
        self._free = threading.Lock()

    def run(self, parts: Sequence[Callable[[], T]]) -> list[T]:
        """The results of all parts, in order. Who is done with one takes the next, so a helper that comes late or is
        held up costs no more than the part that it has begun. Raises what a part raises.
        """
        if self._pool is None or len(parts) < 2 or not self._free.acquire(blocking=False):
            return [part() for part in parts]
        try:
            todo = deque(enumerate(parts))
            done: dict[int, T] = {}

            def work() -> None:
                while todo:
                    try:
                        number, part = todo.popleft()
                    except IndexError:  # the other one was faster
                        return
                    done[number] = part()

            helping = self._pool.submit(work)
            try:
                work()
            finally:
                if not helping.cancel():
                    helping.result()
            return [done[number] for number in range(len(parts))]
        finally:
            self._free.release()

    def close(self) -> None:
        """Ends the thread; `run` works on, without it."""
        with self._free:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
