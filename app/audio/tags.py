"""What a sound file says about itself, under one set of names whatever its format (app.audio.tag_schema, docs/library.md).

WAV and AIFF chunks are read by app.audio.wav_chunks, all other tags by FFmpeg: ID3, Vorbis comments, MP4, ASF, Matroska. Files
are hostile: what cannot be read is left out, nothing is raised, pictures are not looked at, and bytes, names and
characters are bounded. FFmpeg is C code all the same: call this where sound is decoded too, in the isolated worker.
Blocking; knows no HTTP and no library.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from app.audio import ucs
from app.audio.tag_schema import Tags, Value, read_text
from app.audio.wav_chunks import chunk_order, read_chunks

MAX_READ = 16 << 20  # bytes that FFmpeg may read; beyond, a file seems to end
_PROBE = {"probesize": "65536", "analyzeduration": "0", "usetoc": "0"}  # headers are enough


def read_tags(file: BinaryIO) -> dict[str, Value]:
    """The tags in a seekable sound file, JSON-ready; empty if there are none. Moves its position. Never raises."""
    tags = Tags()
    try:
        file.seek(0)
        order = chunk_order(file.read(12))
        by_ffmpeg = True
        if order is not None:
            told, by_ffmpeg = read_chunks(file, order)
            tags.put_all(told)
        if by_ffmpeg:
            tags.put_all(_by_ffmpeg(file))
    except Exception:  # whatever a file makes a reader do, what was read before stays
        pass
    _complete(tags)
    return tags.values


def describe(file: BinaryIO, filename: str) -> dict[str, Any]:
    """What a sound file and its name say: the name, where it follows UCS, before the tags within. Never raises."""
    return joined(read_tags(file), filename, {})


def joined(embedded: dict[str, Value], filename: str, given: dict[str, Any]) -> dict[str, Any]:
    """A clip's metadata: what its owner gave, key by key; else what its name says by UCS; else the tags in the file.

    A given key stays as it is, null too. A name's category takes all of the file's categories with it: they are one
    statement.
    """
    named = ucs.parse(filename)
    if named is None:
        return {**embedded, **given}
    kept = {name: value for name, value in embedded.items() if name not in ("category", "subcategory", "cat_id")}
    return {**kept, **named.tags(), **given}


def _complete(tags: Tags) -> None:
    """The category of a CatID that stands alone."""
    category = ucs.categories().get(str(tags.values.get("cat_id", "")))
    if category is not None:
        tags.put("category", category.category)
        tags.put("subcategory", category.subcategory)


class _Bounded(io.RawIOBase):
    """A file that ends after MAX_READ bytes were read of it, wherever."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece


def _by_ffmpeg(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """(name as FFmpeg has it, value): of the file, then of its first track of sound, where Ogg has its comments."""
    import av.container  # here, as DEMUXERS: the server joins tags that workers read, and loads no decoder

    from app.audio.decode import DEMUXERS

    file.seek(0)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none", **_PROBE}
    # bytes that are no UTF-8 come through as they are: ID3v1 and INFO do not say what they are written in
    with av.open(_Bounded(file), metadata_errors="surrogateescape", options=options) as container:
        assert isinstance(container, av.container.InputContainer)
        yield from _told(container.metadata)
        if container.streams.audio:
            yield from _told(container.streams.audio[0].metadata)


def _told(metadata: dict[str, str]) -> Iterator[tuple[str, object]]:
    for name, value in metadata.items():
        yield name, read_text(value.encode("utf-8", "surrogateescape"))
