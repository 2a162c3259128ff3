"""Reads metadata chunks of WAV (RIFF, RF64, BW64) and AIFF files without reading the audio.

Supports bext (EBU Tech 3285), iXML, RIFF's INFO list and AIFF's text chunks. The number of chunks, the bytes of each
and the total are bounded; a chunk with a wrong size yields what is there.

iXML is the XML that field recorders and library tools write into WAV files. The reader supports the fields of the iXML
specification (project, scene, take, tape, note, tracks, copies of BWF fields), the ASWG extension, and the USER block
as Soundminer, BaseHead and Reaper's UCS tools write it (CatID, FXName, Keywords, …). Invalid XML is read up to the
first error, and reading stops at a document type, so there are no entities to expand.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO, Literal
from xml.parsers import expat

from app.audio.tag_schema import read_text

MAX_CHUNKS = 1_000
MAX_CHUNK = 1 << 18  # bytes read per chunk
MAX_BYTES = 1 << 20  # bytes read of all chunks

_AIFF_TEXT = {b"NAME": "title", b"AUTH": "artist", b"ANNO": "comment", b"(c) ": "copyright"}
_BEXT_TEXT = (
    ("description", 0, 256),
    ("originator", 256, 32),
    ("originator_reference", 288, 32),
    ("date", 320, 10),
    ("time", 330, 8),
)
_BEXT_HISTORY = 602  # bytes before the coding history
_UNKNOWN_SIZE = 0xFFFF_FFFF  # the size is elsewhere: in RF64, in the ds64 chunk

_MAX_DEPTH = 8  # nested elements; iXML needs five
_MAX_ELEMENTS = 5_000
_MAX_TEXT = 8_192  # characters per element
_TOP_LEVEL = ("PROJECT", "SCENE", "TAKE", "TAPE", "NOTE")
# by precedence: what people entered for a library, then what a recorder wrote
_BLOCKS = ("USER", "ASWG", "", "BEXT")


def chunk_order(head: bytes) -> Literal["little", "big"] | None:
    """The byte order of a chunk file, from its first 12 bytes; None for any other file."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "little"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "big"
    return None


def read_chunks(file: BinaryIO, order: Literal["little", "big"]) -> tuple[list[tuple[str, object]], bool]:
    """Returns (fields, has_id3): (name, value) in order of precedence (iXML, bext, INFO or AIFF's own), and whether
    there is an ID3 chunk. Raises OSError."""
    ixml: list[tuple[str, object]] = []
    bext: list[tuple[str, object]] = []
    own: list[tuple[str, object]] = []
    has_id3 = False
    left = MAX_BYTES
    for kind, at, size in walk_chunks(file, order):
        size = min(size, MAX_CHUNK, left)
        if kind.upper() == b"ID3 ":
            has_id3 = True
        elif kind in (b"bext", b"iXML", b"LIST") or kind in _AIFF_TEXT:
            file.seek(at)
            content = file.read(size)
            left -= len(content)
            if kind == b"bext":
                bext += read_bext(content)
            elif kind == b"iXML":
                ixml += read_ixml(content)
            elif kind == b"LIST" and content[:4] == b"INFO":
                own += read_info(content)
            elif kind in _AIFF_TEXT:
                own.append((_AIFF_TEXT[kind], read_text(content)))
    return ixml + bext + own, has_id3


def read_bext(content: bytes) -> list[tuple[str, object]]:
    """The fields of a bext chunk as (name, value). A truncated chunk yields the fields before the end."""
    fields: list[tuple[str, object]] = [
        (name, read_text(content[at : at + size])) for name, at, size in _BEXT_TEXT if len(content) > at
    ]
    if len(content) >= 346:
        fields.append(("time_reference", int.from_bytes(content[338:346], "little")))
    if len(content) >= 412 and int.from_bytes(content[346:348], "little") >= 1:
        basic = content[348:412]
        fields.append(("umid", (basic if any(basic[32:]) else basic[:32]).hex()))
    if len(content) > _BEXT_HISTORY:
        fields.append(("coding_history", read_text(content[_BEXT_HISTORY:])))
    return fields


def read_info(content: bytes) -> list[tuple[str, object]]:
    """The entries of an INFO list as (name, value), most under RIFF's name."""
    fields: list[tuple[str, object]] = []
    at = 4
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(content):
            break
        code, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        name = "source" if code == b"ISRC" else "description" if code == b"ISBJ" else code.decode("latin-1")
        fields.append((name, read_text(content[at + 8 : at + 8 + size])))
        at += 8 + size + size % 2
    return fields


def walk_chunks(file: BinaryIO, order: Literal["little", "big"]) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset of the content, declared size within the file) of each chunk."""
    end = file.seek(0, io.SEEK_END)
    at, long_size = 12, 0
    for _ in range(MAX_CHUNKS):
        if at > end:  # possibly beyond what can be sought: RF64 has 64-bit sizes
            return
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        kind, size = header[:4], int.from_bytes(header[4:], order)
        if kind == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if kind == b"data" and size == _UNKNOWN_SIZE and long_size:
            size = long_size
        at += 8
        yield kind, at, min(size, end - at)
        at += size + size % 2


def read_ixml(raw: bytes) -> list[tuple[str, object]]:
    """The fields of an iXML chunk as (name, text) by precedence, up to the first error. Never raises."""
    reader = _IxmlReader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = reader.stop
    with contextlib.suppress(_StopReading, expat.ExpatError):
        parser.Parse(read_text(raw).lstrip(), True)  # decoded first, because the declared encoding is often wrong
    fields: list[tuple[str, object]] = [field for block in _BLOCKS for field in reader.fields[block] if field[1]]
    if reader.tracks:
        fields.append(("tracks", reader.tracks))
    return fields


class _StopReading(Exception):
    """The rest of the document is ignored."""


class _IxmlReader:
    """Handlers for expat."""

    def __init__(self) -> None:
        self.fields: dict[str, list[tuple[str, str]]] = {block: [] for block in _BLOCKS}
        self.tracks: list[str] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._length = self._elements = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if len(self._path) >= _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise _StopReading
        self._path.append(name)
        self._text.clear()
        self._length = 0

    def data(self, text: str) -> None:
        if self._length < _MAX_TEXT:
            self._text.append(text[: _MAX_TEXT - self._length])
            self._length += len(text)

    def end(self, name: str) -> None:
        text = "".join(self._text).strip()
        match [part.upper() for part in self._path[1:]]:  # below the root, BWFXML
            case [field] if field in _TOP_LEVEL:
                self.fields[""].append((field, text))
            case [block, field] if block in self.fields:
                self.fields[block].append((field, text))
            case ["TRACK_LIST", "TRACK", "NAME"] if text:
                self.tracks.append(text)
        self._path.pop()
        self._text.clear()
        self._length = 0

    def stop(self, *_: object) -> None:
        raise _StopReading
