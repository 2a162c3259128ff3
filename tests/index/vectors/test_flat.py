"""The index in memory equals a NumPy product, also while it changes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from index.vectors.flat import FaissIndex, ReadWriteLock
from tests.support.waiting import wait_until

DIM = 24


def _vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def _search(index: FaissIndex, query: np.ndarray, k: int, only: np.ndarray | None = None) -> tuple[list, np.ndarray]:
    with index.reading():
        rows, similarities = index.search(query, k, only)
    return rows.tolist(), similarities


@pytest.mark.parametrize("k", [1, 7, 50, 1000])
@pytest.mark.parametrize("share", [None, 0.5, 0.05])
def test_equals_the_product(k: int, share: float | None) -> None:
    vectors, rows = _vectors(300), np.arange(300) * 3 + 11
    index = FaissIndex(DIM)
    index.add(rows[:100], vectors[:100])
    index.add(rows[100:], vectors[100:])
    query = _vectors(1, seed=9)[0]
    only = None if share is None else np.random.default_rng(4).choice(rows, int(300 * share), replace=False)
    left = [i for i in range(300) if only is None or rows[i] in only]
    best = sorted(left, key=lambda i: -float(vectors[i] @ query))[:k]
    found, similarities = _search(index, query, k, only)
    assert found == rows[best].tolist()
    np.testing.assert_allclose(similarities, vectors[best] @ query, rtol=1e-5, atol=1e-5)


def test_missing_rows_are_ignored() -> None:
    index, vectors = FaissIndex(DIM), _vectors(3)
    index.add(np.array([5, 6, 7]), vectors)
    assert _search(index, vectors[0], 5, np.array([6, 900]))[0] == [6]
    assert _search(index, vectors[0], 5, np.array([900]))[0] == []
    assert _search(index, vectors[0], 5, np.empty(0, np.int64))[0] == []


def test_removed_rows_are_gone_and_the_others_keep_their_vectors() -> None:
    index, vectors = FaissIndex(DIM), _vectors(50)
    index.add(np.arange(50), vectors)
    assert index.remove(np.array([3, 17, 17, 99])) == 2
    assert len(index) == 48
    for row in set(range(50)) - {3, 17}:
        assert _search(index, vectors[row] * 100, 1, np.array([row, 3, 17]))[0] == [row]


def test_ties_are_in_row_order() -> None:
    index = FaissIndex(DIM)
    index.add(np.array([9, 2, 5]), np.repeat(_vectors(1), 3, axis=0))
    assert _search(index, _vectors(1)[0], 3)[0] == [2, 5, 9]


def test_empty() -> None:
    assert _search(FaissIndex(DIM), _vectors(1)[0], 3)[0] == []


def test_searching_while_it_changes() -> None:
    """Rows 0–99 stay; others come and go. Every search finds those that stay, with their own similarity."""
    vectors = _vectors(400)
    index = FaissIndex(DIM)
    index.add(np.arange(100), vectors[:100])
    stop = threading.Event()
    problems: list[str] = []

    def change(first: int) -> None:
        rows = np.arange(first, first + 150)
        while not stop.is_set():
            index.add(rows, vectors[rows])
            index.remove(rows)

    def ask(seed: int) -> None:
        queries = _vectors(200, seed)
        while not stop.is_set():
            query = queries[np.random.randint(200)]
            rows, similarities = _search(index, query, 1000)
            if not set(range(100)) <= set(rows):
                problems.append(f"lost {set(range(100)) - set(rows)}")
            if len(set(rows)) != len(rows):
                problems.append("a row twice")
            if not np.allclose(similarities, vectors[rows] @ query, atol=1e-4):
                problems.append("a vector under another's row")

    threads = [threading.Thread(target=change, args=(first,)) for first in (100, 250)]
    threads += [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems


def test_readers_share_and_a_waiting_writer_goes_first() -> None:
    lock, order = ReadWriteLock(), []
    inside, leave = threading.Barrier(3), threading.Event()

    def reader() -> None:
        with lock.read():
            inside.wait(60)  # passes only when both readers are in
            leave.wait(60)
            order.append("reader")

    def writer() -> None:
        with lock.write():
            order.append("writer")

    def late_reader() -> None:
        with lock.read():
            order.append("late")

    readers = [threading.Thread(target=reader) for _ in range(2)]
    for thread in readers:
        thread.start()
    inside.wait(60)
    waiting = threading.Thread(target=writer)
    waiting.start()
    wait_until(lambda: lock._writers_waiting == 1, 5)
    late = threading.Thread(target=late_reader)
    late.start()
    time.sleep(0.05)
    assert order == []
    leave.set()
    for thread in [*readers, waiting, late]:
        thread.join(5)
    assert order == ["reader", "reader", "writer", "late"]
