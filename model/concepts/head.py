"""The head of a concept: a direction in the joint space, and how the cosines to it score.

It has one vector, so that an index searches with it as with any query. NumPy only; model.concepts.fit fits heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """A logit is cosine / temp + bias, as of phrases."""

    temp: float
    bias: float

    def logits(self, cosines: np.ndarray) -> np.ndarray:
        return np.asarray(cosines, np.float64) / self.temp + self.bias


@dataclass(frozen=True)
class HeadScores:
    """How cosines of a head's vector to the vectors of clips, segments and frames become logits."""

    clip: Scores
    segment: Scores
    frame: Scores


@dataclass(frozen=True)
class Quality:
    """How well a head ranks the examples of recordings that it wasn't fitted to, among other clips of the library."""

    average_precision: float
    auroc: float
    folds: int


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted head: vector (D,) of unit length.

    scores: None for a head that is only a text, which scores as texts do. threshold: the score from which a sound
    counts. reason: why there is no quality.
    """

    vector: np.ndarray
    scores: HeadScores | None
    threshold: float = 0.5
    quality: Quality | None = None
    reason: str = ""
