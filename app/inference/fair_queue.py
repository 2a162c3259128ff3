"""Whose turn is it? A queue that callers of unequal length share fairly.

Generic; knows nothing of what stands in it. Self-clocked fair queueing (Golestani, INFOCOM 1994): every item gets a
tag, which is its caller's last tag, or the queue's clock if that is later, plus the item's cost by the caller's share;
the smallest tag goes first, and the clock is the tag last served. So each caller's items advance at their own pace:

- a caller of one item waits for about one item of each other caller, however many those have queued;
- a caller that has been idle gains no credit, and one that keeps coming cannot starve those that wait, since the clock
  passes their tags;
- equal tags go in order of arrival, and a caller's own items always in order.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_SWEEP = 64  # items that left before the queue is cleared of them


class Flow:
    """One caller. Beside others it gets a part of the work in proportion to `share`."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.tag = -math.inf  # of its last item


class FairQueue(Generic[T]):
    """The items of many flows. `present` says of an item whether it still waits; others are passed over."""

    def __init__(self, present: Callable[[T], bool] = lambda _: True) -> None:
        self._present = present
        self._heap: list[tuple[float, int, T]] = []
        self._count = itertools.count()
        self._clock = 0.0
        self._sweep_at = _SWEEP

    def push(self, item: T, cost: float, flow: Flow | None) -> None:
        """Adds an item of `flow`; with None it goes ahead of all flows."""
        if flow is None:
            tag = -math.inf
        else:
            tag = flow.tag = max(self._clock, flow.tag) + cost / flow.share
        heapq.heappush(self._heap, (tag, next(self._count), item))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if self._present(entry[2])]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + _SWEEP

    def peek(self) -> T | None:
        """The item whose turn is next; None when nothing waits."""
        while self._heap:
            item = self._heap[0][2]
            if self._present(item):
                return item
            heapq.heappop(self._heap)
        return None

    def pop(self) -> T:
        """Takes the item that `peek` shows. Raises IndexError when nothing waits."""
        if self.peek() is None:
            raise IndexError("nothing waits")
        tag, _, item = heapq.heappop(self._heap)
        self._clock = max(self._clock, tag)
        return item

    def clear(self) -> Iterator[T]:
        """Takes all items, in no order."""
        heap, self._heap = self._heap, []
        return (item for _, _, item in heap if self._present(item))
