"""Compares methods that turn frame scores into events: a sliding median, hysteresis, and boxes by change detection.

Mixtures are made as for the bundled checkpoint's figures (training.evaluation.validation). Settings are chosen by event
F1 at its best threshold on mixtures of training sounds; the table is measured on mixtures of the validation packages.
Needs the extras `train` and `evaluate`. SOUNDS is a folder of labelled sounds, as filled by
`python -m training.recipes.fetch_sounds`:

    python -m benchmarks.model.detection runs/sounds --out postprocessing.json

PSDS covers all thresholds and scores every phrase that occurs in any mixture on every mixture, without merging, minimum
duration or penalty for the spread over classes. Event F1 is that of `find_events` (intersection over union 0.5, default
merging) for ten phrases per mixture. Intervals are bootstrapped over mixtures, with the same draws for all methods.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.common import REPO
from model.detection import DetectionSettings, find_events, median_smooth
from model.finelap import FineLAP
from model.sebb import event_boxes
from training.config import EvaluationConfig, read_recipe
from training.data.audio_cache import AudioStore
from training.data.manifests import Item, read_labelled
from training.evaluation.metrics import f1, match_events
from training.evaluation.sed_metrics import PSDS1_NO_SPREAD, PSDS2_NO_SPREAD, Psds, Scored, psds_with
from training.evaluation.validation import make_mixtures, score_mixtures

RECIPE = REPO / "training" / "configs" / "finelap-small.yaml"
FINE = 8  # grid steps per frame for boxes; half a step filter must be a multiple of a step
THRESHOLDS = np.round(np.arange(0.1, 0.9, 0.025), 3)
COARSE = THRESHOLDS[6::2]  # for choosing settings


@dataclass(frozen=True)
class Method:
    """A method: settings with a free threshold; `ratio` is the low threshold as a share of it, None the default.

    PSDS needs a ratio: events that end at half of their own highest score are no cut of one track at every threshold.
    """

    name: str
    settings: DetectionSettings
    ratio: float | None = 1.0

    def at(self, threshold: float) -> DetectionSettings:
        """The settings at one threshold."""
        low = None if self.settings.method == "sebb" or self.ratio is None else self.ratio * threshold
        return replace(self.settings, threshold=threshold, low_threshold=low)

    def over_all_thresholds(self, recording: Scored) -> Scored:
        """Tracks that, cut at any threshold, give the events of that threshold before merging."""
        settings, hop = self.settings, recording.frame_hop
        if settings.method == "sebb":
            rows = [_boxes_as_track(row, settings, recording) for row in recording.scores]
            return replace(recording, scores=np.stack(rows), frame_hop=hop / FINE)
        if self.ratio is None:
            raise ValueError(f"{self.name} is no cut of one track at every threshold")
        smooth = median_smooth(recording.scores, settings.median_filter, hop)
        return replace(recording, scores=reaching(smooth, self.ratio))


def reaching(scores: np.ndarray, ratio: float) -> np.ndarray:
    """Scores (C, T) → (C, T): the highest threshold at which hysteresis with `ratio` includes each frame.

    Frame t is included at threshold h if some frame u scores at least h and all frames from u to t at least ratio × h.
    """
    if ratio == 1.0:
        return scores
    best = scores.copy()
    for u in range(scores.shape[1]):
        for path, target in ((scores[:, u:], best[:, u:]), (scores[:, u::-1], best[:, u::-1])):
            reached = np.minimum(np.minimum.accumulate(path, axis=1) / ratio, scores[:, u, None])
            np.maximum(target, reached, out=target)
    return best


def _boxes_as_track(row: np.ndarray, settings: DetectionSettings, recording: Scored) -> np.ndarray:
    step = recording.frame_hop / FINE
    onsets, offsets, scores = event_boxes(
        row[: len(recording.stamps()) - 1],
        recording.stamps(),
        settings.step_filter_length,
        settings.merge_threshold_abs,
        settings.merge_threshold_rel,
    )
    track = np.zeros(len(row) * FINE, dtype=np.float32)
    for onset, offset, score in zip(onsets, offsets, scores, strict=True):
        track[round(onset / step) : max(round(offset / step), round(onset / step) + 1)] = score
    return track


def psds_of(method: Method, recordings: Sequence[Scored], wanted: dict[str, Psds]) -> dict[str, float]:
    """PSDS in percent."""
    found = psds_with([method.over_all_thresholds(r) for r in recordings], wanted)
    return {name: 100 * result.value for name, result in found.items()}


def event_counts(method: Method, asked: Sequence[Scored], thresholds: Iterable[float]) -> np.ndarray:
    """Counts (H, M, 3) of matched, found and true events at each threshold in each mixture."""
    counts = []
    for threshold in thresholds:
        settings = method.at(float(threshold))
        for recording in asked:
            sums = np.zeros(3, dtype=int)
            for row, truth in zip(recording.scores, recording.truth, strict=True):
                found = [
                    (e.onset, e.offset) for e in find_events(row, settings, recording.frame_hop, recording.duration)
                ]
                sums += (match_events(found, truth), len(found), len(truth))
            counts.append(sums)
    return np.array(counts).reshape(-1, len(asked), 3)


def best_f1(counts: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """The best threshold and its F1 in percent."""
    scores = [100 * f1(*c.sum(0)) for c in counts]
    best = int(np.argmax(scores))
    return float(thresholds[best]), scores[best]


@dataclass(frozen=True)
class Mixtures:
    """Scored mixtures: every class of every mixture, and each mixture's own ten phrases."""

    all_classes: list[Scored]
    asked: list[Scored]


def make_and_score(model: FineLAP, items: list[Item], store_file: Path, config: EvaluationConfig) -> Mixtures:
    """Makes mixtures of the items and scores them."""
    mixtures = make_mixtures(AudioStore(store_file, items, progress=True), config)
    classes = sorted({p for m in mixtures for p, segments in m.segments.items() if segments})
    phrases = sorted({p for m in mixtures for p in m.segments})
    everything = score_mixtures(model, mixtures, phrases)
    sounding = [phrases.index(p) for p in classes]
    own = [[phrases.index(p) for p in m.segments] for m in mixtures]
    return Mixtures(
        [_rows(r, sounding) for r in everything], [_rows(r, o) for r, o in zip(everything, own, strict=True)]
    )


def _rows(recording: Scored, rows: list[int]) -> Scored:
    return replace(recording, scores=recording.scores[rows], truth=[recording.truth[i] for i in rows])


def choose(mixtures: Mixtures, report: Callable[[str], None]) -> list[Method]:
    """The methods to compare, with their free settings chosen on these mixtures."""
    chosen: dict[str, float] = {}

    def best(methods: list[Method]) -> Method:
        for method in methods:
            threshold, chosen[method.name] = best_f1(event_counts(method, mixtures.asked, COARSE), COARSE)
            report(f"{method.name}: F1 {chosen[method.name]:.2f} at {threshold}")
        return max(methods, key=lambda method: chosen[method.name])

    default = Method("median 0.48 s", DetectionSettings(median_filter=0.48))
    medians = [Method(f"median {s} s", DetectionSettings(median_filter=s)) for s in (0.8, 1.12, 1.44, 2.08)]
    none = Method("no smoothing", DetectionSettings(median_filter=0.0))
    median = best([none, default, *medians])
    lows = [
        [Method(f"{method.name}, low {ratio} ×", method.settings, ratio) for ratio in (0.75, 0.6, 0.45, 0.3, 0.2)]
        for method in (none, default, medians[0], medians[1])
    ]
    low = best([method for methods in lows for method in methods])
    boxes = best(
        [
            Method(
                f"boxes {length} s, abs {high}, rel {rel}",
                DetectionSettings(
                    method="sebb", step_filter_length=length, merge_threshold_abs=high, merge_threshold_rel=rel
                ),
            )
            for length in (0.32, 0.48, 0.64, 0.96)
            for high, rel in [(a, np.inf) for a in (0.2, 0.3, 0.4, 0.5)] + [(np.inf, q) for q in (1.5, 2.0, 3.0)]
        ]
    )
    methods = [default, none, median, max(lows[1], key=lambda w: chosen[w.name]), low, boxes]
    return [method for i, method in enumerate(methods) if method not in methods[:i]]


def table(methods: list[Method], mixtures: Mixtures, psds2: bool, seed: int = 0) -> Iterator[dict[str, object]]:
    """A row per method: PSDS, F1 at 0.5 and at the best threshold, and intervals of the difference to the first."""
    wanted = {"PSDS1, no spread": PSDS1_NO_SPREAD}
    if psds2:
        wanted["PSDS2, no spread"] = PSDS2_NO_SPREAD
    drawn = np.random.default_rng(seed).integers(0, len(mixtures.asked), (1000, len(mixtures.asked)))
    before: tuple[np.ndarray, np.ndarray] | None = None
    for method in methods:
        counts = event_counts(method, mixtures.asked, [0.5, *THRESHOLDS])
        again = np.stack([counts[:, draw].sum(1) for draw in drawn], axis=1)  # (H, draws, 3)
        f1s = 200 * again[..., 0] / (again[..., 1] + again[..., 2])
        at_half, at_best = f1s[0], f1s[1:].max(0)
        before = before or (at_half, at_best)
        threshold, best = best_f1(counts[1:], THRESHOLDS)
        yield {
            "method": method.name,
            **{k: round(v, 2) for k, v in psds_of(method, mixtures.all_classes, wanted).items()},
            "F1 at 0.5": round(100 * f1(*counts[0].sum(0)), 2),
            "more than the first, 95 %": np.quantile(at_half - before[0], [0.025, 0.975]).round(2).tolist(),
            "best threshold": threshold,
            "F1 there": round(best, 2),
            "more there than the first, 95 %": np.quantile(at_best - before[1], [0.025, 0.975]).round(2).tolist(),
        }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, help="folder of labelled sounds with a manifest.jsonl")
    parser.add_argument("--checkpoint", default="checkpoints/finelap-small")
    parser.add_argument("--mixtures", type=int, default=200, help="mixtures to measure on")
    parser.add_argument("--choose-by", type=int, default=120, help="mixtures to choose settings by")
    parser.add_argument("--psds2", action="store_true", help="also compute PSDS2, which takes most of the time")
    parser.add_argument("--work", type=Path, help="folder for decoded sounds, kept for later runs")
    parser.add_argument("--out", type=Path, help="JSON with the table")
    args = parser.parse_args()
    recipe = read_recipe(RECIPE)
    items = [i for i in read_labelled(args.sounds, exclude_groups=recipe.excluded_groups) if i.captions]
    held_out = [i for i in items if i.group in recipe.validation_groups]
    trained_on = [i for i in items if i.group not in recipe.validation_groups]
    model = FineLAP.from_pretrained(args.checkpoint)
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        config = replace(recipe.evaluation, mixtures=args.choose_by)
        training = make_and_score(model, trained_on, work / "training.i16", config)
        report(f"{len(training.asked)} mixtures of {len(trained_on)} sounds to choose by")
        methods = choose(training, report)
        config = replace(recipe.evaluation, mixtures=args.mixtures)
        validation = make_and_score(model, held_out, work / "validation.i16", config)
        report(f"{len(validation.asked)} mixtures of {len(held_out)} sounds to measure on")
        rows = []
        for row in table(methods, validation, args.psds2):
            report(json.dumps(row, ensure_ascii=False))
            rows.append(row)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
