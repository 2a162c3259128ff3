"""Vectors as the database has them, for the search index: by row, page by page, and whose they are.

Each question is a view of its own, so that reading a million vectors does not hold an old view for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from index.sqlite import store
from index.sqlite.store import Store

PAGE = 4096  # vectors


class Stored(Protocol):
    """Committed vectors (D,) by row. A row's vector never changes, and no row is given twice."""

    def count(self) -> int:
        """How many there are."""

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows (N,) int64, ascending, and for each a number (N,) uint64 that belongs to its clip and no other."""

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the rows (N,) that are there: rows (M,) int64, in any order, and vectors (M, D) float32."""

    def pages(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All, in row order: rows (N,) int64 and vectors (N, D) float32 at a time."""


class StoredVectors:
    """`Stored` over the library's database."""

    def __init__(self, database: Store, dim: int) -> None:
        self._database = database
        self._dim = dim

    def count(self) -> int:
        with self._database.read() as view:
            return store.count(view)

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        with self._database.read() as view:
            return store.row_keys(view)

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._database.read() as view:
            return store.vectors_of(view, rows, self._dim)

    def pages(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = -1
        while True:
            with self._database.read() as view:
                rows, vectors = store.vectors_after(view, last, PAGE, self._dim)
            if not len(rows):
                return
            yield rows, vectors
            last = int(rows[-1])
