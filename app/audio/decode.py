"""Decodes audio files of any format to mono float32 at 16 kHz, block by block.

libsndfile is tried first, then FFmpeg (PyAV). Memory does not grow with the length of a file, and the duration limit
is enforced while decoding, whatever a header declares. Blocking and in-process; `app.decoding.pool` isolates it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av
import av.container
import av.error
import numpy as np
import soundfile
import soxr

from app.audio.containers import missing_by_log, missing_bytes
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
from model.config import SAMPLE_RATE

__all__ = [
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
    "TruncatedAudio",
    "decode",
    "open_stream",
]

DECODING_ERRORS = (soundfile.LibsndfileError, av.error.FFmpegError, ValueError)  # raised for damaged files
# FFmpeg's demuxers of single media files; playlists and the like could open other files and addresses
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mp3,aac,ogg,flac,wav,w64,aiff,asf,caf,amr,"
    "ac3,eac3,mpegts,mpeg,avi,flv,au,wv,ape,tta"
)
_RATES = (1_000, 768_000)  # Hz
_MAX_PEAK = 1e6  # |sample|; accepts integer-scaled floats, rejects values that overflow a power spectrum
_READ = 1 << 15  # values read at once, over all channels; a truncated file loses at most this much
_LOSSY_SLACK = 0.1  # seconds by which a lossy file may end before the declared duration
_CONTAINER_SLACK = 0.25  # the same for containers, whose durations are rounded and padded
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count for a file that declares none, such as a FLAC written to a pipe
_LOGGED = ("AU", "W64", "RF64", "VOC", "SVX")  # formats whose truncation libsndfile reports only in its log
_DECLARES_DURATION = ("mov", "matroska", "asf", "caf", "wv", "tta", "ape")


@dataclass(frozen=True)
class DecodedAudio:
    """A whole recording.

    samples: (n,) float32, mono (the mean of the channels), 16 kHz.
    duration: seconds of the original, exact. sample_rate (Hz) and channels: of the original.
    decode_s, resample_s: seconds of work, for metrics.
    """

    samples: np.ndarray
    duration: float
    sample_rate: int
    channels: int
    decode_s: float
    resample_s: float


@dataclass(frozen=True)
class AudioFile:
    """An open file at its own sample rate (Hz).

    blocks: (frames, channels) float32; iterating raises DECODING_ERRORS if the file is damaged.
    check_end: total number of frames read → what is missing from the file, or None.
    """

    sample_rate: int
    channels: int
    blocks: Iterator[np.ndarray]
    check_end: Callable[[int], str | None]
    close: Callable[[], None]


class AudioStream:
    """A recording while it is decoded: iterate it once for blocks (n,) of float32, mono, at `rate` Hz.

    Every block has a second of samples, except the last, which has the rest. A file that is too short yields no block.
    sample_rate (Hz), channels: of the original. duration (seconds of the original, exact; before the end, what has been
    read so far), decode_s, resample_s (seconds of work, without the consumer's pauses): final after the last block.
    Iterating raises a MediaError.
    """

    def __init__(self, file: AudioFile, filename: str, max_duration: float, rate: int = SAMPLE_RATE) -> None:
        if not _RATES[0] <= file.sample_rate <= _RATES[1]:
            why = f"its sample rate of {file.sample_rate} Hz is outside {_RATES[0]}–{_RATES[1]} Hz."
            raise InvalidSamples(filename, why)
        self.sample_rate, self.channels = file.sample_rate, file.channels
        self.rate = rate
        self.decode_s = self.resample_s = 0.0
        self._frames = 0
        self._file, self._filename, self._max_duration = file, filename, max_duration
        self._resampler = None
        if self.sample_rate != rate:
            self._resampler = soxr.ResampleStream(self.sample_rate, rate, 1, dtype="float32")

    @property
    def duration(self) -> float:
        """Seconds read so far; after the last block, the duration of the whole file."""
        return self._frames / self.sample_rate

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
        pieces.append(self._resample(np.empty(0, dtype=np.float32), last=True))
        rest = np.concatenate(pieces)
        yield from (rest[at : at + size] for at in range(0, len(rest), size))

    def _next_piece(self) -> np.ndarray | None:
        """The next samples (n,) at `rate` Hz, as many as the decoder returns at once; None at the end."""
        began = time.perf_counter()
        try:
            block = next(self._file.blocks, None)
        except MemoryError:  # also one of FFmpeg's errors, but not the file's fault
            raise
        except DECODING_ERRORS as error:
            why = f"decoding failed after {self.duration:.3f} s: the file is truncated or damaged ({_describe(error)})."
            raise TruncatedAudio(self._filename, why, self.duration) from error
        if block is None:
            return None
        at = self.duration
        self._frames += len(block)
        if self._frames > self._max_duration * self.sample_rate:
            raise _too_long(self._filename, self._max_duration)
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
            why = f"it has samples that are not finite (in the block at {at:.3f} s)."
            raise InvalidSamples(self._filename, why)
        if peak > _MAX_PEAK:
            raise InvalidSamples(self._filename, f"it has samples as large as {peak:.3g} (in the block at {at:.3f} s).")

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
    file: BinaryIO, filename: str, max_duration: float = 14_400.0, rate: int = SAMPLE_RATE
) -> Iterator[AudioStream]:
    """Opens an audio file and reads it from its beginning. `max_duration` in seconds. Raises a MediaError.

    `file` must be seekable and is left open.
    """
    if not file.seek(0, io.SEEK_END):
        raise EmptyAudio(filename, "the file is empty (0 bytes).")
    opened = open_audio_file(file, filename, max_duration)
    try:
        yield AudioStream(opened, filename, max_duration, rate)
    finally:
        opened.close()


def decode(data: bytes | BinaryIO, filename: str, max_duration: float = 14_400.0) -> DecodedAudio:
    """Decodes a whole audio file. `max_duration` in seconds. Raises a MediaError."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with open_stream(file, filename, max_duration) as stream:
        samples = np.concatenate(list(stream))
        return DecodedAudio(
            samples, stream.duration, stream.sample_rate, stream.channels, stream.decode_s, stream.resample_s
        )


def open_audio_file(file: BinaryIO, filename: str, max_duration: float) -> AudioFile:
    """Opens a seekable file. Raises NotAudio, or TooLong if its header says so; the caller closes `file`."""
    return _open_with_sndfile(file, filename, max_duration) or open_with_ffmpeg(file, filename, max_duration)


class _SequentialFile(soundfile.SoundFile):
    """A file that is read from start to end without seeking.

    soundfile seeks to the current position after each read; in an MP3, wrong samples follow a seek.
    """

    def seekable(self) -> bool:
        return False


def _open_with_sndfile(file: BinaryIO, filename: str, max_duration: float) -> AudioFile | None:
    """Opens a file with libsndfile; None if libsndfile does not support the format."""
    file.seek(0)
    # an unbuffered file has no position other than its descriptor's, so libsndfile may read the descriptor
    unbuffered = isinstance(file, io.FileIO)
    try:
        sound = _SequentialFile(file.fileno(), closefd=False) if unbuffered else _SequentialFile(file)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        return None
    rate, kind = sound.samplerate, sound.format
    declared = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
    if rate > 0 and declared / rate > max_duration and kind not in ("MP3", "MPEG"):  # an MP3's count is an estimate
        sound.close()
        raise _too_long(filename, max_duration)
    slack = int(_LOSSY_SLACK * rate) if kind in ("MP3", "MPEG", "OGG") else 0

    def blocks() -> Iterator[np.ndarray]:
        frames = max(1, _READ // sound.channels)
        while len(block := sound.read(frames, dtype="float32", always_2d=True)):
            yield block

    def check_end(frames: int) -> str | None:
        if frames + slack < declared:
            return f"the file is truncated: {frames / rate:.3f} s of {declared / rate:.3f} s could be read."
        if missing := missing_bytes(file) or (kind in _LOGGED and missing_by_log(sound.extra_info)):
            return f"the file is truncated: {missing}; {frames / rate:.3f} s could be read."
        return None

    return AudioFile(rate, sound.channels, blocks(), check_end, sound.close)


def open_with_ffmpeg(file: BinaryIO, filename: str, max_duration: float) -> AudioFile:
    """Opens the first audio track with FFmpeg. Raises NotAudio if there is none, or TooLong."""
    file.seek(0)
    try:
        container = av.open(
            file, metadata_errors="ignore", options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
        )
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise NotAudio(filename, f"this is not an audio file that can be decoded ({_describe(error)}).") from error
    assert isinstance(container, av.container.InputContainer)
    try:
        return _open_track(container, file, filename, max_duration)
    except BaseException:
        container.close()
        raise


def _open_track(
    container: av.container.InputContainer, file: BinaryIO, filename: str, max_duration: float
) -> AudioFile:
    if not container.streams.audio:
        raise NotAudio(filename, "the file has no audio track.")
    stream = container.streams.audio[0]
    context: av.AudioCodecContext | None = stream.codec_context  # None if FFmpeg does not support the codec
    if context is None or not context.sample_rate or not context.channels:
        raise NotAudio(filename, "the codec of its audio track is not supported.")
    context.thread_count = 1  # FFmpeg's threads don't speed up a single audio track
    rate, channels = context.sample_rate, context.channels
    declared = _declared_seconds(container, stream)
    if declared > max_duration + max(_CONTAINER_SLACK, 0.02 * declared):
        raise _too_long(filename, max_duration)

    def blocks() -> Iterator[np.ndarray]:
        to_float = av.AudioResampler(format="fltp", layout=context.layout, rate=rate)
        for frame in container.decode(stream):
            for converted in to_float.resample(frame):
                yield np.ascontiguousarray(converted.to_ndarray().T)
        for converted in to_float.resample(None):
            yield np.ascontiguousarray(converted.to_ndarray().T)

    def check_end(frames: int) -> str | None:
        read = frames / rate
        if missing := missing_bytes(file):
            return f"the file is truncated: {missing}; {read:.3f} s could be read."
        if read < declared - max(_CONTAINER_SLACK, 0.02 * declared):
            return f"the file is truncated: {read:.3f} s of {declared:.3f} s could be read."
        return None

    return AudioFile(rate, channels, blocks(), check_end, container.close)


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Duration of the track declared by the file; 0 if FFmpeg only estimates it from the bit rate."""
    if not container.format.name.startswith(_DECLARES_DURATION):
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.video:  # of the whole file; a video may be longer than its audio
        return container.duration / 1e6
    return 0.0


def _too_long(filename: str, max_duration: float) -> TooLong:
    return TooLong(filename, f"it is longer than the limit of {max_duration:g} s.")


def _describe(error: Exception) -> str:
    """The decoder's reason, without the object addresses and paths that some messages contain."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or type(error).__name__
    return str(text).strip().rstrip(".")
