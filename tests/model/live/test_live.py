"""Live events: what has been told at the end equals the events of the whole recording, and is told in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import SAMPLE_RATE, WindowConfig
from model.detection import DetectionSettings, Run, edge_level, find_events
from model.live.cutter import LiveCutter
from model.live.track import TOLERANCE, LiveEvent, LiveTrack, State

HOP = 0.16
WINDOWS = WindowConfig(buckets=(8, 16, 32))

levels = st.integers(0, 20).map(lambda n: n / 20)
tracks = st.lists(levels, min_size=1, max_size=60)
seconds = st.integers(0, 8).map(lambda n: round(n * 0.08, 2))


def standing(news: list[LiveEvent]) -> list[tuple[float, float]]:
    """The onsets and offsets that stand once all news have arrived."""
    last = {each.number: each for each in news}
    assert all(each.state is not State.OPEN for each in last.values())
    kept = [each.event for each in last.values() if each.state is State.CLOSED]
    return sorted((event.onset, event.offset) for event in kept)


def play(
    track: LiveTrack, quick: list[float], settled: list[float], lag: int, cut: Callable[[int], int] = lambda at: 1
) -> list[LiveEvent]:
    """Passes quick scores, cut into pieces, and the settled ones `lag` frames later, then ends the recording."""
    news: list[LiveEvent] = []
    done = at = 0
    while at < len(quick):
        upto = min(len(quick), at + cut(at))
        news += track.push_quick(np.array(quick[at:upto], np.float32))
        at = upto
        if at - lag > done:
            news += track.push_settled(np.array(settled[done : at - lag], np.float32))
            done = at - lag
    news += track.push_settled(np.array(settled[done:], np.float32))
    return news + track.finish(len(settled) * HOP)


@settings(max_examples=500, deadline=None)
@given(tracks, tracks, levels, seconds, seconds, seconds, st.integers(-5, 80), st.integers(1, 7))
def test_what_stands_at_the_end_is_what_the_whole_recording_has(
    quick: list[float],
    settled: list[float],
    threshold: float,
    median: float,
    shortest: float,
    gap: float,
    lag: int,
    piece: int,
) -> None:
    how = DetectionSettings(threshold, median, shortest, gap)
    quick, settled = quick[: len(settled)], settled[: len(quick)]
    news = play(LiveTrack(how, HOP, itertools.count()), quick, settled, max(lag, 0), lambda _: piece)
    told = standing(news)
    truth = [(e.onset, e.offset) for e in find_events(np.array(settled, np.float32), how, HOP, len(settled) * HOP)]
    assert len(told) == len(truth)
    np.testing.assert_allclose(np.ravel(told), np.ravel(truth), atol=TOLERANCE + 1e-6)


@settings(max_examples=300, deadline=None)
@given(tracks, levels, seconds, st.integers(1, 9))
def test_if_both_passes_agree_nothing_is_retracted(
    scores: list[float], threshold: float, gap: float, piece: int
) -> None:
    how = DetectionSettings(threshold, 0.48, 0.0, gap)
    news = play(LiveTrack(how, HOP, itertools.count()), scores, scores, 30, lambda _: piece)
    truth = find_events(np.array(scores, np.float32), how, HOP, len(scores) * HOP)
    assert len(standing(news)) == len(truth)
    closed = [each for each in news if each.state is State.CLOSED and not each.revised]
    assert len({each.number for each in closed}) == len(closed)


def test_events_are_told_as_soon_as_the_scores_allow() -> None:
    scores = [0.0] * 20 + [0.9] * 10 + [0.3] * 40 + [0.0] * 20 + [0.8] * 3 + [0.0] * 20  # a long tail, then a short one
    track = LiveTrack(DetectionSettings(), HOP, itertools.count(1))
    heard: list[tuple[int, LiveEvent]] = []
    for at, score in enumerate(scores):
        heard += [(at + 1, each) for each in track.push_quick(np.array([score], np.float32))]
    assert [(at, each.number, each.state) for at, each in heard] == [
        (22, 1, State.OPEN),  # the median needs one frame more
        (33, 1, State.CLOSED),  # and the gap two, although the tail goes on
        (92, 2, State.OPEN),
        (96, 2, State.CLOSED),
    ]
    assert (heard[1][1].event.onset, heard[1][1].event.offset) == (20 * HOP, 30 * HOP)


def test_an_event_that_goes_on_after_all_is_told_again() -> None:
    scores = [0.0] * 5 + [0.9] * 5 + [0.4] * 9 + [0.9] * 5 + [0.0] * 9
    track = LiveTrack(DetectionSettings(), HOP, itertools.count())
    news = [each for score in scores for each in track.push_quick(np.array([score], np.float32))]
    assert {each.number for each in news} == {0}
    assert [(each.state.value, each.revised) for each in news] == [
        ("open", False),
        ("closed", False),
        ("open", True),
        ("closed", True),
    ]
    assert news[-1].event.offset == pytest.approx(24 * HOP)


def test_state_does_not_grow_with_the_stream() -> None:
    rng = np.random.default_rng(0)
    track = LiveTrack(DetectionSettings(), HOP, itertools.count())
    for _ in range(300):
        track.push_quick(rng.uniform(0.2, 1, 40).astype(np.float32))
        track.push_settled(np.full(40, 0.9, np.float32))  # one event without an end, where the quick pass has many
    assert len(track._unsettled) <= 64
    for stream in (track._quick, track._settled):
        assert stream._run is None or len(stream._run._rises) + len(stream._run._falls) < 40


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=9), min_size=1, max_size=9), st.integers(5, 10))
def test_the_edges_of_a_run(pieces: list[list[int]], share: int) -> None:
    run, whole = Run(7), np.concatenate(pieces).astype(np.float32)
    for piece in pieces:
        run.extend(np.array(piece, np.float32))
    least = max(edge_level(float(whole.max())), share / 10 * float(whole.max()))
    high = np.flatnonzero(whole >= least)
    assert (run.peak, run.stop) == (whole.max(), 7 + len(whole))
    assert run.edges(least) == (7 + high[0], 8 + high[-1])


@pytest.mark.parametrize("cheap", [False, True])
@pytest.mark.parametrize("windows", [WINDOWS, WindowConfig(), WindowConfig(frame_hop=0.04, frames=250)])
def test_windows_slide_with_the_sound(windows: WindowConfig, cheap: bool) -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(40 * SAMPLE_RATE).astype(np.float32)
    cutter, kept, at = LiveCutter(windows), [], 0
    while at < len(samples):
        size = int(rng.choice([160, 1_600, 8_000, 50_000]))
        cutter.push(samples[at : at + size])
        at += size
        while (cut := cutter.take(cheap)) is not None:
            window, content = cut
            assert len(content) == window.stop - window.start <= windows.frames * windows.frame_hop * SAMPLE_RATE + 1
            np.testing.assert_allclose(content, samples[window.start : window.stop] - content_mean(samples, window))
            first, last = window.first_frame + window.keep.start, window.first_frame + window.keep.stop
            kept += range(first, last)
            assert (window.stop / SAMPLE_RATE) - last * windows.frame_hop >= 0.47 - windows.frame_hop / 2
            assert window.keep.start * windows.frame_hop >= 1.2 or window.first_frame == 0
        assert cutter.backlog < 0.48 + 0.32 + 2 * windows.frame_hop
        assert len(cutter._samples) <= (2 * windows.frames * windows.frame_hop + 4) * SAMPLE_RATE
    assert kept == list(range(len(kept))) and cutter.frames == len(kept) > 38 / windows.frame_hop


def content_mean(samples: np.ndarray, window: object) -> np.float32:
    return samples[window.start : window.stop].mean()  # type: ignore[attr-defined]


def test_boxes_need_the_whole_recording() -> None:
    with pytest.raises(ValueError, match="whole recording"):
        LiveTrack(DetectionSettings(method="sebb"), HOP, itertools.count())


def test_cheap_windows_are_half_as_long_where_they_reach_far_enough() -> None:
    def lengths(seconds: float, cheap: bool) -> list[int]:
        cutter, found = LiveCutter(WINDOWS), []
        for _ in range(40):
            cutter.push(np.zeros(int(seconds * SAMPLE_RATE), np.float32))
            while (cut := cutter.take(cheap)) is not None:
                found.append(round(len(cut[1]) / SAMPLE_RATE / HOP))
        return found[20:]

    assert set(lengths(0.32, False)) == {32} and set(lengths(0.32, True)) == {16}
    assert set(lengths(2.56, True)) == {32} and set(lengths(5.12, True)) == {64}
