"""Measures a model on held-out sounds: retrieval, frame and event detection.

`Validation` measures a model during training on labelled recordings. The functions after it measure a checkpoint on
single sounds and on mixtures of them; each of their figures comes with the score of chance or of loudness alone.
`training.evaluation.calibration` fits scores on the same sounds, and `training.evaluation.benchmark` is the complete
evaluation on benchmarks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import SAMPLE_RATE, ConfigError, WindowConfig
from model.detection import DetectionSettings, find_events
from model.finelap import FineLAP
from model.windows import frame_count, window_samples
from training.config import EvaluationConfig, LossConfig, ValidationConfig
from training.data.activity import envelope, frame_labels
from training.data.audio_cache import AudioStore, decode
from training.data.manifests import Item, read_labelled, read_manifest
from training.data.mixer import SceneConfig, SceneMaker
from training.evaluation.metrics import auroc, average_precision, f1, match_events, percent, retrieval
from training.evaluation.sed_metrics import (
    MEDIAN_FRAMES,
    PSDS1,
    PSDS1_NO_SPREAD,
    PSDS2,
    PSDS2_NO_SPREAD,
    Scored,
    psds_with,
)
from training.losses import clip_sigmoid_loss, infonce_loss

log = logging.getLogger(__name__)

Segments = list[tuple[float, float]]
QUERIES = {"label": "{}", "sound_of": "the sound of {}"}  # query templates for labels


# Figures shared by validation and the report


def relevance(queries: Sequence[str], captions: Sequence[str]) -> np.ndarray:
    """(queries, clips) bool: whether a clip's caption is the query."""
    return np.array([[caption == query for caption in captions] for query in queries])


def similarity_to(vectors: Mapping[str, Tensor], phrases: Iterable[str], frames: Tensor) -> np.ndarray:
    """Cosine similarities (phrases, frames) of phrase embeddings and frame embeddings (frames, dim)."""
    return (torch.stack([vectors[phrase] for phrase in phrases]) @ frames.T).numpy()


def flat(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """All values of all arrays in one dimension."""
    return np.concatenate([array.ravel() for array in arrays])


# Validation during training


@dataclass(frozen=True)
class _Recording:
    samples: np.ndarray  # (n,) float32 at 16 kHz, at most one window
    caption: str | None
    phrases: tuple[str, ...]  # own phrases, then phrases of other recordings
    labels: np.ndarray  # (phrases, frames)


class Validation:
    """The validation recordings of a run, decoded once and cut to the first window. `skipped` maps ids to reasons."""

    def __init__(self, config: ValidationConfig, root: Path, windows: WindowConfig) -> None:
        """Raises ConfigError if no recording can be used, and OSError if the manifest does not exist."""
        self.config, self.windows = config, windows
        items = _items(config, root)
        self.skipped: dict[str, str] = {}
        if len(items) > config.limit:
            items = [items[i] for i in np.linspace(0, len(items) - 1, config.limit).astype(int)]
        known = sorted({p.text for item in items for p in item.phrases or ()})
        self.recordings: list[_Recording] = []
        for number, item in enumerate(items):
            try:
                samples = decode(item.path)[: window_samples(windows)]
            except (OSError, RuntimeError, ValueError) as error:
                self.skipped[item.audio_id] = str(error)
                continue
            self.recordings.append(self._labelled(item, samples, known, number))
        if self.skipped:
            named = ", ".join(list(self.skipped)[:5])
            log.warning("validation skips %d of %d recordings: %s", len(self.skipped), len(items), named)
        if not self.recordings:
            raise ConfigError("validation: no recording could be read")

    def report(self, model: FineLAP, loss: LossConfig) -> dict[str, float]:
        """Figures of the model: `loss` (weighted sum), `clip_loss`, `frame_loss`, R@k, mAP@10, `frame_AP`; fractions.

        Clip figures need captions and frame figures need phrases; what the recordings lack is omitted. Retrieval is
        text to audio over the distinct captions.
        """
        clips, frames = self._embed(model)
        report: dict[str, float] = {}
        captioned = [i for i, recording in enumerate(self.recordings) if recording.caption is not None]
        if captioned:
            captions = [str(self.recordings[i].caption) for i in captioned]
            queries = list(dict.fromkeys(captions))
            texts = model.encode_text(queries)
            rows = torch.tensor([queries.index(c) for c in captions])
            report["clip_loss"] = self._clip_loss(model, clips[captioned], texts[rows], rows, loss)
            report |= retrieval((texts @ clips[captioned].T).numpy(), relevance(queries, captions))
        phrases = sorted({p for recording in self.recordings for p in recording.phrases})
        if phrases:
            vectors = dict(zip(phrases, model.encode_text(phrases), strict=True))
            labelled = [(r, f) for r, f in zip(self.recordings, frames, strict=True) if r.phrases]
            similarity = flat(similarity_to(vectors, r.phrases, f) for r, f in labelled)
            labels = flat(r.labels for r, _ in labelled)
            logits = torch.from_numpy(similarity) / float(model.temp_local.detach()) + float(model.b_local.detach())
            targets = torch.from_numpy(labels)
            report["frame_loss"] = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, targets))
            report["frame_AP"] = average_precision(similarity, labels)
        weighted = loss.clip_weight * report.get("clip_loss", 0.0) + loss.frame_weight * report.get("frame_loss", 0.0)
        return {"loss": weighted} | report

    def _labelled(self, item: Item, samples: np.ndarray, known: list[str], number: int) -> _Recording:
        """A recording with the phrases to score: its own, then random other ones out of `known`."""
        hop = self.windows.frame_hop
        frames = min(frame_count(len(samples), self.windows), self.windows.frames)
        caption = item.captions[0] if item.captions else None
        if item.phrases is None:
            return _Recording(samples, caption, (), np.zeros((0, frames), np.float32))
        segments: dict[str, Segments] = {}
        for phrase in item.phrases:
            segments.setdefault(phrase.text, []).extend(s for s in phrase.segments if s[0] < frames * hop)
        others = [p for p in known if p not in segments]
        wanted = max(0, self.config.phrases - len(segments))
        order = np.random.default_rng([17, number]).permutation(len(others))[:wanted]
        phrases = [*segments, *(others[i] for i in order)]
        labels = np.stack([frame_labels(segments.get(p, []), frames, hop) for p in phrases])
        return _Recording(samples, caption, tuple(phrases), labels)

    def _embed(self, model: FineLAP) -> tuple[Tensor, list[Tensor]]:
        """Clip embeddings (recordings, dim), and frame embeddings (frames, dim) of each recording."""
        clips, frames = [], []
        for at in range(0, len(self.recordings), self.config.batch):
            part = [recording.samples for recording in self.recordings[at : at + self.config.batch]]
            for embedding in model.encode_audio(part, SAMPLE_RATE):
                clips.append(embedding.clip)
                frames.append(embedding.frames)
        lengths = [recording.labels.shape[1] for recording in self.recordings]
        return torch.stack(clips), [f[:n] for f, n in zip(frames, lengths, strict=True)]

    def _clip_loss(self, model: FineLAP, clips: Tensor, texts: Tensor, rows: Tensor, loss: LossConfig) -> float:
        """Mean over batches; clips with equal captions are positives of each other."""
        temp, bias = model.temp_global.detach().cpu(), model.b_global.detach().cpu()
        values = []
        for at in range(0, len(clips), self.config.batch):
            a, b, r = (x[at : at + self.config.batch] for x in (clips, texts, rows))
            if loss.clip == "infonce":
                values.append(infonce_loss(a, b, temp))
            else:
                values.append(clip_sigmoid_loss(a, b, temp, bias, r[:, None] == r[None, :]))
        return float(torch.stack(values).mean())


def better(figure: float, best: float | None, choose: str) -> bool:
    """Whether a figure improves on the best so far: a lower loss, or a higher value of any other figure."""
    return best is None or (figure < best if choose == "loss" else figure > best)


def _items(config: ValidationConfig, root: Path) -> list[Item]:
    if (config.manifest is None) == (config.folder is None):
        raise ConfigError("validation: give a manifest or a folder")
    if config.manifest is not None:
        items = read_manifest(root / config.manifest)
    else:
        items = [i for i in read_labelled(root / str(config.folder)) if i.captions]
    if config.only_groups:
        items = [i for i in items if i.group in config.only_groups]
    if not items:
        raise ConfigError("validation: no recordings in these groups")
    return items


# Retrieval of single sounds


def text_to_clip(model: FineLAP, store: AudioStore) -> dict[str, float]:
    """Retrieval of the store's clips by their labels, for each query template and for chance; percent."""
    captions = [item.captions[0] for item in store.items]
    labels = sorted(set(captions))
    relevant = relevance(labels, captions)
    clips = torch.stack([e.clip for e in model.encode_audio(list(store), SAMPLE_RATE)])
    report: dict[str, float] = {}
    for name, template in QUERIES.items():
        texts = model.encode_text([template.format(label) for label in labels])
        report |= percent({f"{name} {k}": v for k, v in retrieval((texts @ clips.T).numpy(), relevant).items()})
    rng = np.random.default_rng(0)
    chance = [retrieval(rng.random(relevant.shape), relevant) for _ in range(20)]
    return report | percent({f"chance {k}": float(np.mean([c[k] for c in chance])) for k in chance[0]})


# Detection in mixtures


@dataclass(frozen=True)
class LabelledMixture:
    """A scene with phrases and their segments; phrases that do not occur in it have none."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    segments: dict[str, Segments]


@dataclass(frozen=True)
class Track:
    """Frame similarities of a mixture to each of its phrases, before temperature and bias, with their labels."""

    similarity: np.ndarray  # (phrases, frames)
    labels: np.ndarray  # (phrases, frames)
    level: np.ndarray  # (frames,) level of the mixture in dB
    truth: list[Segments]  # of each phrase
    duration: float  # seconds


def make_mixtures(store: AudioStore, config: EvaluationConfig, seed_offset: int = 0) -> list[LabelledMixture]:
    """Mixtures of the store's sounds, reproducible from the seed, each with its own labels and some others."""
    labels = sorted({item.captions[0] for item in store.items})
    steady = np.array([i for i in range(len(store)) if store.duration(i) >= 4.0], dtype=int)
    scene_config = SceneConfig(duration=config.duration, mixture=1.0, augment=0.0)
    maker = SceneMaker(store.get, np.ones(len(store)), steady, scene_config)
    mixtures = []
    for number in range(config.mixtures):
        rng = np.random.default_rng([config.seed + seed_offset, number])
        scene = maker.scene(rng)
        segments: dict[str, Segments] = {}
        for source, onset, offset in scene.events:
            segments.setdefault(store.items[source].captions[0], []).append((onset, offset))
        others = [label for label in rng.permutation(labels) if label not in segments]
        for label in others[: max(0, config.phrases - len(segments))]:
            segments[str(label)] = []
        mixtures.append(LabelledMixture(scene.samples, {k: _union(v) for k, v in segments.items()}))
    return mixtures


def _union(segments: Segments) -> Segments:
    """Segments in order of time, with overlapping ones merged."""
    result: Segments = []
    for onset, offset in sorted(segments):
        if result and onset <= result[-1][1]:
            result[-1] = (result[-1][0], max(offset, result[-1][1]))
        else:
            result.append((onset, offset))
    return result


def tracks(model: FineLAP, mixtures: list[LabelledMixture]) -> list[Track]:
    """The model's frame similarities for the phrases of each mixture."""
    phrases = sorted({phrase for m in mixtures for phrase in m.segments})
    texts = dict(zip(phrases, model.encode_text(phrases), strict=True))
    embeddings = model.encode_audio([m.samples for m in mixtures], SAMPLE_RATE)
    result = []
    for mixture, embedding in zip(mixtures, embeddings, strict=True):
        count, hop = len(embedding.frames), embedding.frame_hop
        labels = np.stack([frame_labels(segments, count, hop) for segments in mixture.segments.values()])
        level = envelope(mixture.samples)
        steps = np.minimum((np.arange(len(level)) * 0.02 / hop).astype(int), count - 1)
        power = np.bincount(steps, level**2, count) / np.maximum(np.bincount(steps, minlength=count), 1)
        similarity = similarity_to(texts, mixture.segments, embedding.frames)
        duration = len(mixture.samples) / SAMPLE_RATE
        result.append(Track(similarity, labels, 10 * np.log10(power), list(mixture.segments.values()), duration))
    return result


def loudness_alone(found: list[Track]) -> list[Track]:
    """The tracks with each frame's level in place of every phrase's similarity, as a baseline."""
    return [replace(t, similarity=np.broadcast_to(t.level, t.labels.shape)) for t in found]


def wrong_phrases(found: list[Track]) -> list[Track]:
    """The tracks with each phrase scored by another phrase's similarity, which is the level of chance."""
    return [replace(t, similarity=np.roll(t.similarity, 1, axis=0)) for t in found]


def frame_report(found: list[Track]) -> dict[str, float]:
    """Frame AP over all (phrase, frame) pairs, and AUROC within phrases and within sounding frames; percent."""
    similarity, labels = flat(t.similarity for t in found), flat(t.labels for t in found)
    loud = flat(t.similarity for t in loudness_alone(found))
    sounding = flat(np.broadcast_to(t.labels.any(0), t.labels.shape) for t in found)
    within = [auroc(s, y) for t in found for s, y in zip(t.similarity, t.labels, strict=True)]
    by_level = [auroc(t.level, y) for t in found for y in t.labels]
    return percent(
        {
            "frame AP": average_precision(similarity, labels),
            "frame AP, loudness alone": average_precision(loud, labels),
            "frame AP, chance": float(labels.mean()),
            "AUROC within a phrase": float(np.nanmean(within)),
            "AUROC within a phrase, loudness alone": float(np.nanmean(by_level)),
            "AUROC where some sound is on": auroc(similarity[sounding], labels[sounding]),
            "the same, loudness alone": auroc(loud[sounding], labels[sounding]),
        }
    )


def event_f1(found: list[Track], temp: float, bias: float, threshold: float, hop: float) -> float:
    """F1 of detected events over all phrases of all mixtures, matched at an intersection over union of 0.5."""
    settings = DetectionSettings(threshold=threshold)
    matched = detected = true = 0
    for track in found:
        scores = 1 / (1 + np.exp(-(track.similarity / temp + bias)))
        for row, truth in zip(scores, track.truth, strict=True):
            events = [(e.onset, e.offset) for e in find_events(row, settings, hop, track.duration)]
            matched += match_events(events, truth)
            detected += len(events)
            true += len(truth)
    return f1(matched, detected, true)


def best_threshold(found: list[Track], temp: float, bias: float, hop: float, smooth: int = 1) -> tuple[float, float]:
    """The threshold with the highest event F1 on a grid of similarities, and that F1.

    With `smooth`, each threshold is judged by the mean over that many neighbours, which prefers a plateau to a spike.
    """
    grid = np.quantile(flat(t.similarity for t in found), np.linspace(0.6, 0.995, 60))
    thresholds = 1 / (1 + np.exp(-(grid / temp + bias)))
    scores = [event_f1(found, temp, bias, float(t), hop) for t in thresholds]
    width = np.ones(smooth)
    smoothed = np.convolve(scores, width, "same") / np.convolve(np.ones(len(scores)), width, "same")
    best = int(np.argmax(smoothed))
    return float(thresholds[best]), scores[best]


def event_report(model: FineLAP, found: list[Track]) -> dict[str, float]:
    """Event F1 at 0.5 and at the best threshold, and the best of loudness alone and of wrong phrases; percent."""
    temp, bias, hop = float(model.temp_local.detach()), float(model.b_local.detach()), model.frame_hop
    threshold, best = best_threshold(found, temp, bias, hop)
    report = {
        "F1 at 0.5": event_f1(found, temp, bias, 0.5, hop),
        "F1 at the best threshold": best,
        "F1, loudness alone": best_threshold(loudness_alone(found), 10.0, 3.0, hop)[1],  # any scale works for decibels
        "F1, chance": best_threshold(wrong_phrases(found), temp, bias, hop)[1],
    }
    return percent(report) | {"best threshold": round(threshold, 3)}


def psds_of_mixtures(
    model: FineLAP, mixtures: Sequence[LabelledMixture], median_frames: int = MEDIAN_FRAMES
) -> dict[str, float]:
    """PSDS1 and PSDS2 of mixtures, with and without the spread over classes; percent. Raises MetricsMissing.

    The classes are all phrases that occur in some mixture, and each is scored on every mixture. A mixture lists all of
    its sounds, so detecting a phrase that it does not list is a false alarm. With hundreds of classes of one or two
    events each, the spread over classes leaves little of the PSDS, hence the second pair.
    """
    classes = sorted({phrase for m in mixtures for phrase, segments in m.segments.items() if segments})
    recordings = [r.smoothed(median_frames) for r in score_mixtures(model, mixtures, classes)]
    settings = {"PSDS1": PSDS1, "PSDS2": PSDS2}
    settings |= {"PSDS1, no spread": PSDS1_NO_SPREAD, "PSDS2, no spread": PSDS2_NO_SPREAD}
    return percent({name: result.value for name, result in psds_with(recordings, settings).items()})


def score_mixtures(model: FineLAP, mixtures: Sequence[LabelledMixture], classes: Sequence[str]) -> list[Scored]:
    """Frame scores of every class on every mixture, without smoothing."""
    texts = model.encode_text(list(classes))
    result = []
    for mixture in mixtures:
        (embedding,) = model.encode_audio([mixture.samples], SAMPLE_RATE)
        scores = model.frame_score(embedding.frames, texts).numpy()
        truth = [mixture.segments.get(name, []) for name in classes]
        result.append(Scored(scores, truth, embedding.frame_hop, len(mixture.samples) / SAMPLE_RATE))
    return result
