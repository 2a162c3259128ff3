"""The sliding median of frame scores, for whole tracks and for tracks that arrive in pieces.

NumPy only. A track is extended at both ends by its mirror image (b a | a b c | c b), `mode="reflect"` in SciPy.
"""

from __future__ import annotations

import numpy as np

MAX_MEDIAN_FILTER = 60.0  # seconds; longer kernels are slow, and no sound event needs them

_EPS = 1e-6  # frames; absorbs rounding of seconds / hop
_MEDIAN_BLOCK = 1 << 22  # elements per step of a sliding median; bounds memory for long kernels


def median_frames(seconds: float, frame_hop: float) -> int:
    """The odd number of frames nearest to `seconds`, ties rounded up; 1 leaves the scores unchanged."""
    return 2 * int((seconds / frame_hop + _EPS) // 2) + 1


def median_smooth(scores: np.ndarray, seconds: float, frame_hop: float) -> np.ndarray:
    """The sliding median of scores (..., T) along time, same shape, float32. `seconds` = 0 turns it off.

    Unlike a mean, it keeps edges and removes single outliers.
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
    """`median_smooth` for a track that arrives in pieces: the same values, each as soon as it is final.

    Buffers about one kernel of frames. Values that depend on the last `spare` frames, which may not belong to the
    track, are only returned by `finish`.
    """

    def __init__(self, seconds: float, frame_hop: float, spare: int = 0) -> None:
        self._seconds, self._frame_hop, self._spare = seconds, frame_hop, spare
        self._length = median_frames(seconds, frame_hop)
        self._half = self._length // 2
        self._buffer = np.empty(0, dtype=np.float32)  # begins half a kernel before the next value
        self._begun = False

    def push(self, scores: np.ndarray) -> np.ndarray:
        """Takes the next scores (t,) and returns the smoothed values (n,) float32 that are now final."""
        self._buffer = np.concatenate([self._buffer, scores])
        if not self._begun:
            if len(self._buffer) <= self._half + self._spare:
                return np.empty(0, dtype=np.float32)
            self._begun = True
            self._buffer = np.concatenate([self._buffer[: self._half][::-1], self._buffer])
        ready = len(self._buffer) - self._spare - 2 * self._half
        if ready <= 0:
            return np.empty(0, dtype=np.float32)
        smooth = _medians(self._buffer[: ready + 2 * self._half], self._length)
        self._buffer = self._buffer[ready:].copy()  # a view would keep the whole array alive
        return smooth

    def finish(self, drop: int = 0) -> np.ndarray:
        """Returns the remaining values (n,) of a track that ended `drop` (at most `spare`) frames before the last."""
        if not 0 <= drop <= self._spare:
            raise ValueError(f"cannot drop {drop} frames; at most {self._spare} may be")
        frames = self._buffer[: len(self._buffer) - drop]
        if not self._begun:
            return median_smooth(frames, self._seconds, self._frame_hop)
        return _medians(np.concatenate([frames, frames[len(frames) - self._half :][::-1]]), self._length)


def _medians(padded: np.ndarray, length: int) -> np.ndarray:
    """padded (T + length - 1,) → medians (T,) of every `length` consecutive values; `length` is odd."""
    if length == 1:
        return padded.copy()
    out = np.empty(len(padded) - length + 1, dtype=padded.dtype)
    block = max(1, _MEDIAN_BLOCK // length)
    for start in range(0, len(out), block):
        stop = min(len(out), start + block)
        windows = np.lib.stride_tricks.sliding_window_view(padded[start : stop + length - 1], length)
        out[start:stop] = np.partition(windows, length // 2, axis=-1)[:, length // 2]
    return out
