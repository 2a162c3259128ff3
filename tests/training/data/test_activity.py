"""Active stretches, background pieces, cuts and frame labels."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import SAMPLE_RATE
from training.data.activity import (
    ClipConfig,
    active_stretches,
    background_pieces,
    clip_event,
    first_stretch,
    frame_labels,
    is_background,
    trim,
)


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.3)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def burst(onset: float, length: float, total: float) -> np.ndarray:
    samples = np.zeros(int(total * SAMPLE_RATE), np.float32)
    at = int(onset * SAMPLE_RATE)
    samples[at : at + int(length * SAMPLE_RATE)] = np.sin(np.arange(int(length * SAMPLE_RATE)) * 0.3)
    return samples


def test_active_stretches_find_bursts_and_bridge_short_gaps() -> None:
    sound = burst(0.5, 0.4, 3.0) + burst(1.0, 0.4, 3.0) + burst(2.4, 0.3, 3.0)
    np.testing.assert_allclose(active_stretches(sound), [(0.5, 1.4), (2.4, 2.7)], atol=0.021)
    assert active_stretches(np.zeros(16000, np.float32)) == []


def test_trim_cuts_silence_only() -> None:
    assert len(trim(burst(0.5, 0.4, 3.0))) == pytest.approx(0.4 * SAMPLE_RATE, abs=700)
    silent = np.zeros(100, np.float32)
    assert trim(silent) is silent


def reference_stretch(samples: np.ndarray, config: ClipConfig) -> tuple[float, float] | None:
    """Reference for `first_stretch`, window by window."""
    peak, hops = float(np.abs(samples).max()), [samples[i : i + 160] for i in range(0, len(samples), 160)]
    power = [max(float(np.mean((h.astype(np.float64) / peak) ** 2)), 0.0) + 1e-12 for h in hops]
    line, size = 10 ** (config.threshold_db / 10), min(round(config.window * 100), len(hops))
    sounding: set[int] = set()
    for start in range(len(hops) - size + 1):
        if np.mean(power[start : start + size]) > line:
            sounding.update(range(start, start + size))
        elif sounding:
            break
    loud = [i for i in sounding if power[i] > line]
    return (min(loud) * 0.01, min((max(loud) + 1) * 0.01, len(samples) / SAMPLE_RATE)) if loud else None


def test_the_first_continuous_stretch() -> None:
    sound = np.concatenate([silence(0.5), tone(0.6), silence(0.1), tone(0.6), silence(1.0), tone(2.0)])
    assert first_stretch(sound, ClipConfig()) == pytest.approx((0.5, 1.8), abs=0.011)
    assert first_stretch(sound * 1e-2, ClipConfig()) == first_stretch(sound, ClipConfig())
    assert first_stretch(silence(1), ClipConfig()) is None
    assert first_stretch(silence(0), ClipConfig()) is None


@pytest.mark.parametrize("seed", range(12))
def test_first_stretch_equals_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(int(rng.integers(40, 9000))) * 10 ** (-rng.uniform(0, 4.5)) for _ in range(12)]
    sound = np.concatenate(parts).astype(np.float32)
    assert first_stretch(sound, ClipConfig()) == pytest.approx(reference_stretch(sound, ClipConfig()))


def test_stretches_outside_the_length_limits_are_rejected() -> None:
    config = ClipConfig()
    assert clip_event(tone(1.0), config)[0] == pytest.approx((0, 1.0))
    assert clip_event(tone(7.5), config)[0] == pytest.approx((0, 7.5))
    assert clip_event(tone(0.9), config) == (None, "sounds for less than 1 s")
    assert clip_event(tone(7.6), config) == (None, "sounds for more than 7.5 s")
    assert clip_event(silence(3), config) == (None, "silent")


def test_backgrounds_are_steady_or_match_a_pattern() -> None:
    config = ClipConfig(backgrounds=("rain*", "Wind"), pieces=2)
    noise = np.random.default_rng(0).standard_normal(35 * SAMPLE_RATE).astype(np.float32) * 0.1
    assert background_pieces(noise, config, False) == [0.0, 10.0]
    assert background_pieces(noise[: 9 * SAMPLE_RATE], config, True) == []
    broken = np.concatenate([tone(5), silence(6), tone(5)])
    assert background_pieces(broken, config, False) == []
    assert background_pieces(broken, config, True) == [0.0]
    assert [is_background(x, config) for x in ("rain", "rain on roof", "wind", "window", "train")] == [1, 1, 1, 0, 0]


def test_frame_labels() -> None:
    hop = 0.16
    assert frame_labels([(0.0, 0.32)], 4, hop).tolist() == [1, 1, 0, 0]
    assert frame_labels([(0.09, 0.32)], 4, hop).tolist() == [0, 1, 0, 0]  # less than half of the first frame
    assert frame_labels([(0.33, 0.36)], 4, hop).tolist() == [
        0,
        0,
        1,
        0,
    ]  # short, but the frame under its midpoint counts
    assert frame_labels([], 4, hop).tolist() == [0, 0, 0, 0]


def slow_absolute(samples: np.ndarray, rate: int) -> tuple[float, float] | None:
    """The published rule, frame by frame."""
    frames = len(samples) // 1024
    energy = [sum(float(x) ** 2 for x in samples[i * 1024 : (i + 1) * 1024]) for i in range(frames)]
    loud = []
    for i in range(frames):
        around = [energy[j] if 0 <= j < frames else 0.0 for j in range(i - 2, i + 3)]
        loud.append(sum(around) / 5 > 10**-5)
    if True not in loud:
        return None
    first = loud.index(True)
    stop = next((i for i in range(first, frames) if not loud[i]), None)
    return first * 1024 / rate, (len(samples) if stop is None else stop * 1024) / rate


@pytest.mark.parametrize("level", [0.5, 3e-4, 1e-5])
def test_the_published_rule_is_absolute(level: float) -> None:
    config = ClipConfig(rule="absolute", sample_rate=22_050)
    rng = np.random.default_rng(3)
    for start, stop in ((9_000, 40_000), (0, 30_000), (20_000, 66_000)):
        samples = np.zeros(66_150, np.float32)
        samples[start:stop] = level * rng.standard_normal(stop - start)
        assert first_stretch(samples, config) == slow_absolute(samples, 22_050)
        relative = first_stretch(samples, ClipConfig())
        assert (first_stretch(samples, config) is None) == (level == 1e-5) and (relative is None) == (level == 1e-5)
    assert first_stretch(np.ones(1000, np.float32), config) is None, "less than a frame"
