"""Plots mark clips and events at the right positions."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.image import imread

from model.config import SAMPLE_RATE
from training.simulation.plots import mixture_png, stretch_png

SHADE = "#fbe5d8"  # the orange of the clip's stretch, blended with white


def pixels(png: bytes) -> np.ndarray:
    return (imread(io.BytesIO(png), format="png")[..., :3] * 255).round().astype(int)


def columns_of(image: np.ndarray, colour: str) -> np.ndarray:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.flatnonzero((np.abs(image - wanted).max(-1) <= 3).any(0))


def test_the_stretch_is_marked_at_its_position() -> None:
    samples = np.zeros(4 * SAMPLE_RATE, np.float32)
    samples[SAMPLE_RATE : 3 * SAMPLE_RATE] = np.sin(np.arange(2 * SAMPLE_RATE) * 0.2)
    marked = columns_of(pixels(stretch_png(samples, (1.0, 3.0), -50.0, "a $bell$ _1")), SHADE)
    whole = columns_of(pixels(stretch_png(samples, (0.0, 4.0), -50.0, "a")), SHADE)
    assert 0.48 < np.ptp(marked) / np.ptp(whole) < 0.52
    assert abs((marked.min() + marked.max()) - (whole.min() + whole.max())) < 0.02 * np.ptp(whole)


def test_a_mixture_has_one_row_per_event() -> None:
    samples = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32) * 0.1
    events = [("bell $x", [(0.0, 0.5), (1.5, 2.0)]), ("a" * 80, [(0.5, 1.0)])]
    png = mixture_png(samples, events, "rain", "A bell.")
    assert png == mixture_png(samples, events, "rain", "A bell.")
    image = pixels(png)
    bell, long = columns_of(image, "#e8590c"), columns_of(image, "#2b8a3e")
    assert bell.min() < long.min() < long.max() < bell.max()
    assert abs((bell.max() - bell.min()) / (long.max() - long.min()) - 4) < 0.2
    assert len(mixture_png(samples, events[:1], "rain", "A bell.")) != len(png)
