"""Conversions from the results of services and the library to response models."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from fastapi.responses import StreamingResponse
from starlette.types import Send

import index
from app import errors
from app.api import schemas
from app.audio.tracks import Note, Track
from app.services.ingest import Failure
from app.services.moments import ClipMoment
from app.services.search import Found, SearchHit
from model.detection import Moment


class ClosingStreamingResponse(StreamingResponse):
    """A stream whose generator is closed as soon as the client disconnects."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with contextlib.aclosing(self.body_iterator):
            await super().stream_response(send)


def clip(clip: index.Clip) -> schemas.Clip:
    """A clip of the library."""
    return schemas.Clip(
        id=clip.id,
        filename=clip.filename,
        sha256=clip.sha256,
        duration=clip.duration,
        sample_rate=clip.sample_rate,
        channels=clip.channels,
        created=clip.created,
        metadata=clip.metadata,
    )


def file_errors(outcomes: Sequence[Any]) -> list[schemas.FileError]:
    """The failed files among the outcomes. Raises FilesFailed if all of them failed."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    problems = [schemas.FileError(filename=f.filename, problem=errors.describe(f.error)) for f in failures]
    if failures and len(failures) == len(outcomes):
        raise errors.FilesFailed(failures[0].error, [error.model_dump() for error in problems])
    return problems


def track(track: Track) -> schemas.Track | None:
    """The track that was read; None for a file's only one."""
    if track.count == 1:
        return None
    return schemas.Track(index=track.index, language=track.language, title=track.title)


def notes(notes: Sequence[Note]) -> list[schemas.Note]:
    """What decoding noticed about a file."""
    return [schemas.Note(code=note.code, detail=note.detail) for note in notes]


def search_result(found: Found, took_ms: float) -> schemas.SearchResult:
    """The result of a search."""
    return schemas.SearchResult(
        query=found.title,
        took_ms=took_ms,
        matches=found.matches,
        did_you_mean=found.did_you_mean,
        track=None if found.track is None else track(found.track),
        notes=notes(found.notes),
        hits=[hit(item) for item in found.hits],
    )


def hit(hit: SearchHit) -> schemas.Hit:
    """A hit of a search."""
    return schemas.Hit(
        clip=clip(hit.clip),
        similarity=round(hit.similarity, 6),
        score=round(hit.score, 6),
        match=hit.match,
        reasons=[schemas.Reason(kind=reason.kind, words=list(reason.words)) for reason in hit.reasons],
        moments=None if hit.moments is None else [moment(m) for m in hit.moments],
    )


def moment(moment: Moment) -> schemas.Moment:
    """A moment of a clip."""
    return schemas.Moment(start=round(moment.start, 3), end=round(moment.end, 3), score=round(moment.score, 6))


def library_moment(found: ClipMoment) -> schemas.LibraryMoment:
    """A moment with its clip; a sequence also with its parts."""
    return schemas.LibraryMoment(
        clip=clip(found.clip),
        start=round(found.start, 3),
        end=round(found.end, 3),
        score=round(found.score, 6),
        parts=[moment(part) for part in found.parts] if len(found.parts) > 1 else None,
    )


def vectors(values: np.ndarray, encoding: str) -> list[float] | list[list[float]] | str:
    """Embeddings as lists of numbers, or as base64: little-endian float32, row by row."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
    rounded: list[float] | list[list[float]] = np.round(values.astype(np.float64), 8).tolist()
    return rounded
