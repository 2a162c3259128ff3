"""The outlines of clips' waveforms, decoded on demand and kept in memory for the next time.

An outline is two numbers for each 10 ms (app/audio/peaks.py); how it is made, the services know.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from weakref import WeakValueDictionary

import numpy as np

from app.state import Services
from index import Clip

_KEPT_BYTES = 64_000_000  # 22 hours of audio


class Waveforms:
    """Outlines (2, n) float32 by audio file; the least recently asked for go first when `max_bytes` are kept.

    Callers that ask for the same clip at once wait for one decoding.
    """

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def outline(self, services: Services, clip_id: str) -> tuple[Clip, np.ndarray]:
        """A clip and the outline of its waveform. Raises ClipNotFound, AudioMissing, what decoding raises."""
        clip = await services.read(services.catalog.get, clip_id)
        turn = self._turns.setdefault(clip.sha256, asyncio.Lock())
        async with turn:
            levels = self._kept.get(clip.sha256)
            if levels is None:
                levels = await services.outline(clip_id)
                self._keep(clip.sha256, levels)
            self._kept.move_to_end(clip.sha256)
        return clip, levels

    def _keep(self, sha256: str, levels: np.ndarray) -> None:
        self._kept[sha256] = levels
        self._bytes += levels.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes
