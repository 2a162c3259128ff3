"""Retrieval of the validation clips by their labels, and frames and events in mixtures of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.model.detection import THRESHOLDS, Method, event_counts
from benchmarks.quality.figures import Figure, average_precision, best, f1, mean
from benchmarks.quality.sounds import CachedModel, Embedded, Sounds
from model.config import SAMPLE_RATE
from model.detection import DetectionSettings
from training.data.activity import frame_labels
from training.evaluation.metrics import retrieval
from training.evaluation.sed_metrics import Scored
from training.evaluation.validation import QUERIES, LabelledMixture, flat, make_mixtures, relevance

METRICS = ("mAP@10", "R@1", "R@10")


def retrieval_figures(model: CachedModel, sounds: Sounds) -> dict[str, Figure]:
    """mAP@10, R@1 and R@10 over all labels, by the clip embedding alone and by the service's rule."""
    labels = sorted(set(sounds.label))
    relevant = relevance(labels, sounds.label)
    library = Embedded.of(model, list(sounds.store))
    figures = {}
    for name, template in QUERIES.items():
        texts = model.encode_text([template.format(label) for label in labels]).numpy()
        rules = {"clip": texts @ library.clips.T, "clip or best segment": library.logits(model, texts)}
        for rule, similarity in rules.items():
            for metric, values in by_query(similarity, relevant).items():
                figures[f"{name}, {rule}: {metric}"] = mean(values)
    return figures


def by_query(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Each of METRICS for each query, (queries,), of similarities and relevance (queries, clips)."""
    each = [retrieval(s[None], r[None]) for s, r in zip(similarity, relevant, strict=True)]
    return {metric: np.array([found[metric] for found in each]) for metric in METRICS}


def frame_figures(model: CachedModel, sounds: Sounds, mixtures: int) -> dict[str, Figure]:
    """Frame AP, and event F1 at the default settings and at the best threshold, in mixtures of validation sounds."""
    config = replace(sounds.recipe.evaluation, mixtures=mixtures)
    return figures_of(score(model, make_mixtures(sounds.store, config)))


def score(model: CachedModel, mixtures: list[LabelledMixture]) -> list[Scored]:
    """The frame scores of each mixture's phrases."""
    phrases = sorted({phrase for mixture in mixtures for phrase in mixture.segments})
    texts, at = model.encode_text(phrases), {phrase: i for i, phrase in enumerate(phrases)}
    scored = []
    embeddings = model.encode_audio([mixture.samples for mixture in mixtures], SAMPLE_RATE)
    for mixture, embedding in zip(mixtures, embeddings, strict=True):
        rows = texts[[at[phrase] for phrase in mixture.segments]]
        scores = model.frame_score(embedding.frames, rows).numpy()
        duration = len(mixture.samples) / SAMPLE_RATE
        scored.append(Scored(scores, list(mixture.segments.values()), embedding.frame_hop, duration))
    return scored


def figures_of(scored: list[Scored]) -> dict[str, Figure]:
    """The figures of scored mixtures."""
    labels = [
        np.stack([frame_labels(list(truth), r.scores.shape[1], r.frame_hop) for truth in r.truth]).astype(bool)
        for r in scored
    ]
    unit = np.repeat(np.arange(len(scored)), [r.scores.size for r in scored])
    defaults = DetectionSettings()
    counts = event_counts(Method("default", defaults, None), scored, [defaults.threshold, *THRESHOLDS])
    at = [f1(*counts[i].T) for i in range(len(counts))]
    return {
        "frame AP": average_precision(flat(r.scores for r in scored), flat(labels), unit),
        "event F1 at the default settings": at[0],
        "event F1 at the best threshold": best(at[1:]),
    }
