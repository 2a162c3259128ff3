"""Order among the threads of one process: turns at things that have names, and times that differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Claims:
    """Names that are held now. Holding several at once cannot deadlock: all are taken together or waited for."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Waits until none of the names is held, and holds them. Not re-entrant."""
        wanted = set(names)
        with self._changed:
            self._changed.wait_for(lambda: not wanted & self._held)
            self._held |= wanted
        try:
            yield
        finally:
            with self._changed:
                self._held -= wanted
                self._changed.notify_all()


class Clock:
    """Microseconds since 1970, never the same twice."""

    def __init__(self) -> None:
        self._last = 0
        self._asking = threading.Lock()

    def now(self) -> int:
        """A time later than all that were told before."""
        with self._asking:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last
