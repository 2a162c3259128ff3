"""Waveform peaks: the lowest and highest sample of every 10 ms, collected from a stream, for drawing waveforms.

An hour of audio is 230 MB of samples, but 3 MB of peaks.
"""

from __future__ import annotations

import numpy as np

STEP = 160  # samples at 16 kHz: 10 ms
_FINE = 1600  # steps of a short recording, so that its waveform has no stairs


class WaveformPeaks:
    """Collects the peaks of a recording from blocks of any length; the result does not depend on the block size.

    step: samples of each peak.
    """

    def __init__(self, step: int = STEP) -> None:
        self._step = step
        self._parts: list[np.ndarray] = []
        self._rest = np.empty(0, dtype=np.float32)  # less than a step

    def push(self, samples: np.ndarray) -> None:
        """Adds samples (n,) at 16 kHz. Raises ValueError if they are not mono."""
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono (n,); their shape is {samples.shape}")
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % self._step
        if whole:
            self._parts.append(_min_max(samples[:whole].reshape(-1, self._step)))
        self._rest = samples[whole:].copy()  # a view would keep the block in memory

    def levels(self) -> np.ndarray:
        """(2, n) float32: the lowest and highest sample of every step so far; the last step may be shorter."""
        rest = [_min_max(self._rest[None])] if len(self._rest) else []
        self._parts = [np.concatenate([np.empty((2, 0), dtype=np.float32), *self._parts], axis=1)]
        return np.concatenate([*self._parts, *rest], axis=1)


def fitting_step(duration: float) -> int:
    """Samples at 16 kHz of each peak of a recording of this duration (s): 10 ms, or less if it is short."""
    return max(1, min(STEP, int(duration * 16_000) // _FINE))


def waveform_peaks(samples: np.ndarray) -> np.ndarray:
    """Samples (N,) at 16 kHz → peaks (2, n)."""
    peaks = WaveformPeaks()
    peaks.push(samples)
    return peaks.levels()


def reduce_peaks(levels: np.ndarray, columns: int) -> np.ndarray:
    """Peaks (2, n) → (2, columns): the lowest and highest value within each column's time span.

    With more columns than steps, a step fills several columns; without steps, all columns are 0. Raises ValueError
    for other shapes and for fewer than one column.
    """
    levels = np.asarray(levels, dtype=np.float32)
    if levels.ndim != 2 or len(levels) != 2 or columns < 1:
        raise ValueError(f"peaks must be (2, n) with at least one column; got {levels.shape} and {columns}")
    steps = levels.shape[1]
    if not steps:
        return np.zeros((2, columns), dtype=np.float32)
    starts = np.arange(columns) * steps // columns
    if columns >= steps:
        return levels[:, starts]
    return np.stack([np.minimum.reduceat(levels[0], starts), np.maximum.reduceat(levels[1], starts)])


def _min_max(steps: np.ndarray) -> np.ndarray:
    return np.stack([steps.min(axis=1), steps.max(axis=1)])
