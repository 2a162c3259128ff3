"""Waveform peaks match a simple reference for every block size, and reducing them loses no peak."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audio.peaks import STEP, WaveformPeaks, reduce_peaks, waveform_peaks


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
