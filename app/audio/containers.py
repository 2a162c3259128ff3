"""Detects the media type of an audio file and whether its container is complete, from headers only."""

from __future__ import annotations

import io
import re
from typing import BinaryIO, Literal

_UNKNOWN_SIZE = 0x7FFF_0000  # writers that cannot seek back declare at least this size
_MAX_CHUNKS = 10_000  # before the audio of a RIFF or AIFF file; more indicate an attack
_TAIL = 1 << 16  # bytes; about one Ogg page

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # the container of WMA
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER = 1 << 16  # bytes at the start that include the properties

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
    if head[:4] == b"RIFF" and head[8:] == b"AVI " and length - 8 < int.from_bytes(head[4:8], "little"):
        return f"its header declares {int.from_bytes(head[4:8], 'little')} bytes, but it has {length - 8}"
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
    at = 12
    for _ in range(_MAX_CHUNKS):
        header = _bytes_at(file, at, 8)
        if len(header) < 8:
            return None
        size = int.from_bytes(header[4:], order)
        if header[:4] == wanted:
            actual = length - at - 8
            if actual < size < _UNKNOWN_SIZE:
                return f"its header declares {size} bytes of audio, but it has {actual}"
            return None
        at += 8 + size + size % 2
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
    file.seek(at)
    return file.read(size)
