"""Reads the metadata in an audio file, under one set of names for all formats (app.audio.tag_schema).

WAV and AIFF chunks are read by app.audio.wav_chunks, other tags by FFmpeg: ID3, Vorbis comments, MP4, ASF, Matroska.
Files are untrusted: unreadable tags are skipped, nothing is raised, pictures are ignored, and bytes, names and
characters are bounded. FFmpeg is native code, so call this in the isolated worker.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from app.audio import ucs
from app.audio.tag_schema import Tags, Value, read_text
from app.audio.wav_chunks import chunk_order, read_chunks

MAX_READ = 16 << 20  # bytes that FFmpeg may read; the file appears to end there
_PROBE = {"probesize": "65536", "analyzeduration": "0", "usetoc": "0"}  # headers are enough


def read_tags(file: BinaryIO) -> dict[str, Value]:
    """Returns the tags in a seekable audio file, ready for JSON. Moves its position. Never raises."""
    tags = Tags()
    try:
        file.seek(0)
        order = chunk_order(file.read(12))
        by_ffmpeg = True
        if order is not None:
            fields, by_ffmpeg = read_chunks(file, order)
            tags.put_all(fields)
        if by_ffmpeg:
            tags.put_all(_read_with_ffmpeg(file))
    except Exception:  # keep what was read before the error
        pass
    _complete(tags)
    return tags.values


def describe(file: BinaryIO, filename: str) -> dict[str, Any]:
    """Returns the metadata of an audio file: of its name, if it follows UCS, before its tags. Never raises."""
    return merge_metadata(read_tags(file), filename, {})


def merge_metadata(embedded: dict[str, Value], filename: str, given: dict[str, Any]) -> dict[str, Any]:
    """Merges a clip's metadata key by key: `given` by the caller, then the UCS file name, then the tags in the file.

    A given key is kept even if it is null. A category in the name replaces all categories in the file, since they
    belong together.
    """
    named = ucs.parse(filename)
    if named is None:
        return {**embedded, **given}
    kept = {name: value for name, value in embedded.items() if name not in ("category", "subcategory", "cat_id")}
    return {**kept, **named.tags(), **given}


def _complete(tags: Tags) -> None:
    """Adds the category of a CatID without one."""
    category = ucs.categories().get(str(tags.values.get("cat_id", "")))
    if category is not None:
        tags.put("category", category.category)
        tags.put("subcategory", category.subcategory)


class _Bounded(io.RawIOBase):
    """A file that ends once MAX_READ bytes have been read, at any position."""

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


def _read_with_ffmpeg(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """(FFmpeg's name, value): of the file, then of its first audio track, which has the comments of Ogg files."""
    import av.container  # here, like DEMUXERS: the server merges metadata without loading the decoders

    from app.audio.decode import DEMUXERS

    file.seek(0)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none", **_PROBE}
    # keep bytes that are not UTF-8: ID3v1 and INFO don't declare an encoding
    with av.open(_Bounded(file), metadata_errors="surrogateescape", options=options) as container:
        assert isinstance(container, av.container.InputContainer)
        yield from _decode_values(container.metadata)
        if container.streams.audio:
            yield from _decode_values(container.streams.audio[0].metadata)


def _decode_values(metadata: dict[str, str]) -> Iterator[tuple[str, object]]:
    for name, value in metadata.items():
        yield name, read_text(value.encode("utf-8", "surrogateescape"))
