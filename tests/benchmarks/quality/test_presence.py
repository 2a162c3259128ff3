"""Libraries lack what is alike their absent phrases, and the figures of presence equal hand-computed values."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.presence import Answers, best_cutoff, libraries, nonsense, service_figures, sound_figures
from benchmarks.quality.sounds import Alike, Embedded, Sizes, topics

LABELS = ["dog", "cat", "kitten", "rain", "river", "clock", "door open", "door close", "flute", "typing", "owl", "cow"]


def embed(labels: list[str]) -> np.ndarray:
    """Every label is unlike any other, except that a cow is alike an owl."""
    vectors = np.eye(len(labels), dtype=np.float32)
    if {"cow", "owl"} <= set(labels):
        vectors[labels.index("cow")] = vectors[labels.index("owl")]
    return vectors


def test_labels_are_alike_by_words_kinds_and_meaning() -> None:
    alike = Alike(LABELS, embed)
    assert alike("door open", ["rain", "door close"])
    assert alike.among("rain", LABELS) == {"rain", "river"}
    assert alike("owl", ["cow"]) and not alike("dog", ["cat", "clock"])
    assert topics("footsteps on the grass") == topics("walking on grass")


def test_absent_phrases_are_unlike_everything_in_the_library() -> None:
    sounds: Any = SimpleNamespace(label=[label for label in LABELS for _ in range(2)], phrases=LABELS)
    alike = Alike(LABELS, embed)
    for part in libraries(sounds, alike, Sizes(libraries=6, phrases=3)):
        inside = {sounds.label[i] for i in part.sounds}
        assert len(inside) == 6
        assert set(part.present) <= inside and len(part.present) == 3
        assert part.absent and not any(alike(phrase, inside) for phrase in part.absent)


def test_nonsense_is_reproducible_and_distinct() -> None:
    strings = nonsense(50)
    assert len(set(strings)) == 50 and strings == nonsense(50)


ANSWERS = Answers([True, True, False, False, None, None], [3.0, 1.0, 2.0, 0.0, 0.0, 2.0])


def test_figures_at_the_best_cutoff_and_at_a_given_one() -> None:
    there = np.array([True, True, False, False])
    assert best_cutoff(np.array([3.0, 1.0, 2.0, 0.0]), there) == 1.0
    found = {name: figure.value for name, figure in sound_figures(ANSWERS, None).items()}
    assert found["AUROC, by sound"] == pytest.approx(75)
    assert found["balanced accuracy, by sound at the best cutoff"] == 75
    assert found["nonsense without matches, by sound at the best cutoff"] == 50
    cutoff = 1 / (1 + np.exp(-2.5))
    found = {name: figure.value for name, figure in sound_figures(ANSWERS, cutoff).items()}
    assert found["present phrases with matches, by sound at the cutoff"] == 50
    assert found["absent phrases with matches, by sound at the cutoff"] == 0
    assert found["nonsense without matches, by sound at the cutoff"] == 100


def test_any_match_counts_in_the_service() -> None:
    found = {name: figure.value for name, figure in service_figures([ANSWERS, ANSWERS]).items()}
    assert found["present phrases with matches, by the service"] == 100
    assert found["absent phrases with matches, by the service"] == 50
    assert found["balanced accuracy, by the service"] == 75


def test_a_clip_scores_as_its_best_segment_with_the_pairs_of_the_checkpoint() -> None:
    library = Embedded(
        np.array([[0.6, 0], [0.2, 0]]),
        np.array([[0.1, 0], [0.9, 0], [0.3, 0]]),
        np.array([0, 0, 1]),
        np.array([60.0, 60.0]),
    )
    model: Any = SimpleNamespace(
        temp_global=np_scalar(0.1), b_global=np_scalar(-1.0), config=SimpleNamespace(matching=None)
    )
    texts = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(library.logits(model, texts), [[8.0, 2.0]])
    model.config.matching = SimpleNamespace(segment=(0.3, -2.0))
    np.testing.assert_allclose(library.logits(model, texts), [[5.0, 1.0]])
    model.config.matching = SimpleNamespace(segment=(0.1, 0.0))
    np.testing.assert_allclose(library.logits(model, texts), [[9.0, 3.0]])
    library = replace(library, seconds=np.array([5.1, 5.0]))
    np.testing.assert_allclose(library.logits(model, texts), [[9.0, 1.0]])


def np_scalar(value: float) -> Any:
    """A parameter of one number."""
    import torch

    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))
