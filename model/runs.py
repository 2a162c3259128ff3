"""A run of frame scores above a lower threshold, followed while it goes on. NumPy only.

An event's edges depend on its highest score, which is known only at its end. A `Run` keeps the few scores that can
still become an edge, so an event may last for hours.
"""

from __future__ import annotations

import numpy as np

EDGE_SHARE = 0.5  # by default an event begins and ends where its score is this share of its highest


class Run:
    """Consecutive frames from `first` to `stop` (exclusive) with the highest score `peak`; indices in the recording."""

    def __init__(self, first: int) -> None:
        self.first = self.stop = first
        self.peak = -np.inf
        self._rises: list[tuple[int, float]] = []  # frames higher than all before them, in order
        self._falls: list[tuple[int, float]] = []  # frames higher than all after them, in order

    def extend(self, scores: np.ndarray) -> None:
        """Takes the scores (n,) float32 of the frames that follow; n > 0."""
        highest = float(scores.max())
        before = np.maximum.accumulate(np.concatenate(([np.float32(self.peak)], scores[:-1])))
        after = np.maximum.accumulate(np.concatenate(([np.float32(-np.inf)], scores[:0:-1])))[::-1]
        while self._falls and self._falls[-1][1] <= highest:
            self._falls.pop()
        for kept, mask in ((self._rises, scores > before), (self._falls, scores > after)):
            kept += [(self.stop + int(at), float(scores[at])) for at in np.flatnonzero(mask)]
        self.peak = max(self.peak, highest)
        self.stop += len(scores)
        least = EDGE_SHARE * self.peak  # the peak only grows, so lower frames are never an edge
        self._rises = [rise for rise in self._rises if rise[1] >= least]
        self._falls = [fall for fall in self._falls if fall[1] >= least]

    def edges(self, least: float) -> tuple[int, int] | None:
        """The part [first, stop) from the first to the last frame with at least `least`, or None if there is none.

        `least` must be at least EDGE_SHARE of the peak.
        """
        first = next((at for at, score in self._rises if score >= least), None)
        last = next((at for at, score in reversed(self._falls) if score >= least), None)
        return None if first is None or last is None else (first, last + 1)
