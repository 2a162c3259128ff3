"""A set of row numbers as a bitmap: one byte a row, or one bit a row for FAISS.

Row numbers grow and are never reused, so the bitmap stays dense. Not thread-safe.
"""

from __future__ import annotations

import numpy as np


class RowSet:
    """A set of non-negative int64 row numbers. All methods take and return arrays."""

    def __init__(self, rows: np.ndarray | None = None) -> None:
        self._mask = np.zeros(0, dtype=bool)
        self._count = 0
        self._packed: np.ndarray | None = None
        if rows is not None:
            self.add(rows)

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Adds rows (N,); rows that are in the set already are ignored."""
        if not len(rows):
            return
        highest = int(rows.max())
        if highest >= len(self._mask):
            longer = np.zeros(max(highest + 1, len(self._mask) * 5 // 4), dtype=bool)
            longer[: len(self._mask)] = self._mask
            self._mask = longer
        new = _distinct(rows[~self._mask[rows]])
        self._mask[new] = True
        self._count += len(new)
        self._packed = None

    def remove(self, rows: np.ndarray) -> int:
        """Removes rows (N,) and returns how many of them were in the set."""
        gone = _distinct(rows[self.has(rows)])
        self._mask[gone] = False
        self._count -= len(gone)
        self._packed = None
        return len(gone)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Returns which of the rows (N,) are in the set: bool (N,)."""
        inside = rows < len(self._mask)
        found = np.zeros(len(rows), dtype=bool)
        found[inside] = self._mask[rows[inside]]
        return found

    def minus(self, other: RowSet) -> np.ndarray:
        """Returns the rows (N,) int64 that are not in `other`, ascending."""
        rows = self.rows()
        return rows[~other.has(rows)]

    def among(self, rows: np.ndarray) -> RowSet:
        """Returns the intersection with rows (N,) as a new set."""
        found = RowSet()
        found._mask = np.zeros(len(self._mask), dtype=bool)
        found._mask[rows[self.has(rows)]] = True
        found._count = int(np.count_nonzero(found._mask))
        return found

    def rows(self) -> np.ndarray:
        """Returns all rows (N,) int64, ascending."""
        return np.flatnonzero(self._mask)

    def packed(self) -> np.ndarray:
        """Returns the bitmap for FAISS: uint8, lowest row in the lowest bit. Do not modify it."""
        packed = self._packed
        if packed is None:
            packed = self._packed = np.packbits(self._mask, bitorder="little")
        return packed


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Returns the distinct rows, ascending. For many integers np.unique takes ten times as long as np.sort."""
    rows = np.sort(rows)
    return rows[np.diff(rows, prepend=-1) != 0]
