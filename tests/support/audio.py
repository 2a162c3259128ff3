"""Decoded audio for tests of the engine and of embedding streams, without files and decoders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import numpy as np

from app.audio.tag_schema import Value
from app.audio.tracks import Note, Track
from app.inference.engine import Engine
from app.services.audio_source import FileEmbeddingStream


class FakeDecoded:
    """Stands in for DecodedStream: passes on blocks (n,) of mono float32 at 16 kHz."""

    sample_rate, channels, duration = 16_000, 1, 0.0

    def __init__(self, blocks: Callable[[], AsyncIterator[np.ndarray]]) -> None:
        self._blocks = blocks
        self.tags: dict[str, Value] = {}
        self.track, self.notes = Track(0, 1), list[Note]()

    def __aiter__(self) -> AsyncIterator[np.ndarray]:
        return self._blocks()


def embedding_stream(engine: Engine, blocks: Callable[[], AsyncIterator[np.ndarray]]) -> FileEmbeddingStream:
    """The embedding stream of a recording that arrives in blocks."""
    return FileEmbeddingStream(engine, FakeDecoded(blocks), "recording.wav")


async def embed(engine: Engine, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n,) → clip embedding (D,) and frames (T, D)."""

    async def whole() -> AsyncIterator[np.ndarray]:
        yield samples

    async with embedding_stream(engine, whole) as stream:
        frames = np.concatenate([part async for part in stream])
        return stream.embedding, frames
