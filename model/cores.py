"""Batches shared out to threads with one core each, for inference on a CPU.

A layer that several threads compute ends when the slowest of them does, and a network has a hundred layers. Where
others use the cores too, decoders and callers for example, the threads then mostly wait for each other. Parts of a
batch have to wait for each other only once, at the end of it. Knows no network.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_helpers: ThreadPoolExecutor | None = None


def share_out(function: Callable[[Sequence[T]], R], items: Sequence[T], at_most: int) -> list[R]:
    """The results of `function` for consecutive parts of `items`, in order; what it raises is raised.

    With fewer items than PyTorch has threads here there is one part, which all of the threads compute together. Else
    the parts have `at_most` so many items, are as many as give each thread equally much, and are computed by one thread
    each; whoever is done with one takes the next, so a thread that is held up holds up no more than the part it has
    begun. `function` runs in several threads at the same time.
    """
    threads = torch.get_num_threads()
    if threads < 2 or len(items) < threads:
        return [function(items)]
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

    with one_thread():
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
def one_thread() -> Iterator[None]:
    """PyTorch computes with this thread alone, inside; worth it where a computation is short."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pool() -> ThreadPoolExecutor:
    global _helpers
    if _helpers is None:
        _helpers = ThreadPoolExecutor(
            os.cpu_count(), thread_name_prefix="core", initializer=torch.set_num_threads, initargs=(1,)
        )
    return _helpers


def _forget() -> None:
    global _helpers
    _helpers = None  # its threads stayed behind in the parent


os.register_at_fork(after_in_child=_forget)
