"""Near-duplicates: the same recording in another format, bit rate, sample rate or gain, or slightly trimmed.

Clip vectors and durations give candidates, which frames and, where available, waveform peaks confirm. Without peaks,
several takes of one sound are found as well, because their embeddings are alike; docs/development/log.md has the
measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from index.quantization import FrameCodes

SIMILARITY = 0.9  # cosine of the clip vectors
FRAME_SIMILARITY = 0.9  # mean cosine of the frames at the best shift
PEAK_CORRELATION = 0.98  # correlation of the envelopes at the best shift
TOLERANCE = 0.15  # seconds of difference in duration: codec padding and slight trimming
TOLERANCE_SHARE = 0.002  # of the longer duration, added for clock drift

_ROWS = 512  # clips compared at once
_COLUMNS = 8192  # with this many others
_FRAME_SHIFTS = range(-2, 3)  # frames
_PEAK_SHIFTS = range(-15, 16)  # steps of 10 ms
_CONSTANT = 0.02  # of its mean: an envelope that varies less counts as constant
_CACHED_CLIPS = 256  # whose decoded frames and envelopes are cached


def near_duplicates(
    vectors: np.ndarray,
    durations: np.ndarray,
    frames_of: Callable[[int], FrameCodes | np.ndarray],
    peaks_of: Callable[[int], np.ndarray] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> list[list[int]]:
    """Groups clips that are near-duplicates. Returns their positions: at least two per group, sorted.

    vectors (N, D): clip embeddings of any nonzero length. durations (N,): seconds, which may differ by `tolerance` plus
    0.2 % of the longer one. frames_of: returns the frames (T, D) of the clip at a position. peaks_of: returns its peaks
    (2, n), lowest and highest sample per 10 ms. Both are called for candidates only, possibly more than once.

    Two clips are near-duplicates if their vectors' cosine is at least SIMILARITY, their durations agree,
    `frame_similarity` is at least FRAME_SIMILARITY and, with peaks_of, `peak_correlation` is at least PEAK_CORRELATION.
    Groups are the connected components of such pairs; pairs within a group are not compared. Time grows with the number
    of pairs whose durations agree, memory with N.

    Raises ValueError for shapes that do not match, zero vectors and non-finite values.
    """
    vectors, durations = np.asarray(vectors, dtype=np.float32), np.asarray(durations, dtype=np.float64)
    if vectors.ndim != 2 or durations.shape != vectors.shape[:1]:
        raise ValueError(f"vectors must be (N, D) and durations (N,), not {vectors.shape} and {durations.shape}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and np.isfinite(durations).all() and lengths.all()):
        raise ValueError("vectors and durations must be finite, and vectors nonzero")
    order = np.argsort(durations, kind="stable")
    groups = _Groups(len(order))
    units, durations = vectors[order] / lengths[order], durations[order]

    @lru_cache(maxsize=_CACHED_CLIPS)
    def frames(position: int) -> np.ndarray:
        return _unit_frames(frames_of(int(order[position])))

    @lru_cache(maxsize=_CACHED_CLIPS)
    def envelope(position: int) -> np.ndarray:
        assert peaks_of is not None
        return _envelope(peaks_of(int(order[position])))

    def same(one: int, other: int) -> bool:
        if _best_cosine(frames(one), frames(other)) < FRAME_SIMILARITY:
            return False
        return peaks_of is None or _best_correlation(envelope(one), envelope(other)) >= PEAK_CORRELATION

    for one, others in _candidates(units, durations, tolerance):
        # one at a time, because each confirmed pair may make the following ones unnecessary
        for other in others[groups.labels[others] != groups.labels[one]]:
            if groups.labels[one] != groups.labels[other] and same(one, int(other)):
                groups.join(one, int(other))
    return groups.listed(order)


def frame_similarity(one: FrameCodes | np.ndarray, other: FrameCodes | np.ndarray) -> float:
    """Returns the mean cosine of two sequences of frames (T, D) at the best shift by −2 … 2 frames, −1 … 1."""
    return _best_cosine(_unit_frames(one), _unit_frames(other))


def peak_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation of two clips' envelopes from their peaks (2, n), whatever their gain, −1 … 1.

    The envelope is the square root of the peak per 10 ms, compared at the best shift by −150 … 150 ms. Two constant
    envelopes have 1.
    """
    return _best_correlation(_envelope(one), _envelope(other))


def _candidates(units: np.ndarray, durations: np.ndarray, tolerance: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (a clip, later clips that may be the same). Clips are sorted by duration, so candidates are contiguous."""
    # longer ≤ shorter + tolerance + share · longer, solved for longer
    last = np.searchsorted(durations, (durations + tolerance) / (1 - TOLERANCE_SHARE), side="right")
    for row in range(0, len(units), _ROWS):
        rows = slice(row, min(row + _ROWS, len(units)))
        for column in range(row, int(last[rows].max()), _COLUMNS):
            near = units[rows] @ units[column : column + _COLUMNS].T >= SIMILARITY
            for at in np.flatnonzero(near.any(axis=1)):
                one = row + int(at)
                others = column + np.flatnonzero(near[at])
                others = others[(others > one) & (others < last[one])]
                if len(others):
                    yield one, others


def _best_cosine(one: np.ndarray, other: np.ndarray) -> float:
    best = -1.0
    for shift in _FRAME_SHIFTS:
        first, second = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(first), len(second))
        if length and 2 * length >= min(len(one), len(other)):  # a single remaining frame may match anything
            best = max(best, float(np.einsum("td,td->", first[:length], second[:length])) / length)
    return best


def _unit_frames(frames: FrameCodes | np.ndarray) -> np.ndarray:
    decoded = frames.decode() if isinstance(frames, FrameCodes) else np.asarray(frames, dtype=np.float32)
    lengths = np.linalg.norm(decoded, axis=1, keepdims=True)
    return decoded / np.where(lengths > 0, lengths, 1)


def _envelope(peaks: np.ndarray) -> np.ndarray:
    """Returns the square root of each step's peak, so that the loudest moment does not dominate."""
    return np.sqrt(np.abs(np.asarray(peaks, dtype=np.float32)).max(axis=0, initial=0.0))


def _best_correlation(one: np.ndarray, other: np.ndarray) -> float:
    best = -1.0
    for shift in _PEAK_SHIFTS:
        first, second = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(first), len(second))
        if length and 2 * length >= min(len(one), len(other)):
            best = max(best, _correlation(first[:length], second[:length]))
    return best


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    constant = [envelope.std() <= _CONSTANT * envelope.mean() for envelope in (one, other)]
    if any(constant):
        return 1.0 if all(constant) else 0.0
    return float(np.mean((one - one.mean()) * (other - other.mean())) / (one.std() * other.std()))


class _Groups:
    """Disjoint sets with one label per clip: lookups of many clips at once are cheap, joins cost O(N)."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def join(self, one: int, other: int) -> None:
        kept, gone = int(self.labels[one]), int(self.labels[other])
        moved = self._members.pop(gone, [gone])
        members = self._members.setdefault(kept, [kept])
        if len(moved) > len(members):  # the smaller group moves, so that a clip moves at most log2 N times
            kept, moved, members = gone, members, moved
            self._members.pop(int(self.labels[one]))
            self._members[kept] = members
        self.labels[moved] = kept
        members.extend(moved)

    def listed(self, order: np.ndarray) -> list[list[int]]:
        return sorted(sorted(int(order[position]) for position in members) for members in self._members.values())
