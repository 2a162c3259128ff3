"""Detection: fast paths equal slow references, and the documented rules hold."""

from __future__ import annotations

import dataclasses
import math
import pickle
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from model.detection import (
    EDGE_SHARE,
    END_SHARE,
    LOW_SHARE,
    DetectionSettings,
    Event,
    EventStream,
    Moment,
    find_events,
    find_moments,
    median_frames,
    median_smooth,
)
from model.median import MedianStream

HOP = 0.16

tracks = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=40)
levels = st.integers(0, 20).map(lambda n: n / 20)
seconds = st.integers(0, 12).map(lambda n: round(n * 0.08, 2))


def slow_median(scores: list[float], length: int) -> list[float]:
    """The median of `length` frames around each; frames out of range are mirrored, edges repeated."""
    n, half = len(scores), length // 2

    def at(i: int) -> float:
        i %= 2 * n
        return scores[i] if i < n else scores[2 * n - 1 - i]

    return [statistics.median(at(t + d) for d in range(-half, half + 1)) for t in range(n)]


def slow_split(smooth: list[float], first: int, stop: int) -> list[list[int]]:
    """The run in parts: each ends before a score that is below a share of its highest so far."""
    parts, highest = [[first, first + 1]], smooth[first]
    for t in range(first + 1, stop):
        if smooth[t] < float(np.float32(END_SHARE) * np.float32(highest)):
            parts.append([t, t + 1])
            highest = smooth[t]
        else:
            parts[-1][1] = t + 1
            highest = max(highest, smooth[t])
    return parts


def slow_events(
    scores: list[float], how: DetectionSettings, hop: float, duration: float
) -> list[tuple[float, float, float]]:
    """Frame by frame: smooth, open and close runs, keep those that reach the threshold, merge pairs until none is close
    enough, drop the short ones.
    """
    scores = [s for t, s in enumerate(scores) if t == 0 or t * hop < duration - 1e-6]
    smooth = [float(np.float32(s)) for s in slow_median(scores, median_frames(how.median_filter, hop))]
    threshold = float(np.float32(how.threshold))
    low = float(np.float32(LOW_SHARE * how.threshold if how.low_threshold is None else how.low_threshold))
    events: list[list[int]] = []
    for t, score in enumerate(smooth):
        if score >= low:
            if events and events[-1][1] == t:
                events[-1][1] = t + 1
            else:
                events.append([t, t + 1])
    if how.low_threshold is None:
        events = [part for event in events for part in slow_split(smooth, *event)]
    events = [e for e in events if any(score >= threshold for score in smooth[e[0] : e[1]])]
    for event in events if how.low_threshold is None else []:
        edge = float(np.float32(EDGE_SHARE) * np.float32(max(smooth[event[0] : event[1]])))
        while smooth[event[0]] < edge:
            event[0] += 1
        while smooth[event[1] - 1] < edge:
            event[1] -= 1
    merged = True
    while merged:
        merged = False
        for i in range(len(events) - 1):
            if (events[i + 1][0] - events[i][1]) * hop <= how.max_gap + 1e-6:
                events[i : i + 2] = [[events[i][0], events[i + 1][1]]]
                merged = True
                break
    out = []
    for first, stop in events:
        onset, offset = first * hop, min(stop * hop, duration)
        if offset - onset >= how.min_duration - 1e-6:
            out.append((onset, offset, max(smooth[first:stop])))
    return out


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9, 31])
@pytest.mark.parametrize("frames", [1, 2, 3, 8, 64, 500])
def test_median_equals_scipy_with_reflection(length: int, frames: int) -> None:
    scores = np.random.default_rng(length * 1000 + frames).random((3, frames), dtype=np.float32)
    smooth = median_smooth(scores, length * HOP, HOP)
    np.testing.assert_array_equal(smooth, [slow_median(row.tolist(), length) for row in scores])
    if length <= 8 * frames:  # SciPy 1.17 is wrong for short tracks that are mirrored more often
        np.testing.assert_array_equal(smooth, median_filter(scores, size=(1, length), mode="reflect"))


def test_median_in_blocks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((2, 300), dtype=np.float32)
    whole = median_smooth(scores, 9 * HOP, HOP)
    monkeypatch.setattr("model.median._MEDIAN_BLOCK", 50)
    np.testing.assert_array_equal(median_smooth(scores, 9 * HOP, HOP), whole)


@pytest.mark.parametrize(
    ("length", "frames"), [(0.0, 1), (0.1, 1), (0.31, 1), (0.32, 3), (0.48, 3), (0.5, 3), (0.64, 5), (0.8, 5)]
)
def test_median_length_in_frames(length: float, frames: int) -> None:
    assert median_frames(length, HOP) == frames


@settings(max_examples=300, deadline=None)
@given(tracks, levels, levels, seconds, seconds, seconds, st.integers(-3, 3))
def test_events_equal_the_slow_reference(
    scores: list[float], threshold: float, low: float, median: float, shortest: float, gap: float, cut: int
) -> None:
    how = DetectionSettings(threshold, median, shortest, gap, low if low <= threshold else None)
    duration = max(0.01, len(scores) * HOP + cut * 0.11)
    found = find_events(np.array(scores), how, HOP, duration)
    expected = slow_events(scores, how, HOP, duration)
    assert len(found) == len(expected)
    for event, (onset, offset, score) in zip(found, expected, strict=True):
        assert (event.onset, event.offset, event.score) == pytest.approx((onset, offset, score))


def test_a_long_run_with_many_ends_equals_the_slow_reference() -> None:
    scores = np.random.default_rng(0).choice([0.21, 0.3, 0.5, 0.9], 2000, p=[0.01, 0.2, 0.7, 0.09])
    how = DetectionSettings(median_filter=0.0, max_gap=0.0)
    expected = slow_events(scores.tolist(), how, HOP, 2000 * HOP)
    assert len(expected) > 40
    found = find_events(scores, how, HOP, 2000 * HOP)
    assert [dataclasses.astuple(event) for event in found] == [pytest.approx(event) for event in expected]


def test_a_sound_that_comes_again_is_another_event() -> None:
    scores = np.array([0.0] * 5 + [0.9] * 6 + [0.3] * 6 + [0.8] * 6 + [0.0] * 5)
    apart = find_events(scores, DetectionSettings(), HOP, len(scores) * HOP)
    assert [(e.onset, e.offset) for e in apart] == [
        pytest.approx((5 * HOP, 11 * HOP)),
        pytest.approx((17 * HOP, 23 * HOP)),
    ]
    scores[11:17] = 0.32  # above 35 % of 0.9
    joined = find_events(scores, DetectionSettings(), HOP, len(scores) * HOP)
    assert [(e.onset, e.offset) for e in joined] == [pytest.approx((5 * HOP, 23 * HOP))]
    scores[11:17] = 0.3
    assert len(find_events(scores, DetectionSettings(low_threshold=0.2), HOP, len(scores) * HOP)) == 1


@settings(max_examples=200, deadline=None)
@given(tracks, st.integers(0, 20).map(lambda n: n / 20), seconds, seconds)
def test_events_are_ordered_apart_and_inside(
    scores: list[float], threshold: float, shortest: float, gap: float
) -> None:
    duration = len(scores) * HOP - 0.05
    events = find_events(np.array(scores), DetectionSettings(threshold, 0.0, shortest, gap), HOP, duration)
    for event in events:
        assert 0 <= event.onset < event.offset <= duration
        assert event.score >= np.float32(threshold)
        assert event.offset - event.onset >= shortest - 1e-6
    for before, after in zip(events, events[1:], strict=False):
        assert after.onset - before.offset > gap


def test_event_times_and_scores() -> None:
    scores = np.array([0, 0, 0.6, 0.9, 0.7, 0, 0, 0, 0.8], dtype=np.float32)
    plain = DetectionSettings(median_filter=0, max_gap=0)
    assert find_events(scores, plain, 0.5, 4.3) == [
        Event(1.0, 2.5, pytest.approx(0.9)),
        Event(4.0, 4.3, pytest.approx(0.8)),  # the recording ends inside the last frame
    ]


def test_events_are_merged_before_short_ones_are_dropped() -> None:
    scores = np.array([0, 1, 0, 1, 0, 0, 0, 0, 1, 0], dtype=np.float32)
    how = DetectionSettings(median_filter=0, max_gap=1.0, min_duration=2.0)
    assert find_events(scores, how, 1.0, 10.0) == [Event(1.0, 4.0, 1.0)]


def test_a_score_equal_to_the_threshold_counts() -> None:
    how = DetectionSettings(threshold=0.7, median_filter=0)
    assert len(find_events(np.array([0.7], dtype=np.float32), how, HOP, HOP)) == 1


def test_median_removes_a_single_outlier() -> None:
    scores = np.zeros(20, dtype=np.float32)
    scores[10] = 1
    assert find_events(scores, DetectionSettings(), HOP, 20 * HOP) == []
    assert len(find_events(scores, DetectionSettings(median_filter=0), HOP, 20 * HOP)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.1},
        {"threshold": math.nan},
        {"median_filter": -1.0},
        {"median_filter": 61.0},
        {"min_duration": math.inf},
        {"max_gap": -0.1},
        {"low_threshold": 0.6},
        {"low_threshold": -0.1},
        {"low_threshold": math.nan},
        {"low_threshold": 0.3, "method": "sebb"},
        {"method": "median"},
        {"step_filter_length": 0.0},
        {"step_filter_length": 61.0},
        {"step_filter_length": math.nan},
        {"merge_threshold_abs": -0.1},
        {"merge_threshold_abs": math.nan},
        {"merge_threshold_rel": 0.9},
        {"merge_threshold_rel": math.nan},
    ],
)
def test_invalid_settings_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectionSettings(**wrong)


def test_a_low_threshold_extends_events_without_adding_any() -> None:
    scores = np.array([0, 0.4, 0.3, 0.8, 0.4, 0, 0, 0, 0.4, 0.4, 0], dtype=np.float32)
    how = DetectionSettings(threshold=0.7, low_threshold=0.3, median_filter=0, max_gap=0)
    assert find_events(scores, how, 1.0, 11.0) == [Event(1.0, 5.0, pytest.approx(0.8))]


@st.composite
def streamed(draw: st.DrawFn) -> tuple[np.ndarray, list[int], DetectionSettings, float]:
    """Draws scores, cut positions, settings, and a duration with at most one frame past the end."""
    scores = np.array(draw(st.one_of(tracks, st.just([]))))
    cuts = sorted(draw(st.lists(st.integers(0, len(scores)), max_size=8)))
    threshold, low = draw(levels), draw(levels)
    method = draw(st.sampled_from(["threshold", "threshold", "threshold", "sebb"]))
    how = DetectionSettings(
        threshold,
        draw(seconds),
        draw(seconds),
        draw(seconds),
        low if low <= threshold and method == "threshold" else None,
        method,
    )
    return scores, cuts, how, max(0.01, len(scores) * HOP + draw(st.sampled_from([-0.3, -0.16, -0.1, 0.0, 0.5])))


@settings(max_examples=600, deadline=None)
@given(streamed())
def test_a_stream_finds_the_same_events_as_the_whole_track(
    case: tuple[np.ndarray, list[int], DetectionSettings, float],
) -> None:
    scores, cuts, how, duration = case
    stream = EventStream(how, HOP)
    found: list[Event] = []
    for piece in np.split(scores, cuts):
        found += stream.push(piece)
    assert found + stream.finish(duration) == find_events(scores, how, HOP, duration)


@settings(max_examples=150, deadline=None)
@given(streamed())
def test_a_stream_returns_an_event_as_soon_as_it_is_final(
    case: tuple[np.ndarray, list[int], DetectionSettings, float],
) -> None:
    scores, _, how, _ = case
    how = dataclasses.replace(how, method="threshold", median_filter=0)  # a median delays by half its length
    stream = EventStream(how, HOP, spare=0)
    given_out: list[Event] = []
    for t in range(len(scores)):
        given_out += stream.push(scores[t : t + 1])
        # possible continuations: high scores, just high enough ones, low ones, none, and high after low ones
        ends = []
        enough = np.full(200, how.threshold)
        for future in (np.ones(200), enough, np.zeros(200), np.ones(0), np.r_[np.zeros(60), np.ones(100)]):
            whole = np.concatenate([scores[: t + 1], future])
            ends.append(find_events(whole, how, HOP, len(whole) * HOP))
        certain = [e for e in ends[0] if all(e in other for other in ends)]
        assert given_out == [e for e in certain if e.offset <= (t + 1) * HOP]


@settings(max_examples=200, deadline=None)
@given(tracks, seconds, st.integers(0, 3), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 3))
def test_the_median_of_a_stream_equals_the_whole(
    scores: list[float], median: float, spare: int, cuts: list[int], drop: int
) -> None:
    drop = min(drop, spare, len(scores))
    stream = MedianStream(median, HOP, spare)
    parts = [stream.push(piece) for piece in np.split(np.array(scores, dtype=np.float32), sorted(cuts))]
    smooth = np.concatenate([*parts, stream.finish(drop)])
    np.testing.assert_array_equal(smooth, median_smooth(np.array(scores[: len(scores) - drop]), median, HOP))


def test_the_memory_of_a_stream_does_not_grow() -> None:
    how = DetectionSettings(median_filter=4.0, max_gap=5.0, low_threshold=0.2)
    stream, rng = EventStream(how, HOP), np.random.default_rng(0)
    sizes = []
    for _ in range(200):
        stream.push(rng.random(400) ** 4)
        sizes.append(len(pickle.dumps(stream)))
    assert max(sizes) <= sizes[0] + 200


def test_a_stream_rejects_an_end_before_final_events() -> None:
    stream = EventStream(DetectionSettings(), HOP)
    stream.push(np.ones(10))
    with pytest.raises(ValueError, match="4 frames begin after the end"):
        stream.finish(6 * HOP)


def test_several_tracks_at_once_are_rejected() -> None:
    with pytest.raises(ValueError, match="shape"):
        find_events(np.zeros((2, 5)), DetectionSettings(), HOP, 1.0)
    with pytest.raises(ValueError, match="shape"):
        EventStream(DetectionSettings(), HOP).push(np.zeros((2, 5)))


def test_moments_without_a_frame_above_the_threshold() -> None:
    scores = np.full(50, 0.002, dtype=np.float32)
    scores[10:14] = 0.04
    scores[30:33] = 0.03
    best, second = find_moments(scores, HOP, 8.0, 5)
    assert (best.start, best.end) == pytest.approx((10 * HOP, 14 * HOP))
    assert (second.start, second.end) == pytest.approx((30 * HOP, 33 * HOP))
    assert find_moments(scores, HOP, 8.0, 1) == [best]


def test_a_clip_that_matches_throughout_is_one_moment() -> None:
    scores = np.linspace(0.7, 0.9, 30, dtype=np.float32)
    assert find_moments(scores, HOP, 4.75, 3) == [Moment(0.0, 4.75, pytest.approx(0.9, abs=0.01))]


@settings(max_examples=200, deadline=None)
@given(tracks, st.integers(1, 5))
def test_every_clip_has_a_moment_and_the_best_is_first(scores: list[float], limit: int) -> None:
    duration = len(scores) * HOP
    moments = find_moments(np.array(scores), HOP, duration, limit)
    assert 1 <= len(moments) <= limit
    assert moments[0].score == pytest.approx(max(slow_median([float(np.float32(s)) for s in scores], 3)))
    assert [m.score for m in moments] == sorted((m.score for m in moments), reverse=True)
    assert all(0 <= m.start < m.end <= duration for m in moments)


def test_without_frames_there_are_no_moments() -> None:
    assert find_moments(np.zeros(0), HOP, 0.0, 3) == []


def test_needs_no_torch(repo_dir: Path) -> None:
    code = "import sys, model.detection; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_dir)
