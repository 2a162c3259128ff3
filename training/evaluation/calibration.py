"""Fits what turns similarities into scores: temperatures, biases, and the cutoff from which a clip matches a query.

`calibrate` fits a model on mixtures and single sounds. `fit_matching` fits the scores of a search on sounds, phrases of
other sounds and nonsense. Use sounds that the model has not been trained on: a trained model is surer of its own.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from model.config import SAMPLE_RATE, MatchingConfig
from model.external.contract import Model
from model.finelap import FineLAP
from model.segments import ReadFrames, pool_segments, unit_rows
from training.data.audio_cache import decode
from training.data.manifests import Item
from training.data.phrase_bank import SHIPPED, PhraseBank
from training.evaluation.metrics import f1
from training.evaluation.validation import LabelledMixture, best_threshold, flat, relevance, tracks

if TYPE_CHECKING:
    from model.external.base import External

ALIKE = 0.55  # cosine of two texts from which neither may be absent while the other is present
LIBRARIES = 20  # random halves of the labels, each a library in which the other half is absent
FALSE_SHARE = 0.1  # of absent phrases, and of nonsense, that may match something in a library
NONSENSE = 100

Pair = tuple[float, float]  # temperature and bias


class CalibrationError(ValueError):
    """The sounds do not suffice for a fit."""


def fit_logistic(similarity: np.ndarray, labels: np.ndarray) -> Pair:
    """(temp, bias) of sigmoid(similarity / temp + bias) by maximum likelihood, with Newton's method.

    The similarities are standardised first, so that a narrow range of them is fitted as well as a wide one.
    """
    mean, spread = float(similarity.mean()), max(float(similarity.std()), 1e-9)
    z = (similarity - mean) / spread
    slope, bias = 1.0, 0.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(slope * z + bias, -50, 50)))
        w, residual = p * (1 - p) + 1e-9, p - labels
        gradient = np.array([(residual * z).sum(), residual.sum()])
        off = (w * z).sum()
        hessian = np.array([[(w * z**2).sum(), off], [off, w.sum()]])
        step = np.linalg.solve(hessian + 1e-6 * np.eye(2), gradient)
        slope, bias = slope - step[0], bias - step[1]
        if np.abs(step).max() < 1e-6:
            break
    slope = max(slope, 1e-3)
    return float(spread / slope), float(bias - slope * mean / spread)


def best_cut(similarity: np.ndarray, relevant: np.ndarray) -> float:
    """The similarity from which pairs count as relevant with the best F1; both arrays have one entry per pair."""
    cuts = np.quantile(similarity, np.linspace(0.9, 0.9995, 200))
    true = int(relevant.sum())
    scores = [f1(int((similarity[relevant] >= c).sum()), int((similarity >= c).sum()), true) for c in cuts]
    return float(cuts[int(np.argmax(scores))])


def calibrate(model: FineLAP, mixtures: list[LabelledMixture], sounds: EmbeddedSounds) -> dict[str, float]:
    """Sets the model's temperatures and biases, in place, so that 0.5 is the best threshold on validation data.

    Temperatures come from a logistic fit. Biases are then moved so that the best event F1 (frames) and the best F1 over
    (label, clip) pairs (clips) are at 0.5: the fit alone would put most active frames, one in ten, far below 0.5.
    """
    found = tracks(model, mixtures)
    temp, bias = fit_logistic(flat(t.similarity for t in found), flat(t.labels for t in found))
    threshold, best = best_threshold(found, temp, bias, model.frame_hop, smooth=9)
    bias -= float(np.log(threshold / (1 - threshold)))
    model.temp_local.data.fill_(temp)
    model.b_local.data.fill_(bias)

    clip_temp, clip_bias = fit_clips(model, sounds)
    model.temp_global.data.fill_(clip_temp)
    model.b_global.data.fill_(clip_bias)
    return {"frame_temp": temp, "frame_bias": bias, "event_f1": best, "clip_temp": clip_temp, "clip_bias": clip_bias}


def fit_clips(model: Model, sounds: EmbeddedSounds) -> Pair:
    """The pair for a clip and a text with which 0.5 is the best threshold over pairs of a label and a sound."""
    texts = np.asarray(model.encode_text(sounds.distinct))
    similarity, relevant = (texts @ sounds.clips.T).ravel(), relevance(sounds.distinct, sounds.labels).ravel()
    return _half_at_best(similarity, relevant)


def _half_at_best(similarity: np.ndarray, relevant: np.ndarray) -> Pair:
    """The pair with the temperature of a logistic fit and the score 0.5 at the best cut; one entry per pair."""
    temp, _ = fit_logistic(similarity, relevant.astype(float))
    return round(temp, 5), round(-best_cut(similarity, relevant) / temp, 4)


# Matching


@dataclass(frozen=True)
class EmbeddedSounds:
    """N labelled sounds: clips (N, D), the segments of each (S, D), and their labels."""

    clips: np.ndarray
    segments: list[np.ndarray]
    labels: list[str]

    @property
    def distinct(self) -> list[str]:
        """The labels, sorted."""
        return sorted(set(self.labels))

    def best_segments(self, texts: np.ndarray) -> np.ndarray:
        """The similarity of each text (B, D) to the best segment of each sound: (B, N)."""
        stops = np.cumsum([len(own) for own in self.segments])[:-1]
        return np.maximum.reduceat(texts @ np.concatenate(self.segments).T, [0, *stops], axis=1)


class Sounds(Protocol):
    """Labelled sounds with their samples: an AudioStore, or NativeSounds."""

    @property
    def items(self) -> Sequence[Item]: ...

    def get(self, i: int) -> np.ndarray:
        """(n,) float32."""


class NativeSounds:
    """Labelled sounds decoded at a model's own sample rate. Files that cannot be decoded are left out."""

    def __init__(self, items: Sequence[Item], sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.items: list[Item] = []
        for item in items:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                decode(item.path, sample_rate, seconds=0.1)
                self.items.append(item)

    def get(self, i: int) -> np.ndarray:
        """(n,) float32 at `sample_rate`. Raises what decoding raises."""
        return decode(self.items[i].path, self.sample_rate)


def embed_sounds(model: FineLAP | External, store: Sounds, sample_rate: int = SAMPLE_RATE) -> EmbeddedSounds:
    """Embeds the labelled sounds of a store, one at a time. Raises CalibrationError with fewer than two labels."""
    clips, segments, labels = [], [], []
    for number, item in enumerate(store.items):
        if item.captions:
            (embedding,) = model.encode_audio([store.get(number)], sample_rate)
            clips.append(embedding.clip.numpy())
            frames = unit_rows(embedding.frames.numpy())
            segments.append(pool_segments(reader_of(frames), len(frames), embedding.frame_hop))
            labels.append(item.captions[0])
    if len(set(labels)) < 2:
        raise CalibrationError("a calibration needs sounds of at least two labels")
    return EmbeddedSounds(np.stack(clips), segments, labels)


def reader_of(frames: np.ndarray) -> ReadFrames:
    """Reads frames (T, D) that are in memory."""
    return lambda start, stop: frames[start:stop]


def fit_matching(model: FineLAP | External, sounds: EmbeddedSounds, seed: int = 0) -> MatchingConfig:
    """Fits the scores of segments and of queries by sound, and the cutoff; the model's clip pair must be fitted.

    Half of the labels at a time form a library. The cutoff is the lowest score at which at most FALSE_SHARE each of
    the other half's labels, of the bank's phrases that are absent, and of the nonsense match any of its sounds.
    """
    rng = np.random.default_rng(seed)
    texts = model.encode_text(sounds.distinct).numpy()
    relevant = relevance(sounds.distinct, sounds.labels)
    others = model.encode_text([cluster[0] for cluster in PhraseBank.read(SHIPPED).clusters]).numpy()
    noise = model.encode_text(nonsense(NONSENSE, rng)).numpy()
    queries = np.concatenate([texts, others, noise])
    by_clip, by_segment = queries @ sounds.clips.T, sounds.best_segments(queries)
    core = slice(model.config.core_dim if isinstance(model, FineLAP) else None)
    alike = unit_rows(queries[:, core]) @ unit_rows(texts[:, core]).T > ALIKE  # (queries, labels)
    alike[-NONSENSE:] = False
    libraries = [rng.permutation(len(texts))[: len(texts) // 2] for _ in range(LIBRARIES)]
    members = [np.isin(relevant.argmax(0), inside) for inside in libraries]

    def false_cut(best: np.ndarray) -> float:
        """What (queries, sounds) may reach in a library before too many queries match that have nothing in it."""
        tops = np.stack([best[:, own].max(1) for own in members], axis=1)  # (queries, libraries)
        free = ~np.stack([alike[:, inside].any(1) for inside in libraries], axis=1)
        ends = [len(texts), len(texts) + len(others)]
        groups = zip(np.split(tops, ends), np.split(free, ends), strict=True)
        return max(float(np.quantile(top[absent], 1 - FALSE_SHARE)) for top, absent in groups if absent.any())

    clip = float(torch.as_tensor(model.temp_global).detach()), float(torch.as_tensor(model.b_global).detach())
    temp, _ = fit_logistic(by_segment[: len(texts)].ravel(), relevant.ravel().astype(float))
    # as many false matches by segments as by clips
    segment = round(temp, 5), round(false_cut(by_clip) / clip[0] + clip[1] - false_cut(by_segment) / temp, 4)
    cutoff = false_cut(np.maximum(_sigmoid(by_clip, clip), _sigmoid(by_segment, segment)))
    return MatchingConfig(round(min(max(cutoff, 1e-4), 1 - 1e-4), 4), segment, _fit_sound(sounds))


def _fit_sound(sounds: EmbeddedSounds) -> Pair:
    """The pair for two sounds: of one label or of two. Labels with one sound say nothing about the first."""
    rows, columns = np.triu_indices(len(sounds.labels), 1)
    labels = np.array(sounds.labels)
    same = labels[rows] == labels[columns]
    if not same.any():
        raise CalibrationError("a calibration needs labels with several sounds")
    return _half_at_best((sounds.clips @ sounds.clips.T)[rows, columns], same)


def nonsense(count: int, rng: np.random.Generator) -> list[str]:
    """Strings that name nothing: random letters in words of three to nine."""
    letters = np.array(list(string.ascii_lowercase))
    return [
        " ".join("".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(rng.integers(1, 4)))
        for _ in range(count)
    ]


def _sigmoid(similarity: np.ndarray, pair: Pair) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(similarity / pair[0] + pair[1], -50, 50))))
