"""The chunks of WAV (RIFF, RF64, BW64) and AIFF files that say something about the sound, read without the sound.

Bounds: chunks looked at, bytes of each, bytes in all. A chunk that lies about its size gives what is there. Knows bext
(EBU Tech 3285), RIFF's INFO list, AIFF's text chunks; iXML is read by app.audio.wav_chunks, ID3 by who can.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO, Literal
from xml.parsers import expat

from app.audio.tag_schema import read_text

MAX_CHUNKS = 1_000
MAX_CHUNK = 1 << 18  # bytes read of one chunk
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
_UNKNOWN = 0xFFFF_FFFF  # a size that stands elsewhere: in RF64, in its ds64 chunk


def chunk_order(head: bytes) -> Literal["little", "big"] | None:
    """The byte order of a file of chunks, by its first 12 bytes; None for any other file."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "little"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "big"
    return None


def read_chunks(file: BinaryIO, order: Literal["little", "big"]) -> tuple[list[tuple[str, object]], bool]:
    """(what is told, as (name, value) in the order of belief: iXML, bext, INFO or AIFF's own), whether there is an ID3
    chunk. Raises OSError."""
    ixml: list[tuple[str, object]] = []
    bext: list[tuple[str, object]] = []
    own: list[tuple[str, object]] = []
    has_id3 = False
    left = MAX_BYTES
    for kind, at, size in _walk(file, order):
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
    """The fields of a bext chunk, as (name, value). A chunk that is cut off gives the fields before."""
    told: list[tuple[str, object]] = [
        (name, read_text(content[at : at + size])) for name, at, size in _BEXT_TEXT if len(content) > at
    ]
    if len(content) >= 346:
        told.append(("time_reference", int.from_bytes(content[338:346], "little")))
    if len(content) >= 412 and int.from_bytes(content[346:348], "little") >= 1:
        basic = content[348:412]
        told.append(("umid", (basic if any(basic[32:]) else basic[:32]).hex()))
    if len(content) > _BEXT_HISTORY:
        told.append(("coding_history", read_text(content[_BEXT_HISTORY:])))
    return told


def read_info(content: bytes) -> list[tuple[str, object]]:
    """The entries of a LIST chunk of kind INFO, as (name as RIFF has it, value)."""
    told: list[tuple[str, object]] = []
    at = 4
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(content):
            break
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        called = "source" if name == b"ISRC" else "description" if name == b"ISBJ" else name.decode("latin-1")
        told.append((called, read_text(content[at + 8 : at + 8 + size])))
        at += 8 + size + size % 2
    return told


def _walk(file: BinaryIO, order: Literal["little", "big"]) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, bytes it says it has) of each chunk in turn."""
    end = file.seek(0, io.SEEK_END)
    at, long_size = 12, 0
    for _ in range(MAX_CHUNKS):
        if at > end:  # also beyond what can be sought: RF64 has sizes of 64 bits
            return
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        kind, size = header[:4], int.from_bytes(header[4:], order)
        if kind == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if kind == b"data" and size == _UNKNOWN and long_size:
            size = long_size
        at += 8
        yield kind, at, min(size, end - at)
        at += size + size % 2


# iXML


_DEPTH = 8  # elements within each other; iXML needs five
_ELEMENTS = 5_000
_TEXT = 8_192  # characters of one element
_TOP = ("PROJECT", "SCENE", "TAKE", "TAPE", "NOTE")
# who is believed first: what people filled in for a library, then what a recorder wrote
_ORDER = ("USER", "ASWG", "", "BEXT")


class _Enough(Exception):
    """Nothing behind this is read."""


class _Reader:
    def __init__(self) -> None:
        self.fields: dict[str, list[tuple[str, str]]] = {block: [] for block in _ORDER}
        self.tracks: list[str] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._length = self._elements = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if len(self._path) >= _DEPTH or self._elements > _ELEMENTS:
            raise _Enough
        self._path.append(name)
        self._text.clear()
        self._length = 0

    def data(self, text: str) -> None:
        if self._length < _TEXT:
            self._text.append(text[: _TEXT - self._length])
            self._length += len(text)

    def end(self, name: str) -> None:
        text = "".join(self._text).strip()
        match [part.upper() for part in self._path[1:]]:  # the first is BWFXML, by whatever name
            case [field] if field in _TOP:
                self.fields[""].append((field, text))
            case [block, field] if block in self.fields:
                self.fields[block].append((field, text))
            case ["TRACK_LIST", "TRACK", "NAME"] if text:
                self.tracks.append(text)
        self._path.pop()
        self._text.clear()
        self._length = 0

    def refuse(self, *_: object) -> None:
        raise _Enough


def read_ixml(raw: bytes) -> list[tuple[str, object]]:
    """(name as iXML has it, text), in the order of belief; what stands before the first fault. Never raises."""
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = reader.refuse
    with contextlib.suppress(_Enough, expat.ExpatError):
        parser.Parse(read_text(raw).lstrip(), True)  # as text: what encoding it claims does not matter
    found: list[tuple[str, object]] = [field for block in _ORDER for field in reader.fields[block] if field[1]]
    if reader.tracks:
        found.append(("tracks", reader.tracks))
    return found
