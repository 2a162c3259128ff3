"""Boxes by change detection: equal to an exact reference written from the definition, and to the authors' package."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.detection import DetectionSettings, Event, find_events
from model.sebb import event_boxes

HOP = 0.16
Box = tuple[Fraction, Fraction, Fraction]


def slow_boxes(
    scores: list[Fraction], hop: Fraction, end: Fraction, length: Fraction, high: Any, rel: Any
) -> list[Box]:
    """The definition, step by step in exact arithmetic; frame t begins at t × hop, the last one ends at `end`."""
    stamps = [t * hop for t in range(len(scores))] + [end]
    half = length / 2

    def mean(a: Fraction, b: Fraction) -> Fraction:
        parts = zip(stamps, stamps[1:], scores, strict=False)
        return sum((max(Fraction(0), min(b, n) - max(a, m)) * s for m, n, s in parts), Fraction(0)) / (b - a)

    times = sorted({t for s in stamps for t in (s - half, s, s + half) if 0 <= t <= end})
    change = [mean(t, t + half) - mean(t - half, t) for t in times]
    boxes: list[list[int]] = []
    inside = False
    for i in range(len(times) - 1):
        rose_before = i == 0 or change[i] > change[i - 1]
        rises_now = change[i + 1] > change[i]
        if not inside and rose_before and not rises_now:
            boxes.append([i, len(times) - 1])
            inside = True
        elif inside and not rose_before and rises_now:
            boxes[-1][1] = i
            inside = False

    def values(first: int, last: int) -> list[Fraction]:
        return [mean(a, b) for a, b in zip(times[first:last], times[first + 1 : last + 1], strict=True)]

    floor = Fraction(1, 1000)
    tops = [max(values(*box)) for box in boxes]
    result = boxes[:1]
    for before, after, one, two in zip(tops, tops[1:], boxes, boxes[1:], strict=False):
        low = min(values(one[1], two[0]))
        near = all(top - low < high for top in (before, after))
        alike = all((top + floor) / (low + floor) < rel for top in (before, after))
        if near and alike:
            result[-1] = [result[-1][0], two[1]]
        else:
            result.append(two)
    return [(times[a], times[b], mean(times[a], times[b])) for a, b in result]


# sixteenths are exact in floating point, so both see the same plateaus and equal changes
tracks = st.lists(st.integers(0, 16).map(lambda n: Fraction(n, 16)), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(
    tracks,
    st.sampled_from([Fraction(4, 25), Fraction(1, 50), Fraction(1)]),
    st.fractions(Fraction(1, 10), Fraction(1), max_denominator=10),
    st.sampled_from([Fraction(8, 25), Fraction(12, 25), Fraction(1, 2), Fraction(7, 3), Fraction(9)]),
    st.sampled_from([Fraction(0), Fraction(1, 5), Fraction(11, 20), math.inf]),
    st.sampled_from([Fraction(1), Fraction(3, 2), Fraction(29, 10), math.inf]),
)
def test_boxes_equal_the_exact_reference(
    scores: list[Fraction], hop: Fraction, rest: Fraction, length: Fraction, high: Any, rel: Any
) -> None:
    end = (len(scores) - 1 + rest) * hop
    stamps = np.array([float(t * hop) for t in range(len(scores))] + [float(end)])
    found = event_boxes(np.array(scores, dtype=float), stamps, float(length), float(high), float(rel))
    expected = np.array(slow_boxes(scores, hop, end, length, high, rel), dtype=float).T
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-6)


def authors_boxes(scores: np.ndarray, stamps: np.ndarray, length: float, high: float, rel: float) -> np.ndarray:
    """The boxes (3, B) of the package `sebbs`; skips the test if it is not installed."""
    sed_metrics = pytest.importorskip("training.evaluation.sed_metrics")
    try:
        sed_metrics.toolbox()  # imports the dependencies of `sebbs` in a way that works everywhere
    except sed_metrics.MetricsMissing as missing:
        pytest.skip(str(missing))
    changes = pytest.importorskip("sebbs.change_detection", reason="the package sebbs is not installed")
    csebbs = pytest.importorskip("sebbs.csebbs", reason="the package sebbs is not installed")
    predictor = csebbs.CSEBBsPredictor(length, high, rel, sound_classes=["it"])
    (found,) = changes.change_detection(scores[:, None].astype(np.float64), stamps, length)
    boxes = predictor._get_sebbs_from_change_detection({"here": {"it": found}}, ["it"])["here"]
    return np.array([(onset, offset, score) for onset, offset, _, score in boxes]).T


def assert_the_same(found: tuple[np.ndarray, ...], expected: np.ndarray) -> None:
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    # the package divides by a length one microsecond longer
    assert (np.abs(found[2] - expected[2]) <= 3e-6 + 2e-6 / (found[1] - found[0])).all()


@pytest.mark.parametrize("kind", ["noise", "wandering", "confident"])
def test_boxes_equal_the_authors_package(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for _ in range(200):
        frames, hop = int(rng.integers(1, 80)), float(rng.choice([0.02, 0.1, 0.16, 0.32]))
        scores = {
            "noise": rng.random(frames),
            "wandering": np.clip(np.cumsum(rng.normal(0, 0.2, frames)), 0, 1) + 1e-3 * rng.random(frames),
            "confident": 1 / (1 + np.exp(-rng.normal(-3, 3, frames))),
        }[kind].astype(np.float32)
        stamps = np.arange(frames + 1) * hop
        stamps[-1] -= float(rng.choice([0, 0.03, 0.5])) * hop
        stamps = stamps.round(6)  # the package drops the last box if rounding puts it after the end
        length = float(rng.choice([0.16, 0.32, 0.48, 0.5, 0.64, 0.77, 1.3, 5.0]))
        merge = float(rng.choice([0.1, 0.2, 0.5, 1.0, np.inf])), float(rng.choice([1.5, 2.0, 3.0, np.inf]))
        expected = authors_boxes(scores, stamps, length, *merge)
        assert_the_same(event_boxes(scores, stamps, length, *merge), expected)


def test_boxes_of_real_scores_equal_the_authors_package(repo_dir: Path, small_checkpoint: Path) -> None:
    soundfile, soxr = pytest.importorskip("soundfile"), pytest.importorskip("soxr")
    from model.finelap import FineLAP

    model = FineLAP.from_pretrained(small_checkpoint)
    sounds = []
    for name in ("dog-barking-2b3a93", "thunder-4ac79b", "rain-9a5405", "glass-shattering-cd90fe"):
        samples, rate = soundfile.read(repo_dir / f"demo/sounds/{name}.ogg", dtype="float32", always_2d=True)
        sounds.append(soxr.resample(samples.mean(1), rate, 16_000))
    (heard,) = model.encode_audio([np.concatenate(sounds)], 16_000)
    texts = model.encode_text(["dog barking", "thunder", "rain", "glass shattering", "speech"])
    for row in model.frame_score(heard.frames, texts).numpy():
        stamps = (np.arange(len(row) + 1) * heard.frame_hop).round(6)
        for length, high, rel in ((0.32, 1.0, 2.0), (0.5, 0.2, math.inf), (0.96, 0.3, 3.0)):
            expected = authors_boxes(row, stamps, length, high, rel)
            assert_the_same(event_boxes(row, stamps, length, high, rel), expected)


def boxed(**how: Any) -> DetectionSettings:
    return DetectionSettings(method="sebb", step_filter_length=2.0, **how)


def test_events_are_the_boxes_that_reach_the_threshold() -> None:
    scores = np.array([0, 0, 0.9, 0.8, 0.9, 0, 0, 0, 0.4, 0.4, 0, 0], dtype=np.float32)
    first, second = Event(2.0, 5.0, pytest.approx(2.6 / 3)), Event(8.0, 10.0, pytest.approx(0.4))
    assert find_events(scores, boxed(), 1.0, 12.0) == [first]
    assert find_events(scores, boxed(threshold=0.4), 1.0, 12.0) == [first, second]
    assert find_events(scores, boxed(threshold=0.4, min_duration=2.5), 1.0, 12.0) == [first]
    assert find_events(scores, boxed(threshold=0.4, max_gap=3.0), 1.0, 12.0) == [Event(2.0, 10.0, first.score)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), max_size=60), st.floats(0.0, 1.0), st.floats(0.0, 2.0), st.integers(-1, 2))
def test_boxed_events_are_ordered_apart_and_inside(
    scores: list[float], threshold: float, shortest: float, cut: int
) -> None:
    duration = max(0.05, len(scores) * HOP - cut * 0.07)
    how = DetectionSettings(threshold, min_duration=shortest, method="sebb")
    events = find_events(np.array(scores), how, HOP, duration)
    for event in events:
        assert 0 <= event.onset < event.offset <= duration
        assert np.float32(event.score) >= np.float32(threshold)
        assert event.offset - event.onset >= shortest - 1e-6
    for before, after in zip(events, events[1:], strict=False):
        assert after.onset - before.offset > how.max_gap
