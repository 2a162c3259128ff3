"""Splits a batch across threads of one core each, for inference on a CPU.

When several threads compute one layer, each layer takes as long as its slowest thread, and a network has a hundred
layers. While decoders and callers use the cores too, such threads mostly wait for each other. Parts of a batch wait
for each other only once, at the end, and batches that run concurrently on their own cores never do. Splitting takes
0.55 to 0.75 of the processor time (`python -m benchmarks.model.optimizations --only threads`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")

_workers: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_running = 0  # batches
_alone = threading.Lock()  # of the caller of one_blas_thread


def share_out(function: Callable[[Sequence[T]], R], items: Sequence[T], at_most: int) -> list[R]:
    """Calls `function` on consecutive parts of `items` and returns the results in order; exceptions propagate.

    With fewer items than threads there is one part, computed with all threads. Otherwise each part has `at_most` items
    at most and is computed by one thread. There are as many parts as balance the threads, and an idle thread takes the
    next one, so a delayed thread delays only the part it has begun.

    The number of threads is PyTorch's, divided by the number of batches that are running: n concurrent batches get
    about 1/n each. `function` is called from several threads concurrently.
    """
    with _counted() as others:
        threads = max(1, torch.get_num_threads() // (others + 1))
        if threads < 2 or len(items) < threads:
            with limited(threads):
                return [function(items)]
        return _in_parts(function, items, at_most, threads)


def _in_parts(function: Callable[[Sequence[T]], R], items: Sequence[T], at_most: int, threads: int) -> list[R]:
    rounds = -(-len(items) // (threads * at_most))
    count = min(len(items), threads * rounds)
    ends = [len(items) * number // count for number in range(count + 1)]
    parts = [items[first:end] for first, end in itertools.pairwise(ends)]
    todo = deque(enumerate(parts))
    done: dict[int, R] = {}

    def work() -> None:
        while True:
            try:
                number, part = todo.popleft()
            except IndexError:
                return
            try:
                done[number] = function(part)
            except BaseException:
                todo.clear()
                raise

    with limited(1):
        futures = [_pool().submit(work) for _ in range(min(threads, len(parts)) - 1)]
        try:
            work()
        finally:
            started = [future for future in futures if not future.cancel()]
            for future in started:
                future.exception()  # waits until it is done
        for future in started:
            future.result()
    return [done[number] for number in range(len(parts))]


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """Limits PyTorch to `threads` threads in the calling thread; one is fastest for a short computation."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits NumPy's BLAS to one thread, in the whole process; one caller at a time is inside.

    Its threads wait for each other by spinning. For products of a millisecond, on cores that other work keeps busy,
    that takes many times as long as the products. (Only the thread that sets the limit can lift it.)
    """
    with _alone, _blas().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def _counted() -> Iterator[int]:
    """Counts a running batch; yields the number of the others."""
    global _running
    with _lock:
        others = _running
        _running += 1
    try:
        yield others
    finally:
        with _lock:
            _running -= 1


def as_here() -> Callable[[], None]:
    """Returns an initializer for new threads that sets the caller's number of PyTorch threads.

    Without it a thread that first uses PyTorch while another is `limited` inherits that limit permanently.
    """
    return functools.partial(torch.set_num_threads, torch.get_num_threads())


def _pool() -> ThreadPoolExecutor:
    global _workers
    if _workers is None:
        _workers = ThreadPoolExecutor(
            os.cpu_count(), thread_name_prefix="core", initializer=torch.set_num_threads, initargs=(1,)
        )
    return _workers


def _reset() -> None:
    global _workers, _lock, _running
    _workers = None  # its threads exist only in the parent
    _lock, _running = threading.Lock(), 0


os.register_at_fork(after_in_child=_reset)
