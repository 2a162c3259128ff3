"""The sliding median over frame scores: of whole tracks, and of tracks that still grow.

NumPy only; knows no events. At both ends a track is continued by its mirror image, the last frame repeated
(b a | a b c | c b), which is `mode="reflect"` in SciPy.
"""

from __future__ import annotations

import numpy as np

MAX_MEDIAN_FILTER = 60.0  # seconds; longer kernels cost much and no sound event needs them

_EPS = 1e-6  # seconds; forgives rounding of frame × hop where it is compared with a caller's seconds
_MEDIAN_BLOCK = 1 << 22  # elements looked at together in one sliding median: bounds memory for long kernels


def median_frames(seconds: float, frame_hop: float) -> int:
    """The odd number of frames nearest to `seconds` (an even number goes up); 1 leaves the scores as they are."""
    return 2 * int((seconds / frame_hop + _EPS) // 2) + 1


def median_smooth(scores: np.ndarray, seconds: float, frame_hop: float) -> np.ndarray:
    """Sliding median of scores (..., T) along time; same shape, float32. `seconds` = 0 is off.

    The mean would smear onsets; the median keeps edges and removes single outliers.
    """
    scores = np.asarray(scores, dtype=np.float32)
    length = median_frames(seconds, frame_hop)
    if length == 1 or scores.shape[-1] == 0:
        return scores
    out = np.empty_like(scores)
    for row in np.ndindex(scores.shape[:-1]):
        out[row] = _medians(np.pad(scores[row], length // 2, mode="symmetric"), length)
    return out


class MedianStream:
    """`median_smooth` of a track that comes in pieces: the same values, each as soon as it is certain.

    Holds about one kernel of frames. The last `spare` frames may turn out not to belong to the track: nothing that
    depends on them is given before `finish`.
    """

    def __init__(self, seconds: float, frame_hop: float, spare: int = 0) -> None:
        self._seconds, self._frame_hop, self._spare = seconds, frame_hop, spare
        self._length = median_frames(seconds, frame_hop)
        self._half = self._length // 2
        self._held = np.empty(0, dtype=np.float32)  # begins half a kernel before the next value
        self._begun = False

    def push(self, scores: np.ndarray) -> np.ndarray:
        """The next scores (t,) → smoothed values (n,) float32 that no further frame can change."""
        self._held = np.concatenate([self._held, scores])
        if not self._begun:
            if len(self._held) <= self._half + self._spare:
                return np.empty(0, dtype=np.float32)
            self._begun = True
            self._held = np.concatenate([self._held[: self._half][::-1], self._held])
        ready = len(self._held) - self._spare - 2 * self._half
        if ready <= 0:
            return np.empty(0, dtype=np.float32)
        smooth = _medians(self._held[: ready + 2 * self._half], self._length)
        self._held = self._held[ready:].copy()  # a view would keep everything alive
        return smooth

    def finish(self, drop: int = 0) -> np.ndarray:
        """The rest (n,), the track having ended `drop` frames before what was pushed, at most `spare`."""
        if not 0 <= drop <= self._spare:
            raise ValueError(f"{drop} frames to drop, {self._spare} were held back")
        held = self._held[: len(self._held) - drop]
        if not self._begun:
            return median_smooth(held, self._seconds, self._frame_hop)
        return _medians(np.concatenate([held, held[len(held) - self._half :][::-1]]), self._length)


def _medians(padded: np.ndarray, length: int) -> np.ndarray:
    """padded (T + length - 1,) → the median of every `length` neighbours, (T,); `length` is odd."""
    if length == 1:
        return padded.copy()
    out = np.empty(len(padded) - length + 1, dtype=padded.dtype)
    block = max(1, _MEDIAN_BLOCK // length)
    for start in range(0, len(out), block):
        stop = min(len(out), start + block)
        windows = np.lib.stride_tricks.sliding_window_view(padded[start : stop + length - 1], length)
        out[start:stop] = np.partition(windows, length // 2, axis=-1)[:, length // 2]
    return out
