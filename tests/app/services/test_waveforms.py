"""The cache of waveform peaks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.audio.peaks import WaveformPeaks, fitting_step
from app.services import waveforms
from app.services.waveforms import PeaksCache


class FakeState:
    """A state whose clips are named by their SHA-256."""

    library = SimpleNamespace(get=lambda clip_id: SimpleNamespace(sha256=clip_id, duration=60.0))

    async def read(self, function: Any, *args: Any) -> Any:
        return function(*args)


async def test_peaks_are_computed_once_and_the_least_recently_used_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    async def decode_peaks(state: FakeState, clip_id: str, step: int) -> np.ndarray:
        decoded.append(clip_id)
        await asyncio.sleep(0.01)
        return np.zeros((2, 125), np.float32)  # a kilobyte

    monkeypatch.setattr(waveforms, "decode_peaks", decode_peaks)
    state, cache = FakeState(), PeaksCache(max_bytes=3000)

    async def get(*clips: str) -> None:
        await asyncio.gather(*(cache.get(state, clip) for clip in clips))  # type: ignore[arg-type]

    await get("a", "a", "a", "b")
    assert decoded == ["a", "b"]
    await get("c")
    await get("a")
    assert decoded == ["a", "b", "c"]
    await get("d")  # evicts b
    await get("a", "c", "d")
    assert decoded == ["a", "b", "c", "d"]
    await get("b")
    assert decoded == ["a", "b", "c", "d", "b"]


def test_short_sounds_have_finer_peaks() -> None:
    assert [fitting_step(seconds) for seconds in (3600, 16, 1.6, 0.5, 0.05)] == [160, 160, 16, 5, 1]
    samples = np.sin(np.arange(8_000) / 40).astype(np.float32)
    peaks = WaveformPeaks(fitting_step(0.5))
    for at in range(0, 8_000, 777):
        peaks.push(samples[at : at + 777])
    levels = peaks.levels()
    assert levels.shape == (2, 1600)
    np.testing.assert_array_equal(levels[1], samples.reshape(-1, 5).max(axis=1))
