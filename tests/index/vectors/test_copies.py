"""Copies of vectors in a mapped file: what is read is what was added, whatever happens at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from index.vectors import copies
from index.vectors.copies import VectorCopies

DIM = 5


def vectors_of(rows: np.ndarray) -> np.ndarray:
    """A vector for each row number, (N, D)."""
    return (np.asarray(rows)[:, None] + np.arange(DIM) / 8).astype(np.float32)


def test_any_rows_in_any_order(tmp_path: Path) -> None:
    held = VectorCopies(DIM, tmp_path / "index")
    assert not held.has(np.array([0, 7])).any() and held.read(np.array([3]))[1].shape == (0, DIM)
    held.add(np.array([9, 2, 40]), vectors_of(np.array([9, 2, 40])))
    held.add(np.array([2, 5]), np.zeros((2, DIM)))  # row 2 is there already and does not change
    rows, vectors = held.read(np.array([40, 1, 2, 5, 1000, 9]))
    assert rows.tolist() == [40, 2, 5, 9] and len(held) == 4
    np.testing.assert_array_equal(vectors, [*vectors_of(np.array([40, 2])), np.zeros(DIM), *vectors_of(np.array([9]))])
    assert not list((tmp_path / "index").iterdir()), "the file has no name, so that a crash leaves nothing"
    held.close()
    held.add(np.array([1]), vectors_of(np.array([1])))
    assert len(held) == 0 and not held.has(np.array([1, 2])).any()


def test_reading_while_the_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_FIRST_SIZE", 4)
    held, stop, wrong = VectorCopies(DIM, tmp_path), threading.Event(), []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            try:
                rows, vectors = held.read(rng.integers(0, 6000, 50))
                if not np.array_equal(vectors, vectors_of(rows)):
                    wrong.append("other vectors")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    rows = np.random.default_rng(9).permutation(5000)
    for first in range(0, 5000, 10):
        held.add(rows[first : first + 10], vectors_of(rows[first : first + 10]))
    found, vectors = held.read(np.arange(6000))
    held.close()  # while others read
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and found.tolist() == list(range(5000))
    np.testing.assert_array_equal(vectors, vectors_of(found))


def test_a_full_disk_leaves_no_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        """A file on a disk with room for 50 bytes."""

        def __init__(self) -> None:
            self.left, self.closed = 50, False

        def seek(self, to: int) -> None:
            pass

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(28, os.strerror(28))
            written, self.left = min(self.left, len(data)), self.left - min(self.left, len(data))
            return written

        def close(self) -> None:
            self.closed = True

    held, file = VectorCopies(DIM, tmp_path), Full()
    held._file = file  # type: ignore[assignment]
    held.add(np.arange(4), vectors_of(np.arange(4)))
    assert file.closed and "No space left" in caplog.text
    held.add(np.arange(4), vectors_of(np.arange(4)))
    assert len(held) == 0 and not held.has(np.arange(4)).any()
