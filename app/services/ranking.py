"""Ranks the clips of the library for a query by evidence: how well a clip or its best moment sounds like what is
wanted, and how many of the query's words the clip has.

The logit of a hit's score is the sum of the logit of its sound and of what its words add. Moments, by their segments,
count in clips of more than LONG_SECONDS only: a shorter clip as a whole says as much.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from app.inference.engine import Engine
from app.services.words import QueryWords, coverage, found_words
from app.state import AppState
from index import LONG_SECONDS, Clip, Filter, Hit
from model.concepts.head import Direction, HeadScores, vectors_of

Mode = Literal["semantic", "hybrid", "lexical"]
ReasonKind = Literal["name", "tags", "metadata", "sound", "moment"]
Nearest = Callable[[np.ndarray, int, Filter | None, float], list[tuple[str, float]]]

FIRST_DEPTH = 100  # clips that a search takes from each list (clips, segments, words), at least
WORD_KINDS: tuple[ReasonKind, ...] = ("name", "tags", "metadata")  # in the order of text_columns
_ROUNDING = 1e-4  # of logits, where cosines of single precision are compared
UNLIKE_WEIGHT = 0.5  # of unwanted examples in the vector that is searched with


@dataclass(frozen=True)
class FusionWeights:
    """What a query's words add to the logit of a clip that has them.

    With these, all of the words make a match of a middling sound (0.05), and half of them don't.
    """

    words: float = 4.5  # if the clip has all of them
    name: float = 1.0  # share of `words` for a word of the file name
    tags: float = 1.0
    others: float = 0.7  # of other metadata, descriptions mostly, which also mention what isn't heard


WEIGHTS = FusionWeights()


@dataclass(frozen=True, eq=False)
class Part:
    """One part of what is wanted: an embedding (D,) of unit length, of a text or of a sound.

    directions: of a concept; its cosines become logits in its own way, and the best of them counts.
    """

    vector: np.ndarray
    sound: bool = False
    directions: tuple[Direction, ...] = ()

    @property
    def vectors(self) -> np.ndarray:
        """What clips are compared with (K, D), K at least 1."""
        return vectors_of(self.vector, self.directions)

    @property
    def scores(self) -> HeadScores | None:
        """How cosines with a single vector become logits; None: as those of texts and sounds do."""
        return self.directions[0].scores if self.directions else None

    def logits(self, engine: Engine, clip: np.ndarray, segment: np.ndarray) -> np.ndarray:
        """Cosines (A, K) of clips and of their best segments, NaN where unknown → logits of their scores (A,)."""
        scores: list[HeadScores | None] = [one.scores for one in self.directions] or [None]
        logits = [
            engine.match_logits(clip[:, k], segment[:, k], sound=self.sound, scores=own) for k, own in enumerate(scores)
        ]
        return np.asarray(np.max(logits, axis=0))


@dataclass(frozen=True, eq=False)
class Query:
    """What is wanted: at least one part. Their logits are averaged.

    unlike: an embedding (D,) of unwanted examples. words: of the text. leave_out: ids of clips that are no results.
    """

    parts: tuple[Part, ...]
    unlike: np.ndarray | None = None
    words: QueryWords | None = None
    leave_out: frozenset[str] = frozenset()

    @property
    def vectors(self) -> np.ndarray:
        """The parts' vectors, one part after another, and that of the unwanted examples (Q, D)."""
        return np.concatenate(
            [part.vectors for part in self.parts] + ([] if self.unlike is None else [self.unlike[None]])
        )

    def columns(self) -> Iterator[tuple[Part, slice]]:
        """Each part, and where its vectors are among `vectors`."""
        start = 0
        for part in self.parts:
            stop = start + len(part.vectors)
            yield part, slice(start, stop)
            start = stop

    @property
    def searched(self) -> np.ndarray:
        """What the index is searched with (S, D): each direction of a concept alone, or `vector`."""
        alone = len(self.parts) == 1 and self.unlike is None
        return self.parts[0].vectors if alone else self.vector[None]

    @property
    def vector(self) -> np.ndarray:
        """The unit vector (D,) that stands for the query (Rocchio, The SMART Retrieval System, 1971, ch. 14)."""
        total = sum(part.vector for part in self.parts) - UNLIKE_WEIGHT * (0 if self.unlike is None else self.unlike)
        length = float(np.linalg.norm(total))
        return np.asarray(total / length if length > 1e-6 else self.parts[0].vector, dtype=np.float32)

    @property
    def is_simple(self) -> bool:
        """Whether cosines with a single vector are all that scores depend on."""
        return len(self.vectors) == 1


@dataclass(frozen=True)
class Reason:
    """Why a clip is found. words: those of the query, as the clip has them, in its name, tags or other metadata."""

    kind: ReasonKind
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A clip in a ranking. similarity: its cosine to the query's vector, NaN where unknown; logit: of its score.

    sound: the logit of its sound alone, without words. cosines: (2, Q), of the clip and of its best segment to each
    vector of the query.
    """

    clip_id: str
    similarity: float
    logit: float
    coverage: float
    sound: float
    cosines: np.ndarray = field(compare=False, repr=False)

    @property
    def score(self) -> float:
        return float(np.exp(-np.logaddexp(0, -self.logit)))


class Ranking:
    """The ranking of one search, deeper on request. Records of clips that it has read are in `clips`."""

    def __init__(self, state: AppState, query: Query, mode: Mode, filter: Mapping[str, Any] | None) -> None:
        self._state, self._query, self._filter = state, query, filter
        self._mode: Mode = mode if query.words is not None else "semantic"
        self._cosines: dict[str, np.ndarray] = {}  # (2, Q) of clip and best segment, where all are known
        self._coverage: dict[str, float] = {}
        self._all_with_words: list[Hit] | None = None  # once a list of words was not cut off
        self._last: tuple[float, ...] = (-math.inf, -math.inf)  # cosines, of clip and segment, if there may be more
        self.clips: dict[str, Clip] = {}
        self.exhausted = False  # no clip is missing from the last ranking
        self.may_match_deeper = False  # the last clip of a list that was cut off matches

    def is_match(self, ranked: Ranked) -> bool | None:
        """Whether a clip matches; None if the checkpoint doesn't say from which score.

        If the query has no known word, the model cannot have understood it, and only words can match.
        """
        matching = self._state.engine.matching
        if matching is None:
            return None
        return ranked.logit >= logit_of(matching.cutoff) and (self._understood or ranked.coverage > 0)

    def reasons(self, ranked: Ranked) -> list[Reason]:
        """Why a clip is in the ranking: at least one reason, words before the sound.

        The sound is one if it is enough for a match, if nothing says what is enough, or if there are no words.
        """
        found: list[Reason] = []
        words = self._query.words
        if words is not None and ranked.coverage > 0:
            columns = zip(WORD_KINDS, found_words(words, self.clips[ranked.clip_id]), strict=True)
            found = [Reason(kind, tuple(own)) for kind, own in columns if own]
        matching = self._state.engine.matching
        enough = matching is None or (self._understood and ranked.sound >= logit_of(matching.cutoff))
        if not found or (enough and self._mode != "lexical"):
            found.append(Reason("moment" if self._is_by_moment(ranked) else "sound"))
        return found

    def _is_by_moment(self, ranked: Ranked) -> bool:
        """Whether the best segment of a clip decides how well its sound fits, not the whole."""
        part, columns = next(self._query.columns())
        clip, segment = ranked.cosines[:, None, columns]
        whole = part.logits(self._state.engine, clip, np.full_like(clip, np.nan))
        moment = part.logits(self._state.engine, np.full_like(segment, np.nan), segment)
        return bool(~np.isnan(moment) & ~(whole >= moment))

    @property
    def _understood(self) -> bool:
        query = self._query
        return query.words is None or query.words.known or not query.is_simple

    async def best(self, depth: int) -> list[Ranked]:
        """The best of the first `depth` clips of each list, best first: most similar clips, segments and words.

        In the mode "semantic" the first `depth` clips and their scores are exact: a clip whose better cosine is among
        the best `depth` of all is in the list of that cosine, and the other cosine is at most the last of its list. (As
        far as the lists are exact, which those of large libraries are not quite: see VectorIndex.)
        """
        library, searched = self._state.library, self._query.searched
        searches = [
            self._search(search, one, depth)
            for one in searched
            for search in (library.nearest, library.nearest_segments)
        ]
        lists, words = await asyncio.gather(asyncio.gather(*searches), self._by_words(depth))
        self.clips.update((hit.clip.id, hit.clip) for hit in words)
        cosines = _join(lists, words)
        if self._mode != "semantic" or not self._query.is_simple:
            await self._state.read(self._read_evidence, cosines, len(words) == depth)
        ranked = {item.clip_id: item for item in self._score(cosines)}
        ids = [*([clip_id for clip_id, _ in own] for own in lists), [hit.clip.id for hit in words]]
        cut_off = [ranked[own[-1]] for own in ids if len(own) == depth]
        self._last = tuple(own[-1][1] if len(own) == depth else -math.inf for own in lists)
        self.exhausted = not cut_off
        self.may_match_deeper = any(self.is_match(last) for last in cut_off)
        if self._mode == "lexical":
            return list(ranked.values())
        return sorted(ranked.values(), key=lambda item: -item.logit)

    async def matching(self, limit: int) -> set[str]:
        """The ids of matching clips beyond the last ranking, among the first `limit` of each list; for a simple query.

        Together with the matches of the last ranking they are those of `best(limit)`, or `limit` of these, but only
        what tells whether a clip matches is read.
        """
        library, found = self._state.library, set[str]()
        if self._understood:
            searches = (library.nearest, library.nearest_segments)
            lists = enumerate(zip(searches, self._last, self._least_cosines(), strict=True))
            alike = [self._at_least(n, search, limit, least) for n, (search, last, least) in lists if last >= least]
            found = found.union(*await asyncio.gather(*alike))
        if len(found) < limit:
            words = await self._by_words(limit)
            found |= await self._state.read(self._matching_by_words, words) if words else set()
        return found

    async def complete(self, ranked: Sequence[Ranked]) -> list[Ranked]:
        """The ranked clips that still exist, with their records read and their similarities known."""
        return await self._state.read(self._read_records, ranked) if ranked else []

    # Reading

    async def _search(self, search: Nearest, vector: np.ndarray, depth: int) -> list[tuple[str, float]]:
        if self._mode == "lexical":
            return []
        with self._state.metrics.vector_search():
            return await self._state.read(search, vector, depth, self._filter)

    async def _at_least(self, column: int, search: Nearest, limit: int, cosine: float) -> set[str]:
        """Those of the first `limit` clips of a list, of clips (column 0) or segments (1), whose sound matches."""
        with self._state.metrics.vector_search():
            found = await self._state.read(search, self._query.searched[0], limit, self._filter, cosine)
        cosines = np.full((len(found), 2), np.nan)
        cosines[:, column] = [own for _, own in found]
        return {clip_id for (clip_id, _), enough in zip(found, self._enough(cosines), strict=True) if enough}

    async def _by_words(self, depth: int) -> list[Hit]:
        words = self._query.words
        if self._mode == "semantic" or words is None:
            return []
        if self._all_with_words is None:
            search = self._state.library.search_words
            found = await self._state.read(search, words.text, self._query.vector, depth, self._filter)
            if len(found) == depth:
                return found
            self._all_with_words = found
        return self._all_with_words

    # These run on a thread as a whole, because every switch of threads takes time.

    def _read_records(self, ranked: Sequence[Ranked]) -> list[Ranked]:
        unread = [item.clip_id for item in ranked if item.clip_id not in self.clips]
        unknown = [item.clip_id for item in ranked if np.isnan(item.similarity)]
        if unread:
            self.clips.update(self._state.library.clips(unread))
        cosines = self._state.library.similarities(unknown, self._query.vector[None]) if unknown else {}
        found = [
            replace(item, similarity=float(cosines[item.clip_id][0, 0])) if item.clip_id in cosines else item
            for item in ranked
        ]
        return [item for item in found if item.clip_id in self.clips and not np.isnan(item.similarity)]

    def _read_evidence(self, cosines: Mapping[str, np.ndarray], words_cut_off: bool) -> None:
        """Reads what the scores of these clips depend on and is not known yet: words, and missing cosines.

        Only clips in the list of words have words, unless it was cut off: then the others' words are read too, but only
        for the first ranking, because deeper ones serve to count.
        """
        query, library = self._query, self._state.library
        if self._mode != "semantic":
            if words_cut_off and not self._coverage:
                self.clips.update(library.clips([clip_id for clip_id in cosines if clip_id not in self.clips]))
            self._cover(self.clips.values())
        unknown = [
            clip_id
            for clip_id, own in cosines.items()
            if clip_id not in self._cosines
            and (not query.is_simple or (self._coverage.get(clip_id) and self._is_missing(clip_id, own)))
        ]
        if unknown:
            self._cosines.update(library.similarities(unknown, query.vectors))

    def _is_missing(self, clip_id: str, own: np.ndarray) -> bool:
        """Whether a cosine that a clip has, whose record was read, is not among its own (2,)."""
        return bool(np.isnan(own[0]) or (np.isnan(own[1]) and self.clips[clip_id].duration > LONG_SECONDS))

    def _cover(self, clips: Iterable[Clip]) -> None:
        """Compares the query's words with those of clips."""
        words = self._query.words
        assert words is not None
        columns = (WEIGHTS.name, WEIGHTS.tags, WEIGHTS.others)
        new = [clip for clip in clips if clip.id not in self._coverage]
        self._coverage.update((clip.id, coverage(words, clip, columns)) for clip in new)

    def _matching_by_words(self, hits: Sequence[Hit]) -> set[str]:
        """The clips among these that match with what their words add. Words and segments are read where they decide."""
        found = set[str]()
        if self._understood:
            alike = self._enough(np.array([(hit.similarity, np.nan) for hit in hits]))
            found = {hit.clip.id for hit, enough in zip(hits, alike, strict=True) if enough}
        left = {hit.clip.id: hit for hit in hits if hit.clip.id not in found}
        self._cover(hit.clip for hit in left.values())

        def reaching(cosines: dict[str, Sequence[float]]) -> set[str]:
            covered = np.array([self._coverage[clip_id] for clip_id in cosines])
            enough = self._enough(np.array(list(cosines.values())).reshape(-1, 2), covered)
            enough &= self._understood | (covered > 0)
            return {clip_id for clip_id, one in zip(cosines, enough, strict=True) if one}

        found |= reaching({clip_id: (hit.similarity, np.nan) for clip_id, hit in left.items()})
        long = [i for i, hit in left.items() if i not in found and hit.clip.duration > LONG_SECONDS]
        if long:
            read = self._state.library.similarities(long, self._query.parts[0].vector[None])
            found |= reaching({clip_id: own[:, 0].tolist() for clip_id, own in read.items()})
        return found

    # Scores

    def _least_cosines(self) -> tuple[float, float]:
        """Cosines of a clip and of a segment below which they make no match of a simple query, with some room for
        rounding."""
        engine = self._state.engine
        assert engine.matching is not None
        part = self._query.parts[0]
        logit = logit_of(engine.matching.cutoff) - _ROUNDING
        return engine.least_cosines(logit, sound=part.sound, scores=part.scores)

    def _enough(self, cosines: np.ndarray, covered: np.ndarray | float = 0.0) -> np.ndarray:
        """Whether cosines (A, 2) to a simple query, of clips and segments, NaN where unknown, and the coverages of its
        words make matches (A,), decided as `is_match` does."""
        engine = self._state.engine
        assert engine.matching is not None
        logits = self._query.parts[0].logits(engine, cosines[:, :1], cosines[:, 1:]) + WEIGHTS.words * covered
        return np.asarray(logits >= logit_of(engine.matching.cutoff))

    def _score(self, cosines: Mapping[str, np.ndarray]) -> list[Ranked]:
        """The clips with their scores, in the order given; clips that were deleted since are scored too."""
        query = self._query
        ids = list(cosines)
        if not ids:
            return []
        known = [self._cosines.get(clip_id) for clip_id in ids]
        engine = self._state.engine
        if query.is_simple:
            full = np.stack([own if f is None else f[:, 0] for own, f in zip(cosines.values(), known, strict=True)])
            full = full[:, :, None]
        else:
            nothing = np.full((2, len(query.vectors)), -1.0)  # deleted meanwhile
            full = np.stack([nothing if f is None else f for f in known])
        sound = sound_logits(engine, query, full)
        covered = np.array([self._coverage.get(clip_id, 0.0) for clip_id in ids])
        columns = (sound + WEIGHTS.words * covered, covered, sound)
        return [
            Ranked(clip_id, float(own[0]), logit, share, alone, all_cosines)
            for clip_id, own, all_cosines, (logit, share, alone) in zip(
                ids, cosines.values(), full, zip(*(column.tolist() for column in columns), strict=True), strict=True
            )
        ]


def logit_of(score: float) -> float:
    """The logit of a score between 0 and 1."""
    return math.log(score / (1 - score))


def sound_logits(engine: Engine, query: Query, cosines: np.ndarray) -> np.ndarray:
    """Cosines (A, 2, Q) of clips and their best segments to a query's parts → logits of the scores of their sound (A,).

    The mean over the parts. Unwanted examples multiply the odds by the probability that the clip doesn't sound so.
    """
    parts = [part.logits(engine, cosines[:, 0, own], cosines[:, 1, own]) for part, own in query.columns()]
    logits = np.mean(parts, axis=0)
    if query.unlike is not None:
        logits -= np.logaddexp(0, engine.match_logits(cosines[:, 0, -1], cosines[:, 1, -1], sound=True))
    return np.asarray(logits)


def _join(lists: Sequence[Sequence[tuple[str, float]]], words: Sequence[Hit]) -> dict[str, np.ndarray]:
    """The cosines (2,) to the query's vector of all clips in the lists, of clip and segment; NaN where unknown.

    `lists`: of clips, of segments, and so on for each vector that was searched with; only for one are the cosines those
    of the query.
    """
    joined: dict[str, np.ndarray] = {}
    known = len(lists) == 2
    for column, found in (
        (0, [(hit.clip.id, hit.similarity) for hit in words]),
        *((n % 2, own) for n, own in enumerate(lists)),
    ):
        for clip_id, cosine in found:
            joined.setdefault(clip_id, np.full(2, np.nan))[column] = cosine if known else np.nan
    return joined
