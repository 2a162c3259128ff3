"""Searching the library by text, by sounds or by both: exclusions, how many clips match, and the best moments."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.audio.tracks import Note, Track
from app.errors import Invalid
from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.services.audio_source import AudioFile, open_file, require_frames
from app.services.phrases import Phrase, Phrases, concept_name, resolve
from app.services.ranking import FIRST_DEPTH, Mode, Part, Query, Ranked, Ranking, Reason, logit_of
from app.services.words import QueryWords, has_all_words, read_words
from app.state import AppState
from index import Clip, ClipNotFound, Library
from model.detection import Moment, find_moments, median_smooth

MOMENTS = 3  # per hit, at most
MAX_MATCHES = 1000  # that are counted
WITHOUT_CLIPS = 2000  # clips that a search with exclusions considers, at most
_CHUNK = 25  # clips whose frames are read at once; a client that disconnects is noticed in between


@dataclass(frozen=True)
class Example:
    """A clip of the library, or the part of it from `start` to `end`, in seconds."""

    clip_id: str
    start: float | None = None
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        return self.start is None and self.end is None


@dataclass(frozen=True)
class SearchOptions:
    """How to rank and filter.

    mode: "semantic" ranks by sound, "lexical" by BM25 over file name, tags and other metadata, "hybrid" by sound and
    words (app.services.ranking). without: texts or concepts of unwanted sounds (`ExclusionRule`). like, unlike: wanted
    and unwanted examples; whole clips among them are no results.
    """

    k: int = 10
    mode: Mode = "hybrid"
    filter: Mapping[str, Any] | None = None
    min_score: float | None = None
    moments: bool = False
    without: Sequence[str] = ()
    like: Sequence[Example] = ()
    unlike: Sequence[Example] = ()


@dataclass(frozen=True)
class SearchHit:
    """A found clip. similarity: its cosine to the query; score: the calibrated probability; moments: best first.

    match: whether the score reaches the checkpoint's cutoff; None if it has none. reasons: why it is found.
    """

    clip: Clip
    similarity: float
    score: float
    match: bool | None
    reasons: list[Reason]
    moments: list[Moment] | None


@dataclass(frozen=True)
class Found:
    """The result of a search. title: the text, or the names of the sounds. hits: best first, in lexical mode by BM25.

    matches: clips of the library that pass the filter and match, MAX_MATCHES at most; None if the checkpoint has no
    cutoff. did_you_mean: the text that was searched, if misspelled words were corrected. track, notes: of the file that
    was searched with.
    """

    title: str
    hits: list[SearchHit]
    matches: int | None
    did_you_mean: str | None
    track: Track | None = None
    notes: Sequence[Note] = ()


@dataclass(frozen=True)
class ExclusionRule:
    """When an unwanted text excludes a clip: a frame, the whole clip or its words show that the clip contains it.

    A frame: its score for the unwanted text, smoothed as in detection, is at least `frame_score`, and its logit exceeds
    that for the query by `margin`: the unwanted sound explains that moment better than the wanted one.
    The clip: the same of its clip score, with the cutoff of matches, or `clip_score` if the checkpoint has none.
    Words: file name and tags contain all content words of the unwanted text.
    """

    frame_score: float = 0.5
    clip_score: float = 0.1
    margin: float = 1.0  # measured, as the scores: docs/development/log.md
    median: float = 0.48  # seconds


EXCLUSION = ExclusionRule()


async def search(
    state: AppState, options: SearchOptions, *, text: str | None = None, file: AudioFile | None = None
) -> Found:
    """The k clips that match a text, a sound, examples of the library, or several of these together, best first.

    Raises Invalid if nothing is wanted, or a lexical search has no text; ClipNotFound for unknown examples.
    """
    if text is None and options.mode == "lexical":
        raise Invalid("The mode 'lexical' requires a text query.")
    if text is None and file is None and not options.like:
        raise Invalid("Provide a `query`, a file, or examples in `like`.")
    if options.moments:
        require_frames(state.engine, "A search with `moments`")
    if not all(example.is_whole for example in (*options.like, *options.unlike)):
        require_frames(state.engine, "A part of a clip as an example")
    words, parts, names = None, [], []
    track, notes = None, list[Note]()
    if text is not None:
        part, words = await _read_text(state, text, options.mode)
        parts.append(part)
    if file is not None:
        async with open_file(state, file, urgency=Urgency.SEARCH) as stream:
            async for _ in stream:
                pass
        parts.append(Part(stream.embedding, sound=True))
        track, notes = stream.track, stream.notes
        names.append(file.filename)
    if options.like:
        vector, clips = await _embed_examples(state, options.like)
        parts.append(Part(vector, sound=True))
        names += [clip.filename for clip in clips]
    unlike = (await _embed_examples(state, options.unlike))[0] if options.unlike else None
    whole = frozenset(example.clip_id for example in (*options.like, *options.unlike) if example.is_whole)
    query = Query(tuple(parts), unlike, words, whole)
    hits, matches = await _Search(state, query, options).run()
    title = text if text is not None else ", ".join(dict.fromkeys(names))
    did_you_mean = words.text if words is not None and words.corrected else None
    return Found(title, hits, matches, did_you_mean, track, notes)


async def _read_text(state: AppState, text: str, mode: Mode) -> tuple[Part, QueryWords | None]:
    """A query's text as a part of the search, and its words; a concept has none."""
    if concept_name(text) is not None:
        if mode == "lexical":
            raise Invalid("The mode 'lexical' searches for words, and a concept has none.")
        (concept,) = (await resolve(state, [text], urgency=Urgency.SEARCH)).each
        return Part(concept.vector, directions=concept.directions), None
    (vector,), words = await asyncio.gather(
        state.engine.embed_texts([text], urgency=Urgency.SEARCH), read_words(state, text)
    )
    if words.corrected:
        (vector,) = await state.engine.embed_texts([words.text], urgency=Urgency.SEARCH)
    return Part(vector), words


async def search_by_clip(state: AppState, clip_id: str, options: SearchOptions) -> Found:
    """The k other clips that sound most like a clip, best first. Raises ClipNotFound."""
    return await search(state, SearchOptions(k=options.k, like=(Example(clip_id),)))


async def _embed_examples(state: AppState, examples: Sequence[Example]) -> tuple[np.ndarray, list[Clip]]:
    """The mean direction (D,) of the examples, and their clips. Raises ClipNotFound, Invalid."""
    found = [await state.read(_embed_example, state.library, example) for example in examples]
    return _unit(np.mean([vector for _, vector in found], axis=0)), [clip for clip, _ in found]


def _embed_example(library: Library, example: Example) -> tuple[Clip, np.ndarray]:
    """The clip and its vector (D,), or the mean direction of the frames in the given part of it."""
    clip = library.get(example.clip_id)
    if example.is_whole:
        return clip, library.clip_vector(clip.id)
    start, end = example.start or 0.0, clip.duration if example.end is None else example.end
    if not start < end or start >= clip.duration or end > clip.duration + 0.1:
        raise Invalid(
            f"The part from {start:g} to {end:g} s is not within clip {clip.id}, which lasts {clip.duration:g} s."
        )
    codes, hop = library.frame_codes(clip.id)
    first = min(int(start / hop), len(codes) - 1)
    return clip, _unit(codes.decode(first, max(first + 1, math.ceil(end / hop))).mean(axis=0))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)


class _Search:
    """One search: ranks deeper until there are k hits and the matches are counted."""

    def __init__(self, state: AppState, query: Query, options: SearchOptions) -> None:
        self._state, self._query, self._options = state, query, options
        self._ranking = Ranking(state, query, options.mode, options.filter)
        self._excluded: dict[str, bool] = {}

    async def run(self) -> tuple[list[SearchHit], int | None]:
        """The hits, and the number of matches."""
        options, ranking = self._options, self._ranking
        without = None
        if options.without:
            without = await resolve(self._state, options.without, urgency=Urgency.SEARCH)
        leave_out = self._query.leave_out
        count_apart = self._query.is_simple and without is None
        depth = max(options.k + len(leave_out), FIRST_DEPTH)
        first: list[Ranked] | None = None
        while True:
            ranked = [item for item in await ranking.best(depth) if item.clip_id not in leave_out]
            passing = ranked if without is None else await self._exclude(ranked, without)
            if first is None or len(first) < options.k:
                first = passing
            if ranking.exhausted or count_apart:
                break
            more_hits = len(passing) < options.k and without is not None and depth < WITHOUT_CLIPS
            more_matches = ranking.may_match_deeper and depth < MAX_MATCHES
            if not (more_hits or more_matches):
                break
            depth = min(4 * depth, WITHOUT_CLIPS) if more_hits else MAX_MATCHES
        counting = self._count((*first, *passing), deeper=count_apart and ranking.may_match_deeper)
        hits, matches = await asyncio.gather(self._hits(first[: options.k]), counting)
        return hits, matches

    async def _count(self, ranked: Iterable[Ranked], deeper: bool) -> int | None:
        """The number of matches among the ranked clips, and with `deeper` of those beyond; None if it isn't known."""
        if self._state.engine.matching is None:
            return None
        matching, leave_out = {item.clip_id for item in ranked if self._ranking.is_match(item)}, self._query.leave_out
        if deeper:
            matching |= await self._ranking.matching(MAX_MATCHES + len(leave_out)) - leave_out
        return min(len(matching), MAX_MATCHES)

    async def _hits(self, ranked: Sequence[Ranked]) -> list[SearchHit]:
        least = self._options.min_score
        ranked = await self._ranking.complete([item for item in ranked if least is None or item.score >= least])
        clips = [self._ranking.clips[item.clip_id] for item in ranked]
        moments: Sequence[list[Moment] | None] = [None] * len(clips)
        if self._options.moments and clips:
            wanted = _first(self._state.engine, self._query)
            moments = await self._state.compute(_find_moments, self._state.library, clips, wanted)
        return [
            SearchHit(clip, item.similarity, item.score, self._ranking.is_match(item), self._ranking.reasons(item), own)
            for item, clip, own in zip(ranked, clips, moments, strict=True)
        ]

    async def _exclude(self, ranked: Sequence[Ranked], without: Phrases) -> list[Ranked]:
        """The clips that no unwanted sound excludes, best first, as far as needed: k, and all that match."""
        passing: list[Ranked] = []
        last_match = max((n for n, item in enumerate(ranked) if self._ranking.is_match(item)), default=-1)
        for start in range(0, len(ranked), _CHUNK):
            if len(passing) >= self._options.k and start > last_match:
                break
            chunk = ranked[start : start + _CHUNK]
            new = [item for item in chunk if item.clip_id not in self._excluded]
            self._excluded.update(await self._state.compute(self._check, await self._ranking.complete(new), without))
            passing += [item for item in chunk if not self._excluded.get(item.clip_id, True)]
        return passing

    def _check(self, ranked: Sequence[Ranked], without: Phrases) -> dict[str, bool]:
        """Whether unwanted sounds exclude each clip that still exists, by id."""
        engine, library, query = self._state.engine, self._state.library, self._query
        cosines = library.similarities(
            [item.clip_id for item in ranked], np.concatenate([query.vectors, without.vectors])
        )
        excluded = {}
        for clip_id, (clip_cosines, _) in cosines.items():
            try:
                frames, hop = library.frames(clip_id)
            except ClipNotFound:  # deleted since
                continue
            clip, wanted = self._ranking.clips[clip_id], len(query.vectors)
            excluded[clip_id] = (
                any(has_all_words(text, clip) for text in self._options.without if concept_name(text) is None)
                or _is_mostly(engine, query, clip_cosines[:wanted], clip_cosines[wanted:], without)
                or _is_present(engine, query, frames, hop, without)
            )
        return excluded


def _is_mostly(engine: Engine, query: Query, wanted: np.ndarray, unwanted: np.ndarray, without: Phrases) -> bool:
    """Whether a clip matches an unwanted sound more clearly than what is wanted, given its cosines to their vectors."""

    def logits(query: Query, cosines: np.ndarray) -> list[float]:
        unknown = np.full((1, len(cosines)), np.nan)
        return [float(part.logits(engine, cosines[None, own], unknown[:, own])[0]) for part, own in query.columns()]

    parts = logits(query, wanted)
    unwished = Query(tuple(Part(phrase.vector, directions=phrase.directions) for phrase in without.each))
    logit = max(logits(unwished, unwanted))
    cutoff = EXCLUSION.clip_score if engine.matching is None else engine.matching.cutoff
    return logit >= logit_of(cutoff) and logit >= float(np.mean(parts)) + EXCLUSION.margin


def _is_present(engine: Engine, query: Query, frames: np.ndarray, hop: float, without: Phrases) -> bool:
    """Whether one of the unwanted sounds occurs in frames (T, D) and explains them better than what is wanted.

    The scores of frames for a sound are only comparable if the checkpoint calibrates them.
    """
    unwanted = median_smooth(without.frame_score(frames), EXCLUSION.median, hop)
    part = query.parts[0]  # the text, if there is one
    wanted = np.zeros((1, len(frames)), np.float32)
    if not part.sound:
        wanted = _first(engine, query).frame_score(frames)
    elif engine.matching is not None:
        logits = engine.match_logits(np.full(len(frames), np.nan), frames @ part.vector, sound=True)
        wanted = 1 / (1 + np.exp(-logits[None]))
    wanted = median_smooth(wanted, EXCLUSION.median, hop)
    clearly = _logit(unwanted) >= _logit(wanted) + EXCLUSION.margin
    return bool(((unwanted >= EXCLUSION.frame_score) & clearly).any())


def _first(engine: Engine, query: Query) -> Phrases:
    """The first part of what is wanted: the text, if there is one."""
    part = query.parts[0]
    return Phrases(engine, (Phrase("", part.vector, part.directions),))


def _logit(scores: np.ndarray) -> np.ndarray:
    """The logits of scores, up to ±14."""
    return np.asarray(np.log(np.clip(scores, 1e-6, 1) / np.clip(1 - scores, 1e-6, 1)))


def _find_moments(library: Library, clips: list[Clip], wanted: Phrases) -> list[list[Moment]]:
    """For each clip its best moments for what is wanted, from frames scored as in detection."""
    moments: list[list[Moment]] = []
    for clip in clips:
        try:
            frames, hop = library.frames(clip.id)
        except ClipNotFound:  # deleted since the search
            moments.append([])
            continue
        scores = wanted.frame_score(frames)[0]
        moments.append(find_moments(scores, hop, clip.duration, MOMENTS))
    return moments
