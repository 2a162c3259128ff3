"""From uploaded files to clips of the library: decode, embed, add; each file by itself, a few at a time.

Knows no form and no answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar

from app.audio.tags import joined
from app.inference.batcher import Urgency
from app.state import Services
from index import AudioMissing, Clip, FrameCodes, Library, NewClip

_PIECE = 1 << 20  # bytes
_LARGE = 16 << 20  # bytes whose copy others should not wait for
_TOGETHER = 4  # files of one request under way at once


class Named(Protocol):
    """A file of a request."""

    @property
    def filename(self) -> str: ...


class Source(Named, Protocol):
    """A file to add, open for reading; nobody else moves its position meanwhile."""

    @property
    def binary(self) -> BinaryIO: ...


S = TypeVar("S", bound=Named)
R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """A file that could not be used, and why."""

    filename: str
    error: Exception


async def each_file(sources: Sequence[S], work: Callable[[S], Awaitable[R]]) -> list[R | Failure]:
    """`work` on every source, a few at a time; results in order. One that fails leaves the others as they are."""
    places = asyncio.Semaphore(_TOGETHER)

    async def one(source: S) -> R | Failure:
        async with places:
            try:
                return await work(source)
            except Exception as error:
                return Failure(source.filename, error)

    return await asyncio.gather(*(one(source) for source in sources))


async def add_file(services: Services, source: Source, metadata: dict[str, Any]) -> tuple[Clip, bool]:
    """Adds one file: (clip, True), or (the clip that is there, False).

    A file that is there already is neither decoded nor embedded again, and keeps its metadata. To the given metadata
    comes what name and file say (app.audio.tags.joined); what is given is kept as it is. Raises what decoding,
    embedding and adding raise.
    """
    catalog, audio = services.catalog, source.binary
    sha256 = await asyncio.to_thread(_sha256, audio)
    known = await services.read(_find_whole, catalog, sha256)
    if known is not None:
        return known, False
    frames = FrameCodes(services.engine.dim)
    async with services.hear(audio, source.filename, urgency=Urgency.BULK) as heard:
        async for part in heard:
            frames.add(part)
    new = NewClip(
        filename=source.filename,
        sha256=sha256,
        duration=heard.duration,
        sample_rate=heard.sample_rate,
        channels=heard.channels,
        metadata=joined(heard.tags, source.filename, metadata),
        embedding=heard.clip,
        frames=frames,
        frame_hop=heard.frame_hop,
        audio=audio,
    )
    if audio.seek(0, io.SEEK_END) > _LARGE:
        return await services.write(catalog.add, new)
    return await services.add(new)


def _find_whole(catalog: Library, sha256: str) -> Clip | None:
    """The clip with this audio, unless its file is missing: adding it again restores that."""
    clip = catalog.find(sha256)
    if clip is not None:
        try:
            catalog.audio_path(clip.id)
        except AudioMissing:
            return None
    return clip


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
