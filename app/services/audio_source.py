"""Embedding streams: a file that is embedded while it is decoded, or a clip's stored embeddings.

Callers read both the same way: first the frames, block by block, then the values of the whole recording.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from app.audio.errors import MediaError
from app.audio.tag_schema import Value
from app.audio.tracks import Note, Track, clip_notes, clip_track, track_of
from app.decoding.pool import DecodedStream
from app.errors import FramesUnsupported
from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.state import AppState
from index import Clip, FrameCodes, Library
from model.config import SAMPLE_RATE
from model.windows import Joiner, Window, WindowCutter

_BLOCK = 256  # frames of a stored clip per block


@dataclass(frozen=True, eq=False)
class AudioFile:
    """An uploaded audio file, open for reading. `filename` is safe to display and store.

    track: the audio track to read, by number or language; None: the file's default one.
    """

    filename: str
    binary: BinaryIO
    track: str | None = None


AudioSource = AudioFile | str  # an uploaded file, or the id of a stored clip


class AudioSink(Protocol):
    """Receives a recording's samples in blocks (n,) of mono float32 at 16 kHz: waveform peaks, a spectrogram."""

    def push(self, samples: np.ndarray, /) -> object: ...


class ResampledSink:
    """Passes audio of another sample rate on to a sink at 16 kHz."""

    def __init__(self, sink: AudioSink, rate: int) -> None:
        import soxr  # only for models with a sample rate of their own

        self._sink, self._resampler = sink, soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, samples: np.ndarray) -> None:
        """Samples (n,) at the other rate."""
        self._sink.push(self._resampler.resample_chunk(np.ascontiguousarray(samples)))

    def finish(self) -> None:
        """Passes on what the resampler holds back."""
        self._sink.push(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))


class DecodedAudio(Protocol):
    """A recording being decoded, see app.decoding.pool.DecodedStream: blocks (n,), then duration and tags."""

    sample_rate: int
    channels: int

    @property
    def duration(self) -> float: ...
    @property
    def tags(self) -> dict[str, Value]: ...
    @property
    def track(self) -> Track: ...
    @property
    def notes(self) -> list[Note]: ...
    def __aiter__(self) -> AsyncIterator[np.ndarray]: ...


class EmbeddingStream(Protocol):
    """The embeddings of one recording. Iterate once for its frames; the properties are valid after the last block."""

    filename: str
    sample_rate: int  # Hz, of the original file
    channels: int  # of the original file
    frame_hop: float  # seconds

    def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Frame embeddings (t, D) float32, in order."""

    def remaining_audio(self) -> AsyncIterator[None]:
        """Passes the sink the audio that producing the frames did not require to decode; yields after each block."""

    @property
    def duration(self) -> float:
        """Seconds."""

    @property
    def embedding(self) -> np.ndarray:
        """The clip embedding (D,) float32."""

    @property
    def tags(self) -> dict[str, Value]:
        """The file's own metadata, see app.audio.tags; empty for a stored clip, whose metadata includes it."""

    @property
    def track(self) -> Track:
        """Which of the file's audio tracks this is."""

    @property
    def notes(self) -> list[Note]:
        """What decoding noticed about the file; of a stored clip, the codes."""


class FileEmbeddingStream:
    """A file's embeddings, computed while it is decoded: memory use does not grow with its length.

    Use it as an async context manager: leaving early cancels the windows that are still queued.
    """

    def __init__(
        self,
        engine: Engine,
        audio: DecodedAudio,
        filename: str,
        *,
        urgency: Urgency = Urgency.INTERACTIVE,
        sink: AudioSink | None = None,
    ) -> None:
        self.filename, self.frame_hop = filename, engine.frame_hop
        self.sample_rate, self.channels = audio.sample_rate, audio.channels
        self._audio = audio
        self._sink = (
            sink if sink is None or engine.sample_rate == SAMPLE_RATE else ResampledSink(sink, engine.sample_rate)
        )
        self._cutter, self._joiner = WindowCutter(engine.windows), Joiner(engine.windows.frame_share)
        self._pending: deque[Window] = deque()  # submitted to the engine, in order
        self._results = engine.encode_stream(self._windows(), urgency=urgency)

    async def __aenter__(self) -> FileEmbeddingStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._results.aclose()

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Frames (t, D), one window's share at a time. Raises what decoding and embedding raise."""
        async for clip, frames in self._results:
            yield self._joiner.add(self._pending.popleft(), clip, frames)

    async def remaining_audio(self) -> AsyncIterator[None]:
        """Nothing: all audio went through the sink on its way to the model."""
        return
        yield

    @property
    def duration(self) -> float:
        return self._audio.duration

    @property
    def embedding(self) -> np.ndarray:
        return self._joiner.clip()

    @property
    def tags(self) -> dict[str, Value]:
        return self._audio.tags

    @property
    def track(self) -> Track:
        return self._audio.track

    @property
    def notes(self) -> list[Note]:
        return self._audio.notes

    async def _windows(self) -> AsyncGenerator[np.ndarray, None]:
        blocks = aiter(self._audio)
        try:
            async for block in blocks:
                if self._sink is not None:
                    self._sink.push(block)
                for window, samples in self._cutter.push(block):
                    self._pending.append(window)
                    yield samples
                await asyncio.sleep(0)  # reading a block that is ready does not suspend; others run in between
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()
        if isinstance(self._sink, ResampledSink):
            self._sink.finish()
        for window, samples in self._cutter.finish():
            self._pending.append(window)
            yield samples


class ClipEmbeddingStream:
    """A clip's stored embeddings. Its `audio` is decoded only for a sink, after the frames."""

    def __init__(
        self,
        stored: StoredEmbeddings,
        *,
        audio: DecodedAudio | None = None,
        sink: AudioSink | None = None,
    ) -> None:
        clip = stored.clip
        self.filename, self.duration, self.frame_hop = clip.filename, clip.duration, stored.frame_hop
        self.sample_rate, self.channels = clip.sample_rate, clip.channels
        self.embedding = stored.embedding
        self.tags: dict[str, Value] = {}
        self.track, self.notes = clip_track(clip.metadata), clip_notes(clip.metadata)
        self._frames, self._audio, self._sink = stored.frames, audio, sink

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        for start in range(0, len(self._frames), _BLOCK):
            yield self._frames.decode(start, start + _BLOCK)

    async def remaining_audio(self) -> AsyncIterator[None]:
        """All of the clip's audio, if there is a sink for it."""
        if self._audio is not None and self._sink is not None:
            async for block in self._audio:
                self._sink.push(block)
                yield


@dataclass(frozen=True)
class StoredEmbeddings:
    """What the library stores of a clip's embeddings: embedding (D,), quantised frames, hop in seconds."""

    clip: Clip
    embedding: np.ndarray
    frames: FrameCodes
    frame_hop: float


def require_frames(engine: Engine, what: str) -> None:
    """Raises FramesUnsupported if the model has embeddings of whole clips only. `what` begins the message."""
    if engine.traits.frames is None:
        raise FramesUnsupported(
            f"{what} needs embeddings of frames, and {engine.name} has embeddings of whole clips only. With "
            "FINELAP_SLIDING_FRAMES=true the service makes frames from overlapping windows."
        )


def open_source(
    state: AppState, source: AudioSource, *, sink: AudioSink | None = None
) -> AbstractAsyncContextManager[EmbeddingStream]:
    """The embedding stream of an uploaded file or a stored clip. Raises what `open_file` and `open_clip` raise."""
    return open_clip(state, source, sink=sink) if isinstance(source, str) else open_file(state, source, sink=sink)


@contextlib.asynccontextmanager
async def open_file(
    state: AppState, file: AudioFile, *, urgency: Urgency = Urgency.INTERACTIVE, sink: AudioSink | None = None
) -> AsyncGenerator[EmbeddingStream, None]:
    """A file's embedding stream. Raises MediaError, QueueFull, Closed, NotFinite."""
    state.engine.refuse_if_full()  # before any work is wasted
    async with (
        decode(state, file.binary, file.filename, file.track, state.engine.sample_rate) as audio,
        FileEmbeddingStream(state.engine, audio, file.filename, urgency=urgency, sink=sink) as stream,
    ):
        yield stream


@contextlib.asynccontextmanager
async def open_clip(
    state: AppState, clip_id: str, *, sink: AudioSink | None = None
) -> AsyncGenerator[EmbeddingStream, None]:
    """A clip's embedding stream. Raises ClipNotFound; with a sink also AudioMissing and MediaError."""
    stored = await state.read(_load_embeddings, state.library, clip_id)
    if sink is None:
        yield ClipEmbeddingStream(stored)
        return
    async with decode_clip(state, clip_id) as audio:
        yield ClipEmbeddingStream(stored, audio=audio, sink=sink)


async def embed_file(
    state: AppState, file: AudioFile, *, urgency: Urgency = Urgency.INTERACTIVE
) -> tuple[EmbeddingStream, np.ndarray]:
    """A file's embedding stream, read to its end, and its frames (T, D). Raises what `open_file` raises."""
    async with open_file(state, file, urgency=urgency) as stream:
        return stream, np.concatenate([frames async for frames in stream])


@contextlib.asynccontextmanager
async def decode(
    state: AppState, file: BinaryIO | Path, filename: str, track: str | None = None, rate: int = SAMPLE_RATE
) -> AsyncGenerator[DecodedStream, None]:
    """Decodes a file at `rate` Hz in the decoder pool, with metrics and trace spans. Raises MediaError, Closed."""
    began = time.perf_counter()
    attributes: dict[str, float | str] = {}
    try:
        async with state.decoders.open(file, filename, state.settings.max_duration_s, track, rate) as audio:
            yield audio
            if audio.duration:  # the file was read to its end
                state.metrics.observe_stage("decode", audio.decode_s)
                state.metrics.observe_stage("resample", audio.resample_s)
                state.metrics.audio_seconds.inc(audio.duration)
                attributes = {
                    "duration": audio.duration,
                    "decode_s": audio.decode_s,
                    "resample_s": audio.resample_s,
                }
    except MediaError as error:
        state.metrics.decode_failures.labels(error.reason).inc()
        attributes = {"failure": error.reason}
        raise
    finally:
        state.tracing.record("decode", began, time.perf_counter(), **attributes)


@contextlib.asynccontextmanager
async def decode_clip(state: AppState, clip_id: str) -> AsyncGenerator[DecodedStream, None]:
    """Decodes a clip's stored audio file. Raises ClipNotFound, AudioMissing, MediaError."""
    path = await state.read(state.library.audio_path, clip_id)
    clip = await state.read(state.library.get, clip_id)
    async with decode(state, path, clip.filename, track_of(clip.metadata)) as audio:
        yield audio


def _load_embeddings(library: Library, clip_id: str) -> StoredEmbeddings:
    frames, hop = library.frame_codes(clip_id)
    return StoredEmbeddings(library.get(clip_id), library.clip_vector(clip_id), frames, hop)
