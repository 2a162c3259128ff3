"""Figures with confidence intervals, for one checkpoint or two of which the second is compared with the first.

A figure is a function of how often each unit (query, mixture or recording) counts. The bootstrap draws units with
replacement; all figures over the same number of units get the same draws, so that differences between two checkpoints
are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 1000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Figure:
    """A figure over `units` units: `of(weights)` is its value if unit i counts weights[i] times. NaN: undefined."""

    units: int
    of: Callable[[np.ndarray], float]

    @property
    def value(self) -> float:
        """The value over all units, each once."""
        return self.of(np.ones(self.units))


def ratio(above: np.ndarray, below: np.ndarray, scale: float = 100.0) -> Figure:
    """The sum of `above` (n,) over the sum of `below` (n,), by default in percent."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return Figure(len(above), lambda weights: _divide(scale * float(weights @ above), float(weights @ below)))


def mean(values: np.ndarray) -> Figure:
    """The mean of fractions (n,), in percent."""
    return ratio(values, np.ones(len(values)))


def f1(matched: np.ndarray, found: np.ndarray, true: np.ndarray) -> Figure:
    """Event F1 of counts (n,), in percent."""
    return ratio(2 * np.asarray(matched), np.asarray(found) + np.asarray(true))


def average_precision(scores: np.ndarray, labels: np.ndarray, unit: np.ndarray) -> Figure:
    """Average precision in percent of scores (n,) and labels (n,); value i belongs to unit[i]. Ties share a point."""
    order = np.argsort(-scores, kind="stable")
    labels, owner = labels[order].astype(bool), unit[order]
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

    def of(weights: np.ndarray) -> float:
        counted = weights[owner]
        found, ranked = np.cumsum(counted * labels)[last], np.cumsum(counted)[last]
        precision = np.divide(found, ranked, out=np.zeros_like(found), where=ranked > 0)
        return _divide(100 * float((np.diff(found, prepend=0.0) * precision).sum()), float(found[-1]))

    return Figure(int(unit.max()) + 1, of)


def auroc(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """Probability in percent that a positive scores above a negative, ties counted half; scores (n,) are the units."""
    _, group = np.unique(scores, return_inverse=True)
    positive = np.asarray(labels, bool)

    def of(weights: np.ndarray) -> float:
        above = np.bincount(group, weights * positive)
        below = np.bincount(group, weights * ~positive)
        wins = float((above * (np.cumsum(below) - below / 2)).sum())
        return _divide(100 * wins, float(above.sum() * below.sum()))

    return Figure(len(scores), of)


def balanced_accuracy(answered: np.ndarray, present: np.ndarray) -> Figure:
    """Mean in percent of the share of present queries answered and that of absent ones left unanswered; (n,) bools."""
    yes, there = np.asarray(answered, float), np.asarray(present, float)

    def of(weights: np.ndarray) -> float:
        hit = _divide(float(weights @ (yes * there)), float(weights @ there))
        rejected = _divide(float(weights @ ((1 - yes) * (1 - there))), float(weights @ (1 - there)))
        return 50 * (hit + rejected)

    return Figure(len(yes), of)


def best(figures: Sequence[Figure]) -> Figure:
    """The highest of several figures over the same units, chosen anew in every draw."""
    return Figure(figures[0].units, lambda weights: max(figure.of(weights) for figure in figures))


def _divide(above: float, below: float) -> float:
    return above / below if below else float("nan")


def draws_of(units: int, count: int = DRAWS) -> np.ndarray:
    """How often each unit counts in each draw, (count, units)."""
    drawn = np.random.default_rng(units).integers(0, units, (count, units))
    return np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(float)


def summary(figures: Sequence[Figure | None], count: int = DRAWS) -> dict[str, Any]:
    """The values of one figure for each checkpoint with 95 % intervals, and the paired difference of the second.

    Keys: `units`, `values`, `intervals`, and with two checkpoints `difference` and `difference_interval`. What is
    undefined is None, and so is what a checkpoint does not have. Raises ValueError if the figures are not over the same
    units.
    """
    known = [figure for figure in figures if figure is not None]
    if len({figure.units for figure in known}) > 1:
        raise ValueError(f"figures over {', '.join(str(figure.units) for figure in known)} units")
    draws = draws_of(known[0].units, count)
    drawn = [np.array([figure.of(weights) for weights in draws]) for figure in known]
    values = iter(zip([rounded(figure.value) for figure in known], map(_interval, drawn), strict=True))
    found = [(None, None) if figure is None else next(values) for figure in figures]
    report: dict[str, Any] = {
        "units": known[0].units,
        "values": [value for value, _ in found],
        "intervals": [interval for _, interval in found],
    }
    if len(figures) == 2:
        paired = len(known) == 2
        report["difference"] = rounded(known[1].value - known[0].value) if paired else None
        report["difference_interval"] = _interval(drawn[1] - drawn[0]) if paired else None
    return report


def rounded(value: float) -> float | None:
    """Three decimals; None for what is not finite, which JSON cannot hold."""
    return round(float(value), 3) if np.isfinite(value) else None


def _interval(values: np.ndarray) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [round(float(v), 3) for v in np.quantile(known, INTERVAL)] if len(known) else None
