"""The figures of the quality benchmark equal hand-computed values, and their intervals are paired."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.figures import (
    Figure,
    auroc,
    average_precision,
    balanced_accuracy,
    best,
    draws_of,
    f1,
    mean,
    ratio,
    summary,
)
from training.evaluation import metrics


def test_sums_and_means() -> None:
    assert ratio(np.array([1, 2]), np.array([4, 2])).value == pytest.approx(50)
    assert mean(np.array([True, False, False, True])).value == pytest.approx(50)
    assert f1(np.array([1, 1]), np.array([3, 1]), np.array([2, 2])).value == pytest.approx(50)
    assert np.isnan(ratio(np.zeros(2), np.zeros(2)).value)


def test_weights_repeat_units() -> None:
    scores, labels = np.array([0.9, 0.8, 0.8, 0.3, 0.2]), np.array([1, 0, 1, 1, 0], bool)
    unit, weights = np.array([0, 0, 1, 1, 2]), np.array([2.0, 1.0, 0.0])
    repeated = np.repeat(np.arange(5), weights[unit].astype(int))
    expected = 100 * metrics.average_precision(scores[repeated], labels[repeated])
    assert average_precision(scores, labels, unit).of(weights) == pytest.approx(expected)
    single = np.array([3, 1, 0, 2, 1])
    again = np.repeat(np.arange(5), single)
    expected = 100 * metrics.auroc(scores[again], labels[again])
    assert auroc(scores, labels).of(single.astype(float)) == pytest.approx(expected)


def test_average_precision_and_auroc_without_weights() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1], bool)
    assert average_precision(scores, labels, np.arange(3)).value == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert auroc(scores, labels).value == pytest.approx(50)


def test_balanced_accuracy_is_the_mean_of_both_shares() -> None:
    answered, present = np.array([1, 1, 0, 1, 0], bool), np.array([1, 1, 1, 1, 0], bool)
    assert balanced_accuracy(answered, present).value == pytest.approx(50 * (3 / 4 + 1))


def test_the_best_figure_is_chosen_in_every_draw() -> None:
    both = best([mean(np.array([1.0, 0.0])), mean(np.array([0.0, 1.0]))])
    assert both.value == 50
    assert both.of(np.array([0.0, 2.0])) == 100


def test_an_equal_advantage_of_every_unit_has_no_spread() -> None:
    before = np.random.default_rng(0).random(40)
    found = summary([mean(before), mean(before + 0.1)], 200)
    assert found["difference"] == pytest.approx(10)
    assert found["difference_interval"] == pytest.approx([10, 10])
    low, high = found["intervals"][0]
    assert low < found["values"][0] < high
    assert draws_of(40, 5).sum(axis=1).tolist() == [40] * 5


def test_what_is_undefined_is_none() -> None:
    assert summary([ratio(np.zeros(3), np.zeros(3))], 10) == {"units": 3, "values": [None], "intervals": [None]}


def test_a_figure_that_one_checkpoint_lacks_has_no_difference() -> None:
    found = summary([None, mean(np.ones(3))], 10)
    assert (found["values"], found["intervals"]) == ([None, 100], [None, [100, 100]])
    assert found["difference"] is None and found["difference_interval"] is None


def test_figures_over_other_units_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3, 4 units"):
        summary([Figure(3, lambda weights: 0.0), Figure(4, lambda weights: 0.0)])
