"""Batches split across cores: results in order, exceptions propagate, thread counts are restored."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from model.cpu import threads
from model.cpu.threads import as_here, limited, one_blas_thread, share_out
from model.finelap import FineLAP


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """Sets PyTorch to three threads, whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "at_most", "sizes"), [(2, 4, [2]), (3, 4, [1, 1, 1]), (7, 4, [2, 2, 3]), (13, 4, [2, 2, 2, 2, 2, 3])]
)
def test_parts_are_in_order_and_balanced(count: int, at_most: int, sizes: list[int]) -> None:
    parts = share_out(list, range(count), at_most)
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == list(range(count))


def test_parts_run_concurrently_with_one_pytorch_thread_each() -> None:
    together = threading.Barrier(3, timeout=30)

    def part(items: Sequence[int]) -> tuple[int, int]:
        together.wait()  # waits until three parts run
        return threading.get_ident(), torch.get_num_threads()

    found = share_out(part, range(3), 4)
    assert len({thread for thread, _ in found}) == 3
    assert {threads for _, threads in found} == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_that_cannot_be_split_is_one_part(threads: int) -> None:
    torch.set_num_threads(threads)
    seen: list[int] = []
    assert share_out(lambda items: seen.append(torch.get_num_threads()) or list(items), range(2), 1) == [[0, 1]]
    assert seen == [threads]


def test_concurrent_batches_divide_the_threads() -> None:
    torch.set_num_threads(4)
    begun, go_on = threading.Event(), threading.Event()

    def hold(items: Sequence[int]) -> None:
        begun.set()
        assert go_on.wait(30)

    first = threading.Thread(target=share_out, args=(hold, range(1), 4))
    first.start()
    try:
        assert begun.wait(30)
        assert share_out(lambda items: [torch.get_num_threads()] * len(items), [0], 4) == [[2]]
        assert share_out(list, range(4), 4) == [[0, 1], [2, 3]]
    finally:
        go_on.set()
        first.join()
    assert share_out(list, range(4), 4) == [[0], [1], [2], [3]]
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("bad", [0, 5, 11])
def test_an_exception_is_raised_after_all_parts_have_stopped(bad: int) -> None:
    running = threading.Semaphore(0)
    begun: list[int] = []

    def part(items: Sequence[int]) -> None:
        begun.append(items[0])
        if bad in items:
            raise ValueError(f"item {bad}")
        running.release()

    with pytest.raises(ValueError, match=f"item {bad}"):
        share_out(part, range(12), 1)
    ended = sum(running.acquire(blocking=False) for _ in range(12))
    assert ended == len(begun) - 1
    assert torch.get_num_threads() == 3
    assert share_out(list, range(3), 1) == [[0], [1], [2]]


def test_limited_restores_the_number_of_threads() -> None:
    with pytest.raises(KeyError), limited(1):
        assert torch.get_num_threads() == 1
        with limited(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3


def test_threads_started_during_a_limit_do_not_inherit_it() -> None:
    with ThreadPoolExecutor(2, initializer=as_here()) as pool, limited(1):
        assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 1


def test_a_forked_process_has_its_own_workers() -> None:
    share_out(list, range(3), 1)
    child = os.fork()
    if child == 0:  # without its own workers it would wait forever
        os._exit(0 if threads._workers is None and share_out(list, range(4), 1) == [[0], [1], [2], [3]] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_embeddings_equal_those_of_a_whole_batch(small_checkpoint: Path) -> None:
    model = FineLAP.from_pretrained(small_checkpoint)
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (160_000, 9_000, 30_000, 160_000, 31_000) * 2]
    texts = [f"a dog barks {n} times" for n in range(40)]
    shared, shared_texts = model.encode_windows(sounds), model.encode_text(texts)
    assert not any(x.requires_grad for pair in shared for x in pair) and not shared_texts.requires_grad
    torch.set_num_threads(1)
    for (clip, frames), (whole_clip, whole_frames) in zip(shared, model.encode_windows(sounds), strict=True):
        torch.testing.assert_close(clip, whole_clip, rtol=0, atol=2e-6)
        torch.testing.assert_close(frames, whole_frames, rtol=0, atol=2e-6)
    torch.testing.assert_close(shared_texts, model.encode_text(texts), rtol=0, atol=2e-6)
    assert model.encode_text([]).shape == (0, model.dim)
    assert model.encode_tokens(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, model.dim)


def test_blas_has_one_thread_for_a_while() -> None:
    def counts() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    def inside(_: int) -> list[int]:
        with one_blas_thread():
            return counts()

    before = counts()
    assert before, "NumPy has a BLAS"
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(inside, range(12)):
            assert set(found) == {1}
    assert counts() == before
