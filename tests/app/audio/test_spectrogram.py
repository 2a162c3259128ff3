"""The display spectrogram matches a simple reference for every block size and shows tones and clicks correctly."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio.peaks import waveform_peaks
from app.audio.spectrogram import BANDS, HOP, WINDOW, StreamingSpectrogram, WaveformPreview
from model.audio import mel_filters
from model.config import SAMPLE_RATE


def slow_levels(samples: np.ndarray, step: int) -> np.ndarray:
    """The reference: column by column, frame by frame, in double precision; decibels before rounding, (c, BANDS)."""
    filters = mel_filters(BANDS, 20.0).numpy().astype(np.float64)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    columns = []
    for first in range(0, len(samples), step * HOP):
        powers = []
        for middle in range(first + HOP // 2, first + step * HOP, HOP):
            frame = np.zeros(WINDOW)
            for n in range(WINDOW):
                at = middle - WINDOW // 2 + n
                frame[n] = samples[at] * taper[n] if 0 <= at < len(samples) else 0.0
            powers.append(np.abs(np.fft.rfft(frame) / (taper.sum() / 2)) ** 2 @ filters)
        columns.append(10 * np.log10(np.maximum(np.max(powers, axis=0), 1e-13)))
    return np.array(columns).reshape(-1, BANDS)


def whole_spectrum(samples: np.ndarray, step: int) -> np.ndarray:
    spectrum = StreamingSpectrogram(step)
    return np.concatenate([spectrum.push(samples), spectrum.finish()])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4_000), st.sampled_from([1, 3, 10, 130]), st.integers(0, 2**32 - 1))
def test_matches_the_reference_implementation(length: int, step: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.3, length).astype(np.float32)
    given, wanted = whole_spectrum(samples, step), 2 * (slow_levels(samples, step) + 127.5)
    assert given.shape == wanted.shape and given.dtype == np.uint8
    np.testing.assert_allclose(given, np.clip(wanted, 0, 255), atol=0.51)  # half of it is rounding


@given(
    st.integers(0, 60_000), st.lists(st.integers(0, 60_000), max_size=8), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
def test_result_does_not_depend_on_block_size(length: int, cuts: list[int], step: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.3, length).astype(np.float32)
    spectrum = StreamingSpectrogram(step)
    pieces = [spectrum.push(piece) for piece in np.split(samples, sorted(cuts))]
    np.testing.assert_array_equal(np.concatenate([*pieces, spectrum.finish()]), whole_spectrum(samples, step))


@pytest.mark.parametrize("hertz", [100.0, 1_000.0, 6_000.0])
def test_full_scale_tone_has_the_maximum_level(hertz: float) -> None:
    second = np.sin(2 * np.pi * hertz * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    levels = whole_spectrum(
        np.concatenate([np.zeros(SAMPLE_RATE, np.float32), second, np.zeros(SAMPLE_RATE, np.float32)]), 10
    )
    assert levels.shape == (30, BANDS)
    frequencies = np.array(WaveformPreview(0.1).header()["frequencies"])
    inside = levels[11:19]
    assert abs(frequencies[inside[0].argmax()] - hertz) < 0.08 * hertz + 20
    assert inside.max() / 2 - 127.5 > -3.5  # dB; a tone between two bands is shared by both
    assert levels[:9].max() == 0 and levels[21:].max() == 0


def test_click_stays_visible_in_a_column_of_seconds() -> None:
    samples = np.zeros(10 * SAMPLE_RATE, np.float32)
    samples[5 * SAMPLE_RATE + 300] = 1.0
    assert whole_spectrum(samples, 200).max(axis=1).argmax() == 2
    assert whole_spectrum(samples, 200)[2].min() > 100


@pytest.mark.parametrize("samples", [np.zeros((2, 10)), np.zeros(())])
def test_samples_that_are_not_mono_are_rejected(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mono"):
        StreamingSpectrogram(1).push(samples)


def test_column_needs_at_least_one_frame() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        StreamingSpectrogram(0)


def unpacked(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes consecutive lines to peaks (c, 2) as floats and levels (c, BANDS)."""
    at, peaks, levels = 0, [np.empty((0, 2))], [np.empty((0, BANDS), np.uint8)]
    for line in lines:
        assert line["type"] == "outline" and line["first"] == at
        peaks.append(np.frombuffer(base64.b64decode(line["peaks"]), "<i2").reshape(line["columns"], 2) / 32_767)
        levels.append(np.frombuffer(base64.b64decode(line["spectrum"]), np.uint8).reshape(line["columns"], BANDS))
        at += line["columns"]
    return np.concatenate(peaks), np.concatenate(levels)


@pytest.mark.parametrize(("asked", "step"), [(0.1, 10), (0.014, 1), (0.001, 1), (2.0, 200)])
def test_lines_have_peaks_and_spectrogram_on_one_grid(asked: float, step: int) -> None:
    samples = np.clip(np.random.default_rng(0).normal(0, 0.5, 12_345), -1.2, 1.2).astype(np.float32)
    sketch, lines = WaveformPreview(asked), []
    assert sketch.header()["step"] == step / 100 and len(sketch.header()["frequencies"]) == BANDS
    for piece in np.array_split(samples, 17):
        sketch.push(piece)
        lines.append(sketch.take_line())
    sketch.finish()
    lines += [sketch.take_line(), sketch.take_line()]
    assert lines[-1] is None
    peaks, levels = unpacked([line for line in lines if line is not None])
    np.testing.assert_array_equal(levels, whole_spectrum(samples, step))
    fine = waveform_peaks(samples)
    for column in range(len(peaks)):
        part = fine[:, column * step : (column + 1) * step]
        wanted = np.clip([part[0].min(), part[1].max()], -1, 1)
        np.testing.assert_allclose(peaks[column], wanted, atol=2e-5)


def test_memory_and_output_are_bounded() -> None:
    sketch, sent, held = WaveformPreview(0.1), 0, 0
    minute = np.random.default_rng(0).normal(0, 0.1, 60 * SAMPLE_RATE).astype(np.float32)
    for _ in range(5):
        sketch.push(minute)
        held = max(held, len(pickle.dumps(sketch)))
        line = sketch.take_line()
        assert line is not None
        sent += len(line["peaks"]) + len(line["spectrum"])
    assert held < 500_000
    assert sent * 12 < 2_600_000
