"""Sound event bounding boxes: event boundaries from changes of the scores instead of threshold crossings.

NumPy only. Implements the change-detection variant (cSEBBs) of Ebbers, Germain, Wichern and Le Roux, "Sound Event
Bounding Boxes", Interspeech 2024. The behaviour equals that of the authors' package `sebbs`, the reference in the
tests. A box has one score, so a threshold decides whether an event is reported but not where it begins or ends.
"""

from __future__ import annotations

import numpy as np

_SAME = 1e-7  # seconds; breakpoints closer than this are merged
_DECIMALS = 9  # of a change; smaller changes are rounding errors
_FLOOR = 1e-3  # added to both scores of a ratio, so that very low scores count as similar


def event_boxes(
    scores: np.ndarray, stamps: np.ndarray, step_filter_length: float, merge_abs: float, merge_rel: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds boxes in scores (T,) that hold between stamps (T + 1,) in seconds: onsets, offsets and scores, (B,) each.

    At each instant the mean score of the following `step_filter_length` / 2 seconds is compared with that of the
    preceding ones; outside the recording the score is 0. The difference peaks where a sound begins and dips where it
    ends: a box extends from each peak to the next dip. Neighbouring boxes are merged with the gap between them if the
    gap's lowest score is less than `merge_abs` below the highest score of either box, and by less than the factor
    `merge_rel`. Every gap is judged by the boxes before merging. A box's score is the mean over its length. Boxes are
    in order of time, do not touch, and may have any score.
    """
    scores = np.asarray(scores, dtype=np.float64)
    times = _breakpoints(stamps, step_filter_length / 2)
    # the integral is linear between stamps and constant outside, so every mean is a difference of two of its values
    integral = np.concatenate([[0.0], np.cumsum(scores * np.diff(stamps))])

    def until(at: np.ndarray) -> np.ndarray:
        return np.interp(at, stamps, integral)

    half = step_filter_length / 2
    change = np.round((until(times + half) - 2 * until(times) + until(times - half)) / half, _DECIMALS)
    first, last = _extremes(change)
    high, low = _highest_and_lowest(_between(scores, stamps, times), first, last)
    gap = low + _FLOOR
    before, after = high[:-1] + _FLOOR, high[1:] + _FLOOR
    close = (before - gap < merge_abs) & (after - gap < merge_abs)
    similar = (before / gap < merge_rel) & (after / gap < merge_rel)
    apart = ~(close & similar)
    onsets = times[first[np.concatenate([[True], apart])]]
    offsets = times[last[np.concatenate([apart, [True]])]]
    return onsets, offsets, (until(offsets) - until(onsets)) / (offsets - onsets)


def _breakpoints(stamps: np.ndarray, half: float) -> np.ndarray:
    """The instants (N,), in seconds, at which the centre or an end of the change filter coincides with a stamp.

    The filter's output is linear between them, so peaks and dips lie on them.
    """
    every = np.sort(np.concatenate([stamps, stamps + half, stamps - half]))
    inside = every[(every > stamps[0] + _SAME) & (every < stamps[-1] - _SAME)]
    inside = inside[np.diff(inside, prepend=stamps[0]) > _SAME]
    return np.concatenate([stamps[:1], inside, stamps[-1:]])


def _extremes(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices in change (N,) of its peaks and of the dip after each; the last dip may be the end.

    A peak is the first of equal values and a dip the last. Peaks and dips alternate, starting with a peak.
    """
    rises = np.diff(change) > 0
    peaks = np.flatnonzero(np.concatenate([[True], rises[:-1]]) & ~rises)
    dips = 1 + np.flatnonzero(~rises[:-1] & rises[1:])
    if len(dips) < len(peaks):
        dips = np.append(dips, len(change) - 1)
    return peaks, dips


def _between(scores: np.ndarray, stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The scores (N - 1,) between neighbouring breakpoints."""
    middle = (times[:-1] + times[1:]) / 2
    return scores[np.searchsorted(stamps, middle, side="right") - 1]


def _highest_and_lowest(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest value in each box [first, last), (B,), and the lowest in each gap between boxes, (B - 1,)."""
    cuts = np.stack([first, last], axis=1).ravel()
    cuts = cuts[cuts < len(values)]  # the last box may end with the recording
    high = np.maximum.reduceat(values, cuts)[0::2]
    low = np.minimum.reduceat(values, cuts)[1::2]
    return high, low[: len(first) - 1]
