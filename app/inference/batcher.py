"""A dynamic batcher for asyncio: combines the items of concurrent callers into batches for one function.

A `Batcher` is one lane in front of a `Device`, the threads on which its lanes take turns. Each lane requests one turn
at a time per thread, so turns alternate: with one thread, a short text waits for at most the audio batch that is
running, and a flood of texts cannot starve the audio. A thread goes on to the next batch by itself if a full batch is
waiting and no other lane wants the thread; a busy event loop would get to it only milliseconds later.

Guarantees:
- The queue is bounded by permits. A caller that gets none is rejected at once; an accepted one never is.
- A batch is limited by cost and by expected duration. A lane without other callers adds no delay.
- Callers share a lane fairly (app.inference.fair_queue), in proportion to their urgency.
- Items of a cancelled call are not computed.
- If a batch fails, its items are retried one by one, and only the callers of failing items get the error.
- The worker tasks survive any exception, and closing resolves every future.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from app.inference.fair_queue import FairQueue, Flow

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Urgency(IntEnum):
    """A caller's priority: its weight when the lane is shared."""

    BULK = 1  # ingestion in the background
    INTERACTIVE = 4  # a caller waits for the result
    LIVE = 16  # sound that goes on meanwhile
    SEARCH = 32  # a person waits for the result


class QueueFull(Exception):
    """The queue is full. `retry_after`: seconds after which there should be room."""

    def __init__(self, lane: str, retry_after: int) -> None:
        super().__init__(f"The {lane} queue is full; try again in {retry_after} s.")
        self.retry_after = retry_after


class Closed(Exception):
    """The batcher is closing or closed and accepts no items."""


@dataclass(frozen=True)
class BatchReport:
    """Measurements of one batch; `waited` and `seconds` in seconds."""

    size: int
    cost: float
    waited: list[float]  # per item, from entering the queue to the start of the batch
    seconds: float


@dataclass
class CallReport:
    """Measurements of one caller's items, for tracing. Times are those of time.perf_counter().

    items: number computed. entered: when the first entered the queue. began: start of the first batch with one of them.
    ended: end of the last such batch. waited: total seconds in the queue.
    """

    items: int = 0
    entered: float = math.inf
    began: float = math.inf
    ended: float = -math.inf
    waited: float = 0.0

    def add(self, since: float, began: float, ended: float) -> None:
        """Adds one item."""
        self.items += 1
        self.entered, self.began = min(self.entered, since), min(self.began, began)
        self.ended = max(self.ended, ended)
        self.waited += began - since


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a lane's batches and queue.

    max_cost: cost of one batch; an item that exceeds it gets a batch of its own.
    max_queue: callers that may wait with their first item. Half as many further items of accepted callers may wait as
        well, so that a few long callers cannot fill the queue.
    max_wait: seconds, from the end of the previous batch, that a batch waits at most for as much cost as the previous
        one had. Callers that submit again as soon as they get a result thus stay together; others see no delay.
    max_seconds: duration of a batch, estimated from previous batches. It bounds how long the other lanes wait, so a
        slow device gets smaller batches.
    """

    max_cost: float
    max_queue: int
    max_wait: float = 0.0
    max_seconds: float = math.inf


@dataclass(frozen=True)
class BatchObservers:
    """batch: called with the report of every batch. call: called, in the caller's context, with the report of every
    caller that got results."""

    batch: Callable[[BatchReport], None] = lambda _: None
    call: Callable[[CallReport], None] = lambda _: None


class Device:
    """One or more threads, used in turns, first come, first served.

    prepare: called at the start of each thread. waiting: number of callers waiting for a turn.
    """

    def __init__(self, name: str = "device", threads: int = 1, prepare: Callable[[], None] | None = None) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=prepare)
        self._turns = asyncio.Semaphore(threads)
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Reserves a thread for the duration of the context."""
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def call(self, function: Callable[..., R], *args: Any) -> R:
        """Runs `function` on a thread. Requires a turn: `async with device.turn()`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Shuts the threads down without waiting for running functions."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Permits:
    """A bounded number of permits. Waiters are served in order, before any newcomer."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.taken = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_acquire(self, count: int) -> bool:
        """Takes `count` permits if they are available and no one is waiting."""
        if self._waiters or not self._fits(count):
            return False
        self.taken += count
        return True

    async def acquire(self, count: int) -> None:
        """Takes `count` permits, waiting for them if necessary."""
        if self.try_acquire(count):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((count, waiter))
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(count)  # granted just as the caller was cancelled
            else:
                self._grant()  # the next waiter may fit now
            raise

    def release(self, count: int) -> None:
        """Returns `count` permits."""
        self.taken -= count
        self._grant()

    def fail_waiters(self, error: Exception) -> None:
        """Raises `error` in every waiter."""
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _grant(self) -> None:
        while self._waiters:
            count, waiter = self._waiters[0]
            if not waiter.done():
                if not self._fits(count):
                    return
                self.taken += count
                waiter.set_result(None)
            self._waiters.popleft()

    def _fits(self, count: int) -> bool:
        return self.taken + count <= self._total or self.taken == 0


@dataclass(eq=False)
class _Entry(Generic[T, R]):
    item: T
    cost: float
    permits: Permits | None  # holds one permit until a batch takes it or its caller is done with it
    future: asyncio.Future[R]
    since: float = field(default_factory=time.perf_counter)
    began: float = math.nan  # of the batch with its result
    ended: float = math.nan
    queued: bool = True


class Batcher(Generic[T, R]):
    """Combines items of concurrent callers into batches for `run`.

    run: list of items → list of as many results, in order; called on the device's threads.
    cost: cost of an item (1 by default).
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        device: Device,
        limits: BatchLimits,
        cost: Callable[[T], float] = lambda _: 1,
        observers: BatchObservers | None = None,
        name: str = "request",
    ) -> None:
        self.name = name
        self._run, self._cost, self._limits = run, cost, limits
        self._observers = observers or BatchObservers()
        self._device = device
        self._first_permits = Permits(limits.max_queue)
        self._further_permits = Permits(max(1, limits.max_queue // 2))
        self._lock = threading.Lock()  # guards what the device's threads use as well:
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
        self._pace = 0.0  # seconds per unit of cost, a moving average

    @property
    def depth(self) -> int:
        """The number of items in the queue."""
        return self._first_permits.taken + self._further_permits.taken

    @property
    def busy(self) -> bool:
        """Whether items are queued or being computed. May be read from any thread."""
        return bool(self._running) or self.depth > 0

    @property
    def waiting_cost(self) -> float:
        """The cost of the items in the queue that no batch has taken yet."""
        return max(0.0, self._waiting_cost)

    def start(self) -> None:
        """Starts one worker task per thread of the device on the running event loop."""
        self._loop = asyncio.get_running_loop()
        names = [f"batcher-{self.name}-{number}" for number in range(self._device.threads)]
        self._workers = [asyncio.create_task(self._work(), name=name) for name in names]

    async def close(self, grace: float = 10.0) -> None:
        """Rejects new items, lets current callers finish for `grace` seconds, then fails the rest with Closed."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        with self._lock:
            self._stopped = True
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        for permits in (self._first_permits, self._further_permits):
            permits.fail_waiters(Closed("The service is shutting down."))
        for entry in [*self._running, *self._queue.clear()]:
            self._fail(entry, Closed("The service is shutting down."))

    async def submit(self, item: T, *, urgency: Urgency = Urgency.INTERACTIVE, probe: bool = False) -> R:
        """Returns the result for one item. Raises QueueFull, Closed, or what `run` raised for this item.

        A probe goes to the front of the queue and needs no permit, so that it does not fail while the queue is full.
        """
        with self._track_call() as report:
            self._check_open()
            if not probe:
                self._acquire_first()
            entry = self._enqueue(item, Flow(urgency), None if probe else self._first_permits, ahead=probe)
            return await self._result(entry, report)

    async def submit_further(self, item: T, *, urgency: Urgency) -> R:
        """`submit` for a caller that was accepted earlier: waits for room in a full queue instead of QueueFull."""
        with self._track_call() as report:
            self._check_open()
            await self._further_permits.acquire(1)
            entry = self._enqueue(item, Flow(urgency), self._further_permits)
            return await self._result(entry, report)

    async def map(self, items: Iterable[T], in_flight: int, urgency: Urgency = Urgency.INTERACTIVE) -> list[R]:
        """`stream` for a collection of items: returns their results, in order."""
        async with contextlib.aclosing(self.stream(_iterate(items), in_flight, urgency)) as results:
            return [result async for result in results]

    async def stream(
        self, items: AsyncIterable[T], in_flight: int, urgency: Urgency = Urgency.INTERACTIVE
    ) -> AsyncGenerator[R, None]:
        """Yields results in order while items still arrive; at most `in_flight` items are queued, running or unread.

        Only the first item can be rejected: an accepted caller gets permits for the others as they become free, so
        there may be more items than the queue holds. Raises what `submit` and `items` raise. Close the generator when
        leaving it early, so that its items are dropped.
        """
        entries: asyncio.Queue[_Entry[T, R] | None] = asyncio.Queue()
        slots = asyncio.Semaphore(in_flight)

        async def send() -> None:
            flow, permits = Flow(urgency), self._first_permits
            try:
                async for item in items:
                    await slots.acquire()
                    if permits is self._first_permits:
                        self._acquire_first()
                    else:
                        await permits.acquire(1)
                    entries.put_nowait(self._enqueue(item, flow, permits))
                    permits = self._further_permits
            finally:
                entries.put_nowait(None)
                if isinstance(items, AsyncGenerator):
                    await items.aclose()

        with self._track_call() as report:
            self._check_open()
            sender = asyncio.create_task(send())
            try:
                while (entry := await entries.get()) is not None:
                    result = await self._result(entry, report)
                    slots.release()
                    yield result
                await sender  # raises its exception
            finally:
                sender.cancel()
                await asyncio.wait({sender})
                if not sender.cancelled():
                    sender.exception()  # mark as retrieved
                while not entries.empty():
                    if (entry := entries.get_nowait()) is not None:
                        self._drop(entry)

    def refuse_if_full(self) -> None:
        """Raises QueueFull or Closed if a new item would be rejected; for checks before preparing one."""
        self._check_open()
        self._acquire_first()
        self._first_permits.release(1)

    def _acquire_first(self) -> None:
        if not self._first_permits.try_acquire(1):
            raise QueueFull(self.name, self._retry_after())

    def _check_open(self) -> None:
        if self._closing or not self._workers:
            raise Closed("The service is shutting down." if self._closing else "The service has not started.")

    def _enqueue(self, item: T, flow: Flow, permits: Permits | None, ahead: bool = False) -> _Entry[T, R]:
        cost = max(0.0, float(self._cost(item)))
        entry: _Entry[T, R] = _Entry(item, cost, permits, asyncio.get_running_loop().create_future())
        with self._lock:
            self._queue.push(entry, cost, None if ahead else flow)
            self._waiting_cost += cost
        self._arrival.set()
        return entry

    async def _result(self, entry: _Entry[T, R], report: CallReport) -> R:
        try:
            result = await entry.future
            report.add(entry.since, entry.began, entry.ended)
            return result
        finally:
            self._drop(entry)

    def _drop(self, entry: _Entry[T, R]) -> None:
        """Removes an entry whose caller is done with it; if it is still queued, it is not computed."""
        entry.future.cancel()
        with self._lock:
            if entry.queued:
                self._dequeue(entry)
        self._release_permits([entry])  # a thread that has just taken it may not have had it released yet

    def _dequeue(self, entry: _Entry[T, R]) -> None:
        """Removes a queued entry. Requires the lock."""
        entry.queued = False
        self._waiting_cost -= entry.cost

    @staticmethod
    def _release_permits(entries: Iterable[_Entry[T, R]]) -> None:
        """Releases each entry's permit, once. On the event loop."""
        for entry in entries:
            permits, entry.permits = entry.permits, None
            if permits is not None:
                permits.release(1)

    @contextlib.contextmanager
    def _track_call(self) -> Iterator[CallReport]:
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
                self._observers.call(report)

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._waiting_cost * self._pace / self._device.threads)))

    async def _work(self) -> None:
        cost, ended = 0.0, -math.inf  # of the last batch
        while True:
            await self._arrival.wait()
            await self._linger(cost, ended + self._limits.max_wait)
            async with self._device.turn():
                batch = self._take()
                if not batch:  # the callers have gone, or another worker took their items
                    continue
                batch, failed = await self._compute(batch, continuous=True)
            cost, ended = _cost(batch), time.perf_counter()
            if failed and len(batch) > 1:
                for entry in batch:
                    if not entry.future.done():
                        async with self._device.turn():
                            await self._compute([entry], continuous=False)
            self._running.difference_update(batch)

    async def _linger(self, cost: float, until: float) -> None:
        """Waits until the queued items cost `cost`, or as much as a batch may."""
        expected = min(cost, self._budget())
        while (left := until - time.perf_counter()) > 0 and self._waiting_cost < expected:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                return

    def _budget(self) -> float:
        """The current cost limit of a batch."""
        if not self._pace:
            return self._limits.max_cost
        return min(self._limits.max_cost, self._limits.max_seconds / self._pace)

    def _take(self) -> list[_Entry[T, R]]:
        """Takes the next batch out of the queue; empty if all callers have gone."""
        batch = self._pick()
        self._release_permits(batch)
        with self._lock:
            more = self._queue.peek() is not None
        if more:
            self._arrival.set()
        else:
            self._arrival.clear()
        return batch

    def _pick(self, only_full: bool = False) -> list[_Entry[T, R]]:
        """Takes a batch, on any thread; with `only_full`, empty if the queued items don't fill one."""
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

    async def _compute(self, batch: list[_Entry[T, R]], continuous: bool) -> tuple[list[_Entry[T, R]], bool]:
        """Computes the batch; with `continuous`, also following ones. Returns the last one and whether it failed."""
        try:
            return await self._device.call(self._run_batches, batch, continuous)
        except RuntimeError as error:  # the device is closed
            self._deliver(batch, error, time.perf_counter(), time.perf_counter())
            return batch, True

    def _run_batches(self, batch: list[_Entry[T, R]], continuous: bool) -> tuple[list[_Entry[T, R]], bool]:
        """On a thread: computes the batch, then further full ones while no other lane wants the thread."""
        while True:
            began = time.perf_counter()
            outcome = _attempt(self._run, [entry.item for entry in batch])
            ended = time.perf_counter()
            failed = isinstance(outcome, BaseException)
            following = self._pick(only_full=True) if continuous and not failed and not self._device.waiting else []
            self._loop.call_soon_threadsafe(self._deliver, batch, outcome, began, ended)
            if not following:
                return batch, failed
            self._loop.call_soon_threadsafe(self._release_permits, following)
            batch = following

    def _deliver(
        self, batch: list[_Entry[T, R]], outcome: Sequence[R] | BaseException, began: float, ended: float
    ) -> None:
        """Resolves a batch's futures; an error is passed to the caller only if the batch has a single item."""
        cost = _cost(batch)
        if cost:
            pace = (ended - began) / cost
            self._pace = pace if not self._pace else 0.8 * self._pace + 0.2 * pace
        try:
            self._observers.batch(
                BatchReport(len(batch), cost, [began - entry.since for entry in batch], ended - began)
            )
        except Exception:
            log.exception("the observer of the %s lane raised an exception", self.name)
        if isinstance(outcome, BaseException):
            log.warning("a batch of %d items failed in the %s lane: %r", len(batch), self.name, outcome)
            if len(batch) == 1:
                self._fail(batch[0], outcome)
            return
        self._running.difference_update(batch)
        for entry, result in zip(batch, outcome, strict=True):
            entry.began, entry.ended = began, ended
            del entry.item  # an unread result must not keep its item in memory
            if not entry.future.done():
                entry.future.set_result(result)

    @staticmethod
    def _fail(entry: _Entry[T, R], error: BaseException) -> None:
        if not entry.future.done():
            if not isinstance(error, Exception) or isinstance(error, StopIteration):
                # futures reject StopIteration, and event loops stop at BaseExceptions
                cause, error = error, RuntimeError(f"the computation raised {error!r}")
                error.__cause__ = cause
            entry.future.set_exception(error)
            entry.future.exception()  # mark as retrieved, so that asyncio does not warn if the caller has gone


def _cost(batch: list[_Entry[T, R]]) -> float:
    return sum(entry.cost for entry in batch)


async def _iterate(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def _attempt(run: Callable[[list[T]], Sequence[R]], items: list[T]) -> Sequence[R] | BaseException:
    """Calls `run` and returns its results or its exception, so that no exception reaches the worker."""
    try:
        results = run(items)
        if len(results) != len(items):
            return RuntimeError(f"{len(items)} items returned {len(results)} results")
        return results
    except BaseException as error:
        return error
