"""Quality as numbers: retrieval, classification, frame detection on mixtures, event F1. NumPy only; knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def retrieval(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Metrics of (queries, candidates) similarities and a boolean matrix of what is relevant; either may be any number.

    R@k: share of queries with something relevant among the first k. mAP@10: mean over queries of the precision at each
    relevant candidate in the first ten, over the most that could be there. Ties go to the earlier candidate. A query
    without anything relevant is a ValueError.
    """
    if similarity.shape != relevant.shape or not similarity.size:
        raise ValueError(f"similarities of shape {similarity.shape} and relevance of shape {relevant.shape}")
    if not relevant.any(1).all():
        raise ValueError("a query without anything relevant")
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :10]
    hits = np.take_along_axis(relevant, order, axis=1)
    found = np.cumsum(hits, axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    best = np.minimum(relevant.sum(1), hits.shape[1])
    result = {f"R@{k}": float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)}
    result["mAP@10"] = float(((precision * hits).sum(1) / best).mean())
    return result


def both_ways(similarity: np.ndarray, captions: np.ndarray) -> dict[str, float]:
    """Retrieval text→audio and audio→text of (texts, clips) similarities; `captions` is true where a text is a clip's.

    Any number of texts a clip, any number of clips a text. Audio→text counts a clip as found at the first of its texts.
    """
    found = {f"text→audio {k}": v for k, v in retrieval(similarity, captions).items()}
    return found | {f"audio→text {k}": v for k, v in retrieval(similarity.T, captions.T).items()}


def classification(scores: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Accuracy, and mAP over the classes that occur, of (clips, classes) scores and each clip's class (clips,)."""
    if len(scores) != len(classes) or not scores.size:
        raise ValueError(f"scores of shape {scores.shape} for {len(classes)} clips")
    precisions = [average_precision(scores[:, c], classes == c) for c in np.unique(classes)]
    return {"accuracy": float((scores.argmax(1) == classes).mean()), "mAP": float(np.mean(precisions))}


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under precision–recall of flat scores against flat boolean labels; NaN where nothing is true."""
    order = np.argsort(-scores, kind="stable")
    labels = labels[order].astype(bool)
    if not labels.any():
        return float("nan")
    # Ties share one operating point: only the last of equal scores counts as a threshold.
    last = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels)
    precision, recall = (found / np.arange(1, len(labels) + 1))[last], (found / found[-1])[last]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a true frame scores above a false one, ties half; NaN where one kind is missing."""
    labels = labels.astype(bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def match_events(found: Sequence[tuple[float, float]], truth: Sequence[tuple[float, float]], iou: float = 0.5) -> int:
    """How many found (onset, offset) pairs match a true one, each true one at most once, best overlaps first."""
    pairs = []
    for i, (a, b) in enumerate(found):
        for j, (c, d) in enumerate(truth):
            shared = min(b, d) - max(a, c)
            union = max(b, d) - min(a, c)
            if shared > 0 and shared / union >= iou:
                pairs.append((shared / union, i, j))
    used_found, used_truth = set(), set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in used_found and j not in used_truth:
            used_found.add(i)
            used_truth.add(j)
    return len(used_found)


def f1(matched: int, found: int, truth: int) -> float:
    """Harmonic mean of precision and recall; 0 where nothing matched."""
    return 2 * matched / (found + truth) if matched else 0.0
