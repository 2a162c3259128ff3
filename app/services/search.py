"""Searching the library by text, by audio or by a clip: semantic, lexical or hybrid ranking, exclusions, moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.services.audio_source import AudioFile, open_file
from app.state import AppState
from index import Clip, ClipNotFound, Hit, Library
from model.detection import Moment, find_moments, median_smooth

Mode = Literal["semantic", "hybrid", "lexical"]

MOMENTS = 3  # per hit, at most
WITHOUT_SCORE = 0.6  # smoothed frame score from which an excluded sound is present; see docs/development/log.md
FUSION_DEPTH = 100  # clips of each ranking that a hybrid search fuses, at least
WITHOUT_CLIPS = 2000  # clips that a search with exclusions considers, at most
_WITHOUT_MEDIAN_S = 0.48  # as in detection
_CHUNK = 25  # clips whose frames are read at once; a client that disconnects is noticed in between
_RRF_K = 60  # damps the weight of the first ranks; the value of the paper


@dataclass(frozen=True)
class SearchOptions:
    """How to rank and filter.

    mode: "semantic" ranks by similarity, "lexical" by BM25 over file name, tags and other metadata, "hybrid" fuses
    both by rank. without: texts; a clip is left out when it is at least as similar to one of them as to the query, or
    contains one: a frame score, smoothed as in detection, of WITHOUT_SCORE or more.
    """

    k: int = 10
    mode: Mode = "semantic"
    filter: Mapping[str, Any] | None = None
    min_score: float | None = None
    moments: bool = False
    without: Sequence[str] = ()


@dataclass(frozen=True)
class SearchHit:
    """A matching clip. similarity: cosine to the query; score: the calibrated probability; moments: best first."""

    clip: Clip
    similarity: float
    score: float
    moments: list[Moment] | None


@dataclass(frozen=True)
class _Query:
    """An embedding (D,), the words of a text query, and the id of a clip that is not a result."""

    vector: np.ndarray
    words: str = ""
    exclude: str | None = None


async def search_by_text(state: AppState, text: str, options: SearchOptions) -> list[SearchHit]:
    """The k clips that match a text best, best first."""
    (vector,) = await state.engine.embed_texts([text], urgency=Urgency.SEARCH)
    return await _search(state, _Query(vector, words=text), options)


async def search_by_audio(state: AppState, file: AudioFile, options: SearchOptions) -> list[SearchHit]:
    """The k clips that sound most like an uploaded file, best first. The mode must be "semantic"."""
    async with open_file(state, file, urgency=Urgency.SEARCH) as stream:
        async for _ in stream:
            pass
    return await _search(state, _Query(stream.embedding), options)


async def search_by_clip(state: AppState, clip_id: str, options: SearchOptions) -> tuple[Clip, list[SearchHit]]:
    """A clip, and the k other clips that sound most like it, best first. Raises ClipNotFound."""
    clip = await state.read(state.library.get, clip_id)
    vector = await state.read(state.library.clip_vector, clip_id)
    return clip, await _search(state, _Query(vector, exclude=clip_id), options)


async def _search(state: AppState, query: _Query, options: SearchOptions) -> list[SearchHit]:
    engine, library = state.engine, state.library
    without = await engine.embed_texts(options.without, urgency=Urgency.SEARCH) if options.without else None
    if without is None:
        hits = await _rank(state, query, options, options.k + (query.exclude is not None))
        hits = [hit for hit in hits if hit.clip.id != query.exclude]
    else:
        hits = await _rank_without(state, query, options, without)
    hits = hits[: options.k]
    if not hits:
        return []
    scores = engine.score_of(np.array([hit.similarity for hit in hits])).tolist()
    least = options.min_score
    scored = [(hit, score) for hit, score in zip(hits, scores, strict=True) if least is None or score >= least]
    if not options.moments:
        return [SearchHit(hit.clip, hit.similarity, score, None) for hit, score in scored]
    moments = await state.compute(_find_moments, engine, library, [hit.clip for hit, _ in scored], query.vector)
    return [SearchHit(hit.clip, hit.similarity, score, own) for (hit, score), own in zip(scored, moments, strict=True)]


async def _rank(state: AppState, query: _Query, options: SearchOptions, k: int) -> list[Hit]:
    """The k best clips, nothing excluded yet."""
    library = state.library
    if options.mode == "lexical":
        return await state.read(library.search_words, query.words, query.vector, k, options.filter)
    depth = k if options.mode == "semantic" else max(k, FUSION_DEPTH)
    with state.metrics.vector_search():
        similar = await state.read(library.search, query.vector, depth, options.filter)
    if options.mode == "semantic":
        return similar
    lexical = await state.read(library.search_words, query.words, query.vector, depth, options.filter)
    return fuse([similar, lexical])[:k]


async def _rank_without(state: AppState, query: _Query, options: SearchOptions, without: np.ndarray) -> list[Hit]:
    """The best clips that none of the excluded texts (W, D) rules out.

    Excluded clips make room for the next best, down to the best WITHOUT_CLIPS of the library: each round ranks deeper
    and checks the clips that are new.
    """
    depth = min(2 * (options.k + (query.exclude is not None)) + 50, WITHOUT_CLIPS)
    seen: set[str | None] = {query.exclude}
    hits: list[Hit] = []
    while True:
        ranked = await _rank(state, query, options, depth)
        new = [hit for hit in ranked if hit.clip.id not in seen]
        seen.update(hit.clip.id for hit in new)
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            hits += await state.compute(_filter_without, state.engine, state.library, chunk, without)
            if len(hits) >= options.k:
                break
        if len(hits) >= options.k or len(ranked) < depth or depth == WITHOUT_CLIPS:
            return hits
        depth = min(4 * depth, WITHOUT_CLIPS)


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009): all hits of the rankings, each once, best first.

    A hit's weight is the sum of 1 / (60 + rank) over the rankings that contain it; ties are ordered by similarity. Of
    a clip in several rankings, the first ranking's hit is returned.
    """
    weights: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            weights[hit.clip.id] = weights.get(hit.clip.id, 0.0) + 1 / (_RRF_K + rank)
            hits.setdefault(hit.clip.id, hit)
    return sorted(hits.values(), key=lambda hit: (-weights[hit.clip.id], -hit.similarity))


def _filter_without(engine: Engine, library: Library, hits: list[Hit], without: np.ndarray) -> list[Hit]:
    """The hits that none of the excluded texts (W, D) rules out."""
    remaining = []
    for hit in hits:
        try:
            nearest = float((without @ library.clip_vector(hit.clip.id)).max())
            frames, hop = library.frames(hit.clip.id)
        except ClipNotFound:  # deleted since the search
            continue
        if nearest < hit.similarity and not _is_present(engine.frame_score(frames, without), hop):
            remaining.append(hit)
    return remaining


def _is_present(scores: np.ndarray, frame_hop: float) -> bool:
    """Whether frame scores (W, T) show that one of W excluded texts occurs."""
    return bool(median_smooth(scores, _WITHOUT_MEDIAN_S, frame_hop).max() >= WITHOUT_SCORE)


def _find_moments(engine: Engine, library: Library, clips: list[Clip], query: np.ndarray) -> list[list[Moment]]:
    """For each clip its best moments for the query (D,), from frames scored as in detection."""
    moments: list[list[Moment]] = []
    for clip in clips:
        try:
            frames, hop = library.frames(clip.id)
        except ClipNotFound:  # deleted since the search
            moments.append([])
            continue
        scores = engine.frame_score(frames, query[None])[0]
        moments.append(find_moments(scores, hop, clip.duration, MOMENTS))
    return moments
