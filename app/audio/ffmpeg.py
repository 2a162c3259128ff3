"""Decodes one track of any container with FFmpeg (PyAV), on the container's clock.

The rule for time is in docs/reference/formats.md: zero is where a player's clock begins, silence stands where
timestamps jump, and no decoded sample is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.container
import av.error
import numpy as np

from app.audio import containers
from app.audio.errors import NotAudio, TooLong
from app.audio.tracks import AudioFile, Note, Track, choose_track, tagged
from app.audio.views import FileView

# FFmpeg's demuxers of single media files; playlists and the like could open other files and addresses
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mp3,aac,loas,ogg,flac,wav,w64,aiff,asf,caf,amr,"
    "ac3,eac3,dts,dtshd,mlp,truehd,mpegts,mpeg,avi,flv,au,wv,ape,tta,mpc,mpc8,tak,voc,dsf,iff,"
    "rm,oma,xwma,nut,mxf,gxf,adx,aea,ast,sox,ircam,wtv"
)
MPEG_AUDIO = ("mp1", "mp2", "mp3", "mp1float", "mp2float", "mp3float", "mp3adu", "mp3adufloat")

_CONTAINER_SLACK = 0.25  # seconds by which audio may end before a container's duration, which is rounded and padded
_JUMP = 0.04  # seconds from which a jump of timestamps is no rounding
_RESTART = 10.0  # seconds from which a jump in a broadcast format is a new clock, as FFmpeg's dts_delta_threshold
_RESTARTING = ("mpegts", "mpeg", "ogg", "wtv")  # formats whose clock may start anew within a file
_TIMELINE = ("mov", "matroska")  # formats whose timeline begins at 0, wherever the first track begins
_LIVE = 600.0  # seconds: a timeline whose first track begins later is the clock of a live capture
_SILENCE = 1 << 15  # values of silence at once, over all channels
_LIVE_DEMUXERS = "ogg,flac,matroska,webm"
_LIVE_OPTIONS = {"analyzeduration": "0", "probesize": "2048"}
_LIVE_BUFFER = 4096  # bytes
# streams of frames without a container: what follows the last frame is a tag or padding, not sound
_RAW = ("mp3", "aac", "ac3", "eac3", "dts", "amr", "flac", "tta", "ape", "wv", "mpc", "tak", "loas", "truehd", "mlp")
_ATTACHED = av.stream.Disposition.attached_pic


def open_with_ffmpeg(file: BinaryIO, filename: str, max_duration: float, track: str | None = None) -> AudioFile:
    """Opens an audio track with FFmpeg. Raises NotAudio if there is none, TrackMissing, or TooLong."""
    return open_view(file, file, filename, max_duration, track)


def open_container(file: BinaryIO | FileView, filename: str) -> av.container.InputContainer:
    """A file as a container, from its current position. Raises NotAudio."""
    return _open(file, filename, DEMUXERS, "not an audio file that can be decoded")


def _open(
    file: BinaryIO | FileView | _Unseekable,
    filename: str,
    demuxers: str,
    fault: str,
    options: dict[str, str] | None = None,
    **more: Any,
) -> av.container.InputContainer:
    """Opens a container with some of FFmpeg's demuxers. Raises NotAudio, which says that this is `fault`."""
    restrictions = {"format_whitelist": demuxers, "protocol_whitelist": "none"}
    try:
        container = av.open(file, metadata_errors="ignore", options=restrictions | (options or {}), **more)
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise NotAudio(filename, f"this is {fault} ({describe(error)}).") from error
    assert isinstance(container, av.container.InputContainer)
    return container


def open_view(
    view: BinaryIO | FileView, file: BinaryIO, filename: str, max_duration: float, track: str | None
) -> AudioFile:
    """Opens a track of `view`, which is `file` or a part of it."""
    view.seek(0)
    container = open_container(view, filename)
    try:
        chosen = _choose(container, track, filename)
        reading = _Reading(container, container.streams.audio[chosen.index])
        context = _context(reading.stream, filename)
        declared = _declared_seconds(container, reading.stream, file)
        if declared > max_duration + max(_CONTAINER_SLACK, 0.02 * declared):
            raise TooLong(filename, f"it is longer than the limit of {max_duration:g} s.")
    except BaseException:
        container.close()
        raise
    rate, mpeg = context.sample_rate, container.format.name == "mp3"

    def check_end(frames: int) -> str | None:
        read = frames / rate
        if missing := containers.missing_bytes(file):
            return f"the file is truncated: {missing}; {read:.3f} s could be read."
        promised, slack = declared, max(_CONTAINER_SLACK, 0.02 * declared)
        if mpeg and (count := containers.mpeg_frames(file)) is not None and count.cut:
            promised, slack = count.seconds, 0.2  # of which up to 0.1 s are an encoder's delay and padding
        if read < promised - slack:
            return f"the file is truncated: {read:.3f} s of {promised:.3f} s could be read."
        return None

    notes: list[Note] = []
    form = _Form(context.layout, rate)
    blocks = reading.blocks(form, notes)
    return AudioFile(rate, context.channels, blocks, check_end, container.close, chosen, notes)


def open_live_with_ffmpeg(file: BinaryIO, filename: str) -> AudioFile:
    """Opens the first track of Ogg, WebM or FLAC that is still arriving; reads wait for more."""
    live = _Unseekable(file)
    fault = "no Ogg, WebM or FLAC audio"
    container = _open(live, filename, _LIVE_DEMUXERS, fault, _LIVE_OPTIONS, mode="r", buffer_size=_LIVE_BUFFER)
    try:
        chosen = _choose(container, None, filename)
        reading = _Reading(container, container.streams.audio[chosen.index])
        context = _context(reading.stream, filename)
    except BaseException:
        container.close()
        raise
    notes: list[Note] = []
    blocks = reading.blocks(_Form(context.layout, context.sample_rate), notes)
    return AudioFile(context.sample_rate, context.channels, blocks, lambda _: None, container.close, chosen, notes)


class _Unseekable:
    """What FFmpeg may do with a live stream: read it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read


def is_plain(file: BinaryIO | FileView) -> bool:
    """Whether a file has one track alone, whose timestamps begin at 0 and don't jump; reads without decoding.

    Raises NotAudio, DECODING_ERRORS.
    """
    file.seek(0)
    with open_container(file, "") as container:
        if len(container.streams) != 1 or not container.streams.audio:
            return False
        clock: float | None = None
        for packet in container.demux(container.streams.audio[0]):
            if packet.pts is None or packet.time_base is None:
                continue
            time = float(packet.pts * packet.time_base)
            if abs(time - (clock or 0.0)) > _JUMP:
                return False
            clock = time + float((packet.duration or 0) * packet.time_base)
        return True


@dataclass(frozen=True)
class _Form:
    """What blocks are converted to, whatever a stream changes to on its way."""

    layout: av.AudioLayout
    rate: int


class _Reading:
    """One pass over a track."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        self._container, self.stream = container, stream
        self._format = container.format.name
        self._mpeg = stream.codec_context is not None and stream.codec_context.name in MPEG_AUDIO
        self._raw = self._format in _RAW
        self.damaged = 0

    def blocks(self, form: _Form, notes: list[Note]) -> Iterator[np.ndarray]:
        """The track as (frames, channels) float32. Raises DECODING_ERRORS."""
        clock = _Clock(_zero(self._container, self.stream), form.rate, self._format.startswith(_RESTARTING))
        resampler: av.AudioResampler | None = None
        source: tuple[str, str, int] | None = None
        for frame in self._frames():
            if source != (now := (frame.format.name, frame.layout.name, frame.sample_rate)):
                yield from _converted(resampler, None, clock)
                resampler, source = av.AudioResampler(format="flt", layout=form.layout, rate=form.rate), now
            missing = clock.missing_before(frame)
            while missing > 0:
                size = min(missing, max(1, _SILENCE // form.layout.nb_channels))
                yield np.zeros((size, form.layout.nb_channels), dtype=np.float32)
                clock.count(size)
                missing -= size
            yield from _converted(resampler, frame, clock)
        yield from _converted(resampler, None, clock)
        notes += clock.notes()
        if self.damaged and self._mpeg:
            notes.append(Note("packets-damaged", f"{self.damaged} packets could not be decoded"))

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Decoded frames. Around those of a raw stream there may be tags and padding, which are ignored.

        MPEG audio finds its next frame by itself, as players do, after what can't be decoded. Other damage is raised,
        except in a last packet of next to no duration.
        """
        failed: Exception | None = None
        begun, pending, lost = False, 0, 0.0
        for packet in self._container.demux(self.stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError as error:
                failed, pending = error, pending + 1
                lost += float((packet.duration or 0) * (packet.time_base or 0))
                if lost > containers.TOLERANCE and not (self._raw or self._mpeg):
                    raise
                continue
            if frames and failed is not None:
                if not self._mpeg and (begun or not self._raw):
                    raise failed
                self.damaged += pending if begun else 0
                failed, pending, lost = None, 0, 0.0
            begun = begun or bool(frames)
            yield from frames
        if failed is not None and not begun:
            raise failed


def _converted(resampler: av.AudioResampler | None, frame: av.AudioFrame | None, clock: _Clock) -> Iterator[np.ndarray]:
    if resampler is not None:
        for converted in resampler.resample(frame):
            # interleaved: PyAV crashes on planes of eight channels
            block = converted.to_ndarray().reshape(-1, converted.layout.nb_channels)
            clock.count(len(block))
            yield block


class _Clock:
    """Compares what was read with the frames' timestamps. `zero`: the timestamp, in seconds, that is 0 s."""

    def __init__(self, zero: float, rate: int, restarts: bool) -> None:
        self._base, self._rate, self._restarts = zero, rate, restarts
        self._read = 0  # frames passed on, with silence
        self._begun = False
        self._jumps = 0
        self._silence = self._late = 0.0

    def count(self, frames: int) -> None:
        self._read += frames

    def missing_before(self, frame: av.AudioFrame) -> int:
        """Frames of silence before this one; 0 unless its timestamp is later than what was read, by more than rounding.

        Where timestamps go back, or jump as far as only a new clock does, time goes on from there.
        """
        if frame.pts is None or frame.time_base is None:
            self._begun = True
            return 0
        time, read = float(frame.pts * frame.time_base), self._read / self._rate
        ahead = time - self._base - read
        first, self._begun = not self._begun, True
        if abs(ahead) < _JUMP:
            return 0
        if ahead < 0 or (self._restarts and not first and ahead > _RESTART):
            self._base = time - read
            return 0
        if first:
            self._late = ahead
        else:
            self._jumps += 1
            self._silence += ahead
        return round(ahead * self._rate)

    def notes(self) -> list[Note]:
        """What was noticed."""
        found = []
        if self._late:
            found.append(Note("sound-starts-late", f"the sound begins at {self._late:.3f} s; silence stands before it"))
        if self._jumps:
            places = "one place" if self._jumps == 1 else f"{self._jumps} places"
            found.append(
                Note("timestamps-jump", f"timestamps jump in {places}; {self._silence:.3f} s of silence stand there")
            )
        return found


def _zero(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """The timestamp at which a player's clock begins."""
    tracks = [s for s in container.streams if s.type == "audio" or _is_picture_track(s)]
    starts = [float(s.start_time * s.time_base) for s in tracks if s.start_time is not None and s.time_base]
    earliest = max(0.0, min(starts, default=0.0))
    if container.format.name.startswith(_TIMELINE) and container.duration and earliest < _LIVE:
        return 0.0
    return earliest


def _is_picture_track(stream: av.stream.Stream) -> bool:
    return stream.type == "video" and not stream.disposition & _ATTACHED


def _choose(container: av.container.InputContainer, wanted: str | None, filename: str) -> Track:
    streams = container.streams.audio
    if not streams:
        raise NotAudio(filename, "the file has no audio track.")
    default = av.stream.Disposition.default
    tracks = [
        Track(
            number,
            len(streams),
            tagged(stream.metadata, "language"),
            tagged(stream.metadata, "title") or tagged(stream.metadata, "handler_name"),
            bool(stream.disposition & default),
        )
        for number, stream in enumerate(streams)
    ]
    return choose_track(tracks, wanted, filename)


def _context(stream: av.AudioStream, filename: str) -> av.AudioCodecContext:
    context: av.AudioCodecContext | None = stream.codec_context  # None if FFmpeg does not support the codec
    if context is None or not context.sample_rate or not context.channels:
        raise NotAudio(filename, "the codec of its audio track is not supported.")
    context.thread_count = 1  # FFmpeg's threads don't speed up a single audio track
    return context


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream, file: BinaryIO) -> float:
    """Duration of the track declared by the file; 0 if FFmpeg only estimates it from the bit rate."""
    at = file.tell()  # FFmpeg reads on from here
    declares = containers.declares_duration(file, container.format.name)
    file.seek(at)
    if not declares:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams.audio) == 1 and not container.streams.video
    if container.duration and alone:  # of the whole file; other tracks may be longer
        return container.duration / 1e6
    return 0.0


def describe(error: Exception) -> str:
    """The decoder's reason, without the object addresses and paths that some messages contain."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or type(error).__name__
    return str(text).strip().rstrip(".")
