"""Metrics equal slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.metrics import auroc, average_precision, both_ways, classification, f1, match_events, retrieval


def reference_retrieval(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    sums = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "mAP@10": 0.0}
    for scores, truth in zip(similarity, relevant, strict=True):
        ranked = sorted(range(len(scores)), key=lambda i: -scores[i])[:10]
        for k in (1, 5, 10):
            sums[f"R@{k}"] += any(truth[i] for i in ranked[:k])
        found, total = 0, 0.0
        for position, clip in enumerate(ranked, start=1):
            if truth[clip]:
                found += 1
                total += found / position
        sums["mAP@10"] += total / min(int(truth.sum()), 10)
    return {k: v / len(similarity) for k, v in sums.items()}


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_retrieval_equals_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity, relevant = rng.random((6, 25)), rng.random((6, 25)) < 0.15
    relevant[:, 3] = True
    assert retrieval(similarity, relevant) == pytest.approx(reference_retrieval(similarity, relevant))


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 14))
@settings(max_examples=40)
def test_both_directions_with_any_number_of_captions_equal_the_reference(seed: int, clips: int, texts: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.permutation(texts * clips).reshape(texts, clips) / 100  # no ties
    captions = rng.random((texts, clips)) < 0.2
    captions[np.arange(texts), rng.integers(0, clips, texts)] = True  # every text belongs to a clip
    captions[rng.integers(0, texts, clips), np.arange(clips)] = True  # and every clip has one
    found = both_ways(similarity, captions)
    for name, s, r in (("text→audio", similarity, captions), ("audio→text", similarity.T, captions.T)):
        slow = reference_retrieval(s, r)
        assert {k: found[f"{name} {k}"] for k in slow} == pytest.approx(slow)


def test_retrieval_rejects_queries_without_a_relevant_candidate() -> None:
    with pytest.raises(ValueError, match="without a relevant candidate"):
        retrieval(np.zeros((2, 3)), np.array([[True, False, False], [False, False, False]]))
    with pytest.raises(ValueError, match="shape"):
        retrieval(np.zeros((2, 3)), np.zeros((3, 2), dtype=bool))


def test_classification_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0], [0.1, 0.6, 0.0]])
    result = classification(scores, np.array([0, 1, 1, 1]))  # the third class does not occur
    assert result["accuracy"] == 0.75
    # Class 0: its clip ranks first. Class 1: its clips rank 1, 2 and 3 of 0.8, 0.6, 0.3, 0.1.
    assert result["mAP"] == pytest.approx(1.0)
    swapped = classification(scores, np.array([1, 1, 0, 1]))
    assert swapped["mAP"] == pytest.approx((1 / 2 + (1 + 1 + 3 / 4) / 3) / 2)


def test_average_precision_by_hand_and_with_ties() -> None:
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(10), np.array([1] * 3 + [0] * 7)) == pytest.approx(0.3)
    assert np.isnan(average_precision(np.ones(3), np.zeros(3)))


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_auroc_is_the_share_of_ordered_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 20).astype(float), np.append(rng.random(18) < 0.4, [True, False])
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a in scores[labels] for b in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_events_match_one_to_one_by_overlap() -> None:
    truth = [(1.0, 2.0), (5.0, 6.0)]
    assert match_events([(1.0, 2.1), (1.1, 2.0), (5.0, 5.4)], truth) == 1
    assert match_events([(0.9, 2.0), (4.9, 6.1)], truth) == 2
    assert match_events([], truth) == 0
    assert f1(2, 3, 2) == pytest.approx(0.8) and f1(0, 0, 0) == 0.0
