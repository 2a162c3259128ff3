"""Decodes audio files of any format to mono float32 at 16 kHz, block by block.

libsndfile (app.audio.sndfile) is tried first, then FFmpeg (app.audio.ffmpeg); Ogg needs both (app.audio.ogg). Memory
does not grow with the length of a file, and the duration limit is enforced while decoding, whatever a header declares.
Blocking and in-process; `app.decoding.pool` isolates it.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av.error
import numpy as np
import soundfile
import soxr

from app.audio.downmix import Downmix
from app.audio.errors import (
    MIN_DURATION,
    DecoderFailed,
    EmptyAudio,
    InvalidSamples,
    MediaError,
    NotAudio,
    TooLong,
    TooShort,
    TrackMissing,
    TruncatedAudio,
)
from app.audio.ffmpeg import DEMUXERS, describe, open_live_with_ffmpeg, open_with_ffmpeg
from app.audio.ogg import is_ogg, open_ogg
from app.audio.sndfile import open_with_sndfile
from app.audio.tracks import AudioFile, Note, Track, choose_track
from model.config import SAMPLE_RATE

__all__ = [
    "DEMUXERS",
    "MIN_DURATION",
    "AudioStream",
    "DecodedAudio",
    "DecoderFailed",
    "EmptyAudio",
    "InvalidSamples",
    "MediaError",
    "NotAudio",
    "TooLong",
    "TooShort",
    "TrackMissing",
    "TruncatedAudio",
    "decode",
    "open_audio_file",
    "open_stream",
    "open_with_ffmpeg",
]

DECODING_ERRORS = (soundfile.LibsndfileError, av.error.FFmpegError, ValueError)  # raised for damaged files
_RATES = (1_000, 768_000)  # Hz
_MAX_PEAK = 1e6  # |sample|; accepts integer-scaled floats, rejects values that overflow a power spectrum
_QUIET = 10 ** (-50 / 20)  # peak below which a recording is reported as very quiet (-50 dBFS)


@dataclass(frozen=True)
class DecodedAudio:
    """A whole recording.

    samples: (n,) float32, mono (see app.audio.downmix), 16 kHz.
    duration: seconds of the original, exact. sample_rate (Hz) and channels: of the original.
    decode_s, resample_s: seconds of work, for metrics. track: which audio track. notes: what decoding noticed.
    """

    samples: np.ndarray
    duration: float
    sample_rate: int
    channels: int
    decode_s: float
    resample_s: float
    track: Track
    notes: list[Note]


class AudioStream:
    """A recording while it is decoded: iterate it once for blocks (n,) of float32, mono, at `rate` Hz.

    Every block has a second of samples, except the last, which has the rest. A file that is too short yields no block.
    sample_rate (Hz), channels: of the original. duration (seconds of the original, exact; before the end, what has been
    read so far), decode_s, resample_s (seconds of work, without the consumer's pauses), notes (what was noticed): final
    after the last block. track: which of the file's audio tracks this is. live: samples come soon.
    Iterating raises a MediaError.
    """

    def __init__(
        self, file: AudioFile, filename: str, max_duration: float, rate: int = SAMPLE_RATE, live: bool = False
    ) -> None:
        if not _RATES[0] <= file.sample_rate <= _RATES[1]:
            why = f"its sample rate of {file.sample_rate} Hz is outside {_RATES[0]}–{_RATES[1]} Hz."
            raise InvalidSamples(filename, why)
        self.sample_rate, self.channels, self.track = file.sample_rate, file.channels, file.track
        self.rate = rate
        self.decode_s = self.resample_s = 0.0
        self._frames = 0
        self._peak = 0.0
        self._file, self._filename, self._max_duration = file, filename, max_duration
        self._downmix = Downmix(file.channels, file.sample_rate, live) if file.channels > 1 else None
        self._resampler = None
        if self.sample_rate != rate:
            self._resampler = soxr.ResampleStream(self.sample_rate, rate, 1, dtype="float32")

    @property
    def duration(self) -> float:
        """Seconds read so far; after the last block, the duration of the whole file."""
        return self._frames / self.sample_rate

    @property
    def notes(self) -> list[Note]:
        """What was noticed about the file."""
        found = list(self._file.notes)
        if self._downmix is not None and self._downmix.cancelled:
            seconds = self._downmix.cancelled / self.sample_rate
            found.append(
                Note("channels-cancel", f"channels cancel in their mean for {seconds:.1f} s and were mixed otherwise")
            )
        if self._frames and self._peak == 0:
            found.append(Note("silent", "every sample is 0"))
        elif self._frames and self._peak < _QUIET:
            found.append(Note("very-quiet", f"the highest peak is {20 * np.log10(self._peak):.0f} dBFS"))
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        pieces: list[np.ndarray] = []
        buffered, size = 0, self.rate
        while (piece := self._next_piece()) is not None:
            pieces.append(piece)
            buffered += len(piece)
            if buffered >= size:
                joined = np.concatenate(pieces)
                full = buffered - buffered % size
                yield from (joined[at : at + size] for at in range(0, full, size))
                pieces, buffered = [joined[full:]], buffered - full
        self._check_end()
        last = np.empty(0, dtype=np.float32) if self._downmix is None else self._downmix.finish()
        pieces.append(self._resample(last, last=True))
        rest = np.concatenate(pieces)
        yield from (rest[at : at + size] for at in range(0, len(rest), size))

    def pieces(self) -> Iterator[np.ndarray]:
        """The samples (n,) as they are decoded, instead of blocks. The end is not checked."""
        while (piece := self._next_piece()) is not None:
            yield piece
        last = np.empty(0, dtype=np.float32) if self._downmix is None else self._downmix.finish()
        yield self._resample(last, last=True)

    def _next_piece(self) -> np.ndarray | None:
        """The next samples (n,) at `rate` Hz, as many as the decoder returns at once; None at the end."""
        began = time.perf_counter()
        try:
            block = next(self._file.blocks, None)
        except MemoryError:  # also one of FFmpeg's errors, but not the file's fault
            raise
        except DECODING_ERRORS as error:
            why = f"decoding failed after {self.duration:.3f} s: the file is truncated or damaged ({describe(error)})."
            raise TruncatedAudio(self._filename, why, self.duration) from error
        if block is None:
            return None
        at = self.duration
        self._frames += len(block)
        if self._frames > self._max_duration * self.sample_rate:
            raise _too_long(self._filename, self._max_duration)
        if self._file.scale != 1.0:
            block = block * np.float32(self._file.scale)
        self._check(block, at)
        mono = block[:, 0] if self._downmix is None else self._downmix.push(block)
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
            why = f"it has samples that are not finite (in the block at {at:.3f} s)."
            raise InvalidSamples(self._filename, why)
        if peak > _MAX_PEAK:
            raise InvalidSamples(self._filename, f"it has samples as large as {peak:.3g} (in the block at {at:.3f} s).")
        self._peak = max(self._peak, float(peak))

    def _check_end(self) -> None:
        if missing := self._file.check_end(self._frames):
            raise TruncatedAudio(self._filename, missing, self.duration)
        if not self._frames:
            raise EmptyAudio(self._filename, "the file contains no samples.")
        if self.duration < MIN_DURATION:
            why = f"{self.duration:.4f} s is too short; the minimum is {MIN_DURATION} s."
            raise TooShort(self._filename, why)


@contextmanager
def open_stream(
    file: BinaryIO,
    filename: str,
    max_duration: float = 14_400.0,
    track: str | None = None,
    rate: int = SAMPLE_RATE,
) -> Iterator[AudioStream]:
    """Opens an audio file and reads it from its beginning. `max_duration` in seconds. Raises a MediaError.

    track: number or language of an audio track (app.audio.tracks.choose_track); by default the file's default one.
    `file` must be seekable and is left open.
    """
    if not file.seek(0, io.SEEK_END):
        raise EmptyAudio(filename, "the file is empty (0 bytes).")
    opened = open_audio_file(file, filename, max_duration, track)
    try:
        yield AudioStream(opened, filename, max_duration, rate)
    finally:
        opened.close()


@contextmanager
def open_live(file: BinaryIO, filename: str = "") -> Iterator[AudioStream]:
    """Opens Ogg, WebM or FLAC that is still arriving; reads wait for more. Raises a MediaError."""
    opened = open_live_with_ffmpeg(file, filename)
    try:
        yield AudioStream(opened, filename, math.inf, live=True)
    finally:
        opened.close()


def decode(
    data: bytes | BinaryIO, filename: str, max_duration: float = 14_400.0, track: str | None = None
) -> DecodedAudio:
    """Decodes a whole audio file, as `open_stream` reads it. Raises a MediaError."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with open_stream(file, filename, max_duration, track) as stream:
        samples = np.concatenate(list(stream))
        return DecodedAudio(
            samples,
            stream.duration,
            stream.sample_rate,
            stream.channels,
            stream.decode_s,
            stream.resample_s,
            stream.track,
            stream.notes,
        )


def open_audio_file(file: BinaryIO, filename: str, max_duration: float, track: str | None = None) -> AudioFile:
    """Opens a seekable file. Raises NotAudio, TrackMissing, or TooLong if its header says so; the caller closes `file`.

    libsndfile reads what it decodes to the last sample; MPEG audio and all other containers are FFmpeg's. Ogg needs
    both.
    """
    if is_ogg(file):
        return open_ogg(file, filename, max_duration, track)
    opened = open_with_sndfile(file, filename, max_duration)
    if opened is None:
        return open_with_ffmpeg(file, filename, max_duration, track)
    try:
        choose_track([opened.track], track, filename)
    except TrackMissing:
        opened.close()
        raise
    return opened


def _too_long(filename: str, max_duration: float) -> TooLong:
    return TooLong(filename, f"it is longer than the limit of {max_duration:g} s.")
