"""From frame scores to events: smoothing, threshold, merging, in one go or as the scores come; and a clip's moments.

NumPy only; knows no network and no audio. The clock: frame t of a recording covers [t, t + 1) × frame_hop seconds,
and no event reaches past the recording's own duration.
"""

from __future__ import annotations

import math

import numpy as np

from model.events import DetectionSettings, Event, Method, Moment
from model.median import MAX_MEDIAN_FILTER, MedianStream, median_frames, median_smooth
from model.sebb import event_boxes

__all__ = [
    "MAX_MEDIAN_FILTER",
    "DetectionSettings",
    "Event",
    "EventStream",
    "Method",
    "Moment",
    "find_events",
    "find_moments",
    "median_frames",
    "median_smooth",
]

_EPS = 1e-6  # seconds; forgives rounding of frame × hop where it is compared with a caller's seconds
_MOMENT_MEDIAN = 0.48  # seconds
_MOMENT_GAP = 0.5  # seconds
_MOMENT_CERTAIN = 0.5  # a score that needs no comparison with the rest of the clip


def find_events(scores: np.ndarray, settings: DetectionSettings, frame_hop: float, duration: float) -> list[Event]:
    """Events in the scores (T,) of one phrase, in order of time.

    Method "threshold", in this order: the scores are smoothed by `median_filter`; neighbouring frames at or above
    `low_threshold` (without one: `threshold`) are a run, and a run is an event when one of its frames reaches
    `threshold`; events with at most `max_gap` between them merge; then what is shorter than `min_duration` goes.
    Method "sebb": boxes (model.sebb) of the unsmoothed scores, of which those whose score reaches `threshold`
    are events; merged and dropped likewise.

    Offsets end with the recording (`duration`, seconds), and frames that begin after it are not looked at. Raises
    ValueError if `scores` is not one track.
    """
    scores = _track(scores, frame_hop, duration)
    if settings.method == "sebb":
        return _find_boxes(scores, settings, frame_hop, duration)
    smooth = median_smooth(scores, settings.median_filter, frame_hop)
    firsts, stops = _runs(smooth >= np.float32(settings.lowest))
    certain = np.flatnonzero(smooth >= np.float32(settings.threshold))
    reached = np.searchsorted(certain, stops) > np.searchsorted(certain, firsts)
    found = [
        _event(first, stop, float(smooth[first:stop].max()), frame_hop, duration)
        for first, stop in _joined(firsts[reached], stops[reached], _gap_frames(settings.max_gap, frame_hop))
    ]
    return [event for event in found if _long_enough(event, settings)]


class EventStream:
    """`find_events` of a track that comes in pieces: the same events in the same order, each as soon as it is certain.

    An event is certain when what follows can neither lengthen it nor merge with it: with "threshold" that is half a
    median filter, `max_gap` and `spare` frames after its end, and about as much is held. "sebb" holds all scores and
    gives everything with `finish`.

    Scores pushed belong to the recording, but for the last `spare` frames, which may begin after its end: the frames of
    a decoded recording are counted in samples, its exact duration may be a little shorter.
    """

    def __init__(self, settings: DetectionSettings, frame_hop: float, spare: int = 1) -> None:
        """`frame_hop` in seconds."""
        self._settings, self._frame_hop, self._spare = settings, frame_hop, spare
        self._smoother = MedianStream(settings.median_filter, frame_hop, spare)
        self._pushed = 0  # frames that came
        self._seen = 0  # frames that are smoothed and searched
        self._run: tuple[int, float] | None = None  # first frame and highest score of the run that goes on
        self._event: tuple[int, int, float] | None = None  # first, stop, score of an event that may still grow
        self._boxed: list[np.ndarray] = []

    def push(self, scores: np.ndarray) -> list[Event]:
        """The next scores (t,) → events that can no longer change. Raises ValueError if it is not one track."""
        scores = _one_track(scores)
        self._pushed += len(scores)
        if self._settings.method == "sebb":
            self._boxed.append(scores.copy())
            return []
        found = self._search(self._smoother.push(scores), math.inf)
        return found + self._leave_behind()

    def finish(self, duration: float) -> list[Event]:
        """The rest, the recording having ended after `duration` seconds.

        Raises ValueError if more than `spare` of the frames pushed begin after that: they may already have told.
        """
        drop = self._pushed - min(self._pushed, _frames_within(duration, self._frame_hop))
        if drop > self._spare:
            raise ValueError(f"{drop} frames begin after the end at {duration} s; at most {self._spare} may")
        if self._settings.method == "sebb":
            scores = np.concatenate([np.empty(0, dtype=np.float32), *self._boxed])
            return find_events(scores, self._settings, self._frame_hop, duration)
        found = self._search(self._smoother.finish(drop), duration)
        if self._run is not None:
            found += self._close(self._seen, duration)
        return found + self._give(duration)

    def _search(self, smooth: np.ndarray, duration: float) -> list[Event]:
        """Follows runs through the next smoothed scores (n,); events that end there for certain."""
        found: list[Event] = []
        active = smooth >= np.float32(self._settings.lowest)
        edges = np.flatnonzero(np.diff(active, prepend=self._run is not None)).tolist()
        for edge, next_edge in zip([0, *edges], [*edges, len(smooth)], strict=True):
            if edge < next_edge and active[edge]:
                peak = float(smooth[edge:next_edge].max())
                first, before = self._run or (self._seen + edge, peak)
                self._run = (first, max(before, peak))
            if next_edge < len(smooth) and self._run is not None and not active[next_edge]:
                found += self._close(self._seen + next_edge, duration)
        self._seen += len(smooth)
        return found

    def _close(self, stop: int, duration: float) -> list[Event]:
        """The run ends before frame `stop`: it is no event, or a part of the last one, or the last one is through."""
        assert self._run is not None
        (first, peak), self._run = self._run, None
        if peak < np.float32(self._settings.threshold):
            return []
        if self._event is not None and not self._apart(self._event[1], first):
            self._event = (self._event[0], stop, max(self._event[2], peak))
            return []
        found = self._give(duration)
        self._event = (first, stop, peak)
        return found

    def _leave_behind(self) -> list[Event]:
        """The event that may still grow, if whatever comes is too far from it."""
        upcoming = self._seen if self._run is None else self._run[0]
        if self._event is not None and self._apart(self._event[1], upcoming):
            return self._give(math.inf)
        return []

    def _apart(self, stop: int, first: int) -> bool:
        return first - stop > _gap_frames(self._settings.max_gap, self._frame_hop)

    def _give(self, duration: float) -> list[Event]:
        if self._event is None:
            return []
        event, self._event = _event(*self._event, self._frame_hop, duration), None
        return [event] if _long_enough(event, self._settings) else []


def find_moments(scores: np.ndarray, frame_hop: float, duration: float, limit: int) -> list[Moment]:
    """The `limit` best stretches of a clip for the frame scores (T,) of one query, best first.

    A search hit may be right although no frame reaches a detection threshold, so the clip is compared with itself: a
    frame belongs to a moment when its smoothed score is at least half-way between the clip's lowest and highest, or
    at least 0.5. The highest frame always qualifies: every clip with frames has a moment, and where all of it answers
    equally well the moment is the whole clip. Moments less than half a second apart are one.
    """
    smooth = median_smooth(_track(scores, frame_hop, duration), _MOMENT_MEDIAN, frame_hop)
    if not len(smooth):
        return []
    low, high = float(smooth.min()), float(smooth.max())
    level = np.float32(min(_MOMENT_CERTAIN, low + (high - low) / 2))
    moments = [
        Moment(first * frame_hop, min(stop * frame_hop, duration), float(smooth[first:stop].max()))
        for first, stop in _joined(*_runs(smooth >= level), _gap_frames(_MOMENT_GAP, frame_hop))
    ]
    return sorted(moments, key=lambda m: (-m.score, m.start))[:limit]


def _find_boxes(scores: np.ndarray, settings: DetectionSettings, frame_hop: float, duration: float) -> list[Event]:
    if not len(scores):
        return []
    stamps = np.arange(len(scores) + 1) * frame_hop
    stamps[-1] = max(min(stamps[-1], duration), stamps[-2] + _EPS)
    onsets, offsets, means = event_boxes(
        scores, stamps, settings.step_filter_length, settings.merge_threshold_abs, settings.merge_threshold_rel
    )
    reached = means.astype(np.float32) >= np.float32(settings.threshold)
    onsets, offsets, means = onsets[reached], offsets[reached], means[reached]
    joined = _joined(onsets, offsets, settings.max_gap + _EPS)
    if not joined:
        return []
    best = np.maximum.reduceat(means, np.searchsorted(onsets, [onset for onset, _ in joined]))
    found = [
        Event(onset, min(offset, duration), score) for (onset, offset), score in zip(joined, best.tolist(), strict=True)
    ]
    return [event for event in found if _long_enough(event, settings)]


def _event(first: int, stop: int, score: float, frame_hop: float, duration: float) -> Event:
    return Event(first * frame_hop, min(stop * frame_hop, duration), score)


def _long_enough(event: Event, settings: DetectionSettings) -> bool:
    return event.offset - event.onset >= settings.min_duration - _EPS


def _one_track(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 1:
        raise ValueError(f"scores must be one track (T,); their shape is {scores.shape}")
    return scores


def _frames_within(duration: float, frame_hop: float) -> int:
    """Frames that begin before the end of the recording; the first always does."""
    return max(1, math.ceil((duration - _EPS) / frame_hop))


def _track(scores: np.ndarray, frame_hop: float, duration: float) -> np.ndarray:
    """Scores (T,) as float32, without frames that begin after the end of the recording."""
    return _one_track(scores)[: _frames_within(duration, frame_hop)]


def _runs(active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs in active (T,) bool: first frames (R,) and the frames (R,) after their last."""
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return edges[0::2], edges[1::2]


def _gap_frames(seconds: float, frame_hop: float) -> float:
    return (seconds + _EPS) / frame_hop


def _joined(firsts: np.ndarray, stops: np.ndarray, max_gap: float) -> list[tuple]:
    """Pairs [first, stop), in order, those with at most `max_gap` between them as one; any unit of time."""
    if not len(firsts):
        return []
    apart = firsts[1:] - stops[:-1] > max_gap
    firsts = firsts[np.concatenate(([True], apart))]
    stops = stops[np.concatenate((apart, [True]))]
    return list(zip(firsts.tolist(), stops.tolist(), strict=True))
