"""A recording on its way through the model: a file that is still being decoded, or a clip that the library remembers.

Both are read in the same way: frames first, as they come, then what is known at the end. Knows decoder and engine; no
requests and no events.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.audio.tag_schema import Value
from app.inference.batcher import Urgency
from app.inference.engine import Engine, Listening
from index import Clip, FrameCodes, Library

_CHUNK = 256  # frames of a remembered clip given at a time


class Decoding(Protocol):
    """What is needed of app.decoding.pool.DecodedStream: blocks (n,) of mono float32 at 16 kHz, then duration (s), tags."""

    sample_rate: int
    channels: int

    @property
    def duration(self) -> float: ...
    @property
    def tags(self) -> dict[str, Value]: ...
    def __aiter__(self) -> AsyncIterator[np.ndarray]: ...


class Pen(Protocol):
    """What draws a recording as it passes: app.audio.peaks.Envelope, app.audio.spectrogram.Sketch. Blocks (n,), 16 kHz mono."""

    def push(self, samples: np.ndarray, /) -> object: ...


class Hearing(Protocol):
    """A recording being heard. Iterate it for its frames (t, D); the properties hold when that has ended.

    sample_rate (Hz) and channels are the original's; clip (D,); duration in seconds; tags: what the file says about
    itself, see app.audio.tags, of a file being decoded only.
    """

    filename: str
    sample_rate: int
    channels: int
    frame_hop: float

    @property
    def clip(self) -> np.ndarray: ...
    @property
    def duration(self) -> float: ...
    @property
    def tags(self) -> dict[str, Value]: ...
    def __aiter__(self) -> AsyncIterator[np.ndarray]: ...


@dataclass(frozen=True)
class Recording:
    """A recording that was heard to its end: clip (D,), frames (T, D), seconds; rate (Hz) and channels as it came."""

    filename: str
    duration: float
    sample_rate: int
    channels: int
    frame_hop: float
    clip: np.ndarray
    frames: np.ndarray


class _Decoded:
    """A file that is heard while it is decoded."""

    def __init__(self, sound: Decoding, listening: Listening, filename: str) -> None:
        self._sound, self._listening = sound, listening
        self.filename, self.frame_hop = filename, listening.frame_hop
        self.sample_rate, self.channels = sound.sample_rate, sound.channels

    def __aiter__(self) -> AsyncIterator[np.ndarray]:
        return aiter(self._listening)

    @property
    def clip(self) -> np.ndarray:
        return self._listening.clip

    @property
    def duration(self) -> float:
        return self._sound.duration

    @property
    def tags(self) -> dict[str, Value]:
        return self._sound.tags


class _Remembered:
    """A clip whose frames the library has."""

    def __init__(self, clip: Clip, vector: np.ndarray, frames: FrameCodes, hop: float) -> None:
        self.filename, self.duration, self.frame_hop = clip.filename, clip.duration, hop
        self.sample_rate, self.channels = clip.sample_rate, clip.channels
        self.clip = vector
        self.tags: dict[str, Value] = {}  # they are in the clip's metadata
        self._frames = frames

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        for at in range(0, len(self._frames), _CHUNK):
            yield self._frames.decode(at, at + _CHUNK)


@contextlib.asynccontextmanager
async def hear(
    engine: Engine, sound: Decoding, filename: str, *, urgency: Urgency = Urgency.INTERACTIVE, pen: Pen | None = None
) -> AsyncGenerator[Hearing, None]:
    """A file that is being decoded, through the model; `pen` gets its blocks. Raises what both raise."""
    async with engine.listen(sound if pen is None else _drawn(sound, pen), urgency=urgency) as listening:
        yield _Decoded(sound, listening, filename)


def remember(catalog: Library, clip_id: str) -> Hearing:
    """A clip of the library, by its stored embeddings; blocking. Raises ClipNotFound."""
    frames, hop = catalog.frame_codes(clip_id)
    return _Remembered(catalog.get(clip_id), catalog.clip_vector(clip_id), frames, hop)


async def whole(hearing: Hearing) -> Recording:
    """Listens to the end and keeps every frame."""
    frames = np.concatenate([part async for part in hearing])
    return Recording(
        hearing.filename,
        hearing.duration,
        hearing.sample_rate,
        hearing.channels,
        hearing.frame_hop,
        hearing.clip,
        frames,
    )


async def _drawn(sound: AsyncIterable[np.ndarray], pen: Pen) -> AsyncGenerator[np.ndarray, None]:
    """The blocks of a sound, drawn as they pass."""
    async for block in sound:
        pen.push(block)
        yield block
