"""The outline of a waveform: lowest and highest sample of every 10 ms, kept while audio streams by, for drawing.

NumPy only; knows no files and draws nothing. Samples of an hour are 230 MB, their outline is 3 MB.
"""

from __future__ import annotations

import numpy as np

STEP = 160  # samples at 16 kHz: 10 ms


class Envelope:
    """The outline of a recording that comes in blocks of any length; the same for every way of cutting it."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._rest = np.empty(0, dtype=np.float32)  # less than a step

    def push(self, samples: np.ndarray) -> None:
        """The next samples (n,) at 16 kHz. Raises ValueError if they are not mono."""
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono (n,); their shape is {samples.shape}")
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % STEP
        if whole:
            self._parts.append(_outline(samples[:whole].reshape(-1, STEP)))
        self._rest = samples[whole:].copy()  # a view would keep the block alive

    def levels(self) -> np.ndarray:
        """(2, n) float32, lowest and highest of every 10 ms so far; the last step may be shorter."""
        rest = [_outline(self._rest[None])] if len(self._rest) else []
        self._parts = [np.concatenate([np.empty((2, 0), dtype=np.float32), *self._parts], axis=1)]
        return np.concatenate([*self._parts, *rest], axis=1)


def envelope(samples: np.ndarray) -> np.ndarray:
    """Outline (2, n) of whole samples (N,) at 16 kHz."""
    whole = Envelope()
    whole.push(samples)
    return whole.levels()


def reduce(levels: np.ndarray, columns: int) -> np.ndarray:
    """Outline (2, n) → (2, columns): what each column's share of the time holds at its lowest and highest.

    No peak is lost. With more columns than steps a step fills several; without any step all is silence. Raises
    ValueError for other shapes and for less than one column.
    """
    levels = np.asarray(levels, dtype=np.float32)
    if levels.ndim != 2 or len(levels) != 2 or columns < 1:
        raise ValueError(f"an outline is (2, n) and has a column at least; here {levels.shape} and {columns}")
    steps = levels.shape[1]
    if not steps:
        return np.zeros((2, columns), dtype=np.float32)
    starts = np.arange(columns) * steps // columns
    if columns >= steps:
        return levels[:, starts]
    return np.stack([np.minimum.reduceat(levels[0], starts), np.maximum.reduceat(levels[1], starts)])


def _outline(steps: np.ndarray) -> np.ndarray:
    return np.stack([steps.min(axis=1), steps.max(axis=1)])
