"""Clips that are the same recording in another coat: format, bit rate, sample rate, gain, or trimmed a little.

Candidates by clip vector and duration, confirmed by their frames and, where they can be had, by their outlines. Without
outlines it finds what the model cannot tell apart, and that is many takes of one sound too; docs/log.md has what was
measured. NumPy only; knows no files and no library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from index.quantization import FrameCodes

SIMILARITY = 0.9  # cosine of the clip vectors
AGREEMENT = 0.9  # mean cosine of the frames, at the shift that fits best
LIKENESS = 0.98  # correlation of the outlines, at the shift that fits best
TOLERANCE = 0.15  # seconds of difference in duration: a codec's padding and a little trimming
TOLERANCE_SHARE = 0.002  # of the longer duration, added for clocks that differ

_ROWS = 512  # clips compared at once
_COLUMNS = 8192  # with so many others
_SHIFTS = range(-2, 3)  # frames
_OUTLINE_SHIFTS = range(-15, 16)  # steps of 10 ms
_STEADY = 0.02  # of its mean: an outline that varies less has no shape to compare
_KEPT = 256  # decoded tracks of frames kept for the next comparison


def near_duplicates(
    vectors: np.ndarray,
    durations: np.ndarray,
    frames_of: Callable[[int], FrameCodes | np.ndarray],
    outline_of: Callable[[int], np.ndarray] | None = None,
    *,
    similarity: float = SIMILARITY,
    agreement: float = AGREEMENT,
    likeness: float = LIKENESS,
    tolerance: float = TOLERANCE,
) -> list[list[int]]:
    """Groups of clips that are near-duplicates, by their positions: at least two in each, ascending, in order.

    vectors (N, D): clip embeddings of any length but zero. durations (N,): seconds. frames_of: the frames (T, D) of the
    clip at a position; outline_of: its outline (2, n), lowest and highest sample per 10 ms. Both are asked for
    candidates only and not always once.

    Two clips are near-duplicates if their vectors' cosine is at least `similarity`, their durations differ by no more
    than `tolerance` seconds + 0.2 % of the longer, the mean cosine of their frames is at least `agreement` at the best
    of the shifts by −2 … 2 frames and, with outline_of, `same_outline` is at least `likeness`. A group is what such
    pairs connect; a pair within a group that has formed already is not looked at again. Time grows with the number of
    pairs whose durations allow it, memory with N.

    Raises ValueError for shapes that do not fit, for vectors of length zero and for numbers that are not finite.
    """
    vectors, durations = np.asarray(vectors, dtype=np.float32), np.asarray(durations, dtype=np.float64)
    if vectors.ndim != 2 or durations.shape != vectors.shape[:1]:
        raise ValueError(f"vectors must be (N, D) and durations (N,), not {vectors.shape} and {durations.shape}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and np.isfinite(durations).all() and lengths.all()):
        raise ValueError("vectors and durations must be finite, and no vector of length zero")
    order = np.argsort(durations, kind="stable")
    groups = _Groups(len(order))
    units, durations = vectors[order] / lengths[order], durations[order]

    @lru_cache(maxsize=_KEPT)
    def track(place: int) -> np.ndarray:
        return _unit_frames(frames_of(int(order[place])))

    @lru_cache(maxsize=_KEPT)
    def outline(place: int) -> np.ndarray:
        assert outline_of is not None
        return _loudness(outline_of(int(order[place])))

    def same(one: int, other: int) -> bool:
        if _agree(track(one), track(other)) < agreement:
            return False
        return outline_of is None or _alike(outline(one), outline(other)) >= likeness

    for one, others in _candidates(units, durations, similarity, tolerance):
        # gone through one by one, as each confirmed pair can spare the following ones
        for other in others[groups.labels[others] != groups.labels[one]]:
            if groups.labels[one] != groups.labels[other] and same(one, int(other)):
                groups.join(one, int(other))
    return groups.listed(order)


def same_frames(one: FrameCodes | np.ndarray, other: FrameCodes | np.ndarray) -> float:
    """How much two tracks of frames (T, D) agree: their mean cosine at the best shift, −1 … 1."""
    return _agree(_unit_frames(one), _unit_frames(other))


def same_outline(one: np.ndarray, other: np.ndarray) -> float:
    """How much two outlines (2, n) have one shape, whatever their gain, −1 … 1.

    The correlation of the roots of their heights, at the best of the shifts by −150 … 150 ms; 1 if both are steady.
    """
    return _alike(_loudness(one), _loudness(other))


def _candidates(
    units: np.ndarray, durations: np.ndarray, similarity: float, tolerance: float
) -> Iterator[tuple[int, np.ndarray]]:
    """(a clip, the later clips that could be the same), of clips in order of duration: those near stand in a row."""
    # longer ≤ shorter + tolerance + share · longer, solved for the longer
    last = np.searchsorted(durations, (durations + tolerance) / (1 - TOLERANCE_SHARE), side="right")
    for row in range(0, len(units), _ROWS):
        rows = slice(row, min(row + _ROWS, len(units)))
        for column in range(row, int(last[rows].max()), _COLUMNS):
            near = units[rows] @ units[column : column + _COLUMNS].T >= similarity
            for at in np.flatnonzero(near.any(axis=1)):
                one = row + int(at)
                others = column + np.flatnonzero(near[at])
                others = others[(others > one) & (others < last[one])]
                if len(others):
                    yield one, others


def _agree(one: np.ndarray, other: np.ndarray) -> float:
    best = -1.0
    for shift in _SHIFTS:
        first, second = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(first), len(second))
        if length and 2 * length >= min(len(one), len(other)):  # the one frame that is left may fit anything
            best = max(best, float(np.einsum("td,td->", first[:length], second[:length])) / length)
    return best


def _unit_frames(frames: FrameCodes | np.ndarray) -> np.ndarray:
    decoded = frames.decode() if isinstance(frames, FrameCodes) else np.asarray(frames, dtype=np.float32)
    lengths = np.linalg.norm(decoded, axis=1, keepdims=True)
    return decoded / np.where(lengths > 0, lengths, 1)


def _loudness(outline: np.ndarray) -> np.ndarray:
    """The height of each step; its root, so that the loudest moment is not all that counts."""
    return np.sqrt(np.abs(np.asarray(outline, dtype=np.float32)).max(axis=0, initial=0.0))


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    best = -1.0
    for shift in _OUTLINE_SHIFTS:
        first, second = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(first), len(second))
        if length and 2 * length >= min(len(one), len(other)):
            best = max(best, _correlation(first[:length], second[:length]))
    return best


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    steady = [heights.std() <= _STEADY * heights.mean() for heights in (one, other)]
    if any(steady):
        return 1.0 if all(steady) else 0.0
    return float(np.mean((one - one.mean()) * (other - other.mean())) / (one.std() * other.std()))


class _Groups:
    """Clips by the label of their group. Joining costs N, asking about many clips at once costs nothing."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def join(self, one: int, other: int) -> None:
        kept, gone = int(self.labels[one]), int(self.labels[other])
        moved = self._members.pop(gone, [gone])
        members = self._members.setdefault(kept, [kept])
        if len(moved) > len(members):  # the smaller group moves, so that no clip moves more often than log2 N times
            kept, moved, members = gone, members, moved
            self._members.pop(int(self.labels[one]))
            self._members[kept] = members
        self.labels[moved] = kept
        members.extend(moved)

    def listed(self, order: np.ndarray) -> list[list[int]]:
        return sorted(sorted(int(order[place]) for place in members) for members in self._members.values())
