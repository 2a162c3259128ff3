"""Metrics in NumPy: retrieval, classification, average precision, AUROC, and event F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def retrieval(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 and mAP@10, fractions, of similarities and boolean relevance (queries, candidates).

    R@k is the share of queries with a relevant candidate among the first k. mAP@10 is the mean over queries of the
    precision at each relevant candidate among the first ten, divided by the largest possible number of them. Ties go to
    the earlier candidate. Raises ValueError for a query without a relevant candidate.
    """
    if similarity.shape != relevant.shape or not similarity.size:
        raise ValueError(f"similarities of shape {similarity.shape} and relevance of shape {relevant.shape}")
    if not relevant.any(1).all():
        raise ValueError("a query without a relevant candidate")
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :10]
    hits = np.take_along_axis(relevant, order, axis=1)
    found = np.cumsum(hits, axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    best = np.minimum(relevant.sum(1), hits.shape[1])
    result = {f"R@{k}": float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)}
    result["mAP@10"] = float(((precision * hits).sum(1) / best).mean())
    return result


def both_ways(similarity: np.ndarray, captions: np.ndarray) -> dict[str, float]:
    """Retrieval text→audio and audio→text; `captions` (texts, clips) is true where a text is a caption of the clip.

    `similarity` is (texts, clips). A clip can have several texts and a text several clips. In audio→text, a clip is
    found at the first of its texts; a clip without a text is only a candidate, in text→audio.
    """
    found = {f"text→audio {k}": v for k, v in retrieval(similarity, captions).items()}
    asked = captions.any(0)
    return found | {f"audio→text {k}": v for k, v in retrieval(similarity.T[asked], captions.T[asked]).items()}


def classification(scores: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Accuracy, and mAP over the classes that occur, of scores (clips, classes) and true class indices (clips,)."""
    if len(scores) != len(classes) or not scores.size:
        raise ValueError(f"scores of shape {scores.shape} for {len(classes)} clips")
    precisions = [average_precision(scores[:, c], classes == c) for c in np.unique(classes)]
    return {"accuracy": float((scores.argmax(1) == classes).mean()), "mAP": float(np.mean(precisions))}


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision–recall curve of scores (n,) and boolean labels (n,); NaN without positives."""
    order = np.argsort(-scores, kind="stable")
    labels = labels[order].astype(bool)
    if not labels.any():
        return float("nan")
    # Equal scores share one operating point, at the last of them.
    last = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels)
    precision, recall = (found / np.arange(1, len(labels) + 1))[last], (found / found[-1])[last]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive scores above a negative, with ties counted half; NaN if either is missing."""
    labels = labels.astype(bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def match_events(found: Sequence[tuple[float, float]], truth: Sequence[tuple[float, float]], iou: float = 0.5) -> int:
    """Number of detected (onset, offset) pairs that match true ones, one to one, highest IoU first."""
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
    """Harmonic mean of precision and recall from counts; 0 without a match."""
    return 2 * matched / (found + truth) if matched else 0.0


def percent(figures: Mapping[str, float]) -> dict[str, float]:
    """Fractions as percentages with two decimals."""
    return {name: round(100 * value, 2) for name, value in figures.items()}
