"""The tracks that PSDS is computed on agree with detection at every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks.model.detection import Method, reaching
from model.detection import DetectionSettings, find_events
from training.evaluation.sed_metrics import Scored

HOP = 0.16


def frames_inside(row: np.ndarray, settings: DetectionSettings, duration: float, step: float) -> np.ndarray:
    """Marks the steps that lie in an event."""
    active = np.zeros(round(duration / step), dtype=bool)
    for event in find_events(row, settings, HOP, duration):
        active[round(event.onset / step) : round(event.offset / step)] = True
    return active


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=30),
    st.integers(1, 8).map(lambda n: n / 8),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_a_hysteresis_track_equals_find_events(row: list[float], threshold: float, ratio: float) -> None:
    scores = np.array(row, dtype=np.float32)
    settings = DetectionSettings(threshold, median_filter=0, max_gap=0, low_threshold=ratio * threshold)
    expected = frames_inside(scores, settings, len(scores) * HOP, HOP)
    np.testing.assert_array_equal(reaching(scores[None], ratio)[0] >= threshold, expected)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
def test_a_box_track_equals_find_events(threshold: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.random((1, 40)).astype(np.float32) ** 2
        method = Method("boxes", DetectionSettings(method="sebb", max_gap=0))
        recording = Scored(scores, [[]], HOP, 40 * HOP)
        track = method.over_all_thresholds(recording)
        expected = frames_inside(scores[0], method.at(threshold), 40 * HOP, track.frame_hop)
        np.testing.assert_array_equal(track.scores[0] >= threshold, expected)
