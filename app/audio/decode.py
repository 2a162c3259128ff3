"""Sound files to samples: any format → mono float32 at 16 kHz, with every fault named.

Files are read, mixed down and resampled block by block: memory does not grow with length, and the limit on duration
holds while decoding, whatever a header claims. Blocking code in this process; `app.decoding.pool` runs it in others.
Knows no HTTP.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soxr

from app.audio.errors import (
    MIN_DURATION,
    DecoderFailed,
    EmptyAudio,
    InvalidSamples,
    MediaError,
    NotAudio,
    TooLong,
    TooShort,
    TruncatedAudio,
)
from app.audio.tracks import DECODING_ERRORS, Source, open_source, say, too_long
from model.config import SAMPLE_RATE

__all__ = [
    "MIN_DURATION",
    "Decoded",
    "DecoderFailed",
    "EmptyAudio",
    "InvalidSamples",
    "MediaError",
    "NotAudio",
    "Stream",
    "TooLong",
    "TooShort",
    "TruncatedAudio",
    "decode",
    "open_stream",
]

BLOCK = SAMPLE_RATE  # samples of each block but the last
_RATES = (1_000, 768_000)  # Hz
_MAX_PEAK = 1e6  # |sample|; integer-scaled floats pass, values that overflow a power spectrum do not


@dataclass(frozen=True)
class Decoded:
    """A whole recording.

    samples: (n,) float32, mono (the mean of the channels), 16 kHz.
    duration: seconds of the original, exact. sample_rate (Hz) and channels: of the original.
    decode_s, resample_s: seconds of work, for the metrics.
    """

    samples: np.ndarray
    duration: float
    sample_rate: int
    channels: int
    decode_s: float
    resample_s: float


class Stream:
    """A recording while it is decoded: iterates, once, over blocks (n,) of float32, mono, 16 kHz.

    Every block has BLOCK samples, the last has what is left. A file too short to use gives no block at all.
    sample_rate (Hz), channels: of the original. duration (seconds of the original, exact; what was read so far before
    the end), decode_s, resample_s (seconds of work without the reader's pauses): final after the last block.
    Iterating raises a MediaError.
    """

    def __init__(self, source: Source, filename: str, max_duration: float) -> None:
        if not _RATES[0] <= source.sample_rate <= _RATES[1]:
            why = f"its sample rate of {source.sample_rate} Hz is outside {_RATES[0]}–{_RATES[1]} Hz."
            raise InvalidSamples(filename, why)
        self.sample_rate, self.channels = source.sample_rate, source.channels
        self.decode_s = self.resample_s = 0.0
        self._frames = 0
        self._source, self._filename, self._max_duration = source, filename, max_duration
        self._resampler = None
        if self.sample_rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(self.sample_rate, SAMPLE_RATE, 1, dtype="float32")

    @property
    def duration(self) -> float:
        """Seconds read so far: after the last block those of the whole file."""
        return self._frames / self.sample_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        pieces: list[np.ndarray] = []
        gathered = 0
        while (piece := self._next_piece()) is not None:
            pieces.append(piece)
            gathered += len(piece)
            if gathered >= BLOCK:
                whole = np.concatenate(pieces)
                full = gathered - gathered % BLOCK
                yield from (whole[at : at + BLOCK] for at in range(0, full, BLOCK))
                pieces, gathered = [whole[full:]], gathered - full
        self._check_end()
        pieces.append(self._resample(np.empty(0, dtype=np.float32), last=True))
        rest = np.concatenate(pieces)
        yield from (rest[at : at + BLOCK] for at in range(0, len(rest), BLOCK))

    def _next_piece(self) -> np.ndarray | None:
        """The next samples (n,) at 16 kHz, as many as the decoder gives at once; None at the end."""
        began = time.perf_counter()
        try:
            block = next(self._source.blocks, None)
        except MemoryError:  # one of FFmpeg's errors too, and no fault of the file's
            raise
        except DECODING_ERRORS as error:
            why = f"decoding failed after {self.duration:.3f} s: the file is cut off or damaged ({say(error)})."
            raise TruncatedAudio(self._filename, why, self.duration) from error
        if block is None:
            return None
        at = self.duration
        self._frames += len(block)
        if self._frames > self._max_duration * self.sample_rate:
            raise too_long(self._filename, self._max_duration)
        self._check(block, at)
        mono = block.mean(axis=1, dtype=np.float32) if self.channels > 1 else block[:, 0]
        self.decode_s += time.perf_counter() - began
        return self._resample(mono)

    def _resample(self, mono: np.ndarray, last: bool = False) -> np.ndarray:
        if self._resampler is None:
            return mono
        began = time.perf_counter()
        resampled = self._resampler.resample_chunk(np.ascontiguousarray(mono), last=last)
        self.resample_s += time.perf_counter() - began
        return resampled

    def _check(self, block: np.ndarray, at: float) -> None:
        peak = np.maximum(block.max(initial=0.0), -block.min(initial=0.0))
        if not np.isfinite(peak):
            why = f"it has samples that are not finite numbers (in the block at {at:.3f} s)."
            raise InvalidSamples(self._filename, why)
        if peak > _MAX_PEAK:
            raise InvalidSamples(self._filename, f"it has samples as large as {peak:.3g} (in the block at {at:.3f} s).")

    def _check_end(self) -> None:
        if missing := self._source.check_end(self._frames):
            raise TruncatedAudio(self._filename, missing, self.duration)
        if not self._frames:
            raise EmptyAudio(self._filename, "the file holds no samples.")
        if self.duration < MIN_DURATION:
            why = f"{self.duration:.4f} s is too short; the minimum is {MIN_DURATION} s."
            raise TooShort(self._filename, why)


@contextmanager
def open_stream(file: BinaryIO, filename: str, max_duration: float = 14_400.0) -> Iterator[Stream]:
    """Opens a sound file, read from its beginning. `max_duration` in seconds. Raises a MediaError.

    `file` must be seekable and is left open.
    """
    if not file.seek(0, io.SEEK_END):
        raise EmptyAudio(filename, "the file is empty (0 bytes).")
    source = open_source(file, filename, max_duration)
    try:
        yield Stream(source, filename, max_duration)
    finally:
        source.close()


def decode(data: bytes | BinaryIO, filename: str, max_duration: float = 14_400.0) -> Decoded:
    """Decodes a whole sound file. `max_duration` in seconds. Raises a MediaError."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with open_stream(file, filename, max_duration) as stream:
        samples = np.concatenate(list(stream))
        return Decoded(
            samples, stream.duration, stream.sample_rate, stream.channels, stream.decode_s, stream.resample_s
        )
