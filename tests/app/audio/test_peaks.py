"""Waveform peaks match a simple reference for every block size, and reducing them loses no peak.

Loudness equals that of sounds whose loudness EBU Tech 3341 and ITU-R BS.2217 name, and that of the ffmpeg program.
"""

from __future__ import annotations

import io
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from app.audio.peaks import STEP, Loudness, WaveformPeaks, measure_loudness, reduce_peaks, waveform_peaks
from app.audio.sample_reader import open_reader


def slow_levels(samples: np.ndarray) -> np.ndarray:
    steps = [samples[i : i + STEP] for i in range(0, len(samples), STEP)]
    return np.array([[s.min() for s in steps], [s.max() for s in steps]], dtype=np.float32).reshape(2, -1)


@given(st.integers(0, 1_000), st.lists(st.integers(0, 1_000), max_size=6), st.integers(0, 2**32 - 1))
def test_result_does_not_depend_on_block_size(length: int, cuts: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.3, length).astype(np.float32)
    whole = WaveformPeaks()
    for piece in np.split(samples, sorted(cuts)):
        whole.push(piece)
        whole.levels()  # may be read in between
    np.testing.assert_array_equal(whole.levels(), slow_levels(samples))
    assert whole.levels().dtype == np.float32


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_columns_share_the_time(steps: int, columns: int, seed: int) -> None:
    levels = np.sort(np.random.default_rng(seed).normal(0, 1, (2, steps)).astype(np.float32), axis=0)
    reduced = reduce_peaks(levels, columns)
    assert reduced.shape == (2, columns)
    for column in range(columns):
        first = column * steps // columns
        stop = max((column + 1) * steps // columns, first + 1)
        assert reduced[0, column] == levels[0, first:stop].min()
        assert reduced[1, column] == levels[1, first:stop].max()
    if columns <= steps:
        assert (reduced[0].min(), reduced[1].max()) == (levels[0].min(), levels[1].max())


def test_no_samples_are_silence() -> None:
    assert WaveformPeaks().levels().shape == (2, 0)
    np.testing.assert_array_equal(reduce_peaks(WaveformPeaks().levels(), 4), np.zeros((2, 4)))


def test_memory_is_a_hundredth_of_the_audio() -> None:
    outline = WaveformPeaks()
    for _ in range(60):
        outline.push(np.ones(16_000, dtype=np.float32))
    assert len(pickle.dumps(outline)) < 60 * 16_000 * 4 / 50


@pytest.mark.parametrize(("shape", "columns"), [((3, 5), 2), ((5,), 2), ((2, 5), 0)])
def test_other_shapes_are_rejected(shape: tuple[int, ...], columns: int) -> None:
    with pytest.raises(ValueError, match="peaks must be"):
        reduce_peaks(np.zeros(shape), columns)


def test_stereo_is_rejected() -> None:
    with pytest.raises(ValueError, match="mono"):
        waveform_peaks(np.zeros((2, 100)))


def sine(dbfs: float, seconds: float, rate: int = 48_000, hertz: float = 1000.0, channels: int = 2) -> np.ndarray:
    """A sine (n, channels) whose peak is at `dbfs`."""
    times = np.arange(round(seconds * rate)) / rate
    return np.repeat(10 ** (dbfs / 20) * np.sin(2 * np.pi * hertz * times)[:, None], channels, axis=1)


def measure(samples: np.ndarray, rate: int = 48_000, **how: Any) -> Loudness:
    soundfile.write(file := io.BytesIO(), samples, rate, **{"format": "WAV", "subtype": "FLOAT"} | how)
    return measure_loudness(open_reader(file), len(samples))


def parts(*levels: tuple[float, float]) -> np.ndarray:
    """Sines of (dBFS, seconds), one after another."""
    return np.concatenate([sine(*level) for level in levels])


@pytest.mark.parametrize(
    ("samples", "lufs"),  # EBU Tech 3341, signals 1 to 5: ±0.1 LU
    [
        (parts((-23, 20)), -23.0),
        (parts((-33, 20)), -33.0),
        (parts((-36, 10), (-23, 60), (-36, 10)), -23.0),
        (parts((-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)), -23.0),
        (parts((-26, 20), (-20, 20.1), (-26, 20)), -23.0),
    ],
)
def test_loudness_of_the_signals_of_ebu(samples: np.ndarray, lufs: float) -> None:
    assert measure(samples).integrated == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_loudness_at_every_rate(rate: int) -> None:
    found = measure(sine(-23, 5, rate), rate)
    assert found.integrated == pytest.approx(-23.0, abs=0.1) and found.peak == pytest.approx(-23.0, abs=0.05)


def test_loudness_counts_channels_as_the_standard_does() -> None:
    # mono is 3 dB less than the same in two channels; of 5.1 the surround channels weigh 1.5 dB more, and LFE nothing
    assert measure(sine(-20, 5, channels=1)).integrated == pytest.approx(-23.0, abs=0.1)
    for channel, lufs in ((0, -23.0), (2, -23.0), (3, None), (4, -21.5)):
        surround = np.zeros((5 * 48_000, 6))
        surround[:, channel] = sine(-20, 5, channels=1)[:, 0]
        found = measure(surround, format="WAVEX", subtype="PCM_24").integrated
        assert found == (None if lufs is None else pytest.approx(lufs, abs=0.1)), channel
    assert measure(sine(-23, 5, channels=3)).integrated == pytest.approx(-21.2, abs=0.1)
    assert measure(sine(-23, 5, channels=12)).integrated is not None


def test_loudness_of_short_sounds_is_that_of_the_same_sound_repeated() -> None:
    long = measure(sine(-30, 5)).integrated
    for seconds in (0.001, 0.01, 0.1, 0.399, 0.4, 0.5, 1.0):
        assert measure(sine(-30, seconds)).integrated == pytest.approx(long, abs=0.3), seconds


def test_silence_has_no_loudness() -> None:
    for samples in (np.zeros((48_000, 2)), np.zeros((100, 1)), sine(-80, 3), np.full((48_000, 1), np.nan)):
        assert measure(samples).integrated is None
    assert measure(np.zeros((48_000, 2))).peak is None


def test_loudness_of_long_sounds_is_measured_in_parts() -> None:
    quiet, loud = sine(-40, 300, 8_000, channels=1), sine(-20, 310, 8_000, channels=1)
    samples = np.concatenate([quiet, loud])
    whole = max(measure(loud, 8_000).integrated or 0, -99)
    found = measure(samples, 8_000, subtype="PCM_16")
    assert found.integrated == pytest.approx(whole, abs=0.3) and found.peak is None


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
@pytest.mark.parametrize(
    ("suffix", "rate", "how"),
    [("wav", 44_100, {}), ("flac", 48_000, {"subtype": "PCM_24"}), ("ogg", 32_000, {}), ("mp3", 44_100, {})],
)
def test_loudness_is_that_of_ffmpeg(tmp_path: Path, suffix: str, rate: int, how: dict[str, str]) -> None:
    random = np.random.default_rng(5)
    envelope = np.repeat(random.uniform(0.001, 0.4, 20), rate)[:, None]  # for both gates
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, np.clip(random.normal(0, 1, (20 * rate, 2)) * envelope, -1, 1), rate, **how)
    program = ["ffmpeg", "-hide_banner", "-nostats", "-i", str(path), "-af", "ebur128=peak=sample", "-f", "null", "-"]
    said = subprocess.run(program, check=True, capture_output=True, text=True).stderr.rpartition("Summary:")[2]
    [integrated], [peak] = (re.findall(name, said) for name in (r"I:\s+(\S+) LUFS", r"Peak:\s+(\S+) dBFS"))
    with path.open("rb") as file:
        found = measure_loudness(open_reader(file), 20 * rate)
    assert found.integrated == pytest.approx(float(integrated), abs=0.1)
    assert found.peak == pytest.approx(float(peak), abs=0.1)
