"""Searching the library: by text, sound or clip; by meaning, words or both; without what is not wanted; with moments.

Knows engine and library; no requests and no answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.inference.engine import Engine
from app.services.fusion import fuse
from app.state import Services
from index import Clip, ClipNotFound, Hit, Library
from model.detection import Moment, find_moments, median_smooth

Mode = Literal["semantic", "hybrid", "lexical"]

MOMENTS = 3  # of one hit, at most
WITHOUT_SCORE = 0.6  # a smoothed frame score from which an unwanted sound counts as heard; measured, see docs/log.md
FUSED = 100  # clips of each ranking that a hybrid search looks at, at least
WITHOUT_CLIPS = 2000  # clips that a search without something looks at, at most
_WITHOUT_MEDIAN = 0.48  # seconds, as in detection
_TOGETHER = 25  # clips whose frames are read in one go; in between, a caller who left is noticed


@dataclass(frozen=True)
class Found:
    """A clip that answers. `similarity`: cosine to the query; `score`: its calibrated probability."""

    clip: Clip
    similarity: float
    score: float
    moments: list[Moment] | None


async def search(
    services: Services,
    query: np.ndarray,
    k: int,
    *,
    mode: Mode = "semantic",
    words: str = "",
    filter: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    moments: bool = False,
    leave_out: str | None = None,
    without: np.ndarray | None = None,
) -> list[Found]:
    """The k clips that answer `query` (D,) best, best first, without the clip `leave_out`.

    With the mode "semantic" those are the most similar. "lexical" asks for clips whose names, tags and other metadata
    have `words`, by BM25; "hybrid" for both, fused by rank (app.services.fusion), each ranking as deep as FUSED clips at least.

    `min_score` drops hits whose score is lower. With `moments`, each hit has its best stretches for the query: frames
    scored as in detection. A query that is itself a sound is compared with the frames in the same way.

    `without` (W, D) are texts that must not be heard. A clip is left out when it is at least as similar to one of them
    as to the query, or one of them is heard in it: a frame score, smoothed as in detection, of WITHOUT_SCORE or more.
    Clips that are left out make room for the next best, down to the best WITHOUT_CLIPS of the library.
    """
    engine, catalog = services.engine, services.catalog
    refuses = without is not None and len(without) > 0
    asked = k + (leave_out is not None)
    if refuses:
        asked = min(2 * asked + 50, WITHOUT_CLIPS)
    seen: set[str | None] = {leave_out}
    hits: list[Hit] = []
    while True:
        found = await _candidates(services, query, asked, mode, words, filter)
        fresh = [hit for hit in found if hit.clip.id not in seen]
        seen.update(hit.clip.id for hit in fresh)
        if without is None or not refuses:
            hits = fresh
            break
        for at in range(0, len(fresh), _TOGETHER):
            hits += await services.compute(_allowed, engine, catalog, fresh[at : at + _TOGETHER], without)
            if len(hits) >= k:
                break
        if len(hits) >= k or len(found) < asked or asked == WITHOUT_CLIPS:
            break
        asked = min(4 * asked, WITHOUT_CLIPS)
    hits = hits[:k]
    if not hits:
        return []
    scores = engine.score_of(np.array([hit.similarity for hit in hits])).tolist()
    kept = [(hit, score) for hit, score in zip(hits, scores, strict=True) if min_score is None or score >= min_score]
    if not moments:
        return [Found(hit.clip, hit.similarity, score, None) for hit, score in kept]
    stretches = await services.compute(_moments, engine, catalog, [hit.clip for hit, _ in kept], query)
    return [Found(h.clip, h.similarity, s, m) for (h, s), m in zip(kept, stretches, strict=True)]


async def _candidates(
    services: Services, query: np.ndarray, k: int, mode: Mode, words: str, filter: Mapping[str, Any] | None
) -> list[Hit]:
    """The k best clips before anything is left out."""
    catalog = services.catalog
    if mode == "lexical":
        return await services.read(catalog.search_words, words, query, k, filter)
    deep = k if mode == "semantic" else max(k, FUSED)
    with services.metrics.vector_search():
        similar = await services.read(catalog.search, query, deep, filter)
    if mode == "semantic":
        return similar
    return fuse([similar, await services.read(catalog.search_words, words, query, deep, filter)])[:k]


def _allowed(engine: Engine, catalog: Library, hits: list[Hit], without: np.ndarray) -> list[Hit]:
    """The hits in which none of the texts (W, D) is heard."""
    kept = []
    for hit in hits:
        try:
            nearest = float((without @ catalog.clip_vector(hit.clip.id)).max())
            frames, hop = catalog.frames(hit.clip.id)
        except ClipNotFound:  # deleted since the search
            continue
        if nearest < hit.similarity and not is_heard(engine.frame_score(frames, without), hop):
            kept.append(hit)
    return kept


def is_heard(scores: np.ndarray, frame_hop: float) -> bool:
    """Whether a search takes one of W texts as heard, by their frame scores (W, T)."""
    return bool(median_smooth(scores, _WITHOUT_MEDIAN, frame_hop).max() >= WITHOUT_SCORE)


def _moments(engine: Engine, catalog: Library, clips: list[Clip], query: np.ndarray) -> list[list[Moment]]:
    found: list[list[Moment]] = []
    for clip in clips:
        try:
            frames, hop = catalog.frames(clip.id)
        except ClipNotFound:  # deleted since the search
            found.append([])
            continue
        scores = engine.frame_score(frames, query[None])[0]
        found.append(find_moments(scores, hop, clip.duration, MOMENTS))
    return found
