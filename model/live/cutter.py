"""Cuts the windows that slide with live sound. NumPy only."""

from __future__ import annotations

import numpy as np

from model.config import SAMPLE_RATE, WindowConfig
from model.windows import Window, centred

HOP = 0.32  # seconds between two windows; more while the model is behind
LOOKAHEAD = 0.48  # seconds of sound after a frame before it is scored
LOOKBACK = 1.28  # seconds of sound before a frame that its window reads at least
_SHORT = 0.5  # length of a usual window, as a share of a whole one
_SHORTER = 0.25  # and of one that should cost little

_EPS = 1e-6  # frames


class LiveCutter:
    """Cuts the windows of the quick pass (model.live.track). Buffers about two windows; read `backlog` to bound it.

    Each frame is kept from exactly one window. A window that has to catch up keeps more frames than usual.
    """

    def __init__(self, windows: WindowConfig) -> None:
        self._hop = windows.frame_hop
        self._step = max(1, int(HOP / self._hop + _EPS))
        self._ahead = max(1, round(LOOKAHEAD / self._hop))
        self._whole = windows.frames
        self._back = min(round(LOOKBACK / self._hop), self._whole // 2)
        self._lengths = [int(share * self._whole) for share in (_SHORTER, _SHORT)] if windows.buckets else []
        self._samples = np.empty(0, dtype=np.float32)
        self._arrived: list[np.ndarray] = []  # joined with the others only when a window is cut
        self._count = 0  # samples received
        self._from = 0  # position of the first buffered sample
        self._done = 0  # frames delivered

    @property
    def frames(self) -> int:
        """The number of frames delivered."""
        return self._done

    @property
    def backlog(self) -> float:
        """Seconds of sound received and not yet delivered."""
        return self._count / SAMPLE_RATE - self._done * self._hop

    def push(self, samples: np.ndarray) -> None:
        """Takes samples (n,) float32 at 16 kHz."""
        self._arrived.append(samples)
        self._count += len(samples)

    def take(self, cheap: bool = False) -> tuple[Window, np.ndarray] | None:
        """The next window with its `centred` samples, or None if too little sound has arrived since the last one.

        cheap: a shorter window, which costs a third less, if it reaches far enough.
        """
        available = int(self._count / SAMPLE_RATE / self._hop + _EPS)
        new = min(available - self._ahead - self._done, self._whole - self._ahead - self._back)
        if new < self._step:
            return None
        self._samples, self._arrived = np.concatenate([self._samples, *self._arrived]), []
        upto = self._done + new
        end = upto + self._ahead
        lengths = self._lengths if cheap else self._lengths[-1:]
        length = min((each for each in lengths if self._back + new + self._ahead <= each), default=self._whole)
        first = max(0, end - length)
        start, stop = self._sample(first), self._sample(end)
        window = Window(start, stop, first, slice(self._done - first, upto - first))
        samples = centred(self._samples[start - self._from : stop - self._from])
        self._done = upto
        keep_from = max(self._from, self._sample(max(0, upto - self._whole)))
        self._samples = self._samples[keep_from - self._from :].copy()
        self._from = keep_from
        return window, samples

    def _sample(self, frame: int) -> int:
        return round(frame * self._hop * SAMPLE_RATE)
