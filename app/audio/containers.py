"""What headers say of an audio file: its media type, whether it is complete, sizes never filled in, parts of an Ogg.

Headers are promises of the writer, and some are none: a writer that cannot seek back leaves a placeholder, and the
frame count of an MP3 may be of a part. What is taken for missing here would be missing from the sound, too.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO, Literal, NamedTuple

_UNKNOWN_SIZE = 0x7EFF_0000  # writers that cannot seek back declare at least this size (SoX for AIFF 0x7F000000)
TOLERANCE = 0.05  # seconds that a complete file may have less than its header says: rounding, and sizes off by a header
_MAX_CHUNKS = 10_000  # before the audio of a RIFF or AIFF file; more indicate an attack
_TAIL = 1 << 16  # bytes; about one Ogg page

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # the container of WMA
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER = 1 << 16  # bytes at the start that include the properties

_CHUNK_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")
_OGG_BEGINNING = re.compile(  # a page that begins a stream, with the first packet of a codec that FFmpeg decodes
    rb"OggS\x00[\x02\x06].{8}.{4}.{4}.{4}.[\x01-\xff]"
    rb".{0,4}?(?:\x01vorbis|OpusHead|\x7fFLAC|fLaC|Speex   |\x80theora|fishead|\x01video|\x01audio|BBCD|OVP80)",
    re.DOTALL,
)
_SCAN = 1 << 20  # bytes of an Ogg read at once
_MAX_LINKS = 10_000
_MPEG_FRAME = re.compile(rb"\xff[\xe2-\xff][\x10-\xef][\x00-\xff]", re.DOTALL)
_EBML_DURATION = re.compile(rb"\x44\x89[\x84\x88]", re.DOTALL)
_EBML_HEADER = 1 << 12  # bytes at the start of a Matroska file that hold its duration, if it has one

_SHOULD_BE = re.compile(r": (\d+) \(should be (\d+)\)")

_MAGIC = (  # (offset, bytes, media type)
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (4, b"ftyp", "audio/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "audio/webm"),
    (0, b"\x30\x26\xb2\x75", "audio/x-ms-wma"),
    (0, b"caff", "audio/x-caf"),
    (0, b".snd", "audio/basic"),
    (0, b"#!AMR", "audio/amr"),
)


def media_type(head: bytes) -> str:
    """The media type of an audio file from its first 16 bytes; `application/octet-stream` if unknown."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "audio/aac" if head[1] & 0x06 == 0 else "audio/mpeg"
    return "application/octet-stream"


def missing_bytes(sound: bytes | BinaryIO) -> str | None:
    """Describes what is missing from a truncated WAV, AIFF, AVI, WMA or Ogg file; None if it is complete.

    Decoders don't report truncation of these formats. They do for other formats, for which this returns None. `sound`
    is the file's bytes or a seekable file.
    """
    file = io.BytesIO(sound) if isinstance(sound, bytes) else sound
    length = file.seek(0, io.SEEK_END)
    head = _bytes_at(file, 0, 12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _missing_chunk(file, length, b"data", "little")
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _missing_chunk(file, length, b"SSND", "big")
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return (
            f"its header declares {size} bytes, but it has {length - 8}" if length - 8 < size < _UNKNOWN_SIZE else None
        )
    if head == _ASF[:12] and (declared := _asf_length(file)) > length:
        return f"its header declares {declared} bytes, but it has {length}"
    if head[:4] == b"OggS" and length < _page_end(file, _last_page(file, length)):
        return "its last Ogg page is incomplete"  # a missing end-of-stream mark is common and no sign of truncation
    return None


def missing_by_log(log: str) -> str | None:
    """Describes what is missing according to libsndfile's log; None if it reports no truncation."""
    for declared, actual in _SHOULD_BE.findall(log):
        if int(actual) < int(declared) < _UNKNOWN_SIZE:
            return f"its header declares {declared} bytes, but it has {actual}"
    return "it ends within a block" if "truncated file" in log else None


def _missing_chunk(file: BinaryIO, length: int, wanted: bytes, order: Literal["little", "big"]) -> str | None:
    found = _audio_chunk(file, wanted, order)
    if found is None:
        return None
    at, size, rate = found
    actual = length - at
    if actual < size < _UNKNOWN_SIZE and size - actual > rate * TOLERANCE:
        return f"its header declares {size} bytes of audio, but it has {actual}"
    return None


def _audio_chunk(file: BinaryIO, wanted: bytes, order: Literal["little", "big"]) -> tuple[int, int, float] | None:
    """The first byte of the audio, its declared size, and bytes a second as far as the header says them (else 0)."""
    at, rate = 12, 0.0
    for _ in range(_MAX_CHUNKS):
        header = _bytes_at(file, at, 8)
        if len(header) < 8:
            return None
        size = int.from_bytes(header[4:], order)
        if header[:4] == b"fmt ":
            rate = float(int.from_bytes(_bytes_at(file, at + 16, 4), "little"))
        if header[:4] == wanted:
            return at + 8, size, rate
        at += 8 + size + size % 2
    return None


def unfilled_sizes(file: BinaryIO) -> dict[int, bytes]:
    """Sizes that the writer of a WAV, RF64, W64, AIFF, CAF or AU never filled in, as patches: offset → bytes that fit.

    Empty for other files, and if nothing but further chunks follows the empty audio.
    """
    length = file.seek(0, io.SEEK_END)
    head = _bytes_at(file, 0, 12)
    if head[:4] == b".snd":
        return {8: b"\xff" * 4} if head[8:12] == bytes(4) and length > int.from_bytes(head[4:8], "big") + 8 else {}
    if head[:4] == b"caff":
        at = _caf_audio(file)
        empty = at is not None and length - at > 64 and 0 <= int.from_bytes(_bytes_at(file, at - 8, 8), "big") <= 4
        return {at - 8: b"\xff" * 8} if empty and at is not None else {}
    if head[:4] == b"riff":
        return _unfilled_w64(file, length)
    if head[:4] in (b"RF64", b"BW64") and head[8:] == b"WAVE":
        return _unfilled_rf64(file, length)
    chunked: tuple[bytes, Literal["little", "big"]]
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        chunked = (b"data", "little")
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        chunked = (b"SSND", "big")
    else:
        return {}
    found = _audio_chunk(file, *chunked)
    if found is None or found[1] != 0 or length - found[0] < 16:
        return {}
    if _CHUNK_NAME.fullmatch(_bytes_at(file, found[0], 4)):
        return {}  # another chunk: there is no audio
    order = chunked[1]
    return {
        4: min(length - 8, 0xFFFF_FFFF).to_bytes(4, order),
        found[0] - 4: min(length - found[0], 0xFFFF_FFFF).to_bytes(4, order),
    }


def _unfilled_rf64(file: BinaryIO, length: int) -> dict[int, bytes]:
    long_sizes = _bytes_at(file, 12, 36)
    found = _audio_chunk(file, b"data", "little")
    if long_sizes[:4] != b"ds64" or found is None or found[1] != 0xFFFF_FFFF or length - found[0] < 16:
        return {}
    if 0 < int.from_bytes(long_sizes[16:24], "little") < 1 << 62:
        return {}
    return {20: (length - 8).to_bytes(8, "little"), 28: (length - found[0]).to_bytes(8, "little"), 36: bytes(8)}


def _unfilled_w64(file: BinaryIO, length: int) -> dict[int, bytes]:
    at = 40
    for _ in range(_MAX_CHUNKS):
        header = _bytes_at(file, at, 24)
        if len(header) < 24:
            return {}
        size = int.from_bytes(header[16:], "little")
        if header[:4] == b"data":
            if 24 < size < 1 << 62 or length - at < 40:
                return {}
            return {16: length.to_bytes(8, "little"), at + 16: (length - at).to_bytes(8, "little")}
        if size < 24:
            return {}
        at += (size + 7) & ~7
    return {}


def bytes_behind(file: BinaryIO) -> float:
    """Seconds of audio that a WAV has behind what its header declares, if no chunk but bytes follow; else 0.

    A recorder that broke off leaves an earlier size; so do programs whose sizes wrap around at 4 GB.
    """
    length = file.seek(0, io.SEEK_END)
    head = _bytes_at(file, 0, 12)
    found = _audio_chunk(file, b"data", "little") if head[:4] == b"RIFF" and head[8:] == b"WAVE" else None
    if found is None or not found[2]:
        return 0.0
    at, size, rate = found
    end = at + size + size % 2
    if size >= _UNKNOWN_SIZE or length - end < 16 or _CHUNK_NAME.fullmatch(_bytes_at(file, end, 4)):
        return 0.0
    rest = _bytes_at(file, end, 1 << 16)
    return (length - end) / rate if rest.count(0) < len(rest) else 0.0  # zeros are padding


def ogg_links(file: BinaryIO) -> list[int]:
    """The offsets at which the links of a chained Ogg begin (RFC 3533, section 4); at most one for other files.

    A link is a group of logical streams that begin together; radio captures and joined recordings have several.
    """
    length = file.seek(0, io.SEEK_END)
    if _bytes_at(file, 0, 4) != b"OggS":
        return []
    links: list[int] = []
    next_beginning = 0  # where another stream of the same link may begin
    at = 0
    while at < length and len(links) < _MAX_LINKS:
        piece = _bytes_at(file, at, _SCAN)
        for found in _OGG_BEGINNING.finditer(piece):
            start = at + found.start()
            if start >= at + _SCAN - 64 and start + 64 < length:
                break  # cut off by the end of the piece, which the next one repeats
            if start != next_beginning:
                links.append(start)
            elif not links:
                links.append(0)
            next_beginning = _page_end(file, start)
        at += _SCAN - 64
    return links


def mpeg_frames(file: BinaryIO) -> MpegCount | None:
    """What an MP3's first frame says in a Xing, Info or VBRI header; None if it has none."""
    length = file.seek(0, io.SEEK_END)
    at = _after_id3(file)
    head = _bytes_at(file, at, 4096)
    sync = _MPEG_FRAME.search(head)
    if sync is None:
        return None
    frame = head[sync.start() :]
    version, mono = frame[1] >> 3 & 3, frame[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    samples = 1152 if version == 3 else 576
    rate = (44_100, 48_000, 32_000, 0)[frame[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
    tag = frame[4 + side :]
    if frame[36:40] == b"VBRI":
        size, count = int.from_bytes(frame[46:50], "big"), int.from_bytes(frame[50:54], "big")
    elif tag[:4] in (b"Xing", b"Info"):
        flags, values = tag[7] if len(tag) > 7 else 0, tag[8:]
        count = int.from_bytes(values[:4], "big") if flags & 1 else 0
        values = values[4:] if flags & 1 else values
        size = int.from_bytes(values[:4], "big") if flags & 2 else 0
    else:
        return None
    if not rate:
        return None
    return MpegCount(count * samples / rate, size, length - at - sync.start())


class MpegCount(NamedTuple):
    """Declared `seconds` and `size` in bytes, 0 if not declared; `present` bytes from the first frame to the end."""

    seconds: float
    size: int
    present: int

    @property
    def cut(self) -> bool:
        """Whether bytes are missing that the header counts; True too if it counts none."""
        return not self.size or self.size > self.present


def _after_id3(file: BinaryIO) -> int:
    """The offset behind the ID3v2 tags at the beginning."""
    at = 0
    for _ in range(8):
        tag = _bytes_at(file, at, 10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        size = sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(tag[6:10]))
        at += 10 + size + (10 if tag[5] & 0x10 else 0)
    return at


def declares_duration(file: BinaryIO, demuxer: str) -> bool:
    """Whether a file of FFmpeg's `demuxer` states its duration, so that it is no estimate from the bit rate."""
    if demuxer.startswith("asf"):
        header = _bytes_at(file, 0, _ASF_HEADER)
        at = header.find(_ASF_PROPERTIES)
        return at >= 0 and len(header) >= at + 92 and not header[at + 88] & 1
    if demuxer.startswith("matroska"):
        return _EBML_DURATION.search(_bytes_at(file, 0, _EBML_HEADER)) is not None
    if demuxer == "caf":
        return not _caf_open(file)
    return demuxer.startswith(("mov", "wv", "tta", "ape"))


def _caf_open(file: BinaryIO) -> bool:
    """Whether a CAF's audio has no size (-1), as one written to a pipe."""
    at = _caf_audio(file)
    return at is not None and int.from_bytes(_bytes_at(file, at - 8, 8), "big", signed=True) < 0


def _caf_audio(file: BinaryIO) -> int | None:
    """The offset at which the content of a CAF's data chunk begins."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        header = _bytes_at(file, at, 12)
        if len(header) < 12:
            return None
        if header[:4] == b"data":
            return at + 12
        at += 12 + max(0, int.from_bytes(header[4:], "big", signed=True))
    return None


def _asf_length(file: BinaryIO) -> int:
    """The file length in the ASF header; 0 if unknown, as in a broadcast."""
    header = _bytes_at(file, 0, _ASF_HEADER)
    at = header.find(_ASF_PROPERTIES)
    if at < 0 or len(header) < at + 92 or header[at + 88] & 1:
        return 0
    return int.from_bytes(header[at + 40 : at + 48], "little")


def _last_page(file: BinaryIO, length: int) -> int:
    """The offset of the last Ogg page in a file that starts with one."""
    end = length
    while end > 0:
        start = max(0, end - _TAIL)
        found = _bytes_at(file, start, min(length, end + 3) - start).rfind(b"OggS")
        if found >= 0:
            return start + found
        end = start
    return 0


def _page_end(file: BinaryIO, start: int) -> int:
    """The end of an Ogg page; past the end of the file if its header is incomplete."""
    header = _bytes_at(file, start, 27 + 255)
    if len(header) < 27:
        return start + 27
    segments = header[26]
    return start + 27 + segments + sum(header[27 : 27 + segments])


def _bytes_at(file: BinaryIO, at: int, size: int) -> bytes:
    if at >= 1 << 62:  # sizes of 64 bits may point beyond what can be sought
        return b""
    file.seek(at)
    return file.read(size)
