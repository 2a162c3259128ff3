"""How well a concept finds the rest of its sounds after 0, 1, 3, 5, 10 and 20 examples.

    python -m benchmarks.quality.concepts ../shared/sfx --work work --out concepts.json

Sounds of the validation packages, which the checkpoint has not trained on, are the library. A concept is a word that
six or more of their labels have ("footstep", "explosion"), or two such words: a sound that no phrase names. Examples
are drawn at random, and the other clips are ranked by the service's rule. Compared are

- text: the phrase alone;
- example: search by the mean of the examples, as `like` does;
- head: the concept's head without a text;
- concept: the head with the text, as a user teaches it.

Event F1, at 0.5 and at the concept's own threshold, is measured in recordings of twenty seconds that have no example:
four sounds each, in faint noise.
`--familiar` adds the labels of six or more clips of all packages, which the checkpoint has trained on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from benchmarks.common import REPO, load, machine, revision, table, write_json
from benchmarks.quality.recordings import SILENCE, background_samples, compose
from benchmarks.quality.sounds import CachedModel, Sounds
from index.quantization import encode_frames
from index.segments import LONG_SECONDS, cut_segments
from model.concepts.fit import SETTINGS, Background, HeadSettings, Labelled, fit_head
from model.concepts.head import Direction, HeadScores, Scores, best_logits, named_sounds
from model.config import SAMPLE_RATE
from model.detection import DetectionSettings, find_events
from model.finelap import FineLAP
from training.data.activity import trim
from training.evaluation.metrics import match_events

CHECKPOINT = REPO / "checkpoints" / "finelap-small"
WORDS = (
    "ambience", "digging", "door", "engine", "explosion", "fire", "footstep", "glass", "gravel", "laugh", "metal",
    "water",
)  # fmt: skip
COUNTS = (0, 1, 3, 5, 10, 20)
RESAMPLES = 10_000  # of the bootstrap
LEAST = 3  # clips that are left to be found
PAIRS = 20
SAMPLE = 512  # clips of the background, as in the service
RECORDINGS, SECONDS, EVENTS = 70, 20.0, 4
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Concept:
    """A concept to be taught: its text, and which clips of the library have it."""

    kind: str
    name: str
    text: str
    clips: np.ndarray  # (N,) bool


@dataclass(frozen=True, eq=False)
class Clips:
    """An embedded library: vectors of clips (N, D), segments and frames of each."""

    clips: np.ndarray
    segments: list[np.ndarray]
    frames: list[np.ndarray]
    labels: list[str]
    long: np.ndarray  # (N,) bool: over LONG_SECONDS

    @classmethod
    def of(cls, model: CachedModel, waveforms: Sequence[np.ndarray], labels: list[str]) -> Clips:
        found = model.encode_audio(waveforms, SAMPLE_RATE)
        codes = [encode_frames(e.frames.numpy()) for e in found]
        segments = [cut_segments(code, e.frame_hop).decode() for code, e in zip(codes, found, strict=True)]
        long = np.array([len(waveform) / SAMPLE_RATE > LONG_SECONDS for waveform in waveforms])
        return cls(np.stack([e.clip.numpy() for e in found]), segments, [c.decode() for c in codes], labels, long)

    def logits(self, directions: Sequence[Direction]) -> np.ndarray:
        """The service's logits (N,): of the clip or, if it is long, of its best segment."""
        whole = best_logits(directions, self.clips, "clip")
        parts = [best_logits(directions, s, "segment").max() for s in self.segments]
        return np.where(self.long, np.maximum(whole, parts), whole)

    def background(self, count: int) -> Background:
        """A sample of clips, as ConceptStore.sample returns."""
        places = np.unique(np.linspace(0, len(self.clips) - 1, min(count, len(self.clips))).astype(int))
        segments, frames = [self.segments[i] for i in places], [spread(self.frames[i]) for i in places]
        return Background([str(i) for i in places], self.clips[places], segments, frames)

    def example(self, place: int, label: bool = True) -> Labelled:
        return Labelled(label, str(place), self.clips[place], self.segments[place], spread(self.frames[place], 32))


def spread(frames: np.ndarray, count: int = 8) -> np.ndarray:
    """At most `count` of the frames (T, D), evenly spaced."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int))]


def word_concepts(labels: Sequence[str], kind: str = "one") -> list[Concept]:
    """A concept for each of WORDS, or for pairs of them ("two")."""
    words = [set(label.lower().split()) for label in labels]
    has = {word: np.array([word in own for own in words]) for word in WORDS}
    if kind == "one":
        return [Concept("one sound", w, w, h) for w, h in has.items() if h.sum() >= 6]
    rng, pairs = np.random.default_rng(7), []
    while len(pairs) < PAIRS:
        pair = tuple(sorted(rng.choice(WORDS, 2, replace=False).tolist()))
        if pair not in pairs:
            pairs.append(pair)
    return [Concept("two sounds", f"{a} + {b}", f"{a} or {b}", has[a] | has[b]) for a, b in pairs]


def label_concepts(labels: Sequence[str]) -> list[Concept]:
    """A concept for each label of six or more clips."""
    found = [label for label, count in sorted(Counter(labels).items()) if count >= 6]
    return [Concept("familiar labels", label, label, np.array(labels) == label) for label in found]


def text_scores(model: FineLAP | CachedModel) -> HeadScores:
    """As Engine.text_scores."""
    pairs = [Scores(float(t.detach()), float(b.detach())) for t, b in (
        (model.temp_global, model.b_global), (model.temp_local, model.b_local)
    )]  # fmt: skip
    matching = model.config.matching
    segment = pairs[0] if matching is None else Scores(*matching.segment)
    return HeadScores(pairs[0], segment, pairs[1])


class Measurement:
    """Teaches concepts of one library and measures them."""

    def __init__(self, model: CachedModel, library: Clips, settings: HeadSettings, options: argparse.Namespace) -> None:
        self.library, self._settings = library, settings
        self._draws, self._counts = options.draws, options.examples
        self._scores = text_scores(model)
        matching = model.config.matching
        assert matching is not None
        sound = Scores(*matching.sound)
        self._sound = HeadScores(sound, sound, sound)
        self._cutoff = matching.cutoff
        self._model = model
        self._background = library.background(SAMPLE)

    def heads(
        self, text: np.ndarray, named: np.ndarray, chosen: np.ndarray
    ) -> Iterator[tuple[str, Sequence[Direction], float]]:
        """Each method's directions for examples (n,), and the threshold of its events.

        The text is given as a phrase (D,), and as the kinds of sounds that it names (J, D).
        """
        yield "text", [Direction(text, self._scores)], 0.5
        if not len(chosen):
            yield "concept", [Direction(one, self._scores) for one in named], 0.5
            return
        mean = self.library.clips[chosen].mean(axis=0)
        yield "example", [Direction(mean / np.linalg.norm(mean), self._sound)], 0.5
        examples = [self.library.example(place) for place in chosen.tolist()]
        for name, given in (("head", None), ("concept", named)):
            head = fit_head(examples, self._background, given, self._scores, self._settings)
            yield name, head.directions, head.threshold

    def run(self, concepts: Sequence[Concept], recordings: Recordings | None) -> list[dict[str, Any]]:
        """A row for each concept, number of examples and method."""
        texts = self._model.encode_text([concept.text for concept in concepts]).numpy()
        rows = []
        for number, (concept, text) in enumerate(zip(tqdm(concepts), texts, strict=True)):
            named = self._model.encode_text(named_sounds(concept.text)).numpy()
            positive = np.flatnonzero(concept.clips)
            for count in self._counts:
                if len(positive) - count < LEAST:
                    continue
                for draw in range(self._draws if count else 1):
                    rng = np.random.default_rng([20, number, count, draw])
                    chosen = rng.choice(positive, count, replace=False)
                    rest = np.ones(len(concept.clips), bool)
                    rest[chosen] = False
                    truth = concept.clips[rest]
                    for method, directions, threshold in self.heads(text, named, chosen):
                        logits = self.library.logits(directions)[rest]
                        score = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
                        match = score >= self._cutoff
                        row = {"kind": concept.kind, "concept": concept.name, "examples": count, "method": method}
                        row["draw"] = draw
                        row |= {"AP": average_precision_score(truth, logits)}
                        row |= {"matched": int((match & truth).sum()), "matches": int(match.sum())}
                        row |= {"true": int(truth.sum())}
                        if recordings is not None:
                            row |= recordings.counts(concept, directions, threshold, set(chosen.tolist()))
                        rows.append(row)
        return rows


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of several sounds each: frames, which clips they are made of, and when each is audible."""

    frames: list[np.ndarray]
    events: list[dict[int, list[tuple[float, float]]]]  # clip → stretches
    hop: float

    @classmethod
    def of(cls, model: CachedModel, sounds: Sounds) -> Recordings:
        order = np.random.default_rng(21).permutation(len(sounds.store)).tolist()
        waveforms, events = [], []
        for number in range(min(RECORDINGS, len(order) // EVENTS)):
            rng = np.random.default_rng([22, number])
            bed = background_samples(SILENCE, sounds, round(SECONDS * SAMPLE_RATE), rng)
            places = order[number * EVENTS : (number + 1) * EVENTS]
            made = compose(bed, [(str(place), trim(sounds.store.get(place))) for place in places], rng)
            waveforms.append(made.samples)
            events.append({int(name): stretches for name, stretches in made.events.items()})
        found = model.encode_audio(waveforms, SAMPLE_RATE)
        return cls([encode_frames(e.frames.numpy()).decode() for e in found], events, found[0].frame_hop)

    def counts(
        self, concept: Concept, directions: Sequence[Direction], own: float, examples: set[int]
    ) -> dict[str, list[int]]:
        """Events matched, detected and true, at each of THRESHOLDS and at the method's own, in the recordings without
        examples."""
        totals = np.zeros((len(THRESHOLDS) + 1, 3), int)
        for frames, events in zip(self.frames, self.events, strict=True):
            if examples & events.keys():
                continue
            truth = sorted(s for place, own in events.items() if concept.clips[place] for s in own)
            track = 1 / (1 + np.exp(-np.clip(best_logits(directions, frames, "frame"), -50, 50)))
            for number, threshold in enumerate((*THRESHOLDS, own)):
                found = find_events(track.astype(np.float32), DetectionSettings(threshold), self.hop, SECONDS)
                pairs = [(event.onset, event.offset) for event in found]
                totals[number] += [match_events(pairs, truth), len(pairs), len(truth)]
        return {"events": totals.tolist()}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over concepts, for each kind, number of examples and method."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        for kind in (row["kind"], "all"):
            groups.setdefault((kind, row["examples"], row["method"]), []).append(row)
    found = []
    for (kind, count, method), own in groups.items():
        per_concept: dict[str, list[float]] = {}
        for row in own:
            per_concept.setdefault(row["concept"], []).append(row["AP"])
        line = {"kind": kind, "examples": count, "method": method, "concepts": len(per_concept)}
        line["AP"] = float(np.mean([np.mean(values) for values in per_concept.values()]))
        hits, matches, true = (sum(row[key] for row in own) for key in ("matched", "matches", "true"))
        line["match F1"] = 2 * hits / max(1, matches + true)
        if all("events" in row for row in own):
            totals = np.sum([row["events"] for row in own], axis=0)
            f1 = 2 * totals[:, 0] / np.maximum(1, totals[:, 1] + totals[:, 2])
            line["event F1"], line["at its own"] = float(f1[THRESHOLDS.index(0.5)]), float(f1[-1])
            line["best event F1"], line["at"] = float(f1[:-1].max()), THRESHOLDS[int(f1[:-1].argmax())]
        found.append(line)
    return found


def gains(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By how much a concept's AP exceeds that of the other methods: a paired bootstrap over the concepts.

    Each concept counts with its mean over the draws, the same ones for all methods; `low` and `high` are the ends of
    the 95 % interval.
    """
    found = []
    aps: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for kind in (row["kind"], "all"):
            of_method = aps.setdefault((kind, row["examples"]), {}).setdefault(row["method"], {})
            of_method.setdefault(row["concept"], []).append(row["AP"])
    for (kind, count), methods in aps.items():
        own = {name: float(np.mean(values)) for name, values in methods["concept"].items()}
        for method in (name for name in methods if count and name != "concept"):
            gain = np.array([own[name] - np.mean(values) for name, values in methods[method].items()])
            chosen = np.random.default_rng(23).integers(0, len(gain), (RESAMPLES, len(gain)))
            low, high = np.quantile(gain[chosen].mean(axis=1), (0.025, 0.975)).tolist()
            line = {"kind": kind, "examples": count, "over": method, "concepts": len(gain)}
            found.append(line | {"gain": float(gain.mean()), "low": low, "high": high})
    return found


def main(arguments: Sequence[str] | None = None, model: FineLAP | None = None) -> dict[str, Any]:
    """Runs the command and returns the report."""
    options = _options(arguments)
    began = time.perf_counter()
    settings = replace(SETTINGS, **dict(options.set))
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        cached = CachedModel(model or FineLAP.from_pretrained(options.checkpoint), work)
        sounds = Sounds(options.sounds, work, embed=lambda labels: np.eye(len(labels), dtype=np.float32))
        library = Clips.of(cached, list(sounds.store), sounds.label)
        recordings = None if options.no_events else Recordings.of(cached, sounds)
        concepts = [concept for kind in options.kinds for concept in word_concepts(library.labels, kind)]
        rows = Measurement(cached, library, settings, options).run(concepts, recordings)
        if options.familiar:
            every = [item for item in sounds.others] + list(sounds.store.items)
            audio = [load(options.sounds / item.audio_id) for item in every]
            whole = Clips.of(cached, audio, [item.captions[0] for item in every])
            rows += Measurement(cached, whole, settings, options).run(label_concepts(whole.labels), None)
    command = shlex.join(["python", "-m", "benchmarks.quality.concepts", *(arguments or sys.argv[1:])])
    report: dict[str, Any] = machine() | {"command": command, "revision": revision(REPO), "clips": len(library.labels)}
    report |= {"seconds": time.perf_counter() - began, "summary": summary(rows), "gains": gains(rows), "rows": rows}
    columns = ["AP", "match F1", "event F1", "at its own", "best event F1", "at"]
    head = ["kind", "examples", "method", "concepts", *columns]
    lines = [
        [r["kind"], r["examples"], r["method"], r["concepts"], *(f"{r[c]:.3f}" if c in r else "" for c in columns)]
        for r in report["summary"]
    ]
    print(table(head, lines))
    head = ["kind", "examples", "over", "concepts", "gain", "low", "high"]
    print(
        table(head, [[f"{v:+.3f}" if isinstance(v, float) else v for v in line.values()] for line in report["gains"]])
    )
    write_json(options.out, report)
    return report


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.concepts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def setting(text: str) -> tuple[str, float | int]:
        name, _, value = text.partition("=")
        kinds = {field.name: type(getattr(SETTINGS, field.name)) for field in fields(HeadSettings)}
        if name not in kinds:
            raise argparse.ArgumentTypeError(f"settings are {', '.join(kinds)}")
        return name, kinds[name](value)

    parser.add_argument("sounds", type=Path, help="folder of labelled sounds with a manifest.jsonl")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--examples", type=numbers, default=list(COUNTS), help="numbers of examples (0,1,3,5,10,20)")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["one", "two"], help="one,two")
    parser.add_argument("--draws", type=int, default=3, help="random choices of examples (3)")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="a HeadSetting")
    parser.add_argument("--familiar", action="store_true", help="also the labels that the checkpoint has trained on")
    parser.add_argument("--no-events", action="store_true", help="only retrieval")
    parser.add_argument("--work", type=Path, help="folder for decoded sounds and embeddings, kept for later runs")
    parser.add_argument("--out", type=Path, help="JSON with every number")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
