"""How good a model is on sounds it has not seen: retrieval over clips, detection on mixtures, and its calibration.

Knows nothing of training. Every figure comes with what chance or loudness alone would score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.detection import DetectionSettings, find_events
from model.finelap import FineLAP
from training.config import EvaluationConfig
from training.data.manifests import AudioStore
from training.evaluation.metrics import auroc, average_precision, f1, match_events, retrieval
from training.simulation.simulate import SAMPLE_RATE, SceneConfig, SceneMaker, envelope, frame_labels

QUERIES = {"label": "{}", "sound_of": "the sound of {}"}


@dataclass(frozen=True)
class Mixture:
    """A scene with the phrases asked of it and where each is; phrases that are not in it have no segments."""

    samples: np.ndarray
    segments: dict[str, list[tuple[float, float]]]


def text_to_clip(model: FineLAP, store: AudioStore) -> dict[str, float]:
    """Retrieval of the store's clips by their labels, asked in two ways, in percent; and what chance gives."""
    labels = sorted({item.captions[0] for item in store.items})
    relevant = np.array([[item.captions[0] == label for item in store.items] for label in labels])
    clips = torch.stack([e.clip for e in model.encode_audio(list(store), SAMPLE_RATE)])
    report: dict[str, float] = {}
    for name, template in QUERIES.items():
        texts = model.encode_text([template.format(label) for label in labels])
        scores = retrieval((texts @ clips.T).numpy(), relevant)
        report |= {f"{name} {k}": round(100 * v, 2) for k, v in scores.items()}
    rng = np.random.default_rng(0)
    chance = [retrieval(rng.random(relevant.shape), relevant) for _ in range(20)]
    return report | {f"chance {k}": round(100 * float(np.mean([c[k] for c in chance])), 2) for k in chance[0]}


def make_mixtures(store: AudioStore, config: EvaluationConfig, seed_offset: int = 0) -> list[Mixture]:
    """Mixtures of the store's sounds, the same for the same seed, each with its own labels and others to ask for."""
    labels = sorted({item.captions[0] for item in store.items})
    steady = np.array([i for i in range(len(store)) if store.duration(i) >= 4.0], dtype=int)
    scene_config = SceneConfig(duration=config.duration, mixture=1.0, augment=0.0)
    maker = SceneMaker(store.get, np.ones(len(store)), steady, scene_config)
    mixtures = []
    for number in range(config.mixtures):
        rng = np.random.default_rng([config.seed + seed_offset, number])
        scene = maker.scene(rng)
        segments: dict[str, list[tuple[float, float]]] = {}
        for source, onset, offset in scene.events:
            segments.setdefault(store.items[source].captions[0], []).append((onset, offset))
        others = [label for label in rng.permutation(labels) if label not in segments]
        for label in others[: max(0, config.phrases - len(segments))]:
            segments[str(label)] = []
        mixtures.append(Mixture(scene.samples, {k: _merged(v) for k, v in segments.items()}))
    return mixtures


def _merged(segments: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping segments of one phrase as one."""
    result: list[tuple[float, float]] = []
    for onset, offset in sorted(segments):
        if result and onset <= result[-1][1]:
            result[-1] = (result[-1][0], max(offset, result[-1][1]))
        else:
            result.append((onset, offset))
    return result


@dataclass(frozen=True)
class Track:
    """A mixture's frame similarities to each of its phrases, (P, T), with the labels of the same shape."""

    similarity: np.ndarray
    labels: np.ndarray
    level: np.ndarray  # (T,) dB of the mixture in each frame
    truth: list[list[tuple[float, float]]]
    duration: float


def tracks(model: FineLAP, mixtures: list[Mixture]) -> list[Track]:
    """What the model makes of the mixtures, before temperature and bias."""
    phrases = sorted({phrase for m in mixtures for phrase in m.segments})
    texts = dict(zip(phrases, model.encode_text(phrases), strict=True))
    result = []
    for mixture, heard in zip(mixtures, model.encode_audio([m.samples for m in mixtures], SAMPLE_RATE), strict=True):
        asked = list(mixture.segments)
        frames, hop = heard.frames, heard.frame_hop
        labels = np.stack([frame_labels(mixture.segments[p], len(frames), hop) for p in asked])
        level = envelope(mixture.samples)
        steps = np.minimum((np.arange(len(level)) * 0.02 / hop).astype(int), len(frames) - 1)
        power = np.bincount(steps, level**2, len(frames)) / np.maximum(np.bincount(steps, minlength=len(frames)), 1)
        similarity = (torch.stack([texts[p] for p in asked]) @ frames.T).numpy()
        duration = len(mixture.samples) / SAMPLE_RATE
        result.append(Track(similarity, labels, 10 * np.log10(power), list(mixture.segments.values()), duration))
    return result


def loudness_alone(found: list[Track]) -> list[Track]:
    """The same tracks as somebody would fill them who hears how loud it is and nothing else."""
    return [replace(t, similarity=np.broadcast_to(t.level, t.labels.shape)) for t in found]


def wrong_phrases(found: list[Track]) -> list[Track]:
    """The same tracks with every phrase answered by another one's scores: what chance gives."""
    return [replace(t, similarity=np.roll(t.similarity, 1, axis=0)) for t in found]


def frame_report(found: list[Track]) -> dict[str, float]:
    """Frame AP over all (phrase, frame) pairs, AUROC within phrases and where some sound is on; and loudness alone."""
    similarity = np.concatenate([t.similarity.ravel() for t in found])
    labels = np.concatenate([t.labels.ravel() for t in found])
    loud = np.concatenate([np.broadcast_to(t.level, t.labels.shape).ravel() for t in found])
    sounding = np.concatenate([np.broadcast_to(t.labels.any(0), t.labels.shape).ravel() for t in found])
    within = [auroc(s, y) for t in found for s, y in zip(t.similarity, t.labels, strict=True)]
    by_level = [auroc(t.level, y) for t in found for y in t.labels]
    report = {
        "frame AP": average_precision(similarity, labels),
        "frame AP, loudness alone": average_precision(loud, labels),
        "frame AP, chance": float(labels.mean()),
        "AUROC within a phrase": float(np.nanmean(within)),
        "AUROC within a phrase, loudness alone": float(np.nanmean(by_level)),
        "AUROC where some sound is on": auroc(similarity[sounding], labels[sounding]),
        "the same, loudness alone": auroc(loud[sounding], labels[sounding]),
    }
    return {k: round(100 * v, 2) for k, v in report.items()}


def event_f1(found: list[Track], temp: float, bias: float, threshold: float, hop: float) -> float:
    """F1 of events at intersection over union 0.5, all phrases of all mixtures together, with default settings."""
    settings = DetectionSettings(threshold=threshold)
    matched = counted = true = 0
    for track in found:
        scores = 1 / (1 + np.exp(-(track.similarity / temp + bias)))
        for row, truth in zip(scores, track.truth, strict=True):
            events = [(e.onset, e.offset) for e in find_events(row, settings, hop, track.duration)]
            matched += match_events(events, truth)
            counted += len(events)
            true += len(truth)
    return f1(matched, counted, true)


def best_threshold(found: list[Track], temp: float, bias: float, hop: float, smooth: int = 1) -> tuple[float, float]:
    """(threshold, F1) that serves these tracks best, on a grid of similarities.

    With `smooth`, a threshold is judged by the mean over that many neighbours: the middle of a plateau, not a spike.
    """
    grid = np.quantile(np.concatenate([t.similarity.ravel() for t in found]), np.linspace(0.6, 0.995, 60))
    thresholds = 1 / (1 + np.exp(-(grid / temp + bias)))
    scores = [event_f1(found, temp, bias, float(t), hop) for t in thresholds]
    width = np.ones(smooth)
    smoothed = np.convolve(scores, width, "same") / np.convolve(np.ones(len(scores)), width, "same")
    best = int(np.argmax(smoothed))
    return float(thresholds[best]), scores[best]


def event_report(model: FineLAP, found: list[Track]) -> dict[str, float]:
    """Event F1 at 0.5 and at the best threshold, and the best that loudness alone and wrong phrases reach; percent."""
    temp, bias, hop = float(model.temp_local.detach()), float(model.b_local.detach()), model.frame_hop
    threshold, best = best_threshold(found, temp, bias, hop)
    report = {
        "F1 at 0.5": event_f1(found, temp, bias, 0.5, hop),
        "F1 at the best threshold": best,
        "F1, loudness alone": best_threshold(loudness_alone(found), 10.0, 3.0, hop)[1],  # decibels: any scale does
        "F1, chance": best_threshold(wrong_phrases(found), temp, bias, hop)[1],
    }
    return {k: round(100 * v, 2) for k, v in report.items()} | {"best threshold": round(threshold, 3)}


def fit_logistic(similarity: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(temp, bias) of sigmoid(similarity / temp + bias) by maximum likelihood, Newton's method on two numbers."""
    slope, bias = 10.0, -5.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(slope * similarity + bias, -50, 50)))
        w, miss = p * (1 - p) + 1e-9, p - labels
        gradient = np.array([(miss * similarity).sum(), miss.sum()])
        off = (w * similarity).sum()
        hessian = np.array([[(w * similarity**2).sum(), off], [off, w.sum()]])
        step = np.linalg.solve(hessian + 1e-6 * np.eye(2), gradient)
        slope, bias = slope - step[0], bias - step[1]
        if np.abs(step).max() < 1e-6:
            break
    return 1 / max(slope, 1e-3), bias


def calibrate(model: FineLAP, mixtures: list[Mixture], clips: AudioStore) -> dict[str, float]:
    """Sets the model's temperatures and biases, in place, so that 0.5 is the threshold that served validation best.

    The temperature comes from a logistic fit; the bias is then moved so that the best event F1 (frames) and the best
    F1 over (label, clip) pairs (clips) lie at 0.5. Likelihood alone puts active frames, one in ten, far below it.
    """
    found = tracks(model, mixtures)
    flat = np.concatenate([t.similarity.ravel() for t in found])
    temp, bias = fit_logistic(flat, np.concatenate([t.labels.ravel() for t in found]))
    threshold, best = best_threshold(found, temp, bias, model.frame_hop, smooth=9)
    bias -= float(np.log(threshold / (1 - threshold)))
    model.temp_local.data.fill_(temp)
    model.b_local.data.fill_(bias)

    labels = sorted({item.captions[0] for item in clips.items})
    relevant = np.array([[item.captions[0] == label for item in clips.items] for label in labels])
    embeddings = torch.stack([e.clip for e in model.encode_audio(list(clips), SAMPLE_RATE)])
    similarity = (model.encode_text(labels) @ embeddings.T).numpy()
    clip_temp, _ = fit_logistic(similarity.ravel(), relevant.ravel().astype(float))
    cuts = np.quantile(similarity, np.linspace(0.9, 0.9995, 200))
    true = int(relevant.sum())
    scores = [f1(int((similarity[relevant] >= c).sum()), int((similarity >= c).sum()), true) for c in cuts]
    clip_bias = -float(cuts[int(np.argmax(scores))]) / clip_temp
    model.temp_global.data.fill_(clip_temp)
    model.b_global.data.fill_(clip_bias)
    return {"frame_temp": temp, "frame_bias": bias, "event_f1": best, "clip_temp": clip_temp, "clip_bias": clip_bias}
