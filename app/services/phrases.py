"""Phrases as vectors and scores: texts, and concepts that were taught with examples, written `concept:NAME`.

Whatever takes phrases or queries resolves them here, so that a concept stands wherever a phrase does. Its vector is
searched with as a text's is, but its cosines become scores with its own temperatures and biases; it may have several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.errors import Invalid
from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.services.concepts import taught
from app.state import AppState
from model.concepts.head import Direction, best_logits, vectors_of

PREFIX = "concept:"


def concept_name(phrase: str) -> str | None:
    """The name in `concept:NAME`; None for any other phrase."""
    return phrase.removeprefix(PREFIX).strip() if phrase.startswith(PREFIX) else None


@dataclass(frozen=True, eq=False)
class Phrase:
    """A phrase: the embedding (D,) of a text, of unit length, or a concept.

    directions: of a concept that has any; others score as texts do. threshold: the score at which events of a
    concept begin, if its users have set one. (The fitted one is of whole clips, and no better for events than 0.5.)
    """

    text: str
    vector: np.ndarray
    directions: tuple[Direction, ...] = ()
    threshold: float | None = None

    @property
    def vectors(self) -> np.ndarray:
        """What sounds are compared with (K, D), K at least 1."""
        return vectors_of(self.vector, self.directions)


@dataclass(frozen=True, eq=False)
class Phrases:
    """P phrases and their scores."""

    engine: Engine
    each: tuple[Phrase, ...]

    @cached_property
    def vectors(self) -> np.ndarray:
        """All vectors of the phrases, one phrase after another (V, D)."""
        return np.concatenate([phrase.vectors for phrase in self.each])

    @cached_property
    def _of_texts(self) -> np.ndarray:
        """The embeddings (P, D); of concepts their common directions, whose scores are replaced."""
        return np.stack([phrase.vector for phrase in self.each])

    def frame_score(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, D) → scores (P, T). Use a thread for long recordings."""
        scores = self.engine.frame_score(frames, self._of_texts)
        for row, phrase in zip(scores, self.each, strict=True):
            if phrase.directions:
                row[:] = _sigmoid(best_logits(phrase.directions, frames, "frame"))
        return scores

    def clip_score(self, clip: np.ndarray) -> np.ndarray:
        """A clip's embedding (D,) → scores (P,)."""
        scores = self.engine.clip_score(clip[None], self._of_texts)[0]
        for number, phrase in enumerate(self.each):
            if phrase.directions:
                scores[number] = _sigmoid(best_logits(phrase.directions, clip, "clip"))
        return scores

    def probabilities(self, clip: np.ndarray) -> np.ndarray:
        """A clip's embedding (D,) → probabilities (P,): the softmax of the logits of the scores."""
        logits = self.engine.clip_logits(clip, self._of_texts)
        for number, phrase in enumerate(self.each):
            if phrase.directions:
                logits[number] = best_logits(phrase.directions, clip, "clip")
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())


async def embed_phrases(engine: Engine, texts: Sequence[str]) -> Phrases:
    """Texts alone, without a library. Raises Invalid for a concept, QueueFull, Closed."""
    if concepts := [text for text in texts if concept_name(text) is not None]:
        raise Invalid(f"{concepts[0]!r} is a concept of a library: it needs a service.")
    vectors = await engine.embed_texts(texts)
    return Phrases(engine, tuple(Phrase(text, vector) for text, vector in zip(texts, vectors, strict=True)))


async def resolve(state: AppState, phrases: Sequence[str], *, urgency: Urgency = Urgency.INTERACTIVE) -> Phrases:
    """The vectors and scores of texts and concepts. Raises ConceptNotFound, ConceptUntaught, QueueFull, Closed."""
    names = {phrase: name for phrase in phrases if (name := concept_name(phrase)) is not None}
    texts = [phrase for phrase in dict.fromkeys(phrases) if phrase not in names]

    async def of_concept(phrase: str) -> Phrase:
        found = await taught(state, names[phrase], urgency=urgency)
        head = found.require_head()
        return Phrase(phrase, head.vector, head.directions, found.concept.threshold)

    vectors, *concepts = await asyncio.gather(
        state.engine.embed_texts(texts, urgency=urgency), *(of_concept(phrase) for phrase in names)
    )
    found = {text: Phrase(text, vector) for text, vector in zip(texts, vectors, strict=True)}
    found.update((concept.text, concept) for concept in concepts)
    return Phrases(state.engine, tuple(found[phrase] for phrase in phrases))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))), dtype=np.float32)
