"""Turns frame scores into events and moments, for whole tracks or as the scores arrive.

NumPy only. Frame t of a recording covers [t, t + 1) × frame_hop seconds, and no event extends past the recording's own
duration. `find_events` is the rule for a whole track; `EventStream` gives the same events for a track in pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

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

Method = Literal["threshold", "sebb"]

# defaults without a low_threshold; measured, docs/guide/detection.md
LOW_SHARE = 0.4  # an event ends below this share of the threshold,
END_SHARE = 0.35  # below this share of its own highest score so far,
EDGE_SHARE = 0.65  # and is cut to the frames from the first to the last with this share of its highest

_EPS = 1e-6  # seconds; absorbs rounding of frame × hop when it is compared with a caller's seconds
_BLOCK = 256  # frames
_MOMENT_MEDIAN = 0.48  # seconds
_MOMENT_GAP = 0.5  # seconds
_MOMENT_CERTAIN = 0.5  # score at which a frame belongs to a moment whatever the rest of the clip scores


@dataclass(frozen=True)
class Event:
    """An occurrence of a phrase from `onset` to `offset`, in seconds.

    `score` is the highest smoothed frame score inside; with "sebb" it is the mean score of the best box in the event.
    The event is found at every threshold up to its score, at higher ones possibly split into pieces.
    """

    onset: float
    offset: float
    score: float


@dataclass(frozen=True)
class Moment:
    """A stretch of a clip that matches a query: `start` and `end` in seconds, `score` the highest frame score in it."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class DetectionSettings:
    """How the frame scores of one phrase become events. Lengths are in seconds, thresholds are scores.

    Raises ValueError naming the first invalid setting.
    """

    threshold: float = 0.5  # an event reaches at least this score
    median_filter: float = 0.48  # length of the sliding median; 0 turns it off. Method "threshold" only
    min_duration: float = 0.0  # shorter events are dropped, after merging
    max_gap: float = 0.2  # events separated by at most this much are merged
    low_threshold: float | None = None  # an event extends to frames at this score; None: see `find_events`
    method: Method = "threshold"
    step_filter_length: float = 0.32  # "sebb": length of the change filter, half of it on each side of an instant
    merge_threshold_abs: float = 1.0  # "sebb": boxes stay apart if the score between them drops by this much
    merge_threshold_rel: float = 2.0  # "sebb": or by this factor; infinity disables the rule

    def __post_init__(self) -> None:
        for name in ("median_filter", "min_duration", "max_gap"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds, zero or more; it is {value}")
        if self.median_filter > MAX_MEDIAN_FILTER:
            raise ValueError(f"median_filter must be at most {MAX_MEDIAN_FILTER:g} seconds; it is {self.median_filter}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1; it is {self.threshold}")
        if self.method not in get_args(Method):
            raise ValueError(f"method must be {' or '.join(map(repr, get_args(Method)))}; it is {self.method!r}")
        if self.low_threshold is not None:
            if not 0 <= self.low_threshold <= self.threshold:
                raise ValueError(
                    "low_threshold must lie between 0 and the threshold; "
                    f"it is {self.low_threshold} and the threshold {self.threshold}"
                )
            if self.method == "sebb":
                raise ValueError("low_threshold belongs to the method 'threshold'; boxes have one score each")
        if not 0 < self.step_filter_length <= MAX_MEDIAN_FILTER:
            raise ValueError(
                f"step_filter_length must be more than 0 and at most {MAX_MEDIAN_FILTER:g} seconds; "
                f"it is {self.step_filter_length}"
            )
        if not self.merge_threshold_abs >= 0:
            raise ValueError(f"merge_threshold_abs must be a difference of scores; it is {self.merge_threshold_abs}")
        if not self.merge_threshold_rel >= 1:
            raise ValueError(f"merge_threshold_rel must be a ratio, 1 or more; it is {self.merge_threshold_rel}")

    @property
    def lowest(self) -> float:
        """The score at which a frame belongs to an event that reaches the threshold elsewhere."""
        return LOW_SHARE * self.threshold if self.low_threshold is None else self.low_threshold


def find_events(scores: np.ndarray, settings: DetectionSettings, frame_hop: float, duration: float) -> list[Event]:
    """Finds the events in the scores (T,) of one phrase, in order of time; `frame_hop` and `duration` are in seconds.

    Method "threshold": the scores are smoothed by `median_filter`; consecutive frames at or above `low_threshold` form
    a run, and a run is an event if one of its frames reaches `threshold`; events at most `max_gap` apart are merged;
    events shorter than `min_duration` are dropped. Without a `low_threshold` it is LOW_SHARE × `threshold`; a run also
    ends, and the next one begins, with a frame below END_SHARE × the highest score of the run so far; and a run is cut
    to the first and last of its frames with at least EDGE_SHARE of its highest score.
    Method "sebb": boxes (model.sebb) over the unsmoothed scores whose score reaches `threshold` are events; they are
    merged and dropped in the same way.

    Offsets are cut at `duration`, and frames that begin after it are ignored. Raises ValueError unless `scores` is one
    track.
    """
    scores = _track(scores, frame_hop, duration)
    if settings.method == "sebb":
        return _find_boxes(scores, settings, frame_hop, duration)
    smooth = median_smooth(scores, settings.median_filter, frame_hop)
    firsts, stops = _runs(smooth >= np.float32(settings.lowest))
    certain = np.flatnonzero(smooth >= np.float32(settings.threshold))
    reached = np.searchsorted(certain, stops) > np.searchsorted(certain, firsts)
    firsts, stops = firsts[reached], stops[reached]
    if settings.low_threshold is None:
        firsts, stops = _cut_runs(smooth, firsts, stops, settings.threshold)
    events = [
        _event(first, stop, float(smooth[first:stop].max()), frame_hop, duration)
        for first, stop in _merged(firsts, stops, _gap_frames(settings.max_gap, frame_hop))
    ]
    return [event for event in events if _long_enough(event, settings)]


def edge_level(peak: float) -> float:
    """The score with which an event whose highest score is `peak` begins and ends, as a float32."""
    return float(np.float32(EDGE_SHARE) * np.float32(peak))


class Run:
    """A run of frames above the lower threshold, followed while it goes on: from `first` to `stop`, exclusive.

    An event's edges depend on its highest score, `peak`, which is known only at its end. A run keeps the few scores
    that can still become an edge, so an event may last for hours.
    """

    def __init__(self, first: int) -> None:
        self.first = self.stop = first
        self.peak = -np.inf
        self._rises: list[tuple[int, float]] = []  # frames higher than all before them, in order
        self._falls: list[tuple[int, float]] = []  # frames higher than all after them, in order

    def end(self, scores: np.ndarray) -> int:
        """How many of the scores (n,) float32 that follow come before one below END_SHARE of the highest so far."""
        highest = np.float32(self.peak)
        for at in range(0, len(scores), _BLOCK):  # in blocks: a long run may have many ends
            block = scores[at : at + _BLOCK]
            so_far = np.maximum(np.maximum.accumulate(block), highest)
            low = np.flatnonzero(block < np.float32(END_SHARE) * so_far)
            if len(low):
                return at + int(low[0])
            highest = so_far[-1]
        return len(scores)

    def extend(self, scores: np.ndarray) -> None:
        """Takes the scores (n,) float32 of the frames that follow; n > 0."""
        highest = float(scores.max())
        before = np.maximum.accumulate(np.concatenate(([np.float32(self.peak)], scores[:-1])))
        after = np.maximum.accumulate(np.concatenate(([np.float32(-np.inf)], scores[:0:-1])))[::-1]
        while self._falls and self._falls[-1][1] <= highest:
            self._falls.pop()
        for kept, mask in ((self._rises, scores > before), (self._falls, scores > after)):
            kept += [(self.stop + int(at), float(scores[at])) for at in np.flatnonzero(mask)]
        self.peak = max(self.peak, highest)
        self.stop += len(scores)
        least = edge_level(self.peak)  # the peak only grows, so lower frames are never an edge
        self._rises = [rise for rise in self._rises if rise[1] >= least]
        self._falls = [fall for fall in self._falls if fall[1] >= least]

    def edges(self, least: float) -> tuple[int, int] | None:
        """The part [first, stop) from the first to the last frame with at least `least`, or None if there is none.

        `least` must be at least `edge_level` of the peak.
        """
        first = next((at for at, score in self._rises if score >= least), None)
        last = next((at for at, score in reversed(self._falls) if score >= least), None)
        return None if first is None or last is None else (first, last + 1)


class EventStream:
    """`find_events` for a track that arrives in pieces: the same events in the same order, each as soon as it is final.

    An event is final when later frames can neither extend it nor merge with it. With "threshold" that is half a median
    filter, `max_gap` and `spare` frames after its end, and the stream buffers about that much. "sebb" buffers all
    scores and returns every event from `finish`.

    The last `spare` frames pushed may begin after the end of the recording: the frames of a decoded recording are
    counted in samples, and its exact duration may be slightly shorter.
    """

    def __init__(self, settings: DetectionSettings, frame_hop: float, spare: int = 1) -> None:
        """`frame_hop` in seconds."""
        self._settings, self._frame_hop, self._spare = settings, frame_hop, spare
        self._smoother = MedianStream(settings.median_filter, frame_hop, spare)
        self._pushed = 0  # frames received
        self._searched = 0  # frames smoothed and searched
        self._run: Run | None = None  # the run that is going on
        self._event: tuple[int, int, float] | None = None  # first, stop, score of an event that may still grow
        self._sebb_scores: list[np.ndarray] = []

    def push(self, scores: np.ndarray) -> list[Event]:
        """Takes the next scores (t,) and returns the events that are now final. Raises ValueError if not one track."""
        scores = _one_track(scores)
        self._pushed += len(scores)
        if self._settings.method == "sebb":
            self._sebb_scores.append(scores.copy())
            return []
        found = self._search(self._smoother.push(scores), math.inf)
        return found + self._flush_final()

    def finish(self, duration: float) -> list[Event]:
        """Returns the remaining events of a recording of `duration` seconds.

        Raises ValueError if more than `spare` frames begin after its end: events may already depend on them.
        """
        drop = self._pushed - min(self._pushed, _frames_within(duration, self._frame_hop))
        if drop > self._spare:
            raise ValueError(f"{drop} frames begin after the end at {duration} s; at most {self._spare} may")
        if self._settings.method == "sebb":
            scores = np.concatenate([np.empty(0, dtype=np.float32), *self._sebb_scores])
            return find_events(scores, self._settings, self._frame_hop, duration)
        found = self._search(self._smoother.finish(drop), duration)
        if self._run is not None:
            found += self._close_run(duration)
        return found + self._flush(duration)

    @property
    def searched(self) -> int:
        """The number of frames in which events have been looked for."""
        return self._searched

    @property
    def settled(self) -> int:
        """The frame before which every event has been returned. Method "threshold" only."""
        begun = [self._searched]
        if self._event is not None:
            begun.append(self._event[0])
        if self._run is not None:
            begun.append(self._run.first)
        return min(begun)

    def ongoing(self) -> tuple[int, int, float] | None:
        """The event that has not been returned yet: first and last frame (exclusive) so far, and highest score so far.

        None if no score has reached the threshold since the last one returned. Its first frame may still move to a
        later one while its score rises. Method "threshold" only.
        """
        if self._run is None or not self._certain(self._run):
            return self._event
        first, stop = self._edges(self._run)
        if self._event is None or self._apart(self._event[1], first):
            return first, stop, self._run.peak
        return self._event[0], stop, max(self._event[2], self._run.peak)

    def _search(self, smooth: np.ndarray, duration: float) -> list[Event]:
        """Follows runs through the next smoothed scores (n,); returns the events that end there for certain."""
        found: list[Event] = []
        active = smooth >= np.float32(self._settings.lowest)
        edges = np.flatnonzero(np.diff(active, prepend=self._run is not None)).tolist()
        for edge, next_edge in zip([0, *edges], [*edges, len(smooth)], strict=True):
            if edge < next_edge and active[edge]:
                found += self._follow(self._searched + edge, smooth[edge:next_edge], duration)
            if next_edge < len(smooth) and self._run is not None and not active[next_edge]:
                found += self._close_run(duration)
        self._searched += len(smooth)
        return found

    def _follow(self, at: int, scores: np.ndarray, duration: float) -> list[Event]:
        """Continues the open run, or begins one, with scores (n,) from frame `at`, none below the lower threshold."""
        found: list[Event] = []
        while len(scores):
            self._run = self._run or Run(at)
            end = len(scores) if self._settings.low_threshold is not None else self._run.end(scores)
            if end:
                self._run.extend(scores[:end])
            if end < len(scores):
                found += self._close_run(duration)
            at, scores = at + end, scores[end:]
        return found

    def _close_run(self, duration: float) -> list[Event]:
        """Ends the open run: drops it, merges it into the pending event, or starts a new one."""
        assert self._run is not None
        run, self._run = self._run, None
        if not self._certain(run):
            return []
        first, stop = self._edges(run)
        peak = run.peak
        if self._event is not None and not self._apart(self._event[1], first):
            self._event = (self._event[0], stop, max(self._event[2], peak))
            return []
        found = self._flush(duration)
        self._event = (first, stop, peak)
        return found

    def _flush_final(self) -> list[Event]:
        """The pending event, if nothing that follows can merge with it."""
        if self._event is not None and self._apart(self._event[1], self._upcoming()):
            return self._flush(math.inf)
        return []

    def _upcoming(self) -> int:
        """The first frame with which the next event can begin."""
        if self._run is None:
            return self._searched
        if self._settings.low_threshold is not None:
            return self._run.first
        edges = self._run.edges(edge_level(max(self._run.peak, self._settings.threshold)))
        return self._searched if edges is None else edges[0]

    def _certain(self, run: Run) -> bool:
        """Whether the run is an event."""
        return run.peak >= float(np.float32(self._settings.threshold))

    def _edges(self, run: Run) -> tuple[int, int]:
        """The frames [first, stop) of the event that the run is if it has ended."""
        edges = None if self._settings.low_threshold is not None else run.edges(edge_level(run.peak))
        return (run.first, run.stop) if edges is None else edges

    def _apart(self, stop: int, first: int) -> bool:
        return first - stop > _gap_frames(self._settings.max_gap, self._frame_hop)

    def _flush(self, duration: float) -> list[Event]:
        if self._event is None:
            return []
        event, self._event = _event(*self._event, self._frame_hop, duration), None
        return [event] if _long_enough(event, self._settings) else []


def _cut_runs(
    smooth: np.ndarray, firsts: np.ndarray, stops: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The runs [first, stop), split where they fall below END_SHARE of their highest score so far, those parts that
    reach the threshold, each from the first to the last frame with EDGE_SHARE of its highest score."""
    parts = []
    for first, stop in zip(firsts.tolist(), stops.tolist(), strict=True):
        while first < stop:
            run = smooth[first:stop]
            part = run[: Run(first).end(run)]
            peak = part.max()
            if peak >= np.float32(threshold):
                high = np.flatnonzero(part >= np.float32(edge_level(float(peak))))
                parts.append((first + int(high[0]), first + int(high[-1]) + 1))
            first += len(part)
    cut = np.array(parts, int).reshape(-1, 2)
    return cut[:, 0], cut[:, 1]


def find_moments(scores: np.ndarray, frame_hop: float, duration: float, limit: int) -> list[Moment]:
    """Finds the `limit` best moments of a clip in the frame scores (T,) of one query, best first.

    A search hit may be right although no frame reaches a detection threshold, so the clip is compared with itself: a
    frame belongs to a moment if its smoothed score is at least halfway between the clip's lowest and highest, or at
    least 0.5. Every clip with frames has a moment, and a clip with constant scores is one moment. Moments at most half
    a second apart are merged.
    """
    smooth = median_smooth(_track(scores, frame_hop, duration), _MOMENT_MEDIAN, frame_hop)
    if not len(smooth):
        return []
    low, high = float(smooth.min()), float(smooth.max())
    level = np.float32(min(_MOMENT_CERTAIN, low + (high - low) / 2))
    moments = [
        Moment(first * frame_hop, min(stop * frame_hop, duration), float(smooth[first:stop].max()))
        for first, stop in _merged(*_runs(smooth >= level), _gap_frames(_MOMENT_GAP, frame_hop))
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
    merged = _merged(onsets, offsets, settings.max_gap + _EPS)
    if not merged:
        return []
    best = np.maximum.reduceat(means, np.searchsorted(onsets, [onset for onset, _ in merged]))
    events = [
        Event(onset, min(offset, duration), score) for (onset, offset), score in zip(merged, best.tolist(), strict=True)
    ]
    return [event for event in events if _long_enough(event, settings)]


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
    """The number of frames that begin before the end of the recording; at least one."""
    return max(1, math.ceil((duration - _EPS) / frame_hop))


def _track(scores: np.ndarray, frame_hop: float, duration: float) -> np.ndarray:
    """Scores (T,) as float32, without the frames that begin after the end of the recording."""
    return _one_track(scores)[: _frames_within(duration, frame_hop)]


def _runs(active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs in `active` (T,) bool: first frames (R,) and exclusive last frames (R,)."""
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return edges[0::2], edges[1::2]


def _gap_frames(seconds: float, frame_hop: float) -> float:
    return (seconds + _EPS) / frame_hop


def _merged(firsts: np.ndarray, stops: np.ndarray, max_gap: float) -> list[tuple]:
    """Intervals [first, stop) in order, those at most `max_gap` apart merged; any unit of time."""
    if not len(firsts):
        return []
    apart = firsts[1:] - stops[:-1] > max_gap
    firsts = firsts[np.concatenate(([True], apart))]
    stops = stops[np.concatenate((apart, [True]))]
    return list(zip(firsts.tolist(), stops.tolist(), strict=True))
