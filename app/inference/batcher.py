"""A dynamic batcher: many callers, one function that works on lists.

Generic asyncio code; knows nothing of models, audio or HTTP. A `Batcher` is one lane in front of a `Device`, the
threads on which its lanes take turns. Each lane asks for one turn at a time per thread, so turns alternate: with one
thread a short text never waits for more than the audio batch under way, and a flood of texts cannot starve the audio.
A thread for whose lane a full batch waits, and which no other lane wants, goes on by itself: a busy event loop would
come to it only milliseconds later.

What holds, whatever happens:
- a place in the bounded queue comes first; where none is free the caller is refused at once;
- a batch closes on its budget, in cost and in the seconds it is expected to take; a lane without other callers adds no
  wait;
- callers share the lane: a long one's items stand between the others' (app.inference.fair_queue), urgent kinds ahead of patient
  ones;
- items whose caller has left are not computed;
- a failed batch is retried item by item, and only the callers of failing items see the failure;
- the worker outlives any exception, and closing resolves every future.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from app.inference.fair_queue import FairQueue, Flow
from app.inference.places import Places

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Urgency(IntEnum):
    """Who goes first: the value is the share of the lane that a caller of this kind has beside the others."""

    BULK = 1  # filling the library; nobody watches
    INTERACTIVE = 4  # a caller waits for the answer
    SEARCH = 32  # someone types and looks


class QueueFull(Exception):
    """No place in the queue. `retry_after`: seconds after which one should be free."""

    def __init__(self, lane: str, retry_after: int) -> None:
        super().__init__(f"The {lane} queue is full; try again in {retry_after} s.")
        self.retry_after = retry_after


class Closed(Exception):
    """The batcher is closing or closed and takes nothing more."""


@dataclass(frozen=True)
class BatchReport:
    """What one batch looked like, for whoever measures: `waited` and `seconds` are seconds."""

    size: int
    cost: float
    waited: list[float]  # of each item, from joining the queue to the start of the batch
    seconds: float


@dataclass
class CallReport:
    """What one caller's items went through, for whoever follows a request. Moments are those of time.perf_counter.

    items: that were computed. entered: when the first joined the queue. began: when the first batch with one of them
    did. ended: when the last such batch did. waited: seconds in the queue, of all items together.
    """

    items: int = 0
    entered: float = math.inf
    began: float = math.inf
    ended: float = -math.inf
    waited: float = 0.0

    def add(self, since: float, began: float, ended: float) -> None:
        """One more item."""
        self.items += 1
        self.entered, self.began = min(self.entered, since), min(self.began, began)
        self.ended = max(self.ended, ended)
        self.waited += began - since


class Device:
    """One thread, or `threads` side by side; who wants one asks for a turn, first come, first served.

    Each thread begins with `prepare`. wanted: how many wait for a turn.
    """

    def __init__(self, name: str = "device", threads: int = 1, prepare: Callable[[], None] | None = None) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=prepare)
        self._turns = asyncio.Semaphore(threads)
        self.wanted = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """A thread of one's own, until this is left."""
        self.wanted += 1
        try:
            await self._turns.acquire()
        finally:
            self.wanted -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def call(self, function: Callable[..., R], *args: Any) -> R:
        """Runs `function` on a thread. Take a turn first: `async with device.turn()`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Lets go of the threads; a function that still runs on one is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class _Entry(Generic[T, R]):
    item: T
    cost: float
    places: Places | None  # where it holds a place until it is computed
    future: asyncio.Future[R]
    since: float = field(default_factory=time.perf_counter)
    began: float = math.nan  # the batch that gave its result
    ended: float = math.nan
    queued: bool = True


class Batcher(Generic[T, R]):
    """Collects items of concurrent callers into batches for `run`.

    run: list of items → list of as many results, in order; called on the device's threads, and trusted with nothing.
    cost: what an item adds to a batch (1 by default).
    max_cost: budget of one batch; a dearer item gets a batch of its own.
    max_seconds: what a batch may take, as far as the pace of those before it tells. It bounds how long the other lanes
        wait; a slow device thus gets smaller batches.
    max_queue: callers that may wait with their first item. Half as many further items of those let in may wait beside
        them, so that a few long callers cannot fill the queue for all others.
    max_wait: seconds a batch waits, at most, for as much as the batch before it had, counted from that batch's end.
        Callers that ask again as soon as they are answered thus meet again; anyone else finds no wait.
    observe: is told about every batch.
    observe_call: is told about every caller with results, at its end and in its own context.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        device: Device,
        max_cost: float,
        max_queue: int,
        max_wait: float = 0.0,
        max_seconds: float = math.inf,
        cost: Callable[[T], float] = lambda _: 1,
        observe: Callable[[BatchReport], None] = lambda _: None,
        observe_call: Callable[[CallReport], None] = lambda _: None,
        name: str = "request",
    ) -> None:
        self.name = name
        self._run, self._cost, self._observe, self._observe_call = run, cost, observe, observe_call
        self._device = device
        self._max_cost, self._max_wait, self._max_seconds = max_cost, max_wait, max_seconds
        self._first_places = Places(max_queue)
        self._further_places = Places(max(1, max_queue // 2))
        self._lock = threading.Lock()  # what the device's threads have in their hands too:
        self._queue: FairQueue[_Entry[T, R]] = FairQueue(lambda entry: entry.queued)
        self._waiting_cost = 0.0
        self._running: set[_Entry[T, R]] = set()
        self._stopped = False
        self._arrival = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._callers = 0
        self._closing = False
        self._workers: list[asyncio.Task[None]] = []
        self._pace = 0.0  # seconds for one unit of cost, a running average

    @property
    def depth(self) -> int:
        """Items that wait in the queue."""
        return self._first_places.taken + self._further_places.taken

    def start(self) -> None:
        """Starts the workers, one for each of the device's threads, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        names = [f"batcher-{self.name}-{number}" for number in range(self._device.threads)]
        self._workers = [asyncio.create_task(self._work(), name=name) for name in names]

    async def close(self, grace: float = 10.0) -> None:
        """Takes nothing new, lets present callers finish for `grace` seconds, then fails the rest with Closed."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        with self._lock:
            self._stopped = True
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        for places in (self._first_places, self._further_places):
            places.refuse_waiting(Closed("The service is shutting down."))
        for entry in [*self._running, *self._queue.clear()]:
            self._fail(entry, Closed("The service is shutting down."))

    async def submit(self, item: T, *, urgency: Urgency = Urgency.INTERACTIVE, probe: bool = False) -> R:
        """The result for one item. Raises QueueFull, Closed, or what `run` raised for this item.

        A probe goes to the front and needs no place: it must not fail because the queue is long.
        """
        with self._calling() as report:
            self._refuse_if_closing()
            if not probe:
                self._take_first_place()
            entry = self._enter(item, Flow(urgency), None if probe else self._first_places, ahead=probe)
            return await self._answer(entry, report)

    async def map(self, items: Iterable[T], in_flight: int, urgency: Urgency = Urgency.INTERACTIVE) -> list[R]:
        """`stream` over items that are all there: their results, in order."""
        async with contextlib.aclosing(self.stream(_each(items), in_flight, urgency)) as results:
            return [result async for result in results]

    async def stream(
        self, items: AsyncIterable[T], in_flight: int, urgency: Urgency = Urgency.INTERACTIVE
    ) -> AsyncGenerator[R, None]:
        """Results in order, while the items still come; at most `in_flight` items are in the lane, or done and unread.

        Only the first item can be refused: a caller that was let in gets places for the others as they become free,
        so there may be more items than the queue holds. Raises what `submit` and `items` raise. Close the generator
        when leaving it early: its items are then dropped.
        """
        sent: asyncio.Queue[_Entry[T, R] | None] = asyncio.Queue()
        room = asyncio.Semaphore(in_flight)

        async def send() -> None:
            flow, places = Flow(urgency), self._first_places
            try:
                async for item in items:
                    await room.acquire()
                    if places is self._first_places:
                        self._take_first_place()
                    else:
                        await places.take(1)
                    sent.put_nowait(self._enter(item, flow, places))
                    places = self._further_places
            finally:
                sent.put_nowait(None)
                if isinstance(items, AsyncGenerator):
                    await items.aclose()

        with self._calling() as report:
            self._refuse_if_closing()
            sender = asyncio.create_task(send())
            try:
                while (entry := await sent.get()) is not None:
                    result = await self._answer(entry, report)
                    room.release()
                    yield result
                await sender  # what it raised
            finally:
                sender.cancel()
                await asyncio.wait({sender})
                if not sender.cancelled():
                    sender.exception()  # seen
                while not sent.empty():
                    if (entry := sent.get_nowait()) is not None:
                        self._leave(entry)

    def refuse_if_full(self) -> None:
        """Raises QueueFull or Closed if an item that came now would be refused: before work on its way is wasted."""
        self._refuse_if_closing()
        self._take_first_place()
        self._first_places.give_back(1)

    def _take_first_place(self) -> None:
        if not self._first_places.try_take(1):
            raise QueueFull(self.name, self._retry_after())

    def _refuse_if_closing(self) -> None:
        if self._closing or not self._workers:
            raise Closed("The service is shutting down." if self._closing else "The service has not started.")

    def _enter(self, item: T, flow: Flow, places: Places | None, ahead: bool = False) -> _Entry[T, R]:
        cost = max(0.0, float(self._cost(item)))
        entry: _Entry[T, R] = _Entry(item, cost, places, asyncio.get_running_loop().create_future())
        with self._lock:
            self._queue.push(entry, cost, None if ahead else flow)
            self._waiting_cost += cost
        self._arrival.set()
        return entry

    async def _answer(self, entry: _Entry[T, R], report: CallReport) -> R:
        try:
            result = await entry.future
            report.add(entry.since, entry.began, entry.ended)
            return result
        finally:
            self._leave(entry)

    def _leave(self, entry: _Entry[T, R]) -> None:
        """The caller is done with the entry: where it still waits it gives its place back and is never computed."""
        entry.future.cancel()
        with self._lock:
            if waited := entry.queued:
                self._dequeue(entry)
        if waited:
            self._give_places_back([entry])

    def _dequeue(self, entry: _Entry[T, R]) -> None:
        """With the lock, for an entry that waits."""
        entry.queued = False
        self._waiting_cost -= entry.cost

    @staticmethod
    def _give_places_back(entries: Iterable[_Entry[T, R]]) -> None:
        for entry in entries:
            if entry.places is not None:
                entry.places.give_back(1)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[CallReport]:
        self._callers += 1
        self._idle.clear()
        report = CallReport()
        try:
            yield report
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()
            if report.items:
                self._observe_call(report)

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._waiting_cost * self._pace / self._device.threads)))

    async def _work(self) -> None:
        cost, ended = 0.0, -math.inf  # of the last batch
        while True:
            await self._arrival.wait()
            await self._linger(cost, ended + self._max_wait)
            async with self._device.turn():
                batch = self._take()
                if not batch:  # who waited has left, or another worker was faster
                    continue
                batch, failed = await self._compute(batch, go_on=True)
            cost, ended = _cost(batch), time.perf_counter()
            if failed and len(batch) > 1:
                for entry in batch:
                    if not entry.future.done():
                        async with self._device.turn():
                            await self._compute([entry], go_on=False)
            self._running.difference_update(batch)

    async def _linger(self, cost: float, until: float) -> None:
        """Waits for items that cost `cost` together, or as much as a batch may have."""
        expected = min(cost, self._budget())
        while (left := until - time.perf_counter()) > 0 and self._waiting_cost < expected:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                return

    def _budget(self) -> float:
        """Cost that a batch may have now."""
        if not self._pace:
            return self._max_cost
        return min(self._max_cost, self._max_seconds / self._pace)

    def _take(self) -> list[_Entry[T, R]]:
        """The next batch, out of the queue; empty if everyone who waited has left."""
        batch = self._pick()
        self._give_places_back(batch)
        with self._lock:
            more = self._queue.peek() is not None
        if more:
            self._arrival.set()
        else:
            self._arrival.clear()
        return batch

    def _pick(self, only_full: bool = False) -> list[_Entry[T, R]]:
        """A batch out of the queue, on any thread; with `only_full` empty where less waits than a batch may cost."""
        batch: list[_Entry[T, R]] = []
        with self._lock:
            left = self._budget()
            if self._stopped or (only_full and self._waiting_cost < left):
                return batch
            while (entry := self._queue.peek()) is not None and (not batch or entry.cost <= left):
                self._dequeue(self._queue.pop())
                batch.append(entry)
                left -= entry.cost
            self._running.update(batch)
        return batch

    async def _compute(self, batch: list[_Entry[T, R]], go_on: bool) -> tuple[list[_Entry[T, R]], bool]:
        """Computes the batch; with `go_on` others after it (`_run_batches`). The last one, and whether it failed."""
        try:
            return await self._device.call(self._run_batches, batch, go_on)
        except RuntimeError as error:  # the device is closed
            self._deliver(batch, error, time.perf_counter(), time.perf_counter())
            return batch, True

    def _run_batches(self, batch: list[_Entry[T, R]], go_on: bool) -> tuple[list[_Entry[T, R]], bool]:
        """On a thread: the batch, then the next while a full one waits and no other lane wants the thread."""
        while True:
            began = time.perf_counter()
            outcome = _attempt(self._run, [entry.item for entry in batch])
            ended = time.perf_counter()
            failed = isinstance(outcome, BaseException)
            following = self._pick(only_full=True) if go_on and not failed and not self._device.wanted else []
            self._loop.call_soon_threadsafe(self._deliver, batch, outcome, began, ended)
            if not following:
                return batch, failed
            self._loop.call_soon_threadsafe(self._give_places_back, following)
            batch = following

    def _deliver(
        self, batch: list[_Entry[T, R]], outcome: Sequence[R] | BaseException, began: float, ended: float
    ) -> None:
        """Resolves a batch's futures; what failed is told to its caller only if it was alone."""
        cost = _cost(batch)
        if cost:
            pace = (ended - began) / cost
            self._pace = pace if not self._pace else 0.8 * self._pace + 0.2 * pace
        try:
            self._observe(BatchReport(len(batch), cost, [began - entry.since for entry in batch], ended - began))
        except Exception:
            log.exception("the observer of the %s lane failed", self.name)
        if isinstance(outcome, BaseException):
            log.warning("a batch of %d failed in the %s lane: %r", len(batch), self.name, outcome)
            if len(batch) == 1:
                self._fail(batch[0], outcome)
            return
        self._running.difference_update(batch)
        for entry, result in zip(batch, outcome, strict=True):
            entry.began, entry.ended = began, ended
            del entry.item  # a result that nobody has read yet does not keep what it was made of
            if not entry.future.done():
                entry.future.set_result(result)

    @staticmethod
    def _fail(entry: _Entry[T, R], error: BaseException) -> None:
        if not entry.future.done():
            if not isinstance(error, Exception) or isinstance(error, StopIteration):
                # futures refuse the one and event loops end at the others
                cause, error = error, RuntimeError(f"the computation ended with {error!r}")
                error.__cause__ = cause
            entry.future.set_exception(error)
            entry.future.exception()  # seen: a caller that has left must not cause a warning


def _cost(batch: list[_Entry[T, R]]) -> float:
    return sum(entry.cost for entry in batch)


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def _attempt(run: Callable[[list[T]], Sequence[R]], items: list[T]) -> Sequence[R] | BaseException:
    """Calls `run` and returns what it returns or raises, so that nothing it raises can reach the worker."""
    try:
        results = run(items)
        if len(results) != len(items):
            return RuntimeError(f"{len(items)} items gave {len(results)} results")
        return results
    except BaseException as error:
        return error
