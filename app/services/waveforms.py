"""Waveform peaks and loudness of stored clips, decoded on demand and cached in memory.

Peaks are the lowest and highest sample of every 10 ms, or of less in a short clip, see app.audio.peaks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from weakref import WeakValueDictionary

import numpy as np

from app.audio.peaks import STEP, Loudness, WaveformPeaks, fitting_step
from app.services.audio_source import decode_clip
from app.services.excerpts import clip_loudness
from app.state import AppState
from index import Clip

_CACHE_BYTES = 64_000_000  # 22 hours of audio


async def decode_peaks(state: AppState, clip_id: str, step: int = STEP) -> np.ndarray:
    """Decodes a clip and returns its peaks (2, n) float32, each of `step` samples at 16 kHz.

    Raises ClipNotFound, AudioMissing, MediaError.
    """
    peaks = WaveformPeaks(step)
    async with decode_clip(state, clip_id) as audio:
        async for block in audio:
            peaks.push(block)
    return peaks.levels()


class PeaksCache:
    """Peaks (2, n) float32 by audio file, least recently used evicted first beyond `max_bytes`.

    Concurrent requests for the same audio share one decoding.
    """

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, state: AppState, clip_id: str) -> tuple[Clip, np.ndarray]:
        """A clip and its peaks. Raises ClipNotFound, AudioMissing, MediaError."""
        clip = await state.read(state.library.get, clip_id)
        lock = self._locks.setdefault(clip.sha256, asyncio.Lock())
        async with lock:
            peaks = self._entries.get(clip.sha256)
            if peaks is None:
                peaks = await decode_peaks(state, clip_id, fitting_step(clip.duration))
                self._store(clip.sha256, peaks)
            self._entries.move_to_end(clip.sha256)
        return clip, peaks

    def _store(self, sha256: str, peaks: np.ndarray) -> None:
        self._entries[sha256] = peaks
        self._bytes += peaks.nbytes
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, evicted = self._entries.popitem(last=False)
            self._bytes -= evicted.nbytes


class LoudnessCache:
    """Loudness by audio file; the first request for a file measures it."""

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._entries: dict[str, Loudness] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, state: AppState, clip_id: str) -> tuple[Clip, Loudness]:
        """A clip and its loudness. Raises ClipNotFound, AudioMissing, MediaError."""
        clip = await state.read(state.library.get, clip_id)
        async with self._locks.setdefault(clip.sha256, asyncio.Lock()):
            found = self._entries.get(clip.sha256)
            if found is None:
                found = self._entries[clip.sha256] = await clip_loudness(state, clip_id)
                if len(self._entries) > self._most:
                    del self._entries[next(iter(self._entries))]
        return clip, found
