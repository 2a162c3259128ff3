"""The segments of all clips in memory, which find short sounds in long recordings; see model.segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from index.quantization import FrameCodes, encode_frames
from index.vectors.flat import ReadWriteLock
from model.segments import pool_segments, unit_rows

LONG_SECONDS = 5.0  # clips that last longer are long: as a whole they may say little of a short sound in them

_SEGMENTS_PER_CLIP = (4, 16)  # in the first search round: the mean of all clips, within these limits
_REMOVED = -1
_MAX_REMOVED = 0.2  # share of the segments


def cut_segments(frames: FrameCodes, frame_hop: float) -> FrameCodes:
    """Pools a clip's frames (T, D) into quantised segments (S, D), in time order; see `pool_segments`."""

    def read(start: int, stop: int) -> np.ndarray:
        return unit_rows(frames.decode(start, stop))

    return encode_frames(pool_segments(read, len(frames), frame_hop))


class SegmentIndex:
    """Segments in memory as float16, with the rows of their clips. Every search compares all segments.

    Call `search` inside `reading()`; `add` and `remove` (one caller at a time) wait for such readers. Removed segments
    are only marked until they are a fifth of all, because FAISS moves all vectors to remove one.
    """

    def __init__(self, dim: int) -> None:
        import faiss  # slow to import, and most commands do not search

        self._faiss: Any = faiss
        self._index: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._owners = np.empty(1024, dtype=np.int64)  # row by segment number, or _REMOVED
        self._removed = 0
        self._clips = 0
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        """Returns the number of segments."""
        with self._lock.read():
            return int(self._index.ntotal) - self._removed

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Blocks additions and removals for the block."""
        with self._lock.read():
            yield

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Adds all segments (N, D) float32 of the clips in rows (N,) int64, one row per segment."""
        with self._lock.write():
            first = int(self._index.ntotal)
            stop = first + len(rows)
            if stop > len(self._owners):
                owners = np.empty(max(stop, 2 * len(self._owners)), dtype=np.int64)
                owners[:first] = self._owners[:first]
                self._owners = owners
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self._owners[first:stop] = rows
            self._clips += len(np.unique(rows))

    def remove(self, row: int) -> int:
        """Removes the segments of the clip in this row and returns their number."""
        with self._lock.write():
            total = int(self._index.ntotal)
            numbers = np.flatnonzero(self._owners[:total] == row)
            self._owners[numbers] = _REMOVED
            self._removed += len(numbers)
            self._clips -= len(numbers) > 0
            if self._removed > total * _MAX_REMOVED:
                kept = self._owners[:total] != _REMOVED
                self._index.remove_ids(self._faiss.IDSelectorBatch(np.flatnonzero(~kept)))  # renumbers the others
                self._owners = self._owners[:total][kept]
                self._removed = 0
            return len(numbers)

    def search(
        self, vector: np.ndarray, clips: int, only: np.ndarray | None = None, *, least: float = -np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the `clips` rows with the best segment for `vector` (D,) and those similarities, best first.

        `only` (M,) int64 restricts the search to those rows, `least` to similarities of at least this. Call inside
        `reading()`.
        """
        total = int(self._index.ntotal)
        owners = self._owners[:total]
        parameters = None
        if only is not None:
            bitmap = np.packbits(_owned_by(owners, only), bitorder="little")  # must outlive the search
            parameters = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bitmap))
        self._faiss.omp_set_num_threads(1)  # one thread per query, as in FaissIndex
        query = np.ascontiguousarray(vector, dtype=np.float32)[None]
        wanted = clips * int(np.clip(total / max(self._clips, 1), *_SEGMENTS_PER_CLIP))
        while total:
            found, numbers = self._index.search(query, min(wanted, total), params=parameters)
            valid = numbers[0] >= 0  # FAISS pads with -1
            numbers, found = numbers[0][valid], found[0][valid]
            live = (owners[numbers] != _REMOVED) & (found >= least)
            rows, similarities = owners[numbers[live]], found[live]
            firsts = np.sort(np.unique(rows, return_index=True)[1])
            if len(firsts) >= clips or len(numbers) < wanted or found[-1] < least:
                firsts = firsts[:clips]
                return rows[firsts], similarities[firsts]
            wanted *= 4  # one long recording may own many of the segments
        return np.empty(0, np.int64), np.empty(0, np.float32)


class SegmentIndexes:
    """All segments, those of short and of long clips apart, so that a search can leave out those of short clips.

    A short clip's segments add nothing to its vector (docs/development/log.md), and in most large libraries they are
    most of the segments. The methods are those of SegmentIndex.
    """

    def __init__(self, dim: int) -> None:
        self._short, self._long = SegmentIndex(dim), SegmentIndex(dim)

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Blocks additions and removals for the block."""
        with self._short.reading(), self._long.reading():
            yield

    def add(self, rows: np.ndarray, vectors: np.ndarray, seconds: np.ndarray) -> None:
        """Adds segments (N, D) float32 of the clips in rows (N,) int64, which last `seconds` (N,)."""
        is_long = seconds > LONG_SECONDS
        for part, chosen in ((self._short, ~is_long), (self._long, is_long)):
            if chosen.any():
                part.add(rows[chosen], vectors[chosen])

    def remove(self, row: int) -> int:
        """Removes the segments of the clip in this row and returns their number."""
        return self._short.remove(row) + self._long.remove(row)

    def search(self, vector: np.ndarray, clips: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See SegmentIndex."""
        parts = zip(self.search_long(vector, clips, only), self._short.search(vector, clips, only), strict=True)
        rows, similarities = (np.concatenate(pair) for pair in parts)
        order = np.argsort(-similarities, kind="stable")[:clips]
        return rows[order], similarities[order]

    def search_long(
        self, vector: np.ndarray, clips: int, only: np.ndarray | None = None, *, least: float = -np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """See SegmentIndex; only among clips of more than LONG_SECONDS."""
        return self._long.search(vector, clips, only, least=least)


def _owned_by(owners: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns whether each owner (N,) is one of the rows (M,): bool (N,)."""
    wanted = np.zeros(max(int(owners.max(initial=0)), int(rows.max(initial=0))) + 2, dtype=bool)
    wanted[rows] = True
    return np.asarray(wanted[owners])  # _REMOVED, -1, indexes the last entry, which no row has
