"""Counts of long-form detection, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.longform import (
    VOICES,
    Answered,
    Longform,
    counts_of,
    longform_figures,
    play,
    sounding_at_once,
)
from benchmarks.quality.recordings import Detected, Recording
from model.config import SAMPLE_RATE

EVENTS = {"dog": [(0.0, 4.0), (10.0, 12.0)], "bell": [(1.0, 3.0)], "rain": [(2.0, 6.0), (12.0, 13.0)]}
RECORDING = Recording(np.empty(0, np.float32), "wind", EVENTS, ("owl",))
# dog: one detection finds the first event too late to match; bell: missed; rain: both matched, one false; owl: false
FOUND = [[(3.0, 5.0)], [], [(2.0, 6.0), (12.0, 13.0), (20.0, 21.0)], [(0.0, 1.0)]]


def test_the_most_sounds_at_one_moment_of_an_event() -> None:
    assert sounding_at_once(EVENTS) == {"dog": [3, 1], "bell": [3], "rain": [3, 1]}
    assert sounding_at_once({"dog": []}) == {"dog": []}


def test_a_sound_that_begins_as_another_ends_is_not_at_once() -> None:
    assert sounding_at_once({"a": [(0.0, 1.0)], "b": [(1.0, 2.0)]}) == {"a": [1], "b": [1]}


def test_counts_by_hand() -> None:
    counts = counts_of(Longform(RECORDING, sounding_at_once(EVENTS)), FOUND, 0.5)
    true, detections, right, matched, found, minutes = counts[:6]
    assert (true, detections, right, matched, found, minutes) == (5, 5, 3, 2, 3, 0.5)
    assert counts[6:].tolist() == [2, 1, 0, 0, 3, 2, 0, 0], "two alone, one of them found; three at once, two found"
    assert len(counts) == 6 + 2 * VOICES


def test_figures_of_each_method() -> None:
    hop, frames = 0.1, 300
    scores = np.full((4, frames), 0.05, np.float32)
    for row, (onset, offset) in ((0, EVENTS["dog"][0]), (2, EVENTS["rain"][0]), (3, (20.0, 22.0))):
        scores[row, round(onset / hop) : round(offset / hop)] = 0.95
    detected = Detected(RECORDING, FOUND, scores, hop, frames * hop)
    figures, (row, _) = longform_figures(
        [Answered(Longform(RECORDING, sounding_at_once(EVENTS)), detected, 2.0, 3.0)] * 2
    )
    values = {name: figure.value for name, figure in figures.items()}
    assert values["recall, the defaults"] == pytest.approx(60) and values["F1, the defaults"] == pytest.approx(40)
    assert values["recall, threshold"] == values["recall, sebb"] == pytest.approx(40)
    assert values["false events per minute, threshold"] == pytest.approx(2)
    assert values["recall with 3 at once, threshold"] == pytest.approx(200 / 3)
    assert (row["events"], row["sounds at once, most"], row["seconds of /detect"]) == (5, 3, 2.0)
    assert row["sounds at once, mean"] == pytest.approx(13 / 30, abs=1e-3)


def test_a_voice_plays_its_sounds_one_after_another() -> None:
    tone = np.sin(np.arange(SAMPLE_RATE) * 0.3).astype(np.float32)
    samples, events = np.zeros(120 * SAMPLE_RATE, np.float32), {"a": [], "b": []}
    play(samples, [("a", tone), ("b", tone)], events, np.random.default_rng(0))
    every = sorted(events["a"] + events["b"])
    assert len(every) > 40 and events["a"] and events["b"]
    assert all(first[1] <= second[0] for first, second in zip(every, every[1:], strict=False))
    assert set(sounding_at_once(events)["a"]) == {1}
    heard = sum(offset - onset for onset, offset in every) / 120
    assert heard == pytest.approx(0.5, abs=0.05), "pauses are as long as the sounds on average"
    for onset, offset in every:
        assert np.abs(samples[round(onset * SAMPLE_RATE) : round(offset * SAMPLE_RATE)]).max() > 0
