"""What the library holds and what can go wrong: clips, hits, errors.

Plain values and the rules on them (which metadata is allowed, how a patch merges). Knows no
database, no file and no vector index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from index.quantization import FrameCodes

Metadata = dict[str, Any]  # a JSON object
Filter = Mapping[str, Any]  # see index.filters
Fact = tuple[str, str, str | int | float]  # (key, kind, value): one thing a filter can ask for

_INT64 = 2**63


class LibraryError(Exception):
    """Anything the library cannot do; the message is fit to be read by a caller."""


class ClipNotFound(LibraryError):
    """No clip has this id."""

    def __init__(self, clip_id: str) -> None:
        super().__init__(f"no clip has the id {clip_id!r}")
        self.clip_id = clip_id


class AudioMissing(LibraryError):
    """The record is there, its audio file is not. Adding the same audio again puts it back."""

    def __init__(self, clip_id: str) -> None:
        super().__init__(f"the audio file of clip {clip_id} is missing; add the same file again to restore it")
        self.clip_id = clip_id


class CheckpointMismatch(LibraryError):
    """The library's vectors were made by another checkpoint, so comparing them to this one's means nothing."""

    def __init__(
        self, *, library: str, library_dim: int, opened_with: str, dim: int, clips: int, missing: int | None = None
    ) -> None:
        """missing: how many clips a reindex has not come to; None if there was none with this checkpoint."""
        if missing is None:
            way = "embed them again with `finelap reindex`"
        else:
            way = f"run `finelap reindex` once more, which has not embedded {missing} of them again yet"
        super().__init__(
            f"the library's {clips} clips were embedded by checkpoint {library!r} ({library_dim} dimensions), and it "
            f"was opened with {opened_with!r} ({dim}); {way}, open it with its own checkpoint, or use another data "
            "folder"
        )
        self.library, self.opened_with, self.missing = library, opened_with, missing


class InvalidFilter(LibraryError):
    """The filter asks for something that a filter cannot ask."""


class InvalidMetadata(LibraryError):
    """The metadata or file name is not something JSON and UTF-8 can hold."""


class InvalidCursor(LibraryError):
    """The cursor was not made by `SqliteLibrary.list`."""


class StorageFull(LibraryError):
    """There is no room left on the disk; nothing of the refused change was kept."""


class LibraryUnavailable(LibraryError):
    """What keeps the library does not answer, or not as it should: a server, a disk, a lock. It may again."""


class LibraryDamaged(LibraryUnavailable):
    """The database is not whole: a disk, or something that writes into it, has changed it."""


class LibraryInUse(LibraryError):
    """Another catalog, in this process or another, has the library open."""


class GpuMissing(LibraryError):
    """The vector index was asked to use a GPU, and FAISS has none; the message says what is missing."""


@dataclass(frozen=True)
class Clip:
    """One audio item of the library."""

    id: str  # URL-safe, never reused
    filename: str  # as uploaded
    sha256: str  # of the uploaded bytes, hex
    duration: float  # seconds
    sample_rate: int  # Hz, of the uploaded file
    channels: int
    created: str  # RFC 3339, UTC
    metadata: Metadata


@dataclass(frozen=True)
class NewClip:
    """A clip about to be added, with everything the library keeps of it."""

    filename: str
    sha256: str  # of `audio`, hex
    duration: float  # seconds
    sample_rate: int  # Hz
    channels: int
    metadata: Metadata
    embedding: np.ndarray  # (dim,) float32, unit length
    frames: np.ndarray | FrameCodes  # (frames, dim) float32, unit length, or those encoded
    frame_hop: float  # seconds
    audio: bytes | BinaryIO  # the uploaded file as it came; a file is read from its start


@dataclass(frozen=True)
class Hit:
    """A clip that answers a query."""

    clip: Clip
    similarity: float  # inner product of unit vectors: cosine


def check_text(value: str, what: str) -> str:
    """The value itself; raises InvalidMetadata when it is not valid Unicode (a lone surrogate)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidMetadata(f"{what} is not valid Unicode: {value!r}") from error
    return value


def dump_metadata(metadata: object) -> str:
    """A metadata object as JSON text; raises InvalidMetadata for anything but a JSON object."""
    if not isinstance(metadata, dict):
        raise InvalidMetadata(f"metadata must be a JSON object, not {type(metadata).__name__}")
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMetadata(f"metadata cannot be written as JSON: {error}") from error
    if any(not isinstance(key, str) for key in metadata):
        raise InvalidMetadata("metadata keys must be strings")
    return check_text(text, "metadata")


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396): null removes a key, objects merge, anything else replaces. Changes nothing given."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def scalar_fact(key: str, value: object) -> Fact | None:
    """How a JSON string, number or boolean is compared, or None for anything else.

    A string equals only a string, a boolean only a boolean, 1 equals 1.0. Integers beyond 64 bits compare as floats.
    """
    if isinstance(value, str):
        return key, "text", value
    if isinstance(value, bool):
        return key, "boolean", int(value)
    if isinstance(value, int):
        if -_INT64 <= value < _INT64:
            return key, "number", value
        try:
            return key, "number", float(value)
        except OverflowError:
            return None
    if isinstance(value, float) and math.isfinite(value):
        return key, "number", value
    return None


def metadata_facts(metadata: Metadata) -> Iterator[Fact]:
    """What filters can find a clip by: each top-level scalar, and each scalar of a top-level list."""
    for key, value in metadata.items():
        for item in value if isinstance(value, list) else [value]:
            fact = scalar_fact(key, item)
            if fact is not None:
                yield fact
