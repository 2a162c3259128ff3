"""Fitting heads of concepts: the text as prior, one example to many, sounds that are only in a part, quality."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from model.concepts.fit import Background, HeadSettings, Labelled, _map_estimate, fit_head, ranking_figures
from model.concepts.head import Head, HeadScores, Scores, best_logits, named_sounds

DIM = 24
TEXT_SCORES = HeadScores(Scores(0.03, -4.5), Scores(0.03, -4.6), Scores(0.034, -2.0))


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def logits(head: Head, vectors: np.ndarray) -> np.ndarray:
    """How a head scores clips (N, D)."""
    return best_logits(head.directions, vectors, "clip")


class World:
    """Sounds around a few centres, which all share a direction, as embeddings of sounds do."""

    def __init__(self, rng: np.random.Generator, kinds: int = 8) -> None:
        self.rng = rng
        self.common = 3 * unit(rng.standard_normal(DIM))
        self.centres = unit(rng.standard_normal((kinds, DIM)))

    def of(self, kind: int, count: int = 1) -> np.ndarray:
        """Vectors (count, D) of a kind of sound."""
        noise = 0.4 * unit(self.rng.standard_normal((count, DIM)))
        return unit(self.common + self.centres[kind] + noise)

    def background(self, count: int = 200, without: int = 0) -> Background:
        kinds = self.rng.integers(without + 1, len(self.centres), count)
        clips = np.concatenate([self.of(int(kind)) for kind in kinds])
        parts = [clip[None] for clip in clips]
        return Background([f"b{n}" for n in range(count)], clips, parts, parts)

    def example(self, kind: int, name: str, label: bool = True) -> Labelled:
        vector = self.of(kind)
        return Labelled(label, name, vector[0], vector, vector, located=True)


def test_without_a_text_it_is_scikit_learns_logistic_regression(rng: np.random.Generator) -> None:
    x = rng.standard_normal((80, 6))
    labels = x[:, 0] + 0.5 * rng.standard_normal(80) > 0
    weights = rng.uniform(0.1, 2, 80)
    coefficients, bias = _map_estimate(x, labels, weights, np.zeros(6), 2.0)
    reference = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(x, labels, sample_weight=weights)
    np.testing.assert_allclose(coefficients, reference.coef_[0], atol=5e-3)
    assert bias == pytest.approx(reference.intercept_[0], abs=5e-3)
    prior = rng.standard_normal(6)
    far, _ = _map_estimate(x, labels, weights, prior, 1e-6)
    np.testing.assert_allclose(far, prior, atol=1e-3)


def test_figures_are_scikit_learns(rng: np.random.Generator) -> None:
    labels = rng.random(200) < 0.2
    scores = np.round(rng.random(200) + 0.3 * labels, 2)  # with ties
    average_precision, auroc, threshold = ranking_figures(scores, labels)
    assert average_precision == pytest.approx(average_precision_score(labels, scores))
    assert auroc == pytest.approx(roc_auc_score(labels, scores))

    def f1(at: float) -> float:
        chosen = scores >= at
        return 2 * (chosen & labels).sum() / (chosen.sum() + labels.sum())

    assert f1(threshold) == max(f1(at) for at in scores)


def test_without_examples_the_head_is_the_text(rng: np.random.Generator) -> None:
    world = World(rng)
    text = world.of(0)[0]
    head = fit_head([world.example(1, "a", label=False)], world.background(), text[None], TEXT_SCORES)
    np.testing.assert_array_equal(head.vector, text)
    assert not head.directions and head.quality is None and "no positive" in head.reason
    with pytest.raises(ValueError, match="positive example or a text"):
        fit_head([], world.background(), None, TEXT_SCORES)


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("with_text", [True, False])
def test_examples_are_told_from_other_sounds(rng: np.random.Generator, count: int, with_text: bool) -> None:
    world = World(rng)
    text = unit(world.centres[:1] + 0.5 * unit(rng.standard_normal(DIM))) if with_text else None
    examples = [world.example(0, str(n)) for n in range(count)]
    head = fit_head(examples, world.background(), text, TEXT_SCORES)
    assert [np.linalg.norm(one.vector) for one in head.directions] == pytest.approx([1] * min(count, 6), abs=1e-5)
    scores = [1 / (1 + np.exp(-logits(head, world.of(kind, 50)))) for kind in range(8)]
    assert np.mean(scores[0] >= 0.5) > 0.8
    assert np.mean(np.concatenate(scores[1:]) >= 0.5) < 0.05
    if count < 3:
        assert head.quality is None and f"there are {count}" in head.reason
    else:
        assert head.quality is not None and head.quality.folds == min(count, 5)
        assert head.quality.average_precision > 0.9 and head.quality.auroc > 0.9
        assert 0.1 <= head.threshold <= 0.9


def test_the_text_helps_a_misleading_example(rng: np.random.Generator) -> None:
    world = World(rng)
    text = unit(world.centres[:1])
    example = Labelled(True, "a", unit(world.of(0)[0] + world.of(3)[0]), world.of(0), world.of(0), located=True)
    others, own = world.of(3, 50), world.of(0, 50)
    alone, helped = (fit_head([example], world.background(), t, TEXT_SCORES).vector for t in (None, text))
    assert (own @ helped).mean() - (others @ helped).mean() > (own @ alone).mean() - (others @ alone).mean()


def test_a_positive_recording_has_the_sound_in_one_of_its_segments(rng: np.random.Generator) -> None:
    world = World(rng)
    examples = []
    for number in range(6):  # one segment of the sound, four of all kinds of others
        others = np.concatenate([world.of(int(kind)) for kind in rng.integers(1, 8, 4)])
        segments = np.concatenate([others[:2], world.of(0), others[2:]])
        examples.append(Labelled(True, str(number), unit(segments.mean(axis=0)), segments, segments))
    head = fit_head(examples, world.background(), None, TEXT_SCORES)
    for example in examples:
        assert (example.segments @ head.vector).argmax() == 2


def test_two_kinds_of_sounds_are_one_concept(rng: np.random.Generator) -> None:
    """Each has a direction of its own: a single one would find what lies between them as well."""
    world = World(rng)
    background = world.background(without=1)
    examples = [world.example(kind, f"{kind} {n}") for kind in (0, 1) for n in range(3)]
    between = unit(world.common + unit(world.centres[0] + world.centres[1]))
    several = fit_head(examples, background, None, TEXT_SCORES, HeadSettings(nearness=3.0, prototypes=2))
    single = fit_head(examples, background, None, TEXT_SCORES, HeadSettings(nearness=0.0, prototypes=2))
    assert len(several.directions) == 2
    own = np.concatenate([world.of(0, 50), world.of(1, 50)])
    assert (logits(several, own) >= 0).mean() > 0.8

    def lead(head: Head) -> float:
        """How much clearer the examples' kinds are than what lies between them, in units of the others' spread."""
        others = logits(head, np.concatenate([world.of(kind, 50) for kind in range(2, 8)]))
        return float((logits(head, own).mean() - logits(head, between[None])[0]) / others.std())

    assert lead(several) > lead(single) + 0.3


def test_negative_examples_push_away(rng: np.random.Generator) -> None:
    world = World(rng)
    positives = [world.example(0, str(n)) for n in range(3)]
    alike = unit(world.centres[0] + 0.7 * unit(rng.standard_normal(DIM)))
    confused = [unit(world.common + alike + 0.1 * unit(rng.standard_normal(DIM))) for _ in range(4)]
    negatives = [Labelled(False, f"n{n}", v, v[None], v[None], located=True) for n, v in enumerate(confused)]
    before = fit_head(positives, world.background(), None, TEXT_SCORES)
    after = fit_head([*positives, *negatives], world.background(), None, TEXT_SCORES)
    new = unit(world.common + alike)
    assert logits(after, new) < logits(before, new)


def test_an_empty_library(rng: np.random.Generator) -> None:
    world = World(rng)
    nothing = Background([], np.empty((0, DIM), np.float32), [], [])
    for examples in (
        [world.example(0, "a")],
        [world.example(0, str(n)) for n in range(4)],
        [world.example(0, "a"), world.example(1, "b", label=False)],
    ):
        head = fit_head(examples, nothing, None, TEXT_SCORES, HeadSettings(rounds=1))
        assert np.isfinite(head.vector).all() and np.isfinite(logits(head, world.of(0))).all()
        assert head.quality is None


def test_a_text_of_two_kinds_finds_both_before_there_are_examples_of_both(rng: np.random.Generator) -> None:
    world = World(rng)
    assert named_sounds(" glass OR metal or wood") == ["glass", "metal", "wood"]
    assert named_sounds("a door in a corridor") == ["a door in a corridor"]
    assert len(named_sounds(" or ".join("abcdefgh"))) == 6
    texts = unit(world.centres[:2])
    untaught = fit_head([], world.background(without=1), texts, TEXT_SCORES)
    for one, text in zip(untaught.directions, texts, strict=True):
        np.testing.assert_array_equal(one.vector, text)
        assert one.scores == TEXT_SCORES

    def gap(head: Head) -> float:
        """How much clearer the second kind is than other sounds, in units of their spread."""
        others = logits(head, np.concatenate([world.of(kind, 50) for kind in range(2, 8)]))
        return float((logits(head, world.of(1, 50)).mean() - others.mean()) / others.std())

    examples = [world.example(0, "a")]
    both = fit_head(examples, world.background(without=1), texts, TEXT_SCORES)
    first = fit_head(examples, world.background(without=1), texts[:1], TEXT_SCORES)
    assert len(both.directions) == 2 and len(first.directions) == 1
    assert gap(both) > gap(first) + 1

    many = [world.example(kind, f"{kind} {n}") for kind in (0, 1) for n in range(4)]
    assert len(fit_head(many, world.background(without=1), texts, TEXT_SCORES).directions) == 6


def test_many_examples_overrule_a_wrong_text(rng: np.random.Generator) -> None:
    world = World(rng)
    few, many = (
        fit_head([world.example(0, str(n)) for n in range(count)], world.background(), world.centres[3:4], TEXT_SCORES)
        for count in (1, 20)
    )

    def lead(head: Head) -> float:
        return float(logits(head, world.of(0, 50)).mean() - logits(head, world.of(3, 50)).mean())

    assert lead(many) > lead(few) and lead(many) > 0
