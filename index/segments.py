"""The stretches of a clip in few vectors: what finds a short sound in a long recording.

A segment is a stretch whose frames are alike, pooled into one unit vector. It ends where the sound changes, so a knock
of half a second has its own and a minute of rain a few; stretches of one fixed length find less with more of them
(docs/log.md has the measurements). Knows frame vectors and row numbers; no clip, no database, no disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from index.faiss_index import FaissIndex
from index.frames import FrameCodes, encode_frames

# Libraries hold what these made, so changing one takes a migration that makes all segments again.
LONGEST = 10.0  # seconds of one segment
ALIKE = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # cosines of a frame with the segment it continues, tried in this order
SPARE = 4  # segments that a clip of any length may have, and
SECONDS_EACH = 2.0  # one more for each of these

_DECODED = 4096  # frames at a time
_PER_CLIP = 4  # segments looked up for each clip that is wanted, at first


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
    """Segments in memory, and the clips' rows that they belong to. A cache, as FaissIndex is, with the same rule:
    `search` runs inside `reading()`; `add` and `remove`, by one caller at a time, wait for those who read.
    """

    def __init__(self, dim: int) -> None:
        self._index = FaissIndex(dim)
        self._owners = np.empty(1024, dtype=np.int64)  # row by segment number, -1 where it is gone
        self._numbers = 0  # given so far

    def __len__(self) -> int:
        """How many segments there are."""
        return len(self._index)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While inside, nothing is added or removed."""
        with self._index.reading():
            yield

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Segments (N, D) float32 of the clips in rows (N,) int64, one row for each segment."""
        first, stop = self._numbers, self._numbers + len(rows)
        if stop > len(self._owners):
            owners = np.empty(max(stop, 2 * len(self._owners)), dtype=np.int64)
            owners[:first] = self._owners[:first]
            self._owners = owners  # readers keep the one they have, which knows all that they can find
        self._owners[first:stop] = rows
        self._numbers = stop
        self._index.add(np.arange(first, stop), vectors)

    def remove(self, row: int) -> int:
        """Forgets the segments of the clip in this row; how many there were."""
        numbers = np.flatnonzero(self._owners[: self._numbers] == row)
        removed = self._index.remove(numbers)
        self._owners[numbers] = -1
        return removed

    def search(self, vector: np.ndarray, clips: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best `clips` clips by their best segment for `vector` (D,): rows (≤ clips,) and similarities, best first.

        With `only` (M,) int64, among those rows. Call inside `reading()`.
        """
        owners = self._owners
        numbers = None if only is None else _numbers_of(owners[: self._numbers], only)
        wanted = _PER_CLIP * clips
        while True:
            found, similarities = self._index.search(vector, wanted, numbers)
            rows, firsts = np.unique(owners[found], return_index=True)
            if len(rows) >= clips or len(found) < wanted:
                break
            wanted *= 4  # a long recording may have taken many places
        firsts = np.sort(firsts)[:clips]
        return owners[found[firsts]], similarities[firsts]


def _numbers_of(owners: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Numbers of the segments whose owner is one of the rows (M,)."""
    wanted = np.zeros(max(int(owners.max(initial=0)), int(rows.max(initial=0))) + 2, dtype=bool)
    wanted[rows] = True
    return np.flatnonzero(wanted[owners])  # -1, a segment that is gone, is the last place, which no row has
