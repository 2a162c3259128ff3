"""Copies of the database's vectors in a file that is mapped into memory, where reading a thousand takes a millisecond.

The file is temporary: it has no name and is gone when the process ends, so it cannot contradict the database. The
operating system keeps it in memory as far as there is room, without counting it as memory of the process.
"""

from __future__ import annotations

import logging
import mmap
import tempfile
import threading
from pathlib import Path
from typing import IO

import numpy as np

_log = logging.getLogger(__name__)

_FIRST_SIZE = 65_536  # vectors that the file has room for at first; room that isn't used takes no space on the disk
_ABSENT = -1


class VectorCopies:
    """Vectors (D,) float32 by row. Any number of threads may read while others add.

    A full or failing disk is no error: there are no copies then, and the caller reads the vectors elsewhere.
    """

    def __init__(self, dim: int, folder: Path) -> None:
        """folder: where the file is created, with the first vectors."""
        self._dim = dim
        self._folder = folder
        self._adding = threading.Lock()
        self._file: IO[bytes] | None = None
        self._closed = False
        self._count = 0  # vectors in the file
        # Places in the file by row, or _ABSENT, and the vectors of the file. Readers take both at once: the vectors
        # are as many as the places say, now and after later additions to the same places.
        self._view = (np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def __len__(self) -> int:
        return self._count

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Returns which of the rows (N,) have a copy: bool (N,)."""
        return _find(self._view[0], rows) != _ABSENT

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns those of the rows (N,) that have a copy, (M,), and their vectors (M, D), in the same order."""
        all_places, vectors = self._view
        places = _find(all_places, rows)
        there = places != _ABSENT
        return rows[there], vectors.take(places[there], axis=0)  # which lets other threads run while it waits for I/O

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Copies vectors (N, D) float32 of rows (N,) int64, each row once; rows that have a copy keep it."""
        with self._adding:
            new = ~self.has(rows)
            rows = rows[new]
            if self._closed or not len(rows):
                return
            try:
                mapped = self._append(np.ascontiguousarray(vectors[new], dtype="<f4"))
            except OSError as error:
                _log.warning("could not copy vectors, so searches read them from the database: %s", error)
                self._drop()
                return
            places = self._view[0]
            highest = int(rows.max())
            if highest >= len(places) or mapped is not self._view[1]:
                longer = np.full(max(highest + 1, len(places) * 5 // 4), _ABSENT, np.int64)
                longer[: len(places)] = places
                places = longer
            self._view = (places, mapped)
            places[rows] = np.arange(self._count, self._count + len(rows))
            self._count += len(rows)

    def close(self) -> None:
        """Removes the copies and takes no more. Idempotent."""
        with self._adding:
            self._drop()

    def _append(self, vectors: np.ndarray) -> np.ndarray:
        """Writes vectors to the file and returns all of it, (≥ count, D).

        A write to the file raises OSError on a full disk, where a write to mapped memory would end the process.
        """
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        self._file.seek(4 * self._dim * self._count)
        left = vectors.data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        mapped = self._view[1]
        if self._count + len(vectors) > len(mapped):
            size = max(_FIRST_SIZE, self._count + len(vectors), 2 * len(mapped))
            self._file.truncate(4 * self._dim * size)
            memory = mmap.mmap(self._file.fileno(), 4 * self._dim * size, access=mmap.ACCESS_READ)
            if hasattr(memory, "madvise"):  # Unix
                memory.madvise(mmap.MADV_RANDOM)  # no reading ahead
            mapped = np.frombuffer(memory, dtype="<f4").reshape(size, self._dim)
        return mapped

    def _drop(self) -> None:
        """Forgets the file; the system frees it when the last reader is done."""
        self._closed, self._count = True, 0
        self._view = (np.empty(0, np.int64), np.empty((0, self._dim), np.float32))
        if self._file is not None:
            self._file.close()
            self._file = None


def _find(places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the places of rows (N,)."""
    inside = rows < len(places)
    found = np.full(len(rows), _ABSENT, np.int64)
    found[inside] = places[rows[inside]]
    return found
