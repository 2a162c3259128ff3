"""The batcher's guarantees, tested with functions that check their input."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.batcher import (
    Batcher,
    BatchLimits,
    BatchObservers,
    BatchReport,
    CallReport,
    Closed,
    Device,
    QueueFull,
    Urgency,
)
from tests.support.waiting import until


class Doubler:
    """Doubles numbers, asserts the cost limit of every batch, raises for `poison`, and waits while `gate` is closed."""

    def __init__(self, max_cost: int, poison: Sequence[int] = (), cost: Callable[[int], int] = lambda _: 1) -> None:
        self.max_cost, self.poison, self.cost = max_cost, set(poison), cost
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()

    def __call__(self, items: list[int]) -> list[int]:
        assert items
        assert len(items) == 1 or sum(map(self.cost, items)) <= self.max_cost
        self.threads.add(threading.current_thread().name)
        self.gate.wait(60)
        self.batches.append(list(items))
        if self.poison & set(items):
            raise ValueError("poison")
        return [2 * item for item in items]

    @property
    def seen(self) -> list[int]:
        return [item for batch in self.batches for item in batch]


@asynccontextmanager
async def running(run: Any, threads: int = 1, **options: Any) -> AsyncIterator[Batcher[Any, Any]]:
    device = Device(threads=threads)
    observed = [name for name in ("observe_batch", "observe_call") if name in options]
    observers = {name.removeprefix("observe_"): options.pop(name) for name in observed}
    cost = options.pop("cost", lambda _: 1)
    limits = BatchLimits(**{"max_cost": 4, "max_queue": 100, **options})
    batcher: Batcher[Any, Any] = Batcher(
        run, device=device, limits=limits, cost=cost, observers=BatchObservers(**observers)
    )
    batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(run, Doubler):
            run.gate.set()
        await batcher.close(grace=5)
        device.close()


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=12), min_size=1, max_size=8),
    max_cost=st.integers(1, 9),
    in_flight=st.integers(1, 10),
    poison=st.sets(st.integers(1, 50), max_size=3),
    weighted=st.booleans(),
    threads=st.integers(1, 3),
)
def test_each_caller_gets_its_own_results_in_order_or_its_own_error(
    groups: list[list[int]], max_cost: int, in_flight: int, poison: set[int], weighted: bool, threads: int
) -> None:
    cost: Callable[[int], int] = (lambda item: item % 5) if weighted else (lambda _: 1)

    async def main() -> None:
        run = Doubler(max_cost, tuple(poison), cost=lambda item: max(1, cost(item)))
        async with running(run, threads, max_cost=max_cost, max_queue=1000, max_wait=0.001, cost=cost) as batcher:
            answers = await asyncio.gather(*(batcher.map(g, in_flight) for g in groups), return_exceptions=True)
            for group, answer in zip(groups, answers, strict=True):
                if poison & set(group):
                    assert isinstance(answer, ValueError)
                else:
                    assert answer == [2 * item for item in group]
            assert batcher.depth == 0

    asyncio.run(main())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_stream_may_exceed_the_queue(items: int, max_queue: int, callers: int, max_cost: int, threads: int) -> None:
    async def main() -> None:
        run = Doubler(max_cost)
        async with running(run, threads, max_cost=max_cost, max_queue=max_queue) as batcher:
            work = [asyncio.create_task(batcher.map(range(items), in_flight=4)) for _ in range(callers)]
            answers = await asyncio.gather(*work, return_exceptions=True)
            served = [answer for answer in answers if not isinstance(answer, QueueFull)]
            assert served and all(answer == [2 * i for i in range(items)] for answer in served)

    asyncio.run(main())


async def test_batches_run_on_all_threads_of_the_device() -> None:
    together = threading.Barrier(3, timeout=60)

    def run(items: list[int]) -> list[int]:
        together.wait()  # released once three batches have arrived
        return items

    async with running(run, threads=3, max_cost=1) as batcher:
        assert await batcher.map(range(6), in_flight=6) == list(range(6))


async def test_close_resolves_items_on_every_thread() -> None:
    run = Doubler(1)
    run.gate.clear()
    async with running(run, threads=2, max_cost=1) as batcher:
        work = [asyncio.create_task(batcher.submit(item)) for item in range(3)]
        await until(lambda: len(run.threads) == 2 and batcher.depth == 1)
        await batcher.close(grace=0)
        assert all(isinstance(answer, Closed) for answer in await asyncio.gather(*work, return_exceptions=True))


async def test_concurrent_callers_share_batches() -> None:
    run = Doubler(4)
    async with running(run) as batcher:
        run.gate.clear()
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: batcher.depth == 0 and bool(run.threads))
        rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 9)]
        await until(lambda: batcher.depth == 8)
        run.gate.set()
        assert await asyncio.gather(first, *rest) == [2 * i for i in range(9)]
    assert [len(b) for b in run.batches] == [1, 4, 4]
    assert len(run.threads) == 1


async def test_idle_lane_adds_no_delay_and_returning_callers_share_batches() -> None:
    run = Doubler(8)
    async with running(run, max_cost=8, max_wait=60) as batcher, asyncio.timeout(30):
        for i in range(5):
            await batcher.submit(i)  # a single caller is not delayed

        async def caller(rounds: int) -> None:
            for i in range(rounds):
                await batcher.submit(i)
                await asyncio.sleep(0.005 * i)  # they return at slightly different times

        run.batches.clear()
        await asyncio.gather(*(caller(3) for _ in range(6)))
        assert len(run.batches) <= 2 * 3


async def test_full_queue_rejects_at_once_with_retry_after() -> None:
    run = Doubler(2)
    async with running(run, max_cost=2, max_queue=3) as batcher:
        run.gate.clear()
        work = [asyncio.create_task(batcher.submit(0))]
        await until(lambda: bool(run.threads))
        work += [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
        await until(lambda: batcher.depth == 3)
        for refused in (batcher.submit(4), batcher.map([5, 6], in_flight=2)):
            with pytest.raises(QueueFull) as caught:
                await refused
            assert run.batches == []  # it did not wait for earlier items
            assert caught.value.retry_after >= 1
        with pytest.raises(QueueFull):
            batcher.refuse_if_full()
        run.gate.set()
        assert await asyncio.gather(*work) == [0, 2, 4, 6]
        batcher.refuse_if_full()
        assert await batcher.submit(7) == 14


async def test_probe_passes_a_full_queue() -> None:
    run = Doubler(1)
    async with running(run, max_cost=1, max_queue=2) as batcher:
        run.gate.clear()
        work = [asyncio.create_task(batcher.submit(0))]
        await until(lambda: bool(run.threads))
        work += [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        await until(lambda: batcher.depth == 2)
        urgent = asyncio.create_task(batcher.submit(9, probe=True))
        await asyncio.sleep(0)
        run.gate.set()
        assert await urgent == 18
        await asyncio.gather(*work)
        assert run.seen == [0, 9, 1, 2]


async def test_items_of_cancelled_callers_are_not_computed_and_release_their_permits() -> None:
    run = Doubler(1)
    async with running(run, max_cost=1, max_queue=3) as batcher:
        run.gate.clear()
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: bool(run.threads))
        leaving = [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        many = asyncio.create_task(batcher.map(range(100, 200), in_flight=3))
        await until(lambda: batcher.depth == 4)  # one further item of the long caller besides the first
        for task in (*leaving, many):
            task.cancel()
        await asyncio.wait([*leaving, many])
        assert batcher.depth == 0
        staying = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0)
        run.gate.set()
        assert (await first, await staying) == (0, 6)
    assert run.seen == [0, 3]


async def test_a_failed_batch_is_retried_item_by_item() -> None:
    run = Doubler(4, poison=[2])
    async with running(run) as batcher:
        run.gate.clear()
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: bool(run.threads))
        rest = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
        await until(lambda: batcher.depth == 3)
        run.gate.set()
        answers = await asyncio.gather(first, *rest, return_exceptions=True)
        assert answers[:2] == [0, 2] and answers[3] == 6
        assert isinstance(answers[2], ValueError)
        assert run.batches == [[0], [1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), StopIteration(), MemoryError()]
)
async def test_worker_survives_any_exception(error: BaseException) -> None:
    broken = True

    def run(items: list[int]) -> list[int]:
        if broken:
            raise error
        return items

    async with running(run) as batcher:
        with pytest.raises((RuntimeError, MemoryError)):
            await batcher.submit(1)
        broken = False
        assert await batcher.submit(2) == 2


@pytest.mark.parametrize("wrong", [[], [1, 2], None, 5])
async def test_wrong_number_of_results_is_an_error(wrong: Any) -> None:
    async with running(lambda items: wrong) as batcher:
        with pytest.raises((RuntimeError, TypeError)):
            await batcher.submit(1)


async def test_observer_exceptions_are_ignored() -> None:
    def observe(report: BatchReport) -> None:
        raise RuntimeError("no")

    async with running(Doubler(4), observe_batch=observe) as batcher:
        assert await batcher.submit(1) == 2


async def test_reports_have_sizes_and_times() -> None:
    reports: list[BatchReport] = []

    def run(items: list[int]) -> list[int]:
        time.sleep(0.02)
        return items

    async with running(run, observe_batch=reports.append) as batcher:
        began = time.perf_counter()
        await batcher.map([1, 2, 3], in_flight=3)
        took = time.perf_counter() - began
    assert [(r.size, r.cost, len(r.waited)) for r in reports] == [(3, 3, 3)]
    assert reports[0].seconds >= 0.02 and max(reports[0].waited) <= took - 0.02


async def test_call_reports_cover_the_callers_own_items() -> None:
    run, reports = Doubler(2), list[CallReport]()
    async with running(run, max_cost=2, observe_call=reports.append) as batcher:
        began = time.perf_counter()
        run.gate.clear()
        three = asyncio.create_task(batcher.map([1, 2, 3], in_flight=3))
        one = asyncio.create_task(batcher.submit(4))
        left = asyncio.create_task(batcher.submit(5))
        await until(lambda: batcher.depth >= 3)
        left.cancel()
        await asyncio.sleep(0.05)
        run.gate.set()
        assert (await three, await one) == ([2, 4, 6], 8)
    assert sorted(report.items for report in reports) == [1, 3]  # callers without results are not reported
    for report in reports:
        assert began <= report.entered <= report.began <= report.ended <= time.perf_counter()
        assert report.waited >= report.began - report.entered - 1e-6
    assert max(report.waited for report in reports) >= 0.05


async def test_unread_result_does_not_keep_its_item() -> None:
    class Sound:
        pass

    alive: weakref.WeakSet[Sound] = weakref.WeakSet()

    async def sounds() -> AsyncIterator[Sound]:
        for _ in range(6):
            alive.add(sound := Sound())
            yield sound

    async with (
        running(lambda items: [1] * len(items)) as batcher,
        contextlib.aclosing(batcher.stream(sounds(), in_flight=4)) as results,
    ):
        assert await anext(results) == 1  # the other three of the batch of four are done as well
        assert len(alive) <= 2  # items that arrived since are not read
        assert [result async for result in results] == [1] * 5


async def test_close_lets_current_callers_finish_and_rejects_new_ones() -> None:
    run = Doubler(2)
    async with running(run, max_cost=2, max_queue=3) as batcher:
        run.gate.clear()
        work = asyncio.create_task(batcher.map(range(20), in_flight=3))
        await until(lambda: bool(run.threads))
        closing = asyncio.create_task(batcher.close(grace=60))
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await batcher.submit(1)
        run.gate.set()
        assert await work == [2 * i for i in range(20)]
        await closing


async def test_close_resolves_every_future_even_if_the_computation_hangs() -> None:
    run = Doubler(2)
    async with running(run, max_cost=2, max_queue=3) as batcher:
        run.gate.clear()
        work = [asyncio.create_task(batcher.submit(i)) for i in range(2)]
        await until(lambda: bool(run.threads))
        work += [asyncio.create_task(batcher.submit(i)) for i in range(2)]
        work += [asyncio.create_task(batcher.map(range(9), in_flight=9))]
        await until(lambda: batcher.depth == 4)
        await batcher.close(grace=0.05)
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(answer, Closed) for answer in answers)


async def test_batcher_that_was_not_started_rejects_items() -> None:
    batcher: Batcher[int, int] = Batcher(Doubler(1), device=Device(), limits=BatchLimits(1, 1))
    with pytest.raises(Closed):
        await batcher.submit(1)


async def test_the_next_batch_does_not_wait_for_a_busy_event_loop() -> None:
    run = Doubler(2)
    async with running(run, max_cost=2) as batcher:
        run.gate.clear()
        work = asyncio.create_task(batcher.map(range(7), in_flight=7))
        await until(lambda: bool(run.threads))
        run.gate.set()
        ended = time.monotonic() + 60
        while len(run.batches) < 3 and time.monotonic() < ended:
            time.sleep(0.001)  # blocks the event loop
        assert run.batches[:3] == [[0, 1], [2, 3], [4, 5]]
        time.sleep(0.02)
        assert len(run.batches) == 3  # the last is smaller and may wait for more items
        assert await work == [2 * i for i in range(7)]
        assert batcher.depth == 0


async def test_a_caller_that_leaves_has_no_item_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, taken, left = asyncio.get_running_loop(), threading.Event(), threading.Event()
    to_loop = loop.call_soon_threadsafe

    def held(*call: Any, **context: Any) -> asyncio.Handle:
        taken.set()  # the thread has computed item 0 and taken item 1, which the event loop does not know yet
        left.wait(60)
        return to_loop(*call, **context)

    async with running(run := Doubler(1), max_cost=1) as batcher:
        run.gate.clear()
        work = asyncio.create_task(batcher.map(range(2), in_flight=2))
        await until(lambda: batcher.depth == 1 and bool(run.threads))
        monkeypatch.setattr(loop, "call_soon_threadsafe", held)
        run.gate.set()
        await until(taken.is_set)
        work.cancel()
        await asyncio.wait({work})
        assert batcher.depth == 0
        left.set()
        await until(lambda: not batcher.busy)
        assert batcher.depth == 0


async def test_two_lanes_take_turns_on_one_thread() -> None:
    device = Device()
    order: list[str] = []
    gate = threading.Event()

    def lane(name: str) -> Callable[[list[int]], list[int]]:
        def run(items: list[int]) -> list[int]:
            gate.wait(60)
            order.append(name)
            return items

        return run

    long: Batcher[int, int] = Batcher(lane("long"), device=device, limits=BatchLimits(1, 100))
    short: Batcher[int, int] = Batcher(lane("short"), device=device, limits=BatchLimits(1, 100))
    long.start()
    short.start()
    work = [asyncio.create_task(long.map(range(6), in_flight=6))]
    await until(lambda: long.depth == 5)
    work.append(asyncio.create_task(short.map(range(2), in_flight=2)))
    await until(lambda: short.depth == 2 and device.waiting == 1)
    gate.set()
    await asyncio.gather(*work)
    # a lane never waits for more than one batch of the other
    assert order[:4] == ["long", "short", "long", "short"]
    await asyncio.gather(long.close(), short.close())
    device.close()


async def test_searches_have_priority_and_ingestion_continues() -> None:
    run = Doubler(1)
    async with running(run, max_cost=1) as batcher:
        run.gate.clear()
        work = [asyncio.create_task(batcher.map(range(100, 120), 20, Urgency.BULK))]
        await until(lambda: batcher.depth == 19)
        work += [asyncio.create_task(batcher.submit(i, urgency=Urgency.SEARCH)) for i in range(5)]
        work += [asyncio.create_task(batcher.map(range(50, 60), 10, Urgency.INTERACTIVE))]
        await until(lambda: batcher.depth == 34)
        run.gate.set()
        await asyncio.gather(*work)
    assert set(run.seen[1:6]) == set(range(5))  # running items stay on the device
    half = run.seen[6:16]
    assert 7 <= sum(item < 100 for item in half) <= 9  # four interactive items per ingested one


async def test_short_caller_does_not_wait_for_a_long_one() -> None:
    run = Doubler(2)
    async with running(run, max_cost=2) as batcher:
        run.gate.clear()
        long = [asyncio.create_task(batcher.map(range(n, n + 30), in_flight=8)) for n in (100, 200, 300)]
        await until(lambda: batcher.depth == 22)
        short = asyncio.create_task(batcher.submit(1))
        await until(lambda: batcher.depth == 23)
        run.gate.set()
        assert await short == 2
        before = next(n for n, batch in enumerate(run.batches) if 1 in batch)
        assert before <= 3  # the running batch, then an item or two of each long caller
        assert [len(results) for results in await asyncio.gather(*long)] == [30, 30, 30]


async def test_a_slow_device_gets_smaller_batches() -> None:
    sizes: list[int] = []
    reports: list[BatchReport] = []

    def run(items: list[int]) -> list[int]:
        time.sleep(0.01 * len(items))
        while len(reports) < len(sizes):  # the event loop may process earlier measurements late
            time.sleep(0.001)
        sizes.append(len(items))
        return items

    async with running(run, max_cost=64, max_queue=1000, max_seconds=0.08, observe_batch=reports.append) as batcher:
        await batcher.map(range(200), in_flight=200)
    later = [report.size for report in reports[2:-1]]
    assert reports[0].size == 64 and later and max(later) <= 8


async def test_items_above_the_cost_limit_get_their_own_batch() -> None:
    run = Doubler(4, cost=lambda item: 9)
    async with running(run, cost=lambda item: 9) as batcher:
        assert await batcher.map([1, 2, 3], in_flight=3) == [2, 4, 6]
    assert [len(batch) for batch in run.batches] == [1, 1, 1]


async def test_stream_stops_when_its_items_raise() -> None:
    taken: list[int] = []
    run = Doubler(1, poison=[3])

    async def items() -> AsyncIterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    async with running(run, max_cost=1) as batcher:
        results = []
        with pytest.raises(ValueError, match="poison"):
            async for result in batcher.stream(items(), in_flight=2):
                results.append(result)
        assert results == [0, 2, 4] and len(taken) <= 7
        assert batcher.depth == 0 and await batcher.submit(7) == 14
