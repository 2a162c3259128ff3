"""An open audio file, its tracks, and what its decoding noticed.

Both decoders, libsndfile (app.audio.sndfile) and FFmpeg (app.audio.ffmpeg), return an `AudioFile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.audio.errors import TrackMissing

MAX_TRACK = 64  # characters of a track's name in a request
_MAX_TITLE = 100  # characters of a track's title
_MAX_DETAIL = 300  # characters of a note

# ISO 639-1 and 639-2/B codes by the 639-2/T code that stands for a language here
_CODES = """ara ar|ben bn|bul bg|cat ca|ces cs cze|cym cy wel|dan da|deu de ger|ell el gre|eng en|est et|eus eu baq
fas fa per|fin fi|fra fr fre|gle ga|glg gl|heb he|hin hi|hrv hr|hun hu|hye hy arm|ind id|isl is ice|ita it|jpn ja
kat ka geo|kaz kk|kor ko|lav lv|lit lt|mkd mk mac|mon mn|msa ms may|mya my bur|nld nl dut|nob nb|nor no|pol pl|por pt
ron ro rum|rus ru|slk sk slo|slv sl|spa es|sqi sq alb|srp sr|swa sw|swe sv|tam ta|tel te|tha th|tur tr|ukr uk|urd ur
vie vi|zho zh chi"""
_LANGUAGES = {code: codes.split()[0] for codes in _CODES.replace("\n", "|").split("|") for code in codes.split()}

# What decoding notices about a file that can be used, by code; sent with answers and stored with clips
NOTES = (
    "channels-cancel",
    "timestamps-jump",
    "sound-starts-late",
    "packets-damaged",
    "link-breaks-off",
    "more-follows",
    "samples-rescaled",
    "very-quiet",
    "silent",
)


@dataclass(frozen=True)
class Track:
    """One of a file's `count` audio tracks, by its number among them from 0. `language`, `title`: as tagged, or None.

    default: the file marks it as the one to play.
    """

    index: int
    count: int
    language: str | None = None
    title: str | None = None
    default: bool = False


@dataclass(frozen=True)
class Note:
    """Something noticed about a file: one of NOTES, and a sentence without its full stop."""

    code: str
    detail: str


@dataclass(frozen=True)
class AudioFile:
    """An open file at its own sample rate (Hz).

    blocks: (frames, channels) float32; iterating raises DECODING_ERRORS if the file is damaged.
    check_end: total number of frames read → what is missing from the file, or None.
    notes: what was noticed; complete after the last block. scale: factor that brings samples to full scale ±1.
    """

    sample_rate: int
    channels: int
    blocks: Iterator[np.ndarray]
    check_end: Callable[[int], str | None]
    close: Callable[[], None]
    track: Track = Track(0, 1)
    notes: list[Note] = field(default_factory=list)
    scale: float = 1.0


def choose_track(tracks: Sequence[Track], wanted: str | None, filename: str) -> Track:
    """The track that a caller wants by number or language; without a wish the default one. Raises TrackMissing.

    Without a mark in the file the first track is the default. A language matches in any of its ISO 639 codes. A file's
    only track is taken for any language if it does not say its own.
    """
    if wanted is None or not (wish := wanted.strip()):
        return next((track for track in tracks if track.default), tracks[0])
    if wish.isascii() and wish.isdigit():
        found = [track for track in tracks if track.index == int(wish)]
    else:
        found = [track for track in tracks if track.language and language(track.language) == language(wish)]
        if not found and len(tracks) == 1 and tracks[0].language is None:
            found = list(tracks)
    if not found:
        there = ", ".join(f"{t.index} ({t.language})" if t.language else str(t.index) for t in tracks[:20])
        raise TrackMissing(filename, f"it has no audio track {wish[:MAX_TRACK]!r}; there are {there}.")
    return next((track for track in found if track.default), found[0])


def language(code: str) -> str:
    """One code for each language: "de", "ger", "de-AT" and "deu" are "deu"; unknown codes in lower case."""
    first = code.strip().lower().replace("_", "-").split("-")[0]
    return _LANGUAGES.get(first, first)


def tagged(metadata: Mapping[str, str], name: str) -> str | None:
    """A track's tag on one line, or None; a language that is "undetermined" is none."""
    for key, value in metadata.items():
        if key.lower() == name:
            text = " ".join("".join(c if c.isprintable() else " " for c in value).split())[:_MAX_TITLE]
            return None if not text or (name == "language" and text.lower() in ("und", "unk")) else text
    return None


def read_track(values: object) -> Track:
    """A track from an untrusted process; what is not valid is left out."""
    if not isinstance(values, Mapping):
        return Track(0, 1)
    numbers = [values.get("index"), values.get("count")]
    index, count = (n if isinstance(n, int) and 0 <= n < 10_000 else 0 for n in numbers)
    texts = {name: values[name] for name in ("language", "title") if isinstance(values.get(name), str)}
    return Track(
        index,
        max(count, index + 1),
        tagged(texts, "language"),
        tagged(texts, "title"),
        values.get("default") is True,
    )


def read_notes(values: object) -> list[Note]:
    """Notes from an untrusted process: known codes, with a line of text each."""
    notes = []
    for value in values[: len(NOTES)] if isinstance(values, list) else []:
        if isinstance(value, Mapping) and value.get("code") in NOTES and isinstance(value.get("detail"), str):
            notes.append(Note(str(value["code"]), "".join(c for c in value["detail"][:_MAX_DETAIL] if c.isprintable())))
    return notes


def describe_track(track: Track) -> dict[str, object] | None:
    """The track as plain JSON types; None for a file's only one."""
    return {"index": track.index, "language": track.language, "title": track.title} if track.count > 1 else None


# What a clip's metadata says about its audio: which track, if its file has several, and the codes of notes


def audio_metadata(track: Track, notes: Sequence[Note]) -> dict[str, object]:
    """The metadata of a clip that was read from `track`, with `notes`."""
    values: dict[str, object] = {}
    if track.count > 1:
        values["audio_track"] = track.index
        if track.language:
            values["audio_language"] = track.language
    if notes:
        values["audio_notes"] = list(dict.fromkeys(note.code for note in notes))
    return values


def track_of(metadata: Mapping[str, object]) -> str | None:
    """The track that a clip was read from, as choose_track takes it; None if its file has only one."""
    number = metadata.get("audio_track")
    return str(number) if isinstance(number, int) and number >= 0 else None


def clip_track(metadata: Mapping[str, object]) -> Track:
    """The track of a clip; how many others its file has is not stored."""
    number, code = track_of(metadata), metadata.get("audio_language")
    if number is None:
        return Track(0, 1)
    return Track(int(number), int(number) + 2, code if isinstance(code, str) else None)


def clip_notes(metadata: Mapping[str, object]) -> list[Note]:
    """The notes of a clip, by their codes."""
    codes = metadata.get("audio_notes")
    return [Note(code, "") for code in codes if code in NOTES] if isinstance(codes, list) else []
