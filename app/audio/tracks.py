"""Opened sound files as blocks of samples: libsndfile first, FFmpeg (through PyAV) for what it cannot open.

Reads a file from start to end, block by block, so that memory does not grow with its length. Knows what each format's
header promises, and so what is missing at the end. Knows no sample rate but the file's own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import av.container
import av.error
import numpy as np
import soundfile

from app.audio.containers import missing_by_log, missing_bytes
from app.audio.errors import NotAudio, TooLong

DECODING_ERRORS = (soundfile.LibsndfileError, av.error.FFmpegError, ValueError)  # what a broken file makes blocks raise

_BLOCK = 1 << 15  # values read at a time, over all channels; what a break in the middle of one costs is not heard
_SLACK = 0.1  # seconds a lossy file may end before its header says
_CONTAINER_SLACK = 0.25  # seconds, the same for containers, whose durations are rounded and padded
# FFmpeg's demuxers that read one file of sound; playlists and the like could open other files and addresses
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mp3,aac,ogg,flac,wav,w64,aiff,asf,caf,amr,"
    "ac3,eac3,mpegts,mpeg,avi,flv,au,wv,ape,tta"
)
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's number for a file that does not say, as a FLAC written to a pipe
_LOGGED = ("AU", "W64", "RF64", "VOC", "SVX")  # formats whose breaks libsndfile notes in its log, and only there
_SAYS_DURATION = ("mov", "matroska", "asf", "caf", "wv", "tta", "ape")


@dataclass(frozen=True)
class Source:
    """An opened file: its clock (Hz), and its sound as blocks of (frames, channels) float32, which raise
    DECODING_ERRORS where the file is broken."""

    sample_rate: int
    channels: int
    blocks: Iterator[np.ndarray]
    check_end: Callable[[int], str | None]  # frames read in all → what is missing, or None
    close: Callable[[], None]


class _Forward(soundfile.SoundFile):
    """A file that is read from start to end and never sought.

    soundfile seeks after each read to where it already is; in an MP3 that is followed by wrong samples.
    """

    def seekable(self) -> bool:
        return False


def open_source(file: BinaryIO, filename: str, max_duration: float) -> Source:
    """Opens a seekable file. Raises NotAudio or TooLong (by its header); the caller closes `file`."""
    return _open_sndfile(file, filename, max_duration) or open_by_ffmpeg(file, filename, max_duration)


def too_long(filename: str, max_duration: float) -> TooLong:
    """The error for a file longer than `max_duration` seconds."""
    return TooLong(filename, f"it is longer than the limit of {max_duration:g} s.")


def say(error: Exception) -> str:
    """The decoder's reason, without the object addresses and paths some of them carry."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or type(error).__name__
    return str(text).strip().rstrip(".")


def _open_sndfile(file: BinaryIO, filename: str, max_duration: float) -> Source | None:
    """The file through libsndfile; None if libsndfile does not know the format."""
    file.seek(0)
    # an unbuffered file has no position but its descriptor's, so libsndfile may read that itself
    unbuffered = isinstance(file, io.FileIO)
    try:
        sound = _Forward(file.fileno(), closefd=False) if unbuffered else _Forward(file)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        return None
    rate, kind = sound.samplerate, sound.format
    declared = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
    if rate > 0 and declared / rate > max_duration and kind not in ("MP3", "MPEG"):  # an MP3's count is an estimate
        sound.close()
        raise too_long(filename, max_duration)
    slack = int(_SLACK * rate) if kind in ("MP3", "MPEG", "OGG") else 0

    def blocks() -> Iterator[np.ndarray]:
        frames = max(1, _BLOCK // sound.channels)
        while len(block := sound.read(frames, dtype="float32", always_2d=True)):
            yield block

    def check_end(frames: int) -> str | None:
        if frames + slack < declared:
            return f"the file is cut off: {frames / rate:.3f} s of {declared / rate:.3f} s could be read."
        if missing := missing_bytes(file) or (kind in _LOGGED and missing_by_log(sound.extra_info)):
            return f"the file is cut off: {missing}; {frames / rate:.3f} s could be read."
        return None

    return Source(rate, sound.channels, blocks(), check_end, sound.close)


def open_by_ffmpeg(file: BinaryIO, filename: str, max_duration: float) -> Source:
    """The first sound track through FFmpeg. Raises NotAudio where it finds none."""
    file.seek(0)
    try:
        container = av.open(
            file, metadata_errors="ignore", options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
        )
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise NotAudio(filename, f"this is not a sound file that can be decoded ({say(error)}).") from error
    assert isinstance(container, av.container.InputContainer)
    try:
        return _track(container, file, filename, max_duration)
    except BaseException:
        container.close()
        raise


def _track(container: av.container.InputContainer, file: BinaryIO, filename: str, max_duration: float) -> Source:
    if not container.streams.audio:
        raise NotAudio(filename, "the file has no sound track.")
    stream = container.streams.audio[0]
    context: av.AudioCodecContext | None = stream.codec_context  # None: a codec that FFmpeg does not know
    if context is None or not context.sample_rate or not context.channels:
        raise NotAudio(filename, "its sound track is in no codec that can be decoded.")
    context.thread_count = 1  # FFmpeg's threads gain nothing for one track of sound
    rate, channels = context.sample_rate, context.channels
    declared = _declared_seconds(container, stream)
    if declared > max_duration + max(_CONTAINER_SLACK, 0.02 * declared):
        raise too_long(filename, max_duration)

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
            return f"the file is cut off: {missing}; {read:.3f} s could be read."
        if read < declared - max(_CONTAINER_SLACK, 0.02 * declared):
            return f"the file is cut off: {read:.3f} s of {declared:.3f} s could be read."
        return None

    return Source(rate, channels, blocks(), check_end, container.close)


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Duration of the track by the file's own header; 0 where there is only a guess from the bit rate."""
    if not container.format.name.startswith(_SAYS_DURATION):
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.video:  # of the whole file: a film's sound may end before it
        return container.duration / 1e6
    return 0.0
