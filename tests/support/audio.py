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


def opus_packets(samples: np.ndarray, ms: float = 20, application: str = "audio") -> list[bytes]:
    """Samples (n, channels) at 48 kHz as Opus packets of so many milliseconds, without a container."""
    import av

    channels = samples.shape[1]
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono" if channels == 1 else "stereo", "flt"
    encoder.options = {"frame_duration": f"{ms:g}", "application": application}
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32).reshape(1, -1), "flt", encoder.layout.name
    )
    frame.sample_rate, packets = 48_000, []
    encoder.open()
    fifo = av.AudioFifo()
    fifo.write(frame)
    while (part := fifo.read(encoder.frame_size, partial=True)) is not None:
        packets += [bytes(packet) for packet in encoder.encode(part)]
    return packets + [bytes(packet) for packet in encoder.encode(None)]
