"""A fair queue: callers with different numbers of items share it in proportion to their weights.

Self-clocked fair queueing (S. J. Golestani, INFOCOM 1994). Every item gets a tag: the larger of its flow's last tag and
the queue's clock, plus the item's cost divided by the flow's share. The item with the smallest tag is served first, and
the clock is the tag served last. Therefore:

- A caller with one item waits for about one item of each other caller, however many those have queued.
- An idle caller gains no credit, and a busy one cannot starve waiting callers, since the clock passes their tags.
- Equal tags are served in order of arrival, and the items of one caller always in order.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_SWEEP = 64  # removed items before the heap is compacted


class Flow:
    """One caller, served in proportion to `share`."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.tag = -math.inf  # of its last item


class FairQueue(Generic[T]):
    """The items of many flows. `present` returns whether an item is still queued; other items are skipped."""

    def __init__(self, present: Callable[[T], bool] = lambda _: True) -> None:
        self._present = present
        self._heap: list[tuple[float, int, T]] = []
        self._count = itertools.count()
        self._clock = 0.0
        self._sweep_at = _SWEEP

    def push(self, item: T, cost: float, flow: Flow | None) -> None:
        """Adds an item of `flow`; with None, ahead of all flows."""
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
        """Returns the next item, or None if the queue is empty."""
        while self._heap:
            item = self._heap[0][2]
            if self._present(item):
                return item
            heapq.heappop(self._heap)
        return None

    def pop(self) -> T:
        """Removes and returns the next item. Raises IndexError if the queue is empty."""
        if self.peek() is None:
            raise IndexError("the queue is empty")
        tag, _, item = heapq.heappop(self._heap)
        self._clock = max(self._clock, tag)
        return item

    def clear(self) -> Iterator[T]:
        """Removes and returns all items, in no particular order."""
        heap, self._heap = self._heap, []
        return (item for _, _, item in heap if self._present(item))
