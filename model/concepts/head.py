"""The head of a concept: a few directions in the joint space, and how the cosines to them score; the best one counts.

So an index searches with each of them as with any query, and a concept may be of several kinds of sounds. NumPy only;
model.concepts.fit fits heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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

    @classmethod
    def from_json(cls, pairs: Mapping[str, Mapping[str, float]]) -> HeadScores:
        """What dataclasses.asdict made of it."""
        return cls(**{kind: Scores(**pair) for kind, pair in pairs.items()})


@dataclass(frozen=True)
class Quality:
    """How well a head ranks the examples of recordings that it wasn't fitted to, among other clips of the library."""

    average_precision: float
    auroc: float
    folds: int


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector (D,) of unit length, and how cosines to it become logits."""

    vector: np.ndarray
    scores: HeadScores


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted head.

    vector: the text (D,), or what the directions have in common, of unit length. directions: none for a head that is
    only the text of one kind of sounds, which scores as texts do. threshold: the score from which a sound counts.
    reason: why there is no quality.
    """

    vector: np.ndarray
    directions: tuple[Direction, ...] = ()
    threshold: float = 0.5
    quality: Quality | None = None
    reason: str = ""


def named_sounds(text: str) -> list[str]:
    """The kinds of sounds that a concept's text names, at most six: "glass or metal" names two."""
    return [part for part in re.split(r"\s+or\s+", text.strip(), maxsplit=5, flags=re.IGNORECASE) if part] or [text]


def vectors_of(vector: np.ndarray, directions: Sequence[Direction]) -> np.ndarray:
    """What sounds are compared with (K, D): the directions, or without any `vector` (D,)."""
    return np.stack([one.vector for one in directions]) if directions else vector[None]


def best_logits(
    directions: Sequence[Direction], vectors: np.ndarray, kind: Literal["clip", "segment", "frame"]
) -> np.ndarray:
    """The logits of vectors (…, D) of clips, segments or frames: of the best direction (…,)."""
    return np.max([getattr(one.scores, kind).logits(vectors @ one.vector) for one in directions], axis=0)
