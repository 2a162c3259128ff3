"""The stretches of a clip in few vectors: what finds a short sound in a long recording.

A segment is a stretch whose frames are alike, pooled into one unit vector. It ends where the sound changes, so a knock
of half a second has its own and a minute of rain a few; stretches of one fixed length find less with more of them
(docs/log.md has the measurements). Knows frame vectors and row numbers; no clip, no database, no disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from index.quantization import FrameCodes, encode_frames
from index.vectors.flat import ReadWriteLock

# Libraries hold what these made, so changing one takes a migration that makes all segments again.
LONGEST = 10.0  # seconds of one segment
ALIKE = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # cosines of a frame with the segment it continues, tried in this order
SPARE = 4  # segments that a clip of any length may have, and
SECONDS_EACH = 2.0  # one more for each of these

_DECODED = 4096  # frames at a time
_PER_CLIP = 4  # segments looked up for each clip that is wanted, at first
_GONE = -1
_MOST_GONE = 0.2  # share of the segments


def cut_segments(frames: FrameCodes, frame_hop: float) -> FrameCodes:
    """The segments of a clip's frames (T, D): (S, D) of unit length, in order of time, 1 ≤ S ≤ SPARE + seconds / 2.

    A frame continues a segment while its cosine with the segment's mean is at least the first of ALIKE and LONGEST is
    not reached. Where that makes too many, the next of ALIKE is taken; after the last, segments of one length.
    """
    longest = max(1, round(LONGEST / frame_hop))
    allowed = max(SPARE + len(frames) * frame_hop / SECONDS_EACH, len(frames) / longest + 1)
    for alike in ALIKE:
        sums = _grow(frames, alike, longest, allowed)
        if sums is not None:
            break
    else:
        sums = _grow(frames, -np.inf, math.ceil(len(frames) / int(allowed)), allowed)
        assert sums is not None
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return encode_frames(sums / np.where(lengths > 0, lengths, 1))


def _grow(frames: FrameCodes, alike: float, longest: int, allowed: float) -> np.ndarray | None:
    """Sums of the frames of each segment (S, D) float32, or None when there are more than allowed."""
    sums: list[np.ndarray] = []
    total, count = np.zeros(frames.dim, np.float32), 0
    for start in range(0, len(frames), _DECODED):
        for frame in frames.decode(start, start + _DECODED):
            if count and (count == longest or frame @ total < alike * np.sqrt(total @ total)):
                sums.append(total)
                if len(sums) + 1 > allowed:
                    return None
                total, count = frame.copy(), 1
            else:
                total, count = total + frame, count + 1
    return np.stack([*sums, total])


class SegmentIndex:
    """Segments in memory, as 16-bit numbers, and the clips' rows that they belong to: a cache that the catalog fills.

    `search` runs inside `reading()`, which holds changes back; `add` and `remove`, by one caller at a time, wait for
    those who read. Every segment is compared with a query. What is removed is marked, and cleared away when it is a
    fifth of all, since FAISS moves all vectors to remove one.
    """

    def __init__(self, dim: int) -> None:
        import faiss  # here: importing it takes a while, and most commands never search

        self._faiss: Any = faiss
        self._index: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._owners = np.empty(1024, dtype=np.int64)  # row by segment number, _GONE where it was removed
        self._gone = 0
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        """How many segments can be found."""
        with self._lock.read():
            return int(self._index.ntotal) - self._gone

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While inside, nothing is added or removed."""
        with self._lock.read():
            yield

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Segments (N, D) float32 of the clips in rows (N,) int64, one row for each segment."""
        with self._lock.write():
            first = int(self._index.ntotal)
            stop = first + len(rows)
            if stop > len(self._owners):
                owners = np.empty(max(stop, 2 * len(self._owners)), dtype=np.int64)
                owners[:first] = self._owners[:first]
                self._owners = owners
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self._owners[first:stop] = rows

    def remove(self, row: int) -> int:
        """Forgets the segments of the clip in this row; how many there were."""
        with self._lock.write():
            total = int(self._index.ntotal)
            numbers = np.flatnonzero(self._owners[:total] == row)
            self._owners[numbers] = _GONE
            self._gone += len(numbers)
            if self._gone > total * _MOST_GONE:
                kept = self._owners[:total] != _GONE
                self._index.remove_ids(self._faiss.IDSelectorBatch(np.flatnonzero(~kept)))  # the others move up
                self._owners = self._owners[:total][kept]
                self._gone = 0
            return len(numbers)

    def search(self, vector: np.ndarray, clips: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best `clips` clips by their best segment for `vector` (D,): rows (≤ clips,) and similarities, best first.

        With `only` (M,) int64, among those rows. Call inside `reading()`.
        """
        total = int(self._index.ntotal)
        owners = self._owners[:total]
        parameters = None
        if only is not None:
            bitmap = np.packbits(_belonging(owners, only), bitorder="little")  # must outlive the search
            parameters = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bitmap))
        self._faiss.omp_set_num_threads(1)  # one thread a query, as in FaissIndex
        query = np.ascontiguousarray(vector, dtype=np.float32)[None]
        wanted = _PER_CLIP * clips
        while total:
            found, numbers = self._index.search(query, min(wanted, total), params=parameters)
            there = numbers[0] >= 0  # FAISS fills up with -1
            numbers, found = numbers[0][there], found[0][there]
            live = owners[numbers] != _GONE
            rows, similarities = owners[numbers[live]], found[live]
            firsts = np.sort(np.unique(rows, return_index=True)[1])
            if len(firsts) >= clips or len(numbers) < wanted:
                firsts = firsts[:clips]
                return rows[firsts], similarities[firsts]
            wanted *= 4  # a long recording may have taken many places
        return np.empty(0, np.int64), np.empty(0, np.float32)


def _belonging(owners: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether each owner (N,) is one of the rows (M,): bool (N,)."""
    wanted = np.zeros(max(int(owners.max(initial=0)), int(rows.max(initial=0))) + 2, dtype=bool)
    wanted[rows] = True
    return np.asarray(wanted[owners])  # _GONE, -1, is the last place, which no row has
