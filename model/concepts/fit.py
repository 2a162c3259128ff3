"""Fits the head of a concept to a few examples.

A regularised logistic regression over the stored vectors of examples and of other clips. Its features are the vectors
after whitening, and the cosine to the concept's text as one more, which is regularised less: with few examples the text
decides, with many the examples do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.concepts.head import Head, HeadScores, Quality, Scores

VERSION = 1  # of the fit: heads of another version are fitted again


@dataclass(frozen=True, eq=False)
class Labelled:
    """An example's vectors: of the whole recording or stretch (D,), and of its segments (S, D).

    `located`: the sound is in all of it; otherwise a positive example has it in one of its segments, at least.
    """

    label: bool
    recording: str
    whole: np.ndarray
    segments: np.ndarray
    located: bool = False


@dataclass(frozen=True, eq=False)
class Background:
    """Other sounds, which stand for all that a concept is not: vectors of N clips (N, D), and for each its segments.

    The clips' ids tell which of them are examples.
    """

    ids: Sequence[str]
    clips: np.ndarray
    segments: Sequence[np.ndarray]

    def without(self, ids: set[str]) -> Background:
        """The background without these clips."""
        kept = [number for number, own in enumerate(self.ids) if own not in ids]
        return Background([self.ids[n] for n in kept], self.clips[kept], [self.segments[n] for n in kept])

    @property
    def vectors(self) -> np.ndarray:
        """All vectors (N + S, D), those of clips first."""
        return np.concatenate([self.clips, *self.segments])


@dataclass(frozen=True)
class HeadSettings:
    """The settings of a fit, chosen by benchmarks.quality.concepts: docs/development/log.md has the measurements.

    shrinkage: of the covariance, in units of its mean eigenvalue. strength: of the evidence of examples (scikit-learn's
    C). text_scale: of the text's cosine, in standard deviations. rounds: in which the segments of positive recordings
    that have the sound are chosen. spared: share of the background that is most similar to the positives, and so may
    have the sound too.
    """

    shrinkage: float = 0.1
    strength: float = 1.0
    text_scale: float = 3.0
    rounds: int = 2
    spared: float = 0.02
    folds: int = 10


SETTINGS = HeadSettings()
_MIN_RECORDINGS = 3  # with positive examples, for a quality


@dataclass(frozen=True, eq=False)
class _Whitening:
    """Vectors x (…, D) become (x - mean) @ root, with unit variance in all directions of the background."""

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, shrinkage: float) -> _Whitening:
        mean = vectors.mean(axis=0)
        centred = (vectors - mean).astype(np.float64)
        values, directions = np.linalg.eigh(centred.T @ centred / len(centred))
        scale = max(float(values.mean()), 1e-12)
        root = (directions / np.sqrt(np.maximum(values, 0) + shrinkage * scale)) @ directions.T
        return cls(mean, root / np.sqrt(len(mean)))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray((vectors - self.mean) @ self.root)


@dataclass(frozen=True, eq=False)
class _Line:
    """A logit for every vector: x @ weights + bias."""

    weights: np.ndarray
    bias: float

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray(vectors @ self.weights + self.bias)

    def of(self, example: Labelled) -> float:
        """The logit of an example: of the whole or of its best segment."""
        return float(max(self.logits(example.whole[None])[0], self.logits(example.segments).max()))


def fit_head(
    examples: Sequence[Labelled],
    background: Background,
    text: np.ndarray | None,
    text_scores: HeadScores,
    settings: HeadSettings = SETTINGS,
) -> Head:
    """Fits a head to examples and to the text's embedding (D,), if there is one.

    `text_scores` are those of texts. Without positive examples the head is the text. Raises ValueError without both.
    """
    positives = [example for example in examples if example.label]
    if not positives:
        if text is None:
            raise ValueError("a head needs a positive example or a text")
        return Head(text, None, reason="there is no positive example yet")
    fit = _Fit(background.without({example.recording for example in examples}), text, settings)
    line = fit.line(examples)
    scale = float(np.linalg.norm(line.weights))
    held_out, reason = _held_out(fit, examples)
    scores = Scores(1 / scale, line.bias)
    quality, threshold = None, 0.5
    if held_out is not None:
        quality, threshold = held_out
    vector = (line.weights / scale).astype(np.float32)
    return Head(vector, HeadScores(scores, scores, scores), threshold, quality, reason)


class _Fit:
    """Fits lines to examples against one background."""

    def __init__(self, background: Background, text: np.ndarray | None, settings: HeadSettings) -> None:
        self.background, self._text, self._settings = background, text, settings
        self._vectors = background.vectors if len(background.clips) else None

    def line(self, examples: Sequence[Labelled]) -> _Line:
        """The line that tells the positive examples from the others and the background."""
        from sklearn.linear_model import LogisticRegression  # slow to import, and most services teach nothing

        settings = self._settings
        positives = [e for e in examples if e.label]
        own = np.concatenate([np.concatenate([e.whole[None], e.segments]) for e in examples])
        others = self._others(positives)
        everything = own if others is None else np.concatenate([others, own])
        whitening = _Whitening.of(everything, settings.shrinkage)
        negatives = [v for e in examples if not e.label for v in (e.whole, *e.segments)]
        text_mean, text_scale = 0.0, 0.0
        if self._text is not None:
            cosines = everything @ self._text
            text_mean = float(cosines.mean())
            text_scale = settings.text_scale / max(float(cosines.std()), 1e-6) / np.sqrt(everything.shape[1])

        def features(vectors: np.ndarray) -> np.ndarray:
            white = whitening(vectors)
            if self._text is None:
                return white
            return np.concatenate([white, ((vectors @ self._text - text_mean) * text_scale)[:, None]], axis=1)

        against = [features(others)] if others is not None else []
        weights = [np.full(len(others), 1 / len(others))] if others is not None else []
        if negatives:
            against.append(features(np.stack(negatives)))
            weights.append(np.full(len(negatives), 1 / len(negatives)))
        if not against:
            against.append(features(whitening.mean[None]))
            weights.append(np.ones(1))
        total = sum(float(w.sum()) for w in weights)
        line = self._start(positives)
        for _ in range(settings.rounds):
            chosen = [
                e.segments if e.located else e.segments[[int(line.logits(e.segments).argmax())]] for e in positives
            ]
            rows = np.concatenate([np.stack([e.whole for e in positives]), *chosen])
            row_weights = np.concatenate([np.ones(len(positives)), *(np.full(len(c), 1 / len(c)) for c in chosen)]) / (
                2 * len(positives)
            )
            x = np.concatenate([features(rows), *against])
            y = np.concatenate([np.ones(len(rows)), np.zeros(len(x) - len(rows))])
            sample = np.concatenate([row_weights, *(w / total for w in weights)]) * 2 * len(positives)
            model = LogisticRegression(C=settings.strength, tol=1e-3, max_iter=200).fit(x, y, sample_weight=sample)
            line = self._line(model.coef_[0], float(model.intercept_[0]), whitening, text_mean, text_scale)
        return line

    def _line(
        self, coefficients: np.ndarray, bias: float, whitening: _Whitening, text_mean: float, text_scale: float
    ) -> _Line:
        """The line of coefficients of features as one of vectors."""
        dim = len(whitening.mean)
        weights = whitening.root @ coefficients[:dim]
        bias -= float(whitening.mean @ weights)
        if self._text is not None:
            slope = float(coefficients[dim]) * text_scale
            weights = weights + slope * self._text
            bias -= slope * text_mean
        return _Line(weights, bias)

    def _start(self, positives: Sequence[Labelled]) -> _Line:
        """Which segments of positive recordings are taken first: those like all of them, and like the text."""
        mean = np.mean([e.whole for e in positives], axis=0)
        return _Line(mean / max(float(np.linalg.norm(mean)), 1e-9) + (0 if self._text is None else self._text), 0.0)

    def _others(self, positives: Sequence[Labelled]) -> np.ndarray | None:
        """The background's vectors without those that are most similar to the positives."""
        if self._vectors is None:
            return None
        similar = self._vectors @ np.mean([e.whole for e in positives], axis=0)
        return np.asarray(self._vectors[similar <= np.quantile(similar, 1 - self._settings.spared)])


def _held_out(fit: _Fit, examples: Sequence[Labelled]) -> tuple[tuple[Quality, float] | None, str]:
    """The quality and the best threshold from heads that were fitted without a recording; or why there are none."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    recordings = sorted({e.recording for e in examples if e.label})
    if len(recordings) < _MIN_RECORDINGS:
        missing = f"quality needs positive examples from {_MIN_RECORDINGS} recordings; there are {len(recordings)}"
        return None, missing
    if not len(fit.background.clips) and all(e.label for e in examples):
        return None, "quality needs other sounds: add clips or negative examples"
    folds = min(fit._settings.folds, len(recordings))
    every = sorted({e.recording for e in examples}, key=lambda r: (r not in set(recordings), r))
    fold_of = {recording: number % folds for number, recording in enumerate(every)}
    found: list[float] = []
    labels: list[bool] = []
    for fold in range(folds):
        held = [e for e in examples if fold_of[e.recording] == fold]
        line = fit.line([e for e in examples if fold_of[e.recording] != fold])
        background = [
            max(whole, part.max())
            for whole, part in zip(
                line.logits(fit.background.clips[fold::folds]),
                (line.logits(s) for s in fit.background.segments[fold::folds]),
                strict=True,
            )
        ]
        found += [line.of(e) for e in held] + background
        labels += [e.label for e in held] + [False] * len(background)
    scores = 1 / (1 + np.exp(-np.clip(found, -60, 60)))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    threshold = float(np.clip(thresholds[int(f1[:-1].argmax())], 0.05, 0.95))
    quality = Quality(float(average_precision_score(labels, scores)), float(roc_auc_score(labels, scores)), folds)
    return (quality, threshold), ""
