"""A set of rows as a bitmap: one byte for each row number up to the highest, and eight to a byte for FAISS.

Row numbers grow and are never given twice, so the bitmap stays dense. Knows no vector and no lock.
"""

from __future__ import annotations

import numpy as np


class RowSet:
    """Rows (non-negative int64); everything takes and gives them as arrays."""

    def __init__(self, rows: np.ndarray | None = None) -> None:
        self._mask = np.zeros(0, dtype=bool)
        self._count = 0
        self._packed: np.ndarray | None = None
        if rows is not None:
            self.add(rows)

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Puts rows (N,) in; those that are there stay."""
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
        """Takes rows (N,) out; how many of them were in."""
        gone = _distinct(rows[self.has(rows)])
        self._mask[gone] = False
        self._count -= len(gone)
        self._packed = None
        return len(gone)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """For rows (N,): which are in, (N,) bool."""
        inside = rows < len(self._mask)
        found = np.zeros(len(rows), dtype=bool)
        found[inside] = self._mask[rows[inside]]
        return found

    def minus(self, other: RowSet) -> np.ndarray:
        """Rows (N,) int64 that are here and not in `other`, ascending."""
        rows = self.rows()
        return rows[~other.has(rows)]

    def among(self, rows: np.ndarray) -> RowSet:
        """Those of the rows (N,) that are here, as a set of their own."""
        found = RowSet()
        found._mask = np.zeros(len(self._mask), dtype=bool)
        found._mask[rows[self.has(rows)]] = True
        found._count = int(np.count_nonzero(found._mask))
        return found

    def rows(self) -> np.ndarray:
        """All of them (N,) int64, ascending."""
        return np.flatnonzero(self._mask)

    def packed(self) -> np.ndarray:
        """The bitmap as FAISS reads it: uint8, lowest row in the lowest bit. Not to be changed."""
        packed = self._packed
        if packed is None:
            packed = self._packed = np.packbits(self._mask, bitorder="little")
        return packed


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Rows (N,) without repetitions, ascending. np.unique of many integers takes ten times as long as sorting them."""
    rows = np.sort(rows)
    return rows[np.diff(rows, prepend=-1) != 0]
