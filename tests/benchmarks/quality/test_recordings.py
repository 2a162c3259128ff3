"""Long recordings have the events that they list, and their figures equal hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.recordings import (
    Detected,
    Recording,
    compose,
    counts_of,
    figures_of_search,
    long_figures,
    looped,
)
from model.config import SAMPLE_RATE
from training.data.activity import rms

DOG, CLOCK, OWL = [(1.0, 2.0), (2.5, 3.0)], [(10.0, 12.0)], ()
RECORDING = Recording(np.empty(0, np.float32), "wind", {"dog": DOG, "clock": CLOCK}, ("owl",))


def test_counts_of_a_recording() -> None:
    events = [
        [
            (0.9, 2.1),
            (2.1, 2.4),
            (5.0, 6.0),
        ],  # dog: the first matches, the second lies in the pause, the third is false
        [],  # clock: missed
        [(20.0, 21.0)],  # owl: false
    ]
    found, true, right, detections, matched, stretches, minutes = counts_of(RECORDING, events, 30.0)
    assert (found, true) == (1, 2)
    assert (right, detections) == (2, 4)
    assert (matched, stretches) == (1, 3)
    assert minutes == 0.5


def test_an_event_that_only_touches_another_is_false() -> None:
    assert counts_of(RECORDING, [[(3.0, 4.0)], [], []], 30.0)[2] == 0


def test_long_figures_of_known_scores() -> None:
    scores = np.full((3, 200), 0.05, np.float32)
    scores[0, 10:30] = 0.85  # dog, 1.0 to 3.0 s
    scores[1, 100:120] = 0.65  # clock, 10 to 12 s
    scores[2, 50:70] = 0.75  # owl, which is absent
    recording = Recording(np.empty(0, np.float32), "wind", {"dog": [(1.0, 3.0)], "clock": CLOCK}, ("owl",))
    detected = Detected(recording, [[(1.0, 3.0)], [(10.0, 12.0)], [(5.0, 7.0)]], scores, 0.1, 20.0)
    figures, rows = long_figures([detected, detected])
    values = {name: figure.value for name, figure in figures.items()}
    assert values["recall at the default settings"] == 100
    assert values["precision at the default settings"] == pytest.approx(200 / 3)
    assert values["false events per minute at the default settings"] == pytest.approx(3)
    assert values["F1 at the default settings"] == pytest.approx(80)
    assert values["recall with one false event a minute, threshold"] == 50  # at 0.8 only the dog is left
    assert values["F1 at the best threshold, threshold"] == pytest.approx(80)
    at = {row["threshold"]: row for row in rows if row["method"] == "threshold"}
    assert (at[0.7]["recall"], at[0.7]["precision"], at[0.7]["false events per minute"]) == (50, 50, 3)
    assert (at[0.9]["recall"], at[0.9]["precision"]) == (0, None)
    assert {row["method"] for row in rows} == {"threshold", "sebb"}


def test_a_recording_has_its_events_apart_and_above_the_background() -> None:
    rng = np.random.default_rng(0)
    bed = (0.05 * rng.standard_normal(60 * SAMPLE_RATE)).astype(np.float32)
    sound = np.sin(np.arange(2 * SAMPLE_RATE) * 0.3).astype(np.float32)
    recording = compose(bed, [("a", sound), ("b", sound), ("c", sound)], rng)
    spans = sorted((stretches[0][0], stretches[-1][1]) for stretches in recording.events.values())
    assert [round(offset - onset, 1) for onset, offset in spans] == [2.0] * 3
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    quiet = np.ones(len(bed), bool)
    for onset, offset in spans:
        quiet[round(onset * SAMPLE_RATE) : round(offset * SAMPLE_RATE)] = False
    for onset, offset in spans:
        event = recording.samples[round(onset * SAMPLE_RATE) : round(offset * SAMPLE_RATE)]
        above = 20 * np.log10(rms(event) / rms(recording.samples[quiet]))
        assert 0 < above < 21
    assert 0.06 < np.abs(recording.samples).max() < 0.95


def test_a_loop_has_no_gaps_and_an_even_level() -> None:
    noise = np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE).astype(np.float32)
    whole = looped(noise, 23 * SAMPLE_RATE)
    assert len(whole) == 23 * SAMPLE_RATE
    levels = [rms(part) for part in np.split(whole, 92)]
    assert min(levels) > 0.93 and max(levels) < 1.07
    np.testing.assert_array_equal(looped(noise, SAMPLE_RATE), noise[:SAMPLE_RATE])


def test_shares_of_a_search() -> None:
    figures = figures_of_search(np.array([1, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool))
    assert [figure.value for figure in figures.values()] == [50, 50, 50, 100]
