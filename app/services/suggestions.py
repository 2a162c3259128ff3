"""Suggestions: the moments of the library whose label would teach a concept most.

Moments that the concept scores near its threshold are uncertain, and those that resemble each other teach the same. So
the most uncertain one is taken first, then always the one that is uncertain and unlike those taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.inference.batcher import Urgency
from app.services.concepts import Taught, cut_frames, taught, unit
from app.services.phrases import Phrase, Phrases
from app.state import AppState
from index import Clip, ConceptExample, Library
from model.concepts.head import Direction
from model.detection import find_moments

_NEAREST = 1000  # clips among which the uncertain ones are looked for, for all directions together
_CANDIDATES = 80  # clips that are scored frame by frame
_MOMENTS_PER_CLIP = 3
_MAX_SECONDS = 3600.0  # of audio that is scored
_TOP = 0.25  # share of candidates from the best matches, which show an untaught concept where it errs


@dataclass(frozen=True, eq=False)
class Suggestion:
    """A moment to label, in seconds, with its score now and its direction (D,)."""

    clip: Clip
    start: float
    end: float
    score: float
    vector: np.ndarray


async def suggest(state: AppState, key: str, k: int) -> list[Suggestion]:
    """At most k moments, the most useful first. Raises ConceptNotFound, ConceptUntaught."""
    found = await taught(state, key, urgency=Urgency.SEARCH)
    head = found.require_head()
    phrases = Phrases(state.engine, (Phrase("", head.vector, head.directions),))
    moments = await state.read(_candidates, state.library, phrases, found)
    return await state.compute(choose, moments, k, found.threshold)


def _candidates(library: Library, phrases: Phrases, found: Taught) -> list[Suggestion]:
    """Moments of the clips whose scores are nearest to the threshold, and of some of the best."""
    head, examples = found.require_head(), found.examples
    directions = head.directions or (Direction(head.vector, phrases.engine.text_scores),)
    nearest = _nearest(library, directions)
    logits = np.array([logit for _, logit in nearest])
    uncertain = np.argsort(np.abs(logits - _logit(found.threshold)), kind="stable")
    top = np.arange(min(len(nearest), round(_TOP * _CANDIDATES)))
    order = list(dict.fromkeys([*top.tolist(), *uncertain.tolist()]))[:_CANDIDATES]
    done = {one.clip_id for one in examples if one.start is None}
    clips = library.clips([nearest[place][0] for place in order if nearest[place][0] not in done])
    moments: list[Suggestion] = []
    seconds = 0.0
    for clip in clips.values():
        seconds += clip.duration
        if moments and seconds > _MAX_SECONDS:
            break
        moments += _moments(library, phrases, clip, [one for one in examples if one.clip_id == clip.id])
    return moments


def _nearest(library: Library, directions: Sequence[Direction]) -> list[tuple[str, float]]:
    """The clips nearest to a head with their logits, best first: of long clips, those of their best segment count."""
    logits: dict[str, float] = {}
    for one in directions:
        for search, pair in ((library.nearest, one.scores.clip), (library.nearest_segments, one.scores.segment)):
            found = search(one.vector, _NEAREST // len(directions))
            for (clip_id, _), logit in zip(found, pair.logits(np.array([hit[1] for hit in found])), strict=True):
                logits[clip_id] = max(float(logit), logits.get(clip_id, -np.inf))
    return sorted(logits.items(), key=lambda one: -one[1])


def _moments(library: Library, phrases: Phrases, clip: Clip, examples: Sequence[ConceptExample]) -> list[Suggestion]:
    """The best moments of a clip that aren't in its examples."""
    found = library.frame_codes_of([clip.id]).get(clip.id)
    if found is None:  # deleted in the meantime
        return []
    codes, hop = found
    scores = phrases.frame_score(codes.decode())[0]
    moments = find_moments(scores, hop, clip.duration, _MOMENTS_PER_CLIP)
    return [
        Suggestion(clip, m.start, m.end, m.score, unit(cut_frames(codes, hop, m.start, m.end).mean(axis=0)))
        for m in moments
        if not any(one.start is not None and one.start < m.end and m.start < (one.end or 0) for one in examples)
    ]


def choose(moments: Sequence[Suggestion], k: int, threshold: float) -> list[Suggestion]:
    """The k moments that are uncertain and unlike each other, greedily."""
    if not moments:
        return []
    logits = np.array([_logit(moment.score) for moment in moments])
    doubt = 1 / (1 + np.abs(logits - _logit(threshold)))
    vectors = np.stack([moment.vector for moment in moments])
    likeness = np.zeros(len(moments))
    chosen: list[int] = []
    while len(chosen) < min(k, len(moments)):
        worth = doubt * (1 - np.clip(likeness, 0, 1))
        worth[chosen] = -1
        best = int(worth.argmax())
        chosen.append(best)
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return [moments[place] for place in chosen]


def _logit(score: float) -> float:
    score = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(score / (1 - score)))
