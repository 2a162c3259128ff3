"""Reads samples from any position of an audio file in the type that the file stores, for excerpts.

libsndfile is tried first, then FFmpeg, as in app.audio.decode. Both seek; a lossy file is decoded from a second before
the wanted position, because its frames depend on those before.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO, Protocol

import av
import av.container
import av.error
import numpy as np
import soundfile

from app.audio.decode import DECODING_ERRORS, DEMUXERS
from app.audio.errors import NotAudio, TruncatedAudio
from app.audio.tags import read_tags
from app.audio.wav_chunks import chunk_order, walk_chunks

_READ = 1 << 15  # values read at once, over all channels
_PREROLL = 1.0  # seconds decoded before an excerpt of a lossy file
_SEQUENTIAL = 60.0  # seconds up to which FFmpeg decodes from the beginning, which is exact in every container
_MAX_CHUNK = 1 << 20  # bytes of a chunk that is kept
_KEPT = (b"bext", b"iXML", b"LIST")
_TIME_REFERENCE = slice(338, 346)  # of a bext chunk: samples since midnight
_FMT_TAGS = {1: "int", 3: "float", 0xFFFE: ""}  # of a fmt chunk that is copied
_LOSSY = ("VORBIS", "OPUS", "MPEG")
_STRINGS = {"title": "title", "artist": "artist", "album": "album", "comment": "description", "date": "date",
            "genre": "genre", "copyright": "copyright"}  # of a FLAC or Ogg file: our tags  # fmt: skip

# fields of iXML that count samples since midnight, each in two halves of 32 bits
_IXML_TIMES = (
    (b"BWF_TIME_REFERENCE_HIGH", b"BWF_TIME_REFERENCE_LOW"),
    (b"TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI", b"TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO"),
)

Chunks = Sequence[tuple[bytes, bytes]]  # (kind, content)


class SampleReader(Protocol):
    """An open audio file at its own rate (Hz).

    kind: int (int32, whose upper `bits` bits are the sample), float32 or float64, of type `dtype`. lossy: the file
    stores no samples, and float32 is what its decoder gives. fmt: its WAV format chunk, if it describes these samples.
    """

    rate: int
    channels: int
    kind: str
    bits: int
    lossy: bool
    fmt: bytes | None

    @property
    def dtype(self) -> str: ...
    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Blocks (n, channels) of the frames start … stop, or up to the end of the file. Raises TruncatedAudio."""

    def chunks(self, start: int) -> Chunks:
        """The bext, iXML and INFO chunks of a WAV file; times are moved by `start` frames."""

    def strings(self) -> dict[str, str]:
        """Title, artist and so on, by libsndfile's names."""


def open_reader(file: BinaryIO) -> SampleReader:
    """Opens a seekable audio file, which stays open. Raises NotAudio."""
    return _open_with_sndfile(file) or _FFmpegReader(file)


@contextlib.contextmanager
def _position_kept(file: BinaryIO) -> Iterator[None]:
    """Restores the position, which libsndfile shares and does not expect to move."""
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


class _Metadata:
    """What an excerpt keeps of a file besides its samples."""

    def __init__(self, file: BinaryIO) -> None:
        self._source = file

    def chunks(self, start: int) -> Chunks:
        with _position_kept(self._source):
            return self._chunks(start)

    def _chunks(self, start: int) -> Chunks:
        found: dict[bytes, bytes] = {}
        for kind, at, size in self._walk():
            if kind in _KEPT and kind not in found and size <= _MAX_CHUNK:
                self._source.seek(at)
                content = self._source.read(size)
                if kind == b"bext":
                    content = move_bext(content, start)
                elif kind == b"iXML":
                    content = move_ixml(content, start)
                elif content[:4] != b"INFO":
                    continue
                found[kind] = content
        return list(found.items())

    def strings(self) -> dict[str, str]:
        with _position_kept(self._source):
            tags = read_tags(self._source)
        texts = {name: str(tags.get(tag, "")) for name, tag in _STRINGS.items()}
        return {name: text for name, text in texts.items() if text}

    def _fmt(self) -> bytes | None:
        with _position_kept(self._source):
            for kind, at, size in self._walk():
                if kind == b"fmt ":
                    self._source.seek(at)
                    return self._source.read(min(size, 40))
        return None

    def _walk(self) -> Iterator[tuple[bytes, int, int]]:
        self._source.seek(0)
        if chunk_order(self._source.read(12)) == "little":
            yield from walk_chunks(self._source, "little")


class _SndfileReader(_Metadata):
    def __init__(self, sound: soundfile.SoundFile, file: BinaryIO) -> None:
        super().__init__(file)
        self._sound = sound
        self.rate, self.channels = sound.samplerate, sound.channels
        self.kind, self.bits, self.lossy = _sample_kind(sound.subtype)
        self.fmt = _matching_fmt(self._fmt(), self) if sound.format in ("WAV", "WAVEX", "RF64") else None

    @property
    def dtype(self) -> str:
        return "int32" if self.kind == "int" else self.kind

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        begin = max(0, start - int(_PREROLL * self.rate)) if self.lossy else start
        try:
            begin = self._sound.seek(min(begin, self._sound.frames))
            while begin < stop:
                frames = min(max(1, _READ // self.channels), stop - begin)
                block = self._sound.read(frames, dtype=self.dtype, always_2d=True)
                if not len(block):
                    return
                if begin + len(block) > start:
                    yield block[max(0, start - begin) :]
                begin += len(block)
        except MemoryError:
            raise
        except DECODING_ERRORS as error:
            raise TruncatedAudio("", "the file is damaged at this position.") from error


def _open_with_sndfile(file: BinaryIO) -> SampleReader | None:
    file.seek(0)
    try:
        unbuffered = isinstance(file, io.FileIO)
        sound = soundfile.SoundFile(file.fileno(), closefd=False) if unbuffered else soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        return None
    return _SndfileReader(sound, file)


def _sample_kind(subtype: str) -> tuple[str, int, bool]:
    """(kind, bits, lossy) of a subtype of libsndfile; of µ-law, ADPCM and such the 16 bits that they decode to."""
    if subtype in ("FLOAT", "DOUBLE"):
        return ("float32", 32, False) if subtype == "FLOAT" else ("float64", 64, False)
    if subtype.startswith(_LOSSY):
        return "float32", 32, True
    found = re.search(r"PCM_[SU]?(8|16|24|32)$|ALAC_(16|20|24|32)$", subtype)
    bits = int(found[1] or found[2]) if found else 16
    return "int", 24 if bits == 20 else bits, False


def _matching_fmt(fmt: bytes | None, reader: SampleReader) -> bytes | None:
    """The format chunk if the excerpt has the same samples: PCM or float, not a codec."""
    if fmt is None or len(fmt) < 16 or reader.lossy:
        return None
    tag, bits = int.from_bytes(fmt[:2], "little"), int.from_bytes(fmt[14:16], "little")
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], "little")
    kind = "int" if reader.kind == "int" else "float"
    return fmt if _FMT_TAGS.get(tag) == kind and bits == reader.bits else None


class _FFmpegReader(_Metadata):
    fmt: bytes | None = None

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        container = self._open()
        with container:
            stream = self._track(container)
            context = stream.codec_context
            self.rate, self.channels = context.sample_rate, context.channels
            name = context.format.name.removesuffix("p") if context.format else "flt"
            self.kind = "int" if name in ("u8", "s16", "s32") else "float32"
            self.lossy = self.kind != "int" and not context.codec.lossless
            self.bits = {"u8": 8, "s16": 16, "s32": _stored_bits(context)}.get(name, 32)

    @property
    def dtype(self) -> str:
        return "int32" if self.kind == "int" else "float32"

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        with self._open() as container:
            try:
                yield from self._decode(container, start, stop)
            except MemoryError:
                raise
            except DECODING_ERRORS as error:
                raise TruncatedAudio("", "the file is damaged at this position.") from error

    def _decode(self, container: av.container.InputContainer, start: int, stop: int) -> Iterator[np.ndarray]:
        stream = self._track(container)
        stream.codec_context.thread_count = 1
        layout = stream.codec_context.layout
        convert = av.AudioResampler("s32p" if self.kind == "int" else "fltp", layout, self.rate)
        at: int | None = 0
        origin = 0
        base = stream.time_base or Fraction(0)  # seconds of a time stamp
        if start > _SEQUENTIAL * self.rate and base:
            origin = next((frame.pts for frame in container.decode(stream) if frame.pts is not None), 0)
            target = start / self.rate - _PREROLL
            container.seek(origin + int(target / base), stream=stream)
            at = None
        for frame in container.decode(stream):
            if at is None:  # after a seek, the first frame says where it is
                at = round(float((frame.pts - origin) * base) * self.rate) if frame.pts is not None else 0
            for converted in convert.resample(frame):
                block = np.ascontiguousarray(converted.to_ndarray().T)
                wanted = block[max(0, start - at) : max(0, stop - at)]
                at += len(block)
                if len(wanted):
                    yield wanted
            if at >= stop:
                return

    def _open(self) -> av.container.InputContainer:
        self._source.seek(0)
        try:
            options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
            container = av.open(self._source, metadata_errors="ignore", options=options)
        except MemoryError:
            raise
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise NotAudio("", "this is not an audio file that can be decoded.") from error
        assert isinstance(container, av.container.InputContainer)
        return container

    def _track(self, container: av.container.InputContainer) -> av.AudioStream:
        if not container.streams.audio or not container.streams.audio[0].codec_context:
            raise NotAudio("", "the file has no audio track that can be decoded.")
        return container.streams.audio[0]


def _stored_bits(context: av.AudioCodecContext) -> int:
    """The bits of samples that FFmpeg gives as 32-bit integers; 32 if the codec does not tell."""
    name, extra = context.codec.name, context.extradata or b""
    if name == "alac" and len(extra) > 17:
        return 24 if extra[17] in (20, 24) else 32
    return 24 if "24" in name or name == "ape" else 32


def move_bext(content: bytes, frames: int) -> bytes:
    """A bext chunk whose time reference is `frames` later; the reference has 64 bits."""
    if len(content) < _TIME_REFERENCE.stop:
        return content
    moved = (int.from_bytes(content[_TIME_REFERENCE], "little") + frames) % 2**64
    return content[: _TIME_REFERENCE.start] + moved.to_bytes(8, "little") + content[_TIME_REFERENCE.stop :]


def move_ixml(content: bytes, frames: int) -> bytes:
    """An iXML chunk whose time references, if it has any, are `frames` later."""
    for names in _IXML_TIMES:
        high, low = (re.search(rb"<" + name + rb">\s*(\d{1,10})\s*</" + name + rb">", content) for name in names)
        if high is None or low is None:
            continue
        moved = ((int(high[1]) << 32) + int(low[1]) + frames) % 2**64
        halves = [(high.span(1), moved >> 32), (low.span(1), moved & 0xFFFFFFFF)]
        for (begin, end), half in sorted(halves, reverse=True):  # from the back, so that positions stay valid
            content = content[:begin] + str(half).encode() + content[end:]
    return content
