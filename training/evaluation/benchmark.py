"""A model on a benchmark: what is asked of which recordings, and the figures that come of it.

Knows no file layouts (training.evaluation.readers) and draws nothing (training.evaluation.report). Recordings are decoded and heard one
after another, of any length. What cannot be decoded is counted and named, and never scored as if it were silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from model.config import SAMPLE_RATE
from model.finelap import AudioEmbedding, FineLAP
from training.data.audio_cache import decode
from training.data.manifests import Item
from training.evaluation.metrics import both_ways, classification
from training.evaluation.readers import Dataset
from training.evaluation.sed_metrics import (
    F1,
    MEDIAN_FRAMES,
    PSDS1,
    PSDS1_NO_SPREAD,
    PSDS2,
    PSDS2_NO_SPREAD,
    PSDS_GROUNDING,
    Scored,
    collar_f1,
    merged,
    one_class_each,
    psds,
    psds_with,
    segment_f1,
    threshold_auc,
)

TASKS = ("retrieval", "classification", "detection", "grounding")
# Hundreds of classes of a few events each: published without the spread over classes, and without PSDS2.
WITHOUT_SPREAD = ("audioset-strong",)


class BenchmarkError(ValueError):
    """A benchmark that nothing can be computed from."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How recordings are scored; the defaults are the paper's."""

    median_frames: int = MEDIAN_FRAMES  # odd; 1 turns it off
    threshold: float = 0.5  # of the F1 figures; PSDS has none
    clip_template: str = "The sound of {}"  # how a class is asked of whole clips
    phrase_template: str = "{}"  # how a phrase is asked of frames
    pictures: int = 6  # recordings whose frame scores are kept


@dataclass(frozen=True)
class Shown:
    """Frame scores (P, T) of one recording after smoothing, with the true segments of its P phrases."""

    audio_id: str
    phrases: tuple[str, ...]
    scored: Scored


@dataclass(frozen=True)
class Report:
    """What came of one benchmark; `figures` and `classes` are percent, `unreadable` has a reason by audio_id."""

    dataset: str
    task: str
    figures: dict[str, float]
    items: int  # recordings that were scored
    unreadable: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # named by the dataset, but not in its folder
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pictures: tuple[Shown, ...] = ()


def evaluate(
    model: FineLAP,
    dataset: Dataset,
    *,
    median_filter: int = MEDIAN_FRAMES,
    settings: EvaluationSettings | None = None,
    progress: bool = False,
) -> Report:
    """The figures of the dataset's task. Raises BenchmarkError, and MetricsMissing where detection is asked for.

    `median_filter` is in frames; `settings`, if given, goes before it.
    """
    settings = settings or EvaluationSettings(median_frames=median_filter)
    if not dataset.items:
        raise BenchmarkError(f"{dataset.name}: no recordings")
    hearing = _Hearing(model, dataset, progress)
    task = {"retrieval": _retrieval, "classification": _classification, "detection": _detection}.get(
        dataset.task, _grounding
    )
    try:
        report = task(model, dataset, hearing, settings)
    except ValueError as error:
        if hearing.unreadable and not hearing.heard:
            first = next(iter(hearing.unreadable.items()))
            raise BenchmarkError(
                f"{dataset.name}: none of {len(dataset.items)} recordings can be read; {first[0]}: {first[1]}"
            ) from error
        raise BenchmarkError(f"{dataset.name}: {error}") from error
    return replace(report, items=hearing.heard, unreadable=hearing.unreadable, missing=dataset.missing)


def manifest_datasets(name: str, items: Sequence[Item], task: str | None = None) -> list[Dataset]:
    """What a manifest can be evaluated for: retrieval by its captions, detection by its phrases, or the `task` given.

    In detection every phrase of the manifest is a class, asked of every item that has phrases; an item with an empty
    list of them is one in which none sounds.
    """
    captioned = tuple(i for i in items if i.captions)
    phrased = tuple(i for i in items if i.phrases is not None)
    labels = tuple(sorted({c for i in captioned for c in i.captions[:1]}))
    classes = tuple(sorted({p.text for i in phrased for p in i.phrases or ()}))
    possible = {
        "retrieval": Dataset(name, "retrieval", captioned),
        "classification": Dataset(name, "classification", captioned, labels),
        "detection": Dataset(name, "detection", phrased, classes),
        "grounding": Dataset(name, "grounding", phrased),
    }
    if task is not None:
        return [possible[task]]
    return [possible[t] for t in ("retrieval", "detection") if possible[t].items]


class _Hearing:
    """The recordings of a dataset as the model hears them, one at a time; remembers what could not be read."""

    def __init__(self, model: FineLAP, dataset: Dataset, progress: bool) -> None:
        self.model, self.dataset, self.progress = model, dataset, progress
        self.unreadable: dict[str, str] = {}
        self.heard = 0

    def __iter__(self) -> Iterator[tuple[Item, AudioEmbedding, float]]:
        from tqdm import tqdm

        for item in tqdm(self.dataset.items, desc=self.dataset.name, disable=not self.progress, mininterval=1):
            try:
                samples = decode(item.path)
            except (OSError, RuntimeError, ValueError) as error:
                self.unreadable[item.audio_id] = f"{Path(item.path).name}: {error}"
                continue
            self.heard += 1
            yield item, self.model.encode_audio([samples], SAMPLE_RATE)[0], len(samples) / SAMPLE_RATE


def _clips(hearing: _Hearing) -> tuple[list[Item], torch.Tensor]:
    """Items and their clip embeddings (N, D)."""
    heard = [(item, audio.clip) for item, audio, _ in hearing]
    if not heard:
        raise ValueError("nothing was heard")
    return [item for item, _ in heard], torch.stack([clip for _, clip in heard])


def _retrieval(model: FineLAP, dataset: Dataset, hearing: _Hearing, settings: EvaluationSettings) -> Report:
    """A text that several clips carry is asked once, and each of them answers it."""
    items, clips = _clips(hearing)
    texts = sorted({caption for item in items for caption in item.captions})
    number = {text: i for i, text in enumerate(texts)}
    captions = np.zeros((len(texts), len(items)), dtype=bool)
    for column, item in enumerate(items):
        captions[[number[c] for c in item.captions], column] = True
    figures = _percent(both_ways((model.encode_text(texts) @ clips.T).numpy(), captions))
    return Report(dataset.name, dataset.task, figures, 0, notes=(f"{len(texts)} texts, {len(items)} clips",))


def _classification(model: FineLAP, dataset: Dataset, hearing: _Hearing, settings: EvaluationSettings) -> Report:
    items, clips = _clips(hearing)
    number = {name: i for i, name in enumerate(dataset.classes)}
    unknown = sorted({item.captions[0] for item in items} - set(number))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of the classes")
    truth = np.array([number[item.captions[0]] for item in items])
    texts = model.encode_text([settings.clip_template.format(name) for name in dataset.classes])
    scores = (clips @ texts.T).numpy()
    guesses = scores.argmax(1)
    classes = {
        name: {"accuracy": round(100 * float((guesses[truth == c] == c).mean()), 2)}
        for name, c in number.items()
        if (truth == c).any()
    }
    figures = _percent(classification(scores, truth)) | {"accuracy, chance": round(100 / len(number), 2)}
    return Report(dataset.name, dataset.task, figures, 0, classes=classes)


def _frames(model: FineLAP, hearing: _Hearing, classes: Sequence[str], settings: EvaluationSettings) -> list[Shown]:
    """Every class, or where there are none an item's own phrases, over the frames of every recording, smoothed."""
    known: dict[str, torch.Tensor] = {}
    result = []
    for item, audio, duration in hearing:
        truth: dict[str, list[tuple[float, float]]] = {name: [] for name in classes}
        for phrase in item.phrases or ():
            if classes and phrase.text not in truth:
                raise ValueError(f"{item.audio_id}: {phrase.text!r} is not one of the classes")
            truth.setdefault(phrase.text, []).extend(phrase.segments)
        if not truth:
            continue
        new = [name for name in truth if name not in known]
        if new:
            texts = model.encode_text([settings.phrase_template.format(name) for name in new])
            known.update(zip(new, texts, strict=True))
        scores = model.frame_score(audio.frames, torch.stack([known[name] for name in truth])).numpy()
        segments = [merged(s, duration) for s in truth.values()]
        scored = Scored(scores, segments, audio.frame_hop, duration).smoothed(settings.median_frames)
        result.append(Shown(item.audio_id, tuple(truth), scored))
    return result


def _detection(model: FineLAP, dataset: Dataset, hearing: _Hearing, settings: EvaluationSettings) -> Report:
    shown = _frames(model, hearing, dataset.classes, settings)
    recordings = [s.scored for s in shown]
    wanted = {"PSDS1": PSDS1, "PSDS2": PSDS2, "PSDS1, no spread": PSDS1_NO_SPREAD, "PSDS2, no spread": PSDS2_NO_SPREAD}
    if dataset.name in WITHOUT_SPREAD:
        wanted = {"PSDS1": PSDS1_NO_SPREAD}
    results = psds_with(recordings, wanted)
    figures = _percent({name: result.value for name, result in results.items()})
    figures |= _f1("collar F1", collar_f1(recordings, settings.threshold))
    figures |= _f1("segment F1", segment_f1(recordings, settings.threshold))
    per_class: dict[str, dict[int, float]] = {n: r.classes for n, r in results.items() if "spread" not in n}
    sounding = sorted(per_class["PSDS1"])
    classes = {
        dataset.classes[c]: {name: round(100 * found[c], 2) for name, found in per_class.items()} for c in sounding
    }
    silent = len(dataset.classes) - len(sounding)
    notes = (f"{silent} of {len(dataset.classes)} classes sound nowhere and are left out",) if silent else ()
    pictures = _choose(shown, settings.pictures)
    return Report(dataset.name, dataset.task, figures, 0, classes=classes, notes=notes, pictures=pictures)


def _grounding(model: FineLAP, dataset: Dataset, hearing: _Hearing, settings: EvaluationSettings) -> Report:
    shown = _frames(model, hearing, (), settings)
    asked = one_class_each([s.scored for s in shown])
    figures = _percent({"PSDS": psds(asked, PSDS_GROUNDING).value, "threshold-AUC": threshold_auc(asked)})
    notes = (f"{len(asked)} phrases in {len(shown)} recordings",)
    pictures = _choose(shown, settings.pictures)
    return Report(dataset.name, dataset.task, figures, 0, notes=notes, pictures=pictures)


def _choose(shown: Sequence[Shown], count: int) -> tuple[Shown, ...]:
    """`count` of the recordings in which something sounds, from all over the list."""
    sounding = [s for s in shown if any(s.scored.truth)]
    steps = np.linspace(0, len(sounding) - 1, min(count, len(sounding))).round().astype(int)
    return tuple(sounding[i] for i in steps)


def _f1(name: str, value: F1) -> dict[str, float]:
    return _percent({f"{name}, mean over classes": value.macro, f"{name}, all events": value.micro})


def _percent(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * value, 2) for name, value in figures.items()}
