"""The best moments of the whole library: of one sound, or of a sequence of sounds.

Two stages: clips are ranked by their most similar segment (one vector per homogeneous stretch), then every frame of the
best of them is scored, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.inference.batcher import Urgency
from app.services.audio_source import require_frames
from app.services.phrases import Phrases, resolve
from app.state import AppState
from index import Clip, Library
from model.detection import Moment, find_moments

CANDIDATES = 200  # clips scored frame by frame, for each sound of the query
OVERLAP = 0.5  # seconds that a sound of a sequence may begin before the previous one ends: smoothed frames' precision
_MOMENTS_PER_CLIP = 50  # of one sound, the best
_CHUNK = 25  # clips scored at once; a client that disconnects is noticed in between
_MAX_SECONDS = 600.0  # of audio whose frames are in memory at once; a longer clip is scored alone


@dataclass(frozen=True)
class ClipMoment:
    """A matching stretch of a clip, in seconds; `parts` are the sounds of a sequence, one for a single sound."""

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
        """The lowest score of the parts."""
        return min(part.score for part in self.parts)


async def search_moments(
    state: AppState,
    sounds: Sequence[str],
    k: int,
    *,
    max_gap: float = 0.0,
    filter: Mapping[str, Any] | None = None,
    min_score: float | None = None,
) -> tuple[list[ClipMoment], int]:
    """The k best moments, best first, and how many clips were scored.

    One sound: its moments, as in a search. Several: where they follow each other (`find_sequences`). For each sound,
    the CANDIDATES clips with the most similar segments are scored for all of them. Moments below `min_score` are
    dropped.
    """
    library = state.library
    require_frames(state.engine, "A search for moments")
    phrases = await resolve(state, sounds, urgency=Urgency.SEARCH)
    candidates: dict[str, Clip] = {}
    for vector in phrases.vectors:
        with state.metrics.vector_search():
            hits = await state.read(library.search_segments, vector, CANDIDATES, filter)
        candidates.update((hit.clip.id, hit.clip) for hit in hits)
    clips = list(candidates.values())
    best: list[ClipMoment] = []
    for start in range(0, len(clips), _CHUNK):
        least = best[-1].score if len(best) == k else (min_score or 0.0)
        chunk = clips[start : start + _CHUNK]
        best += await state.compute(_score_clips, library, chunk, phrases, max_gap, least)
        best.sort(key=lambda moment: (-moment.score, moment.clip.id, moment.start))
        del best[k:]
    if min_score is not None:
        best = [moment for moment in best if moment.score >= min_score]
    return best, len(clips)


def _score_clips(
    library: Library, clips: list[Clip], phrases: Phrases, max_gap: float, least: float
) -> list[ClipMoment]:
    """Moments of these clips for P sounds, at least all with a score of `least` or more."""
    moments = []
    for group in _group_by_duration(clips):
        codes = library.frame_codes_of([clip.id for clip in group])
        existing = [clip for clip in group if clip.id in codes]  # the others were deleted since the search
        if not existing:
            continue
        frames = [codes[clip.id][0].decode() for clip in existing]
        stops = np.cumsum([len(own) for own in frames])
        scores = np.split(phrases.frame_score(np.concatenate(frames)), stops[:-1], axis=1)
        for clip, own in zip(existing, scores, strict=True):
            if own.max(axis=1).min() < least:  # a moment's score is at most that of its best frame
                continue
            hop = codes[clip.id][1]
            tracks = [find_moments(track, hop, clip.duration, _MOMENTS_PER_CLIP) for track in own]
            moments += [ClipMoment(clip, parts) for parts in find_sequences(tracks, max_gap)]
    return moments


def _group_by_duration(clips: list[Clip]) -> Iterator[list[Clip]]:
    """The clips in groups of at most _MAX_SECONDS."""
    group: list[Clip] = []
    for clip in clips:
        if group and sum(other.duration for other in group) + clip.duration > _MAX_SECONDS:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def follows(first: Moment, second: Moment, max_gap: float) -> bool:
    """Whether `second` comes after `first`: it starts and ends later, and starts between OVERLAP seconds before and
    `max_gap` seconds after the end of `first`."""
    gap = second.start - first.end
    return second.start > first.start and second.end > first.end and -OVERLAP <= gap <= max_gap


def find_sequences(tracks: Sequence[Sequence[Moment]], max_gap: float) -> list[tuple[Moment, ...]]:
    """The moments of P sounds in one clip → chains of P moments, each following the one before; best first.

    A chain scores as low as its weakest moment. Of the chains that end in the same moment the best is kept (the
    shortest of equals), and of overlapping chains the better. With one sound each moment is a chain.
    """
    chains: list[tuple[Moment, ...]] = [(moment,) for moment in tracks[0]]
    for track in tracks[1:]:
        extended = []
        for moment in track:
            before = [chain for chain in chains if follows(chain[-1], moment, max_gap)]
            if before:
                # the weakest sound decides; where that is `moment` itself, the latest start makes the shortest chain
                best = max(before, key=lambda chain: (min(_score(chain), moment.score), chain[0].start))
                extended.append((*best, moment))
        chains = extended
    selected: list[tuple[Moment, ...]] = []
    for chain in sorted(chains, key=lambda chain: (-_score(chain), chain[-1].end - chain[0].start, chain[0].start)):
        if all(chain[-1].end <= other[0].start or other[-1].end <= chain[0].start for other in selected):
            selected.append(chain)
    return selected


def _score(chain: tuple[Moment, ...]) -> float:
    return min(moment.score for moment in chain)
