"""The tracks over which PSDS is taken say what detection says, at every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.model.detection import Way, reaching
from model.detection import DetectionSettings, find_events
from training.evaluation.sed_metrics import Scored

HOP = 0.16


def frames_inside(row: np.ndarray, how: DetectionSettings, duration: float, step: float) -> np.ndarray:
    """Which steps lie in an event."""
    active = np.zeros(round(duration / step), dtype=bool)
    for event in find_events(row, how, HOP, duration):
        active[round(event.onset / step) : round(event.offset / step)] = True
    return active


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=30),
    st.integers(1, 8).map(lambda n: n / 8),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_hysteresis_as_one_track(row: list[float], threshold: float, ratio: float) -> None:
    scores = np.array(row, dtype=np.float32)
    how = DetectionSettings(threshold, median_filter=0, max_gap=0, low_threshold=ratio * threshold)
    expected = frames_inside(scores, how, len(scores) * HOP, HOP)
    np.testing.assert_array_equal(reaching(scores[None], ratio)[0] >= threshold, expected)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
def test_boxes_as_one_track(threshold: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.random((1, 40)).astype(np.float32) ** 2
        way = Way("boxes", DetectionSettings(method="sebb", max_gap=0))
        recording = Scored(scores, [[]], HOP, 40 * HOP)
        track = way.over_all_thresholds(recording)
        expected = frames_inside(scores[0], way.at(threshold), 40 * HOP, track.frame_hop)
        np.testing.assert_array_equal(track.scores[0] >= threshold, expected)
