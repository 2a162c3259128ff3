"""Fits the head of a concept to a few examples.

A logistic regression over the stored vectors of examples and of other clips, with a Gaussian prior around the text's
own direction (maximum a posteriori): without examples the head is the text, with one the text still helps, with many
the examples decide. Distances from the prior are measured after whitening, so that what tells sounds apart counts more
than what all sounds have in common. A positive recording has the sound somewhere: which of its segments has it is
decided anew in each round (multiple-instance learning).

A concept may be of several kinds of sounds, which no single direction finds. So the head has a direction for each of a
few prototypes, the means of positive examples that are alike: the sum of the regression's, the prototype's and the
text's. The best of them counts. A text that names several kinds ("glass or metal") has a direction for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model.concepts.head import Direction, Head, HeadScores, Quality, Scores

VERSION = 4  # of the fit: heads of another version are fitted again

_MIN_RECORDINGS = 3  # with positive examples, for a quality
_TYPICAL = 2.2  # logit of a typical positive example: a score of 0.9
_SOUNDING = 0.25  # share of a positive recording's frames that have the sound
_OPTIMISM = 0.7  # share of an example's own logit that a typical example has, if no other recording tells
_FEW = 3  # positive examples with which the nearest one has half of its weight
_MANY = 5  # positive examples with which the text has half of its weight
_MEANS_ROUNDS = 8  # of k-means
_THRESHOLDS = (0.1, 0.9)  # between which a fitted threshold lies
_CUTOFF = 0.98  # share of the background that shall score less than 0.5, if the positive examples score more


@dataclass(frozen=True, eq=False)
class Labelled:
    """An example's vectors: of the whole recording or stretch (D,), of its segments (S, D), and of frames (T, D).

    `located`: the sound is in all of it; otherwise a positive example has it in one of its segments, at least.
    """

    label: bool
    recording: str
    whole: np.ndarray
    segments: np.ndarray
    frames: np.ndarray
    located: bool = False

    @property
    def vectors(self) -> np.ndarray:
        """All vectors (1 + S + T, D)."""
        return np.concatenate([self.whole[None], self.segments, self.frames])


@dataclass(frozen=True, eq=False)
class Background:
    """Other sounds, which stand for all that a concept is not: vectors of N clips (N, D), and for each its segments.

    frames: some of the frames of each clip, or none. The clips' ids tell which of them are examples.
    """

    ids: Sequence[str]
    clips: np.ndarray
    segments: Sequence[np.ndarray]
    frames: Sequence[np.ndarray]

    def without(self, ids: set[str]) -> Background:
        """The background without these clips."""
        kept = [number for number, own in enumerate(self.ids) if own not in ids]
        segments, frames = ([group[n] for n in kept] for group in (self.segments, self.frames))
        return Background([self.ids[n] for n in kept], self.clips[kept], segments, frames)

    @cached_property
    def vectors(self) -> np.ndarray:
        """All vectors (N + S + T, D): those of clips, of segments, and of frames."""
        return np.concatenate([self.clips, *self.segments, *self.frames])

    @cached_property
    def owners(self) -> np.ndarray:
        """The clip of each of `vectors`."""
        parts = [np.full(len(p), n) for group in (self.segments, self.frames) for n, p in enumerate(group)]
        return np.concatenate([np.arange(len(self.clips)), *parts]).astype(int)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the segments of each clip begin among those of all clips (N,)."""
        return np.cumsum([0, *(len(part) for part in self.segments)])[:-1]


@dataclass(frozen=True)
class HeadSettings:
    """The settings of a fit, chosen by benchmarks.quality.concepts; docs/development/log.md has the measurements.

    shrinkage: of the covariance, in units of its mean eigenvalue. text_trust: length of the prior, in units of the
    text's own logits. strength: of the evidence of examples against the prior, as scikit-learn's C. rounds: in which
    the segments of positive recordings are chosen. segment_share, frame_share: weights of that segment and of the
    frames that have the sound; the rest is the whole's.
    spared: share of the background that is most similar to the positives and so may have the sound too.
    folds: of the quality and the calibration; without them ranks are the same and scores are optimistic.
    prototypes: at most, and as many directions. nearness, text_share: weights of the nearest prototype, once examples
    are many, and of the text beside the regression, while they are few, in units of the spread of its logits.
    """

    shrinkage: float = 0.1
    text_trust: float = 0.2
    strength: float = 30.0
    rounds: int = 2
    segment_share: float = 0.2
    frame_share: float = 0.2
    spared: float = 0.02
    folds: int = 5
    prototypes: int = 6
    nearness: float = 1.2
    text_share: float = 3.8


SETTINGS = HeadSettings()


@dataclass(frozen=True, eq=False)
class _Lines:
    """A logit for every vector: the highest of x @ weights[k] + biases[k], with weights (K, D) and biases (K,)."""

    weights: np.ndarray
    biases: np.ndarray

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray((vectors @ self.weights.T + self.biases).max(axis=-1))

    def of(self, example: Labelled) -> float:
        """The logit of an example: of the whole or of its best segment."""
        return float(max(self.logits(example.whole[None])[0], self.logits(example.segments).max()))

    def of_clips(self, background: Background) -> np.ndarray:
        """The logits of the background's clips (N,): of the clip or of its best segment."""
        if not len(background.clips):
            return np.empty(0)
        parts = self.logits(np.concatenate(background.segments))
        return np.maximum(self.logits(background.clips), np.maximum.reduceat(parts, background.starts))

    def frames(self, example: Labelled) -> np.ndarray:
        """The frames of a positive example that have the sound (t, D): all, or the quarter with the best logits."""
        if example.located or len(example.frames) < 2:
            return example.frames
        return example.frames[_sounding(self.logits(example.frames))]


def _sounding(logits: np.ndarray) -> np.ndarray:
    """Which frames of a positive recording have the sound (T,): the quarter with the best logits."""
    place = math.ceil((len(logits) - 1) * (1 - _SOUNDING))  # as np.quantile has it, which takes ten times as long
    return np.asarray(logits >= np.partition(logits, place)[place])


def fit_head(
    examples: Sequence[Labelled],
    background: Background,
    texts: np.ndarray | None,
    text_scores: HeadScores,
    settings: HeadSettings = SETTINGS,
) -> Head:
    """Fits a head to examples and to the embeddings (J, D) of the kinds of sounds that the text names, if there is one.

    `text_scores` are those of texts. Without positive examples the head is the text. Raises ValueError without both.
    """
    positives = [example for example in examples if example.label]
    if not positives:
        if texts is None:
            raise ValueError("a head needs a positive example or a text")
        kinds = tuple(Direction(text, text_scores) for text in texts) if len(texts) > 1 else ()
        return Head(_common(texts), kinds, reason="there is no positive example yet")
    others = background.without({example.recording for example in examples})
    logits = None if texts is None else texts.astype(np.float64) / text_scores.clip.temp
    fit = _Fit(examples, others, logits, settings)
    line = fit.lines()
    if np.linalg.norm(line.weights) < 1e-9:  # nothing to tell the examples from
        line = fit.start(positives)
    held_out = fit.held_out()
    typical = np.mean([z for z, label in held_out if label] or [_OPTIMISM * line.of(e) for e in positives])
    scale, shift = _calibration(float(typical), line.of_clips(others))
    directions = _directions(line, (scale, shift), _frame_calibration(line, positives, others) or (scale, shift))
    quality, threshold, reason = _quality(examples, held_out, scale, shift)
    return Head(_common([one.vector for one in directions]), directions, threshold, quality, reason)


def _common(vectors: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """What vectors (J, D) have in common (D,), of unit length."""
    common = np.mean(vectors, axis=0)
    return np.asarray(vectors[0] if len(vectors) == 1 else common / np.linalg.norm(common))


def _directions(lines: _Lines, clips: tuple[float, float], frames: tuple[float, float]) -> tuple[Direction, ...]:
    """The directions of lines, given the scale and shift of the logits of clips and segments, and of frames."""
    found = []
    for weights, bias in zip(lines.weights, lines.biases.tolist(), strict=True):
        length = float(np.linalg.norm(weights))
        whole, frame = (Scores(1 / (length * scale), bias * scale + shift) for scale, shift in (clips, frames))
        found.append(Direction((weights / length).astype(np.float32), HeadScores(whole, whole, frame)))
    return tuple(found)


class _Fit:
    """Fits lines to examples against a background, in whitened coordinates."""

    def __init__(
        self, examples: Sequence[Labelled], background: Background, texts: np.ndarray | None, settings: HeadSettings
    ) -> None:
        """`texts` are the slopes (J, D) of the logits of texts."""
        self._examples, self._background, self._settings, self._texts = examples, background, settings, texts
        self._all: _Lines | None = None
        self._solution: np.ndarray | None = None
        own = np.concatenate([e.vectors for e in examples])
        stops = np.cumsum([len(e.vectors) for e in examples])
        self._mean, self._root, inverse = _whitening(np.concatenate([background.vectors, own]), settings.shrinkage)
        self._named = np.zeros((1, len(self._mean))) if texts is None else texts @ inverse
        self._prior = settings.text_trust * self._named.mean(axis=0)
        vectors = background.vectors
        self._owners = background.owners
        if len(vectors):  # those most similar to the positive examples may have the sound too
            similar = vectors @ np.mean([e.whole for e in examples if e.label], axis=0)
            kept = similar <= np.quantile(similar, 1 - settings.spared)
            vectors, self._owners = vectors[kept], self._owners[kept]
        self._others = self._white(vectors)
        parts = np.split(self._white(own), stops[:-1])  # the whole and the segments of each example
        self._own = {id(e): part for e, part in zip(examples, parts, strict=True)}

    def lines(self, fold: int | None = None, folds: int = 1, examples: Sequence[Labelled] | None = None) -> _Lines:
        """The lines that tell the positive examples from the others and the background, without the clips of a fold."""
        examples = self._examples if examples is None else examples
        coefficients, bias = self._regression(fold, folds, examples)
        positives = [e for e in examples if e.label]
        spread = float((self._others @ coefficients).std()) if len(self._others) else 0.0

        def share(weight: float, slopes: np.ndarray) -> np.ndarray:
            """Slopes (…, D) whose logits of other sounds spread `weight` times as much as the regression's."""
            return slopes * weight * spread / max(float((self._others @ slopes.T).std(axis=0).mean()), 1e-12)

        slopes = coefficients[None]
        if spread:
            nearness = self._settings.nearness * len(positives) / (len(positives) + _FEW)
            prototypes = self._prototypes(positives)
            slopes = slopes + share(nearness, prototypes)
            if self._texts is not None:
                trust = self._settings.text_share * _MANY / (len(positives) + _MANY)
                slopes = self._with_texts(slopes, prototypes, share(trust, self._named))
        weights = slopes @ self._root.T
        return _Lines(weights, bias - weights @ self._mean)

    def _with_texts(self, slopes: np.ndarray, prototypes: np.ndarray, named: np.ndarray) -> np.ndarray:
        """The slopes (K, D) of prototypes with those (J, D) of what the text names: each with each, if they are few.

        Otherwise each prototype is of the kind that the text names best.
        """
        if len(slopes) * len(named) <= self._settings.prototypes:
            return np.concatenate([slopes + one for one in named])
        return slopes + named[(prototypes @ named.T).argmax(axis=1)]

    def _prototypes(self, positives: Sequence[Labelled]) -> np.ndarray:
        """Unit vectors (K, D) in whitened coordinates: the means of positive examples that are alike (k-means)."""
        own = np.stack([self._own[id(e)][0] for e in positives]).astype(np.float64)
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
        chosen = own[[int((own @ own.sum(axis=0)).argmax())]]
        while len(chosen) < min(self._settings.prototypes, len(own)):
            chosen = np.concatenate([chosen, own[[int((own @ chosen.T).max(axis=1).argmin())]]])
        for _ in range(_MEANS_ROUNDS if len(chosen) < len(own) else 0):
            nearest = (own @ chosen.T).argmax(axis=1)
            means = np.stack(
                [own[nearest == k].sum(axis=0) if (nearest == k).any() else c for k, c in enumerate(chosen)]
            )
            chosen = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return chosen

    def _regression(self, fold: int | None, folds: int, examples: Sequence[Labelled]) -> tuple[np.ndarray, float]:
        """The coefficients (D,) in whitened coordinates and the bias of the regression.

        A fold begins with the line of all, which chose the segments, and needs one round.
        """
        positives = [e for e in examples if e.label]
        against = [self._others if fold is None else self._others[self._owners % folds != fold]]
        against += [self._own[id(e)] for e in examples if not e.label]
        # the negative examples together weigh as much as the background
        shares = [1.0, *[1 / max(1, len(against) - 1)] * (len(against) - 1)]
        w_against = np.concatenate([np.full(len(g), s / max(1, len(g))) for g, s in zip(against, shares, strict=True)])
        x_against = np.concatenate(against)
        if not len(x_against):
            x_against, w_against = np.zeros((1, len(self._mean))), np.ones(1)
        w_against = w_against * len(positives) / w_against.sum()
        line, start = self.start(positives) if self._all is None else self._all, self._solution
        for _ in range(self._settings.rounds if self._all is None else 1):
            groups = [self._instances(e, line) for e in positives]
            weights = np.concatenate([*(shares for _, shares in groups), w_against])
            x = np.concatenate([*(vectors for vectors, _ in groups), x_against])
            labels = np.arange(len(x)) < len(x) - len(x_against)
            coefficients, bias = _map_estimate(x, labels, weights, self._prior, self._settings.strength, start)
            start = np.append(coefficients, bias)
            slopes = self._root @ coefficients
            line = _Lines(slopes[None], np.array([bias - float(self._mean @ slopes)]))
        if fold is None:
            self._all, self._solution = line, start
        return coefficients, bias

    def held_out(self) -> list[tuple[float, bool]]:
        """The logits of examples and background clips, of lines that were fitted without them, and their labels.

        In at most `folds` folds of whole recordings; empty with positive examples of a single recording.
        """
        positive = list(dict.fromkeys(e.recording for e in self._examples if e.label))
        negative = [r for r in dict.fromkeys(e.recording for e in self._examples) if r not in set(positive)]
        folds = min(self._settings.folds, len(positive))
        if folds < 2:
            return []
        fold_of = {recording: number % folds for number, recording in enumerate([*positive, *negative])}
        found: list[tuple[float, bool]] = []
        for fold in range(folds):
            line = self.lines(fold, folds, [e for e in self._examples if fold_of[e.recording] != fold])
            found += [(line.of(e), e.label) for e in self._examples if fold_of[e.recording] == fold]
            found += [(z, False) for z in line.of_clips(self._background)[fold::folds].tolist()]
        return found

    def _instances(self, example: Labelled, line: _Lines) -> tuple[np.ndarray, np.ndarray]:
        """The whitened vectors of a positive example that have the sound, and their weights, which sum to 1."""
        own, settings, first = self._own[id(example)], self._settings, 1 + len(example.segments)
        segments, frames = np.arange(1, first), np.arange(first, len(own))
        if not example.located:
            segments = segments[[int(line.logits(example.segments).argmax())]]
            logits = line.logits(example.frames)
            if len(logits):
                frames = frames[_sounding(logits)]
        shares = [settings.segment_share, settings.frame_share if len(frames) else 0.0]
        parts = [np.full(len(p), s / max(1, len(p))) for p, s in zip((segments, frames), shares, strict=True)]
        return own[np.concatenate([[0], segments, frames])], np.concatenate([[1 - sum(shares)], *parts])

    def _white(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray((vectors - self._mean).astype(np.float32) @ self._root.astype(np.float32))

    def start(self, positives: Sequence[Labelled]) -> _Lines:
        """Which segments of positive recordings are taken first: those like all of them, and like the text."""
        weights = np.stack([e.whole for e in positives]).mean(axis=0, dtype=np.float64)
        if self._texts is not None:
            weights = weights + _common(self._texts / np.linalg.norm(self._texts, axis=1, keepdims=True))
        return _Lines(np.asarray(weights)[None], np.zeros(1))


def _calibration(typical: float, background: np.ndarray) -> tuple[float, float]:
    """The scale and shift that make logits scores: a typical positive example, and little of the background, are high.

    The score 0.5 lies between the _CUTOFF quantile of the background's logits and that of a typical positive example.
    """
    if not len(background):
        return 1.0, 0.0
    high, spread = float(np.quantile(background, _CUTOFF)), max(float(background.std()), 1e-6)
    middle = (typical + high) / 2
    scale = _TYPICAL / max(typical - middle, spread / 2)
    return scale, -middle * scale


def _frame_calibration(
    line: _Lines, positives: Sequence[Labelled], background: Background
) -> tuple[float, float] | None:
    """The scale and shift that make logits of frames scores, if there are any."""
    others = np.concatenate([np.empty((0, line.weights.shape[1])), *background.frames])
    own = [line.frames(e) for e in positives if len(e.frames)]
    if not own or not len(others):
        return None
    typical = np.mean([_OPTIMISM * line.logits(frames).mean() for frames in own])
    return _calibration(float(typical), line.logits(others))


def _quality(
    examples: Sequence[Labelled], held_out: Sequence[tuple[float, bool]], scale: float, shift: float
) -> tuple[Quality | None, float, str]:
    """The quality, the threshold with the best F1, and why there is no quality."""
    recordings = len({e.recording for e in examples if e.label})
    if recordings < _MIN_RECORDINGS:
        reason = f"quality needs positive examples from {_MIN_RECORDINGS} recordings; there are {recordings}"
        return None, 0.5, reason
    labels = np.array([label for _, label in held_out])
    if labels.all():
        return None, 0.5, "quality needs other sounds: add clips or negative examples"
    scores = 1 / (1 + np.exp(-np.clip([z * scale + shift for z, _ in held_out], -30, 30)))
    average_precision, auroc, threshold = ranking_figures(scores, labels)
    quality = Quality(average_precision, auroc, min(SETTINGS.folds, recordings))
    return quality, float(np.clip(threshold, *_THRESHOLDS)), ""


def ranking_figures(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Average precision, AUROC and the threshold with the best F1 of scores (N,), with both labels (N,).

    As scikit-learn's functions, which the tests compare them with and which take seconds to import.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, last = labels[order], np.append(np.diff(scores[order]) != 0, True)  # ties share a point
    found, seen = np.cumsum(ranked)[last], (np.flatnonzero(last) + 1)
    positives, negatives = found[-1], len(labels) - found[-1]
    precision, recall = found / seen, found / positives
    average_precision = float(np.diff(recall, prepend=0) @ precision)
    false = (seen - found) / negatives
    auroc = float(np.trapezoid(np.concatenate([[0], recall]), np.concatenate([[0], false])))
    f1 = 2 * found / (seen + positives)
    return average_precision, auroc, float(scores[order][last][f1.argmax()])


def _whitening(vectors: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean (D,) of vectors (N, D), the root (D, D) that whitens them, scaled to length 1, and its inverse."""
    mean = vectors.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    scales = np.sqrt(np.maximum(values, 0) + shrinkage * max(float(values.mean()), 1e-9)) * np.sqrt(len(mean))
    return mean, (directions / scales) @ directions.T, (directions * scales) @ directions.T


def _map_estimate(
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
    strength: float,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """The coefficients (D,) and the bias of a logistic regression whose coefficients are drawn from N(prior, strength).

    With a prior of zeros this is scikit-learn's LogisticRegression(C=strength), which has no other prior; the solver is
    the same, SciPy's L-BFGS. `start` (D + 1,): the solution of a similar problem.
    """
    from scipy.optimize import minimize

    signs, dim = np.where(labels, 1.0, -1.0), x.shape[1]
    across = np.ascontiguousarray(x.T)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        point = parameters[:dim].astype(x.dtype)
        margins = signs * (x @ point + parameters[dim])
        slopes = -weights * signs / (1 + np.exp(np.clip(margins, -60, 60)))
        away = parameters[:dim] - prior
        value = float(weights @ np.logaddexp(0, -margins)) + float(away @ away) / (2 * strength)
        return value, np.append(across @ slopes.astype(x.dtype) + away / strength, slopes.sum())

    first = np.append(prior, 0.0) if start is None else start
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7, "gtol": 1e-4})
    return found.x[:dim], float(found.x[dim])
