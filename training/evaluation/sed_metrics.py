"""Sound event detection as numbers, from frame scores: PSDS, collar and segment F1, grounding. Knows no audio.

PSDS and the F1 of collars and segments are computed by `sed_scores_eval`, over every threshold and not over a grid of
them; it is imported when first needed. Here are the settings, the clock, and what it does not take: phrases of any
name, annotations that touch, frames past the end of a recording, classes that never sound.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from model.detection import median_smooth

if TYPE_CHECKING:
    from model.finelap import FineLAP
    from training.evaluation.mixtures import Mixture

MEDIAN_FRAMES = 3  # published: a sliding median of three frames before everything
Segments = Sequence[tuple[float, float]]


class MetricsMissing(RuntimeError):
    """The package that computes PSDS is not installed, or does not import."""


@dataclass(frozen=True)
class Psds:
    """The settings of a PSDS (Bilen et al., 2020); rates are per hour."""

    dtc: float  # share of a detection that has to lie on truth
    gtc: float  # share of a true event that detections have to cover
    cttc: float | None = None  # share of a detection on another class that makes it a cross trigger
    alpha_ct: float = 0.0  # weight of cross triggers
    alpha_st: float = 0.0  # weight of the spread over classes, subtracted
    max_efpr: float = 100.0  # false alarms per hour up to which the area counts


# The paper's settings; AudioSet-strong has too many classes of too few events for a spread over classes.
PSDS1 = Psds(0.7, 0.7, alpha_st=1.0)
PSDS2 = Psds(0.1, 0.1, 0.3, alpha_ct=0.5, alpha_st=1.0)
PSDS1_NO_SPREAD = replace(PSDS1, alpha_st=0.0)
PSDS2_NO_SPREAD = replace(PSDS2, alpha_st=0.0)
PSDS_GROUNDING = Psds(0.5, 0.5, max_efpr=800.0)


@dataclass(frozen=True)
class Scored:
    """One recording: scores (C, T) on any scale, the true segments of each of C classes, seconds."""

    scores: np.ndarray
    truth: Sequence[Segments]
    frame_hop: float
    duration: float

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or not self.scores.shape[1] or len(self.truth) != len(self.scores):
            raise ValueError(f"scores of shape {self.scores.shape} for {len(self.truth)} classes")

    def smoothed(self, frames: int = MEDIAN_FRAMES) -> Scored:
        """The same after a sliding median of an odd number of frames."""
        if frames < 1 or frames % 2 == 0:
            raise ValueError(f"a median filter has an odd number of frames, not {frames}")
        return replace(self, scores=median_smooth(self.scores, frames * self.frame_hop, self.frame_hop))

    def stamps(self) -> np.ndarray:
        """(T' + 1,) seconds: where the frames that begin inside the recording start, and where the last one ends."""
        frames = min(self.scores.shape[1], max(1, int(np.ceil(self.duration / self.frame_hop - 1e-6))))
        stamps = np.arange(frames + 1) * self.frame_hop
        # a recording shorter than a microsecond's rounding would leave its frame without length
        stamps[-1] = max(min(stamps[-1], self.duration), stamps[-2] + 1e-5)
        return stamps


@dataclass(frozen=True)
class PsdsResult:
    """A PSDS, and that of every class that sounds, by its index."""

    value: float
    classes: dict[int, float]


@dataclass(frozen=True)
class F1:
    """F1 at one threshold: the mean over classes, and that of all events together."""

    macro: float
    micro: float


def merged(segments: Segments, duration: float = np.inf) -> list[tuple[float, float]]:
    """Segments in order of time, those that touch or overlap as one, ending with the recording."""
    result: list[tuple[float, float]] = []
    for onset, offset in sorted(segments):
        offset = min(offset, duration)
        if offset - onset < 1e-5:
            continue
        # the precision of the metrics is a microsecond
        if result and onset <= result[-1][1] + 1e-6:
            result[-1] = (result[-1][0], max(offset, result[-1][1]))
        else:
            result.append((onset, offset))
    return result


@cache
def toolbox() -> ModuleType:
    """`sed_scores_eval`. Raises MetricsMissing."""
    # One of its dependencies asks for pkg_resources when imported and uses it only in functions that nobody calls
    # here; new versions of setuptools no longer bring it.
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
    """A table whose arrays can be written to: the compiled loops ask for that, and pandas 3 gives arrays to read."""
    from pandas import DataFrame

    class Table(DataFrame):
        @property
        def _constructor(self) -> type[Table]:
            return Table

        def to_numpy(self, *args: Any, **named: Any) -> np.ndarray:
            return np.array(super().to_numpy(*args, **named))

    return Table


def tables(recordings: Sequence[Scored]) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, float], list[int]]:
    """Score tables, true events and durations as `sed_scores_eval` takes them, and the classes in them.

    Classes that sound nowhere are left out: nothing can be found of them, and their false alarms would count against
    nothing. Columns are named by number, so a phrase may be called "onset".
    """
    if not recordings:
        raise ValueError("no recordings")
    count = len(recordings[0].scores)
    if any(len(r.scores) != count for r in recordings):
        raise ValueError("every recording has to be asked for the same classes")
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
    """Polyphonic sound detection score of recordings that are all asked for the same classes.

    Scores only have to be in order: any rising function of them gives the same. Raises ValueError, MetricsMissing.
    """
    return psds_with(recordings, {"": settings})[""]


def psds_with(recordings: Sequence[Scored], wanted: Mapping[str, Psds]) -> dict[str, PsdsResult]:
    """`psds` under several settings by name; those that count alike share the counting, which is most of the work."""
    box = toolbox()
    scores, events, durations, classes = tables(recordings)
    counted: dict[tuple[float, float, float | None], Any] = {}
    results = {}
    for name, settings in wanted.items():
        cttc = settings.cttc if len(classes) > 1 else None  # there is no other class to trigger
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
    """F1 of events whose onset is within `collar` s, and whose offset within the larger of that and `rate` × length.

    A frame counts from a score above `threshold`. DCASE's settings. Raises ValueError, MetricsMissing.
    """
    box = toolbox()
    scores, events, _, _ = tables(recordings)
    collars = {"onset_collar": collar, "offset_collar": collar, "offset_collar_rate": rate}
    return _f1(box.collar_based.fscore(scores, events, threshold, **collars)[0])


def segment_f1(recordings: Sequence[Scored], threshold: float, length: float = 1.0) -> F1:
    """F1 of segments of `length` seconds, active where any frame or any truth in them is. Errors as `collar_f1`."""
    box = toolbox()
    scores, events, durations, _ = tables(recordings)
    return _f1(box.segment_based.fscore(scores, events, durations, threshold, segment_length=length)[0])


def _f1(result: dict[str, float]) -> F1:
    return F1(float(result["macro_average"]), float(result["micro_average"]))


def one_class_each(recordings: Sequence[Scored]) -> list[Scored]:
    """Every phrase of every recording as a recording of its own with one class: how grounding is scored."""
    return [
        replace(r, scores=row[None], truth=[segments])
        for r in recordings
        for row, segments in zip(r.scores, r.truth, strict=True)
    ]


def threshold_auc(recordings: Sequence[Scored], settings: Psds = PSDS_GROUNDING) -> float:
    """Area under F1 against threshold, 0 to 1, of recordings with one class and probabilities for scores.

    Events are matched by intersection, as in the PSDS of these settings. Where that forgives a badly placed scale of
    scores, this does not: it is high only if many thresholds serve. Exact: F1 changes at scores only.
    """
    if any(len(r.scores) != 1 for r in recordings):
        raise ValueError("one class at a time")
    if any(r.scores.min() < 0 or r.scores.max() > 1 for r in recordings):
        raise ValueError("an area over thresholds from 0 to 1 needs scores from 0 to 1")
    box = toolbox()
    scores, events, _, _ = tables(recordings)
    found, _ = box.intersection_based.accumulated_intermediate_statistics(
        scores, events, dtc_threshold=settings.dtc, gtc_threshold=settings.gtc
    )
    ((steps, counts),) = found.values()
    order = np.argsort(steps)
    f1 = 2 * counts["tps"] / (counts["tps"] + counts["fps"] + counts["n_ref"])
    # the counts of a score hold for thresholds from the next lower score up to it
    upper = np.clip(steps[order], 0, 1)
    return float((np.diff(upper, prepend=0.0) * f1[order]).sum())


def psds_of_mixtures(
    model: FineLAP, mixtures: Sequence[Mixture], median_frames: int = MEDIAN_FRAMES
) -> dict[str, float]:
    """PSDS1 and PSDS2 of mixtures in percent, each also without the spread over classes.

    Classes are all phrases that sound in some mixture, and each is asked of every mixture, also where the mixture's own
    list lacks it: a phrase outside the list is absent, since a mixture names all of its sounds, and an alarm for it is
    false. With hundreds of classes of one or two events the spread leaves little of PSDS; hence the second pair.
    """
    classes = sorted({phrase for m in mixtures for phrase, segments in m.segments.items() if segments})
    recordings = [r.smoothed(median_frames) for r in ask_all(model, mixtures, classes)]
    settings = {"PSDS1": PSDS1, "PSDS2": PSDS2}
    settings |= {"PSDS1, no spread": PSDS1_NO_SPREAD, "PSDS2, no spread": PSDS2_NO_SPREAD}
    return {name: round(100 * result.value, 2) for name, result in psds_with(recordings, settings).items()}


def ask_all(model: FineLAP, mixtures: Sequence[Mixture], classes: Sequence[str]) -> list[Scored]:
    """Frame scores of every class in every mixture, before any smoothing."""
    from training.simulation.simulate import SAMPLE_RATE

    texts = model.encode_text(list(classes))
    result = []
    for mixture in mixtures:
        (heard,) = model.encode_audio([mixture.samples], SAMPLE_RATE)
        scores = model.frame_score(heard.frames, texts).numpy()
        truth = [mixture.segments.get(name, []) for name in classes]
        result.append(Scored(scores, truth, heard.frame_hop, len(mixture.samples) / SAMPLE_RATE))
    return result
