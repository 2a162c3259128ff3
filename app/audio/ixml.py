"""iXML, the XML that field recorders and library tools put into WAV files: what of it describes the sound.

Reads the fields of the iXML specification (project, scene, take, tape, note, tracks, copies of the BWF fields), the
ASWG extension, and the USER block as Soundminer, BaseHead and Reaper's UCS tools fill it (CatID, FXName, Keywords, …).
Hostile XML is read up to where it breaks: a document type ends the reading, so there are no entities to expand.
"""

from __future__ import annotations

import contextlib
from xml.parsers import expat

from app.audio.tag_schema import read_text

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
