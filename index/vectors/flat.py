"""Exact vector search in memory: a FAISS flat inner-product index that can change while it is searched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class ReadWriteLock:
    """Many readers or one writer; a waiting writer precedes readers that arrive later. Not re-entrant."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._writing and not self._writers_waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers:
                    self._condition.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        with self._condition:
            self._writers_waiting += 1
            try:
                self._condition.wait_for(lambda: not self._writing and not self._readers)
            finally:
                self._writers_waiting -= 1
                self._condition.notify_all()
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class FaissIndex:
    """Vectors (D,) by row number with search by inner product.

    Call `search` inside `reading()`, so that what the caller looks up together with the search (its records) is
    consistent with it. `add` and `remove` take the lock themselves and wait for such readers.
    """

    def __init__(self, dim: int) -> None:
        import faiss  # slow to import, and most commands do not search

        self.dim = dim
        self._faiss: Any = faiss
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        with self._lock.read():
            return int(self._index.ntotal)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Blocks additions and removals for the block."""
        with self._lock.read():
            yield

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Adds rows (N,) int64 that are not in the index yet, with vectors (N, D) float32."""
        with self._lock.write():
            self._index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), np.asarray(rows, dtype=np.int64))

    def remove(self, rows: np.ndarray) -> int:
        """Removes rows (N,) int64 and returns how many of them were in the index."""
        with self._lock.write():
            return int(self._index.remove_ids(np.asarray(rows, dtype=np.int64)))

    def search(self, vector: np.ndarray, k: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best k rows for `vector` (D,): rows (≤ k,) int64 and similarities (≤ k,) float32, best first.

        `only` (M,) int64 restricts the search to those rows before ranking. Equal similarities are in row order.
        Call inside `reading()`.
        """
        k = min(k, int(self._index.ntotal))
        if k == 0 or (only is not None and not len(only)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # One thread per query: OpenMP threads that spin for each other cost more than they save. The setting belongs
        # to the calling thread.
        self._faiss.omp_set_num_threads(1)
        parameters = None
        if only is not None:
            bits = np.zeros(int(only.max()) + 1, dtype=bool)
            bits[only] = True
            bitmap = np.packbits(bits, bitorder="little")  # must outlive the search
            parameters = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bitmap))
        similarities, rows = self._index.search(
            np.ascontiguousarray(vector, dtype=np.float32)[None, :], k, params=parameters
        )
        found = rows[0] >= 0
        rows, similarities = rows[0][found], similarities[0][found]
        order = np.lexsort((rows, -similarities))
        return rows[order], similarities[order]
