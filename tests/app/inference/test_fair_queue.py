"""Fair queueing: short callers pass long ones, no caller starves, and shares are respected."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from app.inference.fair_queue import FairQueue, Flow


def drain(queue: FairQueue[str]) -> list[str]:
    items = []
    while queue.peek() is not None:
        items.append(queue.pop())
    return items


def test_short_caller_does_not_wait_for_a_long_one() -> None:
    queue: FairQueue[str] = FairQueue()
    long, short = Flow(), Flow()
    for i in range(100):
        queue.push(f"long {i}", 1, long)
    queue.pop()
    queue.push("short", 1, short)
    assert drain(queue).index("short") <= 1


def test_shares_divide_the_work() -> None:
    queue: FairQueue[str] = FairQueue()
    flows = {"patient": Flow(1), "urgent": Flow(4)}
    for name, flow in flows.items():
        for _ in range(100):
            queue.push(name, 1, flow)
    first = drain(queue)[:50]
    assert 38 <= first.count("urgent") <= 42


def test_newcomers_do_not_starve_waiting_callers() -> None:
    queue: FairQueue[str] = FairQueue()
    patient = Flow(1)
    for _ in range(10):
        queue.push("patient", 1, patient)
    for _ in range(20):
        queue.push("newcomer", 1, Flow(4))
    served = []
    for _ in range(1000):  # each served item is replaced by a new one, so the queue never shrinks
        queue.push("newcomer", 1, Flow(4))
        served.append(queue.pop())
    assert served.count("patient") == 10


def test_idle_callers_gain_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    busy, idle = Flow(), Flow()
    queue.push("idle", 1, idle)
    queue.pop()
    for _ in range(50):
        queue.push("busy", 1, busy)
        queue.pop()
    for _ in range(10):
        queue.push("busy", 1, busy)
        queue.push("idle", 1, idle)
    order = drain(queue)
    assert all(abs(order[:n].count("idle") - order[:n].count("busy")) <= 2 for n in range(20))


def test_items_without_flow_go_first() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("item", 0, Flow(1000))
    queue.push("probe", 5, None)
    assert drain(queue) == ["probe", "item"]


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 4), st.booleans()), max_size=300))
def test_order_within_a_caller_is_kept_and_removed_items_are_skipped(
    pushes: list[tuple[int, float, bool]],
) -> None:
    gone: set[int] = set()
    queue: FairQueue[int] = FairQueue(lambda item: item not in gone)
    flows = [Flow(share) for share in (1, 1, 4, 4, 32)]
    owner: dict[int, int] = {}
    for number, (caller, cost, leaves) in zip(count(), pushes, strict=False):
        queue.push(number, cost, flows[caller])
        owner[number] = caller
        if leaves:
            gone.add(number)
    served = []
    while queue.peek() is not None:
        served.append(queue.pop())
    assert sorted(served) == sorted(set(owner) - gone)
    for caller in range(5):
        mine = [item for item in served if owner[item] == caller]
        assert mine == sorted(mine)
