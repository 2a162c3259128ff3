"""Sound event bounding boxes by change detection: where scores rise and fall, instead of where they cross a line.

NumPy only; knows no settings and no thresholds on events. After Ebbers, Germain, Wichern and Le Roux, "Sound Event
Bounding Boxes", Interspeech 2024 (the change-detection variant, cSEBBs); in behaviour equal to the authors' package
`sebbs`, which is the reference in the tests. A box has one score for all of its length, so a threshold decides whether
an event is reported and no longer where it begins.
"""

from __future__ import annotations

import numpy as np

_SAME = 1e-7  # seconds; breakpoints closer than that are one
_FLAT = 9  # decimals of a change; less than that is rounding, and counts as no change
_FLOOR = 1e-3  # added to both scores of a ratio, so that two very low ones are alike


def event_boxes(
    scores: np.ndarray, stamps: np.ndarray, step_filter_length: float, merge_abs: float, merge_rel: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in the scores (T,), which hold between stamps (T + 1,) in seconds: onsets (B,), offsets (B,), scores (B,).

    At every instant the mean score of the next `step_filter_length` / 2 seconds is compared with that of the last; the
    recording is silent outside. The difference has a peak where a sound begins and a dip where it ends: boxes go from
    each peak to the following dip. Two neighbours and the gap between them become one where the lowest score of the gap
    is less than `merge_abs` below the highest of either, and by less than the factor `merge_rel`. All gaps are judged
    by the boxes as they were before any merging. A box's score is the mean over its length. Boxes may have any score;
    they are in order of time and do not touch.
    """
    scores = np.asarray(scores, dtype=np.float64)
    times = _breakpoints(stamps, step_filter_length / 2)
    # the integral of the scores is linear between the stamps and constant outside: every mean is a difference of it
    integral = np.concatenate([[0.0], np.cumsum(scores * np.diff(stamps))])

    def until(at: np.ndarray) -> np.ndarray:
        return np.interp(at, stamps, integral)

    half = step_filter_length / 2
    change = np.round((until(times + half) - 2 * until(times) + until(times - half)) / half, _FLAT)
    first, last = _extremes(change)
    high, low = _highest_and_lowest(_between(scores, stamps, times), first, last)
    gap = low + _FLOOR
    before, after = high[:-1] + _FLOOR, high[1:] + _FLOOR
    near = (before - gap < merge_abs) & (after - gap < merge_abs)
    alike = (before / gap < merge_rel) & (after / gap < merge_rel)
    apart = ~(near & alike)
    onsets = times[first[np.concatenate([[True], apart])]]
    offsets = times[last[np.concatenate([apart, [True]])]]
    return onsets, offsets, (until(offsets) - until(onsets)) / (offsets - onsets)


def _breakpoints(stamps: np.ndarray, half: float) -> np.ndarray:
    """Instants (N,) from the start to the end at which the change filter's centre or an end of it meets a stamp.

    The filter's output is linear between them, so peaks and dips lie on them.
    """
    every = np.sort(np.concatenate([stamps, stamps + half, stamps - half]))
    inside = every[(every > stamps[0] + _SAME) & (every < stamps[-1] - _SAME)]
    inside = inside[np.diff(inside, prepend=stamps[0]) > _SAME]
    return np.concatenate([stamps[:1], inside, stamps[-1:]])


def _extremes(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into change (N,) of its peaks, and of the dip that follows each; the last dip may be the end.

    A peak is the first of equal values, a dip the last of them. They alternate by themselves and begin with a peak.
    """
    rises = np.diff(change) > 0
    peaks = np.flatnonzero(np.concatenate([[True], rises[:-1]]) & ~rises)
    dips = 1 + np.flatnonzero(~rises[:-1] & rises[1:])
    if len(dips) < len(peaks):
        dips = np.append(dips, len(change) - 1)
    return peaks, dips


def _between(scores: np.ndarray, stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The score (N - 1,) that holds between neighbouring breakpoints."""
    middle = (times[:-1] + times[1:]) / 2
    return scores[np.searchsorted(stamps, middle, side="right") - 1]


def _highest_and_lowest(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest values (B,) of the boxes [first, last), and lowest (B - 1,) of the gaps between them."""
    cuts = np.stack([first, last], axis=1).ravel()
    cuts = cuts[cuts < len(values)]  # the last box may end with the recording
    high = np.maximum.reduceat(values, cuts)[0::2]
    low = np.minimum.reduceat(values, cuts)[1::2]
    return high, low[: len(first) - 1]
