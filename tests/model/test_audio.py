"""The log-mel front end: published values, and a slow reference of Kaldi's recipe."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.audio import (
    MEL_HOP,
    MEL_WINDOW,
    SILENCE,
    LogMel,
    mel_filters,
    mel_frames_begun_in,
    mel_frames_in,
    samples_for,
)
from model.config import MelConfig
from model.finelap import FineLAP


def slow_log_mel(samples: np.ndarray, bins: int, low: float) -> np.ndarray:
    """Kaldi's recipe for one frame and one filter at a time, in float64."""

    def mel(f: float) -> float:
        return 1127.0 * np.log(1 + f / 700.0)

    step = (mel(8000.0) - mel(low)) / (bins + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    rows = []
    for start in range(0, len(samples) - 400 + 1, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        emphasised = frame.copy()
        for i in range(399, 0, -1):
            emphasised[i] = frame[i] - 0.97 * frame[i - 1]
        emphasised[0] = frame[0] - 0.97 * frame[0]
        power = np.abs(np.fft.rfft(emphasised * window, 512)) ** 2
        row = []
        for b in range(bins):
            left = mel(low) + b * step
            total = 0.0
            for k in range(256):
                m = mel(k * 16000 / 512)
                if left < m <= left + step:
                    total += power[k] * (m - left) / step
                elif left + step < m < left + 2 * step:
                    total += power[k] * (left + 2 * step - m) / step
            row.append(np.log(max(total, np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("bins", "low"), [(128, 20.0), (64, 50.0)])
def test_equals_the_slow_reference(bins: int, low: float) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    fast = LogMel(MelConfig(num_mel_bins=bins, low_freq=low))(torch.from_numpy(samples)[None])[0].numpy()
    np.testing.assert_allclose(fast, slow_log_mel(samples, bins, low), atol=2e-4)


def test_equals_the_published_log_mel(shared_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("fill_state", shared_dir / "reference" / "fill_state.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    front = LogMel(MelConfig())
    with np.load(shared_dir / "reference" / "golden.npz") as golden:
        for seed, seconds in ((1, 10.0), (2, 3.3), (3, 14.0)):
            samples = module.waveform(seed, seconds)
            raw = front(torch.from_numpy(samples - samples.mean())[None])
            mel = front.normalise(front.pad(raw, 1024))[0, ::8].numpy()
            assert np.abs(mel - golden[f"mel_{seed}"]).max() < 1e-4


def test_items_of_a_batch_are_independent() -> None:
    front = LogMel(MelConfig())
    batch = torch.randn(3, 4000)
    alone = torch.cat([front(row[None]) for row in batch])
    torch.testing.assert_close(front(batch), alone, rtol=0, atol=1e-5)


def test_silence_is_the_floor_and_padding_is_configured() -> None:
    front = LogMel(MelConfig(pad_value=-3.0))
    raw = front(torch.zeros(1, 1600))
    assert raw.shape == (1, mel_frames_in(1600), 128)
    torch.testing.assert_close(raw, torch.full_like(raw, SILENCE), rtol=0, atol=1e-4)
    padded = front.pad(raw, 12)
    assert padded.shape[1] == 12 and (padded[:, raw.shape[1] :] == -3.0).all()
    assert front.pad(raw, 4).shape[1] == 4


def test_mel_frames_and_samples_are_consistent() -> None:
    assert mel_frames_in(MEL_WINDOW - 1) == 0 and mel_frames_in(MEL_WINDOW) == 1
    for frames in (1, 2, 1024):
        assert mel_frames_in(samples_for(frames)) == frames
        assert mel_frames_in(samples_for(frames) + MEL_HOP - 1) == frames


def test_mel_frames_begun() -> None:
    assert [mel_frames_begun_in(n) for n in (0, 1, 160, 161, 1000)] == [0, 1, 1, 2, 7]


def test_filters_cover_the_band_without_nyquist() -> None:
    filters = mel_filters(128, 20.0)
    assert filters.shape == (257, 128)
    assert (filters[256] == 0).all() and (filters >= 0).all()
    # Below 600 Hz some triangles are narrower than an FFT bin and contain none, as in Kaldi.
    assert (filters[:, 30:].sum(0) > 0).all()
    assert (mel_filters(64, 50.0)[:, 15:].sum(0) > 0).all()


@pytest.mark.parametrize(("snip", "heard"), [(True, 4), (False, 7)])
def test_edges_are_snipped_or_zero_padded(snip: bool, heard: int, tiny_config: Callable[..., Any]) -> None:
    mel = MelConfig(num_mel_bins=32, pad_value=5.0, snip_edges=snip)
    model = FineLAP(tiny_config(mel=mel))
    samples = np.random.default_rng(0).normal(0, 0.1, 1000).astype(np.float32)
    frames = model.mel([samples], 16)[0]
    padding = (5.0 - mel.mean) / (2 * mel.std)
    assert [bool((f == padding).all()) for f in frames] == [i >= heard for i in range(16)]
    filled = LogMel(mel)(torch.from_numpy(np.pad(samples, (0, 2000)))[None])
    torch.testing.assert_close(frames[:heard], LogMel(mel).normalise(filled)[0, :heard], rtol=0, atol=1e-5)
