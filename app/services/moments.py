"""The best moments of the whole library: of one sound, or of several, one after another.

In two steps: clips by their best segment, a vector for each stretch of a recording in which it sounds alike, then every
frame of those clips, which is exact. Knows engine and library; no requests and no answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.inference.engine import Engine
from app.state import Services
from index import Clip, Library
from model.detection import Moment, find_moments

CANDIDATES = 200  # clips that are looked at frame by frame, for each sound that is asked for
OVERLAP = 0.5  # seconds that a sound may begin before the one before it ends: as exact as smoothed frames are
_OF_ONE_CLIP = 50  # moments of one sound in one clip that are kept, the best
_TOGETHER = 25  # clips looked at in one go; in between, a caller who left is noticed
_SECONDS = 600.0  # of sound whose frames are in memory at once; a longer clip is alone


@dataclass(frozen=True)
class ClipMoment:
    """A stretch of a clip that answers, in seconds; `parts` are the sounds of a sequence, one for a single sound."""

    clip: Clip
    parts: tuple[Moment, ...]

    @property
    def start(self) -> float:
        return self.parts[0].start

    @property
    def end(self) -> float:
        return max(part.end for part in self.parts)

    @property
    def score(self) -> float:
        """A sequence is as certain as its least certain sound."""
        return min(part.score for part in self.parts)


async def best_moments(
    services: Services,
    sounds: np.ndarray,
    k: int,
    *,
    max_gap: float = 0.0,
    filter: Mapping[str, Any] | None = None,
) -> tuple[list[ClipMoment], int]:
    """The k best moments for the embeddings of P `sounds` (P, D), best first, and how many clips were looked at.

    One sound: its moments, as a search shows them. Several: where they follow each other (`find_sequences`). Looked at
    are, for each sound, the CANDIDATES clips that have the nearest segments, all of them together.
    """
    engine, catalog = services.engine, services.catalog
    clips: dict[str, Clip] = {}
    for sound in sounds:
        with services.metrics.vector_search():
            hits = await services.read(catalog.search_segments, sound, CANDIDATES, filter)
        clips.update((hit.clip.id, hit.clip) for hit in hits)
    waiting = list(clips.values())
    found: list[ClipMoment] = []
    for at in range(0, len(waiting), _TOGETHER):
        least = found[-1].score if len(found) == k else 0.0
        some = waiting[at : at + _TOGETHER]
        found += await services.compute(_of_clips, engine, catalog, some, sounds, max_gap, least)
        found.sort(key=lambda moment: (-moment.score, moment.clip.id, moment.start))
        del found[k:]
    return found, len(waiting)


def _of_clips(
    engine: Engine, catalog: Library, clips: list[Clip], sounds: np.ndarray, max_gap: float, least: float
) -> list[ClipMoment]:
    """Moments of these clips, at least all of those with a score of `least` or more."""
    found = []
    for some in _together(clips):
        codes = catalog.frame_codes_of([clip.id for clip in some])
        there = [clip for clip in some if clip.id in codes]  # the others were deleted since the search
        if not there:
            continue
        frames = [codes[clip.id][0].decode() for clip in there]
        stops = np.cumsum([len(own) for own in frames])
        scores = np.split(engine.frame_score(np.concatenate(frames), sounds), stops[:-1], axis=1)
        for clip, own in zip(there, scores, strict=True):
            if own.max(axis=1).min() < least:  # a moment has the score of one of its frames, or of a lower one
                continue
            tracks = [find_moments(track, codes[clip.id][1], clip.duration, _OF_ONE_CLIP) for track in own]
            found += [ClipMoment(clip, parts) for parts in find_sequences(tracks, max_gap)]
    return found


def _together(clips: list[Clip]) -> Iterator[list[Clip]]:
    """The clips in groups of at most _SECONDS."""
    group: list[Clip] = []
    for clip in clips:
        if group and sum(other.duration for other in group) + clip.duration > _SECONDS:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def follows(first: Moment, second: Moment, max_gap: float) -> bool:
    """Whether `second` comes after `first`: it begins and ends later, and begins from OVERLAP seconds before the end
    of `first` to `max_gap` seconds after it."""
    gap = second.start - first.end
    return second.start > first.start and second.end > first.end and -OVERLAP <= gap <= max_gap


def find_sequences(tracks: Sequence[Sequence[Moment]], max_gap: float) -> list[tuple[Moment, ...]]:
    """Moments of P sounds (for each its moments in a clip) → chains of P, each following the one before; best first.

    The score of a chain is its lowest. Of the chains that end in the same moment the best is kept (the shortest of
    equals), and of chains that overlap the better. With one sound each moment is a chain.
    """
    chains: list[tuple[Moment, ...]] = [(moment,) for moment in tracks[0]]
    for track in tracks[1:]:
        longer = []
        for moment in track:
            before = [chain for chain in chains if follows(chain[-1], moment, max_gap)]
            if before:
                # the weakest sound decides; where that is `moment` itself, what began last makes the shortest chain
                best = max(before, key=lambda chain: (min(_score(chain), moment.score), chain[0].start))
                longer.append((*best, moment))
        chains = longer
    kept: list[tuple[Moment, ...]] = []
    for chain in sorted(chains, key=lambda chain: (-_score(chain), chain[-1].end - chain[0].start, chain[0].start)):
        if all(chain[-1].end <= other[0].start or other[-1].end <= chain[0].start for other in kept):
            kept.append(chain)
    return kept


def _score(chain: tuple[Moment, ...]) -> float:
    return min(moment.score for moment in chain)
