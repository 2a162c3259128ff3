"""The metadata fields of a clip: their names, the aliases used by file formats, and the rules for their values."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Mapping

Value = str | int | float | list[str]

MAX_TEXT = 1_000  # characters per value
MAX_LONG = 4_000  # characters of descriptions, comments and the like
MAX_ITEMS = 64  # items in a list, of MAX_ITEM characters each
MAX_ITEM = 100
MAX_TOTAL = 16_000  # characters of all values of a file

_LONG = ("description", "comment", "note", "coding_history")
_LISTS = ("tags", "tracks")

# name: its aliases in file formats; compared without case, spaces and punctuation
_ALIASES = {
    "title": "tracktitle inam songtitle",
    "artist": "author auth iart trackartist",
    "album": "iprd",
    "description": "bwfdescription synopsis podcastdesc descr",
    "comment": "comments icmt anno annotation usercomments",
    "note": "notes",
    "genre": "ignr tcon",
    "date": "year trackyear icrd originationdate creationdate shootdate bwforiginationdate",
    "time": "originationtime bwforiginationtime",
    "category": "ucscategory",
    "subcategory": "ucssubcategory",
    "cat_id": "ucscatid",
    "fx_name": "ucsfxname",
    "user_category": "",
    "vendor_category": "",
    "user_data": "",
    "creator": "creatorid shortid",
    "source": "sourceid show",
    "library": "",
    "manufacturer": "",
    "designer": "",
    "engineer": "ieng recengineer recordist soundmixername",
    "publisher": "musicpublisher",
    "composer": "",
    "microphone": "mictype",
    "mic_perspective": "",
    "recording_type": "rectype",
    "medium": "imed recmedium",
    "location": "recordingloc reclocation iarl",
    "tags": "keywords keyword ikey tag",
    "bpm": "tbpm tmpo tempo wmbeatsperminute",
    "key": "tkey initialkey inkey wminitialkey",
    "language": "ilng tlan wmlanguage",
    "copyright": "icop rights tcop",
    "license": "licence",
    "url": "weburl website woaf purl wxxx iurl",
    "isrc": "tsrc isrcid wmisrc",
    "originator": "bwforiginator",
    "originator_reference": "bwforiginatorreference",
    "time_reference": "",
    "umid": "bwfumid",
    "coding_history": "bwfcodinghistory",
    "project": "",
    "scene": "",
    "take": "",
    "tape": "",
    "tracks": "",
}
NAMES = tuple(_ALIASES)


def _normalise(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


_CANONICAL = {_normalise(alias): name for name, aliases in _ALIASES.items() for alias in (name, *aliases.split())}
_DATE = re.compile(r"(\d{4})(?:[-/:._ ](\d{1,2})(?:[-/:._ ](\d{1,2}))?)?(?!\d)")
_TIME = re.compile(r"(\d{2})[-:._ ](\d{2})[-:._ ](\d{2})")
_SEPARATORS = re.compile(r"[;,\n\x00]")


def canonical_name(alias: str) -> str | None:
    """Returns the field that a format calls `alias`; None for fields that are not stored."""
    return _CANONICAL.get(_normalise(alias[:100]))


def read_text(raw: bytes) -> str:
    """Decodes text of unknown encoding, up to its first NUL.

    Tried in this order: UTF-8 or UTF-16 with a byte order mark, UTF-16 without one (recognised by its zero bytes),
    UTF-8, and Windows-1252, which decodes almost any bytes.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw[: len(raw) // 2 * 2].decode("utf-16", "replace")
    elif encoding := _unmarked_utf16(raw):
        text = raw[: len(raw) // 2 * 2].decode(encoding, "replace")
    else:
        narrow = raw.removeprefix(codecs.BOM_UTF8).split(b"\0", 1)[0]
        try:
            text = narrow.decode("utf-8")
        except UnicodeDecodeError:
            text = narrow.decode("cp1252", "replace")
    return text.split("\0", 1)[0]


def _unmarked_utf16(raw: bytes) -> str | None:
    """Recognises Latin text by its first characters: one of every two bytes is zero, the other is not."""
    head = raw[:8]
    if len(head) < 4 or len(head) % 2:
        return None
    if not any(head[1::2]) and all(head[:4:2]):
        return "utf-16-le"
    if not any(head[::2]) and all(head[1:4:2]):
        return "utf-16-be"
    return None


class Tags:
    """Collects the tags of a file. The first value of a field wins."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self._room = MAX_TOTAL

    def put(self, alias: str, value: object) -> None:
        """Stores a value under its canonical name, if the field is known and the value valid."""
        name = canonical_name(alias)
        if name is None or name in self.values:
            return
        clean = _validate(name, value)
        if clean is None or clean == "" or clean == []:
            return
        size = len(name) + (sum(map(len, clean)) if isinstance(clean, list) else len(str(clean)))
        if size <= self._room:
            self._room -= size
            self.values[name] = clean

    def put_all(self, values: Iterable[tuple[str, object]]) -> None:
        """Stores (alias, value) pairs."""
        for alias, value in values:
            self.put(alias, value)


def checked(values: object) -> dict[str, Value]:
    """Validates tags from an untrusted process; invalid ones are dropped."""
    tags = Tags()
    if isinstance(values, Mapping):
        for name in NAMES:
            if name in values:
                tags.put(name, values[name])
    return tags.values


def _validate(name: str, value: object) -> Value | None:
    if name in _LISTS:
        parts = value if isinstance(value, list) else _SEPARATORS.split(_clean(value, MAX_LONG))
        items = [_clean(part, MAX_ITEM) for part in parts[: 4 * MAX_ITEMS]]
        return list(dict.fromkeys(item for item in items if item))[:MAX_ITEMS]
    text = _clean(value, MAX_LONG if name in _LONG else MAX_TEXT)
    match name:
        case "date":
            return _date(text)
        case "time":
            return _time(text)
        case "bpm":
            return _bpm(text)
        case "time_reference":
            return int(text) if text.isascii() and text.isdigit() and len(text) < 19 and int(text) else None
        case "umid":
            digits = text.lower().removeprefix("0x")
            return digits if re.fullmatch(r"[0-9a-f]{64}(?:[0-9a-f]{64})?", digits) and digits.strip("0") else None
        case "language":
            return None if text.lower() == "und" else text  # "undetermined", which MP4 cannot leave out
        case "url":
            return text if re.match(r"(?:https?://|www\.)\S+\Z", text, re.IGNORECASE) else None
    return text


def _clean(value: object, limit: int) -> str:
    """The value as NFC text without control characters, of at most `limit` characters."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    text = unicodedata.normalize("NFC", str(value)[: 2 * limit].replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return text.strip()[:limit].rstrip()


def _date(text: str) -> str | None:
    """YYYY, YYYY-MM or YYYY-MM-DD, up to the last valid part."""
    if len(text) == 8 and text.isascii() and text.isdigit():
        text = f"{text[:4]}-{text[4:6]}-{text[6:]}"
    found = _DATE.match(text)
    if found is None or not 1000 <= int(found[1]) < 3000:
        return None
    if found[2] is None or not 1 <= int(found[2]) <= 12:
        return found[1]
    month = f"{found[1]}-{int(found[2]):02}"
    return month if found[3] is None or not 1 <= int(found[3]) <= 31 else f"{month}-{int(found[3]):02}"


def _time(text: str) -> str | None:
    found = _TIME.match(text)
    if found is None or int(found[1]) > 23 or int(found[2]) > 59 or int(found[3]) > 60:
        return None
    return ":".join(found.groups())


def _bpm(text: str) -> float | None:
    try:
        bpm = float(text)
    except ValueError:
        return None
    return round(bpm, 3) if 1 <= bpm < 1000 else None  # NaN is neither
