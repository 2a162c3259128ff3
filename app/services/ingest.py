"""Adding uploaded files to the library: hash, decode, embed and store each file independently of the others."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from app.audio.errors import TrackMissing
from app.audio.tags import merge_metadata
from app.audio.tracks import audio_metadata, choose_track, clip_track, track_of
from app.inference.batcher import Urgency
from app.services.audio_source import AudioFile, open_file
from app.state import AppState
from index import AudioMissing, Clip, FrameCodes, Library, NewClip

_READ_SIZE = 1 << 20  # bytes
_LARGE = 16 << 20  # bytes; larger files are added one by one, so that others don't wait while they are copied
_CONCURRENT_FILES = 4  # of one request


class Named(Protocol):
    """An item of a request that errors refer to by its file name."""

    @property
    def filename(self) -> str: ...


S = TypeVar("S", bound=Named)
R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """A file that could not be processed, and the reason."""

    filename: str
    error: Exception


async def each_file(files: Sequence[S], process: Callable[[S], Awaitable[R]]) -> list[R | Failure]:
    """Processes the files of a request, a few at a time; results in order. A failed file does not affect the others."""
    permits = asyncio.Semaphore(_CONCURRENT_FILES)

    async def process_one(file: S) -> R | Failure:
        async with permits:
            try:
                return await process(file)
            except Exception as error:
                return Failure(file.filename, error)

    return await asyncio.gather(*(process_one(file) for file in files))


async def add_file(
    state: AppState, file: AudioFile, metadata: dict[str, Any], reference: Path | None = None
) -> tuple[Clip, bool]:
    """Adds one file: (clip, True), or (the existing clip, False).

    An existing file is neither decoded nor embedded again, and keeps its metadata. The given metadata is completed
    with what the file name and the file's own tags contain (app.audio.tags.merge_metadata). With `reference`, the
    file's path, the library keeps no copy. Raises what decoding, embedding and adding raise.
    """
    audio = file.binary
    sha256 = await asyncio.to_thread(sha256_of, audio)
    existing = await state.find(sha256)
    if existing is not None and await state.read(_has_audio, state.library, existing):
        if track_of(existing.metadata) is not None:  # the file has several, and a clip is of one
            _check_track(existing, file)
        return existing, False
    frames = FrameCodes(state.engine.dim)
    async with open_file(state, file, urgency=Urgency.BULK) as stream:
        async for part in stream:
            frames.add(part)
    new = NewClip(
        filename=file.filename,
        sha256=sha256,
        duration=stream.duration,
        sample_rate=stream.sample_rate,
        channels=stream.channels,
        metadata=merge_metadata(stream.tags, file.filename, metadata) | audio_metadata(stream.track, stream.notes),
        embedding=stream.embedding,
        frames=frames,
        frame_hop=stream.frame_hop,
        audio=audio,
        reference=reference,
    )
    if reference is None and audio.seek(0, io.SEEK_END) > _LARGE:
        return await state.write(state.library.add, new)
    with state.stage("index", call="add"):
        return await state.additions.submit(new)  # shares a transaction with the clips that arrive meanwhile


def _check_track(existing: Clip, file: AudioFile) -> None:
    """Raises TrackMissing if the library has the file with another of its audio tracks than the one asked for."""
    track = clip_track(existing.metadata)
    try:
        choose_track([track], file.track, file.filename)
    except TrackMissing as error:
        of = f"{track.index} ({track.language})" if track.language else str(track.index)
        raise TrackMissing(
            file.filename, f"the library has this file with its audio track {of}; delete clip {existing.id} first."
        ) from error


def _has_audio(library: Library, clip: Clip) -> bool:
    """Whether the clip's audio file is there; adding a missing one again restores it."""
    try:
        library.audio_path(clip.id)
    except AudioMissing:
        return False
    return True


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of a whole file in hex."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_READ_SIZE):
        digest.update(chunk)
    return digest.hexdigest()
