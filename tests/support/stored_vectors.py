"""Vectors in a dictionary, to test the vector index without a database."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np


class FakeStoredVectors:
    """Implements index.vectors.index.StoredVectors; `commit` and `delete` act as the library's transactions."""

    def __init__(self, dim: int, page: int = 64) -> None:
        self.dim, self.page = dim, page
        self.by_row: dict[int, np.ndarray] = {}
        self.reads = 0
        self._lock = threading.Lock()

    def commit(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        with self._lock:
            self.by_row |= dict(zip(rows.tolist(), vectors.astype(np.float32), strict=True))

    def delete(self, rows: np.ndarray) -> None:
        with self._lock:
            for row in rows.tolist():
                del self.by_row[row]

    def count(self) -> int:
        return len(self.by_row)

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            rows = np.array(sorted(self.by_row), dtype=np.int64)
            return rows, np.array([hash(self.by_row[row].tobytes()) % 2**63 + 1 for row in rows.tolist()], np.uint64)

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            found = [row for row in rows.tolist() if row in self.by_row]
            self.reads += len(found)
            return np.array(found, np.int64), self._stack(found)

    def pages(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = -1
        while True:
            with self._lock:
                rows = sorted(row for row in self.by_row if row > last)[: self.page]
                vectors = self._stack(rows)
            if not rows:
                return
            yield np.array(rows, np.int64), vectors
            last = rows[-1]

    def _stack(self, rows: list[int]) -> np.ndarray:
        return np.array([self.by_row[row] for row in rows], np.float32).reshape(len(rows), self.dim)
