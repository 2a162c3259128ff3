"""Batches shared out to threads with one core each, for inference on a CPU.

A layer that several threads compute ends when the slowest of them does, and a network has a hundred layers. Where
others use the cores too, decoders and callers for example, the threads then mostly wait for each other. Parts of a
batch have to wait for each other only once, at the end of it; and batches that are computed side by side, each on cores
of its own, never. Knows no network.
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

T = TypeVar("T")
R = TypeVar("R")

_helpers: ThreadPoolExecutor | None = None
_count = threading.Lock()
_computing = 0  # batches under way


def share_out(function: Callable[[Sequence[T]], R], items: Sequence[T], at_most: int) -> list[R]:
    """The results of `function` for consecutive parts of `items`, in order; what it raises is raised.

    With fewer items than threads there is one part, which all of the threads compute together. Else the parts have
    `at_most` so many items, are as many as give each thread equally much, and are computed by one thread each; whoever
    is done with one takes the next, so a thread that is held up holds up no more than the part it has begun.

    The threads are PyTorch's, less those of batches that were under way before: n batches at once get about the n-th
    part each. `function` runs in several threads at the same time.
    """
    with _computed() as others:
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
        helping = [_pool().submit(work) for _ in range(min(threads, len(parts)) - 1)]
        try:
            work()
        finally:
            waited = [helper for helper in helping if not helper.cancel()]
            for helper in waited:
                helper.exception()  # until it is done
        for helper in waited:
            helper.result()
    return [done[number] for number in range(len(parts))]


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """PyTorch computes with so many threads for the one that calls, inside; one is best for a short computation."""
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
def _computed() -> Iterator[int]:
    """A batch is under way, inside; gives the number of others."""
    global _computing
    with _count:
        others = _computing
        _computing += 1
    try:
        yield others
    finally:
        with _count:
            _computing -= 1


def as_here() -> Callable[[], None]:
    """To be called by new threads: gives each as many threads of PyTorch as the one has that calls this.

    Otherwise a thread that PyTorch meets while another one is `limited` has that limit for ever.
    """
    return functools.partial(torch.set_num_threads, torch.get_num_threads())


def _pool() -> ThreadPoolExecutor:
    global _helpers
    if _helpers is None:
        _helpers = ThreadPoolExecutor(
            os.cpu_count(), thread_name_prefix="core", initializer=torch.set_num_threads, initargs=(1,)
        )
    return _helpers


def _forget() -> None:
    global _helpers, _count, _computing
    _helpers = None  # its threads stayed behind in the parent
    _count, _computing = threading.Lock(), 0


os.register_at_fork(after_in_child=_forget)
