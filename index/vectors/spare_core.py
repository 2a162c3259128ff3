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


def usable_cores() -> int:
    """How many cores this process may use, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use them all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SpareCore:
    """Make one for each thing that is searched; its thread starts when it is first needed and ends with `close`."""

    def __init__(self, cores: int | None = None) -> None:
        """cores: how many this process may use, if not as the system says; with one there is nobody to help."""
        self._pool: ThreadPoolExecutor | None = None
        if (cores or usable_cores()) > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="search-helper")
        self._free = threading.Lock()

    @property
    def helps(self) -> bool:
        """Whether there is a second thread at all: if not, work need not be cut into parts."""
        return self._pool is not None

    def run(self, parts: Sequence[Callable[[], T]]) -> list[T]:
        """The results of all parts, in order. Who is done with one takes the next, so a helper that comes late or is
        held up costs no more than the part that it has begun. Raises what a part raises.
        """
        if len(parts) < 2 or not self._free.acquire(blocking=False):
            return [part() for part in parts]
        try:
            pool = self._pool  # read with the lock held: `close` takes it away
            if pool is None:
                return [part() for part in parts]
            todo = deque(enumerate(parts))
            done: dict[int, T] = {}

            def work() -> None:
                while todo:
                    try:
                        number, part = todo.popleft()
                    except IndexError:  # the other one was faster
                        return
                    done[number] = part()

            try:
                helping = pool.submit(work)
            except RuntimeError:  # the interpreter is ending, and starts no thread any more
                work()
            else:
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
