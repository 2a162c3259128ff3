"""Sound event detection metrics from frame scores: PSDS, collar and segment F1, and grounding.

`sed_scores_eval` computes PSDS and F1 exactly, over all thresholds instead of a grid; it is imported on first use. This
module adds the settings, the timestamps, and what `sed_scores_eval` doesn't accept: arbitrary phrases as class names,
adjoining annotations, frames past the end of a recording, and classes without events.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from model.detection import median_smooth

MEDIAN_FRAMES = 3  # published: a sliding median of three frames, applied first
Segments = Sequence[tuple[float, float]]


class MetricsMissing(RuntimeError):
    """`sed_scores_eval` is not installed or cannot be imported."""


@dataclass(frozen=True)
class Psds:
    """The parameters of a PSDS (Bilen et al., 2020); rates are per hour."""

    dtc: float  # detection tolerance: share of a detection that must overlap true events
    gtc: float  # ground truth tolerance: share of a true event that detections must cover
    cttc: float | None = None  # share of a detection on another class from which it is a cross trigger
    alpha_ct: float = 0.0  # weight of cross triggers
    alpha_st: float = 0.0  # weight of the standard deviation over classes, which is subtracted
    max_efpr: float = 100.0  # false alarms per hour up to which the area is computed


# The paper's settings. AudioSet-strong has too few events per class for a meaningful spread over classes.
PSDS1 = Psds(0.7, 0.7, alpha_st=1.0)
PSDS2 = Psds(0.1, 0.1, 0.3, alpha_ct=0.5, alpha_st=1.0)
PSDS1_NO_SPREAD = replace(PSDS1, alpha_st=0.0)
PSDS2_NO_SPREAD = replace(PSDS2, alpha_st=0.0)
PSDS_GROUNDING = Psds(0.5, 0.5, max_efpr=800.0)


@dataclass(frozen=True)
class Scored:
    """One recording: frame scores (classes, frames) on any scale, and each class's true segments in seconds."""

    scores: np.ndarray
    truth: Sequence[Segments]
    frame_hop: float
    duration: float

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or not self.scores.shape[1] or len(self.truth) != len(self.scores):
            raise ValueError(f"scores of shape {self.scores.shape} for {len(self.truth)} classes")

    def smoothed(self, frames: int = MEDIAN_FRAMES) -> Scored:
        """The recording with scores after a sliding median of an odd number of frames."""
        if frames < 1 or frames % 2 == 0:
            raise ValueError(f"a median filter needs an odd number of frames, not {frames}")
        return replace(self, scores=median_smooth(self.scores, frames * self.frame_hop, self.frame_hop))

    def stamps(self) -> np.ndarray:
        """Seconds (frames + 1,): starts of the frames that begin inside the recording, and the end of the last one."""
        frames = min(self.scores.shape[1], max(1, int(np.ceil(self.duration / self.frame_hop - 1e-6))))
        stamps = np.arange(frames + 1) * self.frame_hop
        # the metrics round to microseconds, which must not leave the last frame empty
        stamps[-1] = max(min(stamps[-1], self.duration), stamps[-2] + 1e-5)
        return stamps


@dataclass(frozen=True)
class PsdsResult:
    """A PSDS, and the PSDS of every class with events, by its index."""

    value: float
    classes: dict[int, float]


@dataclass(frozen=True)
class F1:
    """F1 at one threshold: the mean over classes (macro), and over all events (micro)."""

    macro: float
    micro: float


def merged(segments: Segments, duration: float = np.inf) -> list[tuple[float, float]]:
    """Segments in order of time, with adjoining and overlapping ones merged, clipped to the duration."""
    result: list[tuple[float, float]] = []
    for onset, offset in sorted(segments):
        offset = min(offset, duration)
        if offset - onset < 1e-5:
            continue
        # the metrics work at a precision of a microsecond
        if result and onset <= result[-1][1] + 1e-6:
            result[-1] = (result[-1][0], max(offset, result[-1][1]))
        else:
            result.append((onset, offset))
    return result


@cache
def toolbox() -> ModuleType:
    """`sed_scores_eval`. Raises MetricsMissing."""
    # A dependency imports pkg_resources for functions that are not called here, and recent versions of setuptools no
    # longer include it.
    stand_in = importlib.util.find_spec("pkg_resources") is None
    if stand_in:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")
    try:
        import sed_scores_eval
    except (ImportError, AttributeError) as error:
        raise MetricsMissing(
            f"detection metrics need sed_scores_eval (pip install sed_scores_eval): {error}"
        ) from error
    finally:
        if stand_in:
            del sys.modules["pkg_resources"]
    return sed_scores_eval


@cache
def _table() -> Any:
    """A DataFrame whose arrays are writable, as the compiled loops require; those of pandas 3 are read-only."""
    from pandas import DataFrame

    class Table(DataFrame):
        @property
        def _constructor(self) -> type[Table]:
            return Table

        def to_numpy(self, *args: Any, **named: Any) -> np.ndarray:
            return np.array(super().to_numpy(*args, **named))

    return Table


def tables(recordings: Sequence[Scored]) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, float], list[int]]:
    """Score tables, true events and durations in the form of `sed_scores_eval`, and the indices of their classes.

    Classes without events are omitted, because no rate can be computed for them. Columns are named by index, so that a
    phrase can be called "onset". Raises ValueError if nothing remains.
    """
    if not recordings:
        raise ValueError("no recordings")
    count = len(recordings[0].scores)
    if any(len(r.scores) != count for r in recordings):
        raise ValueError("every recording must have scores for the same classes")
    truths = [[merged(segments, r.duration) for segments in r.truth] for r in recordings]
    classes = [c for c in range(count) if any(truth[c] for truth in truths)]
    if not classes:
        raise ValueError("no true event in any recording")
    table = _table()
    scores, events, durations = {}, {}, {}
    for number, (recording, truth) in enumerate(zip(recordings, truths, strict=True)):
        key, stamps = f"{number:06d}", recording.stamps()
        rows = recording.scores[classes, : len(stamps) - 1].astype(np.float64)
        names = ["onset", "offset", *(f"c{c}" for c in classes)]
        scores[key] = table(np.vstack([stamps[:-1], stamps[1:], rows]).T, columns=names)
        events[key] = [(on, off, f"c{c}") for c in classes for on, off in truth[c]]
        durations[key] = max(recording.duration, float(stamps[-1]))
    return scores, events, durations, classes


def psds(recordings: Sequence[Scored], settings: Psds) -> PsdsResult:
    """Polyphonic sound detection score of recordings with scores for the same classes.

    Only the order of the scores matters: any increasing function of them gives the same result. Raises ValueError and
    MetricsMissing.
    """
    return psds_with(recordings, {"": settings})[""]


def psds_with(recordings: Sequence[Scored], wanted: Mapping[str, Psds]) -> dict[str, PsdsResult]:
    """`psds` under several settings, by name. Settings with equal criteria share the counting, the slowest part."""
    box = toolbox()
    scores, events, durations, classes = tables(recordings)
    counted: dict[tuple[float, float, float | None], Any] = {}
    results = {}
    for name, settings in wanted.items():
        cttc = settings.cttc if len(classes) > 1 else None  # a single class has no cross triggers
        criteria = (settings.dtc, settings.gtc, cttc)
        if criteria not in counted:
            counted[criteria] = box.intersection_based.intermediate_statistics_deltas(
                scores, events, dtc_threshold=settings.dtc, gtc_threshold=settings.gtc, cttc_threshold=cttc
            )
        value, single, *_ = box.intersection_based.psds(
            None,
            events,
            durations,
            deltas=counted[criteria],
            dtc_threshold=settings.dtc,
            gtc_threshold=settings.gtc,
            cttc_threshold=cttc,
            alpha_ct=settings.alpha_ct if cttc is not None else 0.0,
            alpha_st=settings.alpha_st,
            max_efpr=settings.max_efpr,
        )
        results[name] = PsdsResult(float(value), {c: float(single[f"c{c}"]) for c in classes})
    return results


def collar_f1(recordings: Sequence[Scored], threshold: float, collar: float = 0.2, rate: float = 0.2) -> F1:
    """F1 of events with an onset within `collar` s and an offset within the larger of that and `rate` × length.

    Frames with a score above `threshold` are active. The defaults are DCASE's. Raises ValueError and MetricsMissing.
    """
    box = toolbox()
    scores, events, _, _ = tables(recordings)
    collars = {"onset_collar": collar, "offset_collar": collar, "offset_collar_rate": rate}
    return _f1(box.collar_based.fscore(scores, events, threshold, **collars)[0])


def segment_f1(recordings: Sequence[Scored], threshold: float, length: float = 1.0) -> F1:
    """F1 of segments of `length` s, which are active if any of their frames is. Raises like `collar_f1`."""
    box = toolbox()
    scores, events, durations, _ = tables(recordings)
    return _f1(box.segment_based.fscore(scores, events, durations, threshold, segment_length=length)[0])


def _f1(result: dict[str, float]) -> F1:
    return F1(float(result["macro_average"]), float(result["micro_average"]))


def one_class_each(recordings: Sequence[Scored]) -> list[Scored]:
    """Each phrase of each recording as a separate recording with one class, as grounding is scored."""
    return [
        replace(r, scores=row[None], truth=[segments])
        for r in recordings
        for row, segments in zip(r.scores, r.truth, strict=True)
    ]


def threshold_auc(recordings: Sequence[Scored], settings: Psds = PSDS_GROUNDING) -> float:
    """Area under F1 as a function of the threshold, 0 to 1, of recordings with one class and scores from 0 to 1.

    Events are matched by intersection, as in the PSDS of these settings. Unlike PSDS it depends on the scale of the
    scores: it is high only if many thresholds work. The area is exact, because F1 changes only at scores.
    """
    if any(len(r.scores) != 1 for r in recordings):
        raise ValueError("every recording must have exactly one class")
    if any(r.scores.min() < 0 or r.scores.max() > 1 for r in recordings):
        raise ValueError("scores must be from 0 to 1")
    box = toolbox()
    scores, events, _, _ = tables(recordings)
    found, _ = box.intersection_based.accumulated_intermediate_statistics(
        scores, events, dtc_threshold=settings.dtc, gtc_threshold=settings.gtc
    )
    ((steps, counts),) = found.values()
    order = np.argsort(steps)
    f1 = 2 * counts["tps"] / (counts["tps"] + counts["fps"] + counts["n_ref"])
    # counts apply to thresholds from the next lower score up to this one
    upper = np.clip(steps[order], 0, 1)
    return float((np.diff(upper, prepend=0.0) * f1[order]).sum())
