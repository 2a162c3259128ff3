"""Evaluates a model on a benchmark: retrieval, classification, detection or grounding.

`training.evaluation.readers` reads the datasets and `training.evaluation.report` writes the results. Recordings of any
length are decoded and embedded one at a time; unreadable ones are reported and never scored as silence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from model.config import SAMPLE_RATE
from model.finelap import AudioEmbedding, FineLAP
from training.data.audio_cache import decode
from training.data.manifests import Item
from training.evaluation.metrics import both_ways, classification, percent
from training.evaluation.protocol import FULL, Protocol
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
# With hundreds of classes of a few events each, results are published without the spread over classes and PSDS2.
WITHOUT_SPREAD = ("audioset-strong",)


class BenchmarkError(ValueError):
    """A benchmark for which no figures can be computed."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How recordings are scored; the defaults are those of arXiv 2604.01155."""

    median_frames: int = MEDIAN_FRAMES  # odd; 1 disables the filter
    threshold: float = 0.5  # for F1; PSDS needs none
    clip_template: str = "The sound of {}"  # query for a class, scored on clips
    phrase_template: str = "{}"  # query for a phrase, scored on frames
    pictures: int = 6  # number of recordings to plot
    protocol: Protocol = FULL


@dataclass(frozen=True)
class Shown:
    """Smoothed frame scores (phrases, frames) of one recording, with the true segments of its phrases."""

    audio_id: str
    phrases: tuple[str, ...]
    scored: Scored


@dataclass(frozen=True)
class Report:
    """Results of one benchmark. `figures` and `classes` are percent; `unreadable` maps audio ids to reasons."""

    dataset: str
    task: str
    figures: dict[str, float]
    items: int  # recordings scored
    unreadable: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # listed by the dataset, but without an audio file
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pictures: tuple[Shown, ...] = ()
    protocol: str = FULL.name
    audio_seconds: float = 0.0  # embedded
    encoding_seconds: float = 0.0  # taken to decode and embed it


def evaluate(
    model: FineLAP,
    dataset: Dataset,
    *,
    median_filter: int = MEDIAN_FRAMES,
    settings: EvaluationSettings | None = None,
    progress: bool = False,
) -> Report:
    """Figures for the dataset's task. Raises BenchmarkError, and MetricsMissing for detection and grounding.

    `median_filter` is in frames; `settings` takes precedence over it.
    """
    settings = settings or EvaluationSettings(median_frames=median_filter)
    if not dataset.items:
        raise BenchmarkError(f"{dataset.name}: no recordings")
    recordings = _EmbeddedRecordings(model, dataset, settings.protocol, progress)
    task = {"retrieval": _retrieval, "classification": _classification, "detection": _detection}.get(
        dataset.task, _grounding
    )
    try:
        report = task(model, dataset, recordings, settings)
    except ValueError as error:
        if recordings.unreadable and not recordings.count:
            first = next(iter(recordings.unreadable.items()))
            raise BenchmarkError(
                f"{dataset.name}: none of {len(dataset.items)} recordings can be read; {first[0]}: {first[1]}"
            ) from error
        raise BenchmarkError(f"{dataset.name}: {error}") from error
    return replace(
        report,
        items=recordings.count,
        unreadable=recordings.unreadable,
        missing=dataset.missing,
        protocol=settings.protocol.name,
        audio_seconds=recordings.audio_seconds,
        encoding_seconds=recordings.encoding_seconds,
    )


def manifest_datasets(
    name: str, items: Sequence[Item], task: str | None = None, protocol: Protocol = FULL
) -> list[Dataset]:
    """The evaluations that a manifest supports: retrieval by its captions, detection by its phrases; or only `task`.

    In detection, every phrase of the manifest is a class and is scored on every item with phrases; in an item with an
    empty list of phrases no class occurs. The published protocol drops items without events from detection.
    """
    captioned = tuple(i for i in items if i.captions)
    phrased = tuple(i for i in items if i.phrases is not None)
    scored = tuple(i for i in phrased if protocol.silent_files == "score" or any(p.segments for p in i.phrases or ()))
    labels = tuple(sorted({c for i in captioned for c in i.captions[:1]}))
    classes = tuple(sorted({p.text for i in phrased for p in i.phrases or ()}))
    possible = {
        "retrieval": Dataset(name, "retrieval", captioned),
        "classification": Dataset(name, "classification", captioned, labels),
        "detection": Dataset(name, "detection", scored, classes),
        "grounding": Dataset(name, "grounding", phrased),
    }
    if task is not None:
        return [possible[task]]
    return [possible[t] for t in ("retrieval", "detection") if possible[t].items]


class _EmbeddedRecordings:
    """Iterates over (item, embedding, duration in seconds) of a dataset; collects unreadable recordings."""

    def __init__(self, model: FineLAP, dataset: Dataset, protocol: Protocol, progress: bool) -> None:
        self.model, self.dataset, self.protocol, self.progress = model, dataset, protocol, progress
        self.unreadable: dict[str, str] = {}
        self.count = 0  # recordings embedded
        self.audio_seconds = self.encoding_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Item, AudioEmbedding, float]]:
        from tqdm import tqdm

        channel = 0 if self.protocol.channel == "first" else None
        rate = self.model.traits.sample_rate if hasattr(self.model, "traits") else SAMPLE_RATE
        for item in tqdm(self.dataset.items, desc=self.dataset.name, disable=not self.progress, mininterval=1):
            began = time.perf_counter()
            try:
                samples = decode(item.path, rate, seconds=self.protocol.seconds, channel=channel)
            except (OSError, RuntimeError, ValueError) as error:
                self.unreadable[item.audio_id] = f"{Path(item.path).name}: {error}"
                continue
            self.count += 1
            (embedding,) = self.model.encode_audio([samples], rate)
            duration = len(samples) / rate
            self.audio_seconds += duration
            self.encoding_seconds += time.perf_counter() - began
            yield item, embedding, duration


def _clips(recordings: _EmbeddedRecordings) -> tuple[list[Item], torch.Tensor]:
    """Items and their clip embeddings (items, dim)."""
    embedded = [(item, audio.clip) for item, audio, _ in recordings]
    if not embedded:
        raise ValueError("no recording could be read")
    return [item for item, _ in embedded], torch.stack([clip for _, clip in embedded])


def _retrieval(
    model: FineLAP, dataset: Dataset, recordings: _EmbeddedRecordings, settings: EvaluationSettings
) -> Report:
    """Each distinct text is one query, for which all clips with that caption are relevant.

    In the published protocol each caption is a query of its own, and only its own clip is relevant.
    """
    items, clips = _clips(recordings)
    texts = sorted({caption for item in items for caption in item.captions})
    number = {text: i for i, text in enumerate(texts)}
    pairs = np.array([(number[c], column) for column, item in enumerate(items) for c in item.captions])
    similarity = (model.encode_text(texts) @ clips.T).numpy()
    if settings.protocol.equal_captions == "separate":
        relevant = pairs[:, 1, None] == np.arange(len(items))
        note = f"{len(pairs)} captions, {len(texts)} distinct, {len(items)} clips"
        figures = percent(both_ways(similarity[pairs[:, 0]], relevant))
        return Report(dataset.name, dataset.task, figures, 0, notes=(note,))
    relevant = np.zeros(similarity.shape, dtype=bool)
    relevant[pairs[:, 0], pairs[:, 1]] = True
    figures = percent(both_ways(similarity, relevant))
    return Report(dataset.name, dataset.task, figures, 0, notes=(f"{len(texts)} texts, {len(items)} clips",))


def _classification(
    model: FineLAP, dataset: Dataset, recordings: _EmbeddedRecordings, settings: EvaluationSettings
) -> Report:
    items, clips = _clips(recordings)
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
    figures = percent(classification(scores, truth)) | {"accuracy, chance": round(100 / len(number), 2)}
    return Report(dataset.name, dataset.task, figures, 0, classes=classes)


def _frames(
    model: FineLAP, recordings: _EmbeddedRecordings, classes: Sequence[str], settings: EvaluationSettings
) -> list[Shown]:
    """Smoothed frame scores of every class on every recording; without classes, of each item's own phrases."""
    known: dict[str, torch.Tensor] = {}
    result = []
    for item, audio, duration in recordings:
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


def _detection(
    model: FineLAP, dataset: Dataset, recordings: _EmbeddedRecordings, settings: EvaluationSettings
) -> Report:
    shown = _frames(model, recordings, dataset.classes, settings)
    scored = [s.scored for s in shown]
    wanted = {"PSDS1": PSDS1, "PSDS2": PSDS2, "PSDS1, no spread": PSDS1_NO_SPREAD, "PSDS2, no spread": PSDS2_NO_SPREAD}
    if dataset.name in WITHOUT_SPREAD:
        wanted = {"PSDS1": PSDS1_NO_SPREAD}
    results = psds_with(scored, wanted)
    figures = percent({name: result.value for name, result in results.items()})
    figures |= _f1("collar F1", collar_f1(scored, settings.threshold))
    figures |= _f1("segment F1", segment_f1(scored, settings.threshold))
    per_class: dict[str, dict[int, float]] = {n: r.classes for n, r in results.items() if "spread" not in n}
    sounding = sorted(per_class["PSDS1"])
    classes = {
        dataset.classes[c]: {name: round(100 * found[c], 2) for name, found in per_class.items()} for c in sounding
    }
    silent = len(dataset.classes) - len(sounding)
    notes = (f"{silent} of {len(dataset.classes)} classes have no events and are omitted",) if silent else ()
    pictures = _choose(shown, settings.pictures)
    return Report(dataset.name, dataset.task, figures, 0, classes=classes, notes=notes, pictures=pictures)


def _grounding(
    model: FineLAP, dataset: Dataset, recordings: _EmbeddedRecordings, settings: EvaluationSettings
) -> Report:
    if not settings.protocol.grounding_median:
        settings = replace(settings, median_frames=1)
    shown = _frames(model, recordings, (), settings)
    separate = one_class_each([s.scored for s in shown])
    figures = percent({"PSDS": psds(separate, PSDS_GROUNDING).value, "threshold-AUC": threshold_auc(separate)})
    notes = (f"{len(separate)} phrases in {len(shown)} recordings",)
    pictures = _choose(shown, settings.pictures)
    return Report(dataset.name, dataset.task, figures, 0, notes=notes, pictures=pictures)


def _choose(shown: Sequence[Shown], count: int) -> tuple[Shown, ...]:
    """`count` recordings with events, spread evenly over the list."""
    sounding = [s for s in shown if any(s.scored.truth)]
    steps = np.linspace(0, len(sounding) - 1, min(count, len(sounding))).round().astype(int)
    return tuple(sounding[i] for i in steps)


def _f1(name: str, value: F1) -> dict[str, float]:
    return percent({f"{name}, mean over classes": value.macro, f"{name}, all events": value.micro})
