"""What detection gives and what it is told: events, moments, and the settings that turn scores into events.

Knows no scores; the rules are in model.detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from model.median import MAX_MEDIAN_FILTER

Method = Literal["threshold", "sebb"]

LOW_SHARE = 0.75  # of the threshold: where an event ends if nothing else is said; measured, see docs/detection.md


@dataclass(frozen=True)
class Event:
    """A phrase heard from `onset` to `offset` (seconds).

    `score` says how sure: the highest smoothed frame score inside, or with "sebb" the mean score of the best box in it.
    An event survives exactly the thresholds up to its score, though at higher ones perhaps in pieces.
    """

    onset: float
    offset: float
    score: float


@dataclass(frozen=True)
class Moment:
    """A stretch of a clip that answers a query: `start` and `end` in seconds, `score` the highest frame score in it."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class DetectionSettings:
    """How the frame scores of one phrase become events. Lengths are seconds, thresholds are scores.

    Raises ValueError, naming the setting, where one makes no sense.
    """

    threshold: float = 0.5  # an event reaches at least this score
    median_filter: float = 0.48  # length of the sliding median; 0 turns it off. Method "threshold" alone
    min_duration: float = 0.0  # shorter events are dropped, after merging
    max_gap: float = 0.2  # events with at most this much silence between them become one
    low_threshold: float | None = None  # how far down an event reaches on both sides; None: LOW_SHARE of `threshold`
    method: Method = "threshold"
    step_filter_length: float = 0.32  # "sebb": how much is looked at around a change, half of it on each side
    merge_threshold_abs: float = 1.0  # "sebb": neighbours stay apart where the score drops by this much between them
    merge_threshold_rel: float = 2.0  # "sebb": or to one part in this many; infinite: however far

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
        """The score from which a frame belongs to an event that reaches the threshold elsewhere."""
        return LOW_SHARE * self.threshold if self.low_threshold is None else self.low_threshold
