"""Clips, search hits and errors of the library, and the rules for metadata."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from index.quantization import FrameCodes

Metadata = dict[str, Any]  # a JSON object
Filter = Mapping[str, Any]  # see index.filters
Fact = tuple[str, str, str | int | float]  # (key, kind, value): a value that a filter can match

_INT64 = 2**63


class LibraryError(Exception):
    """Base class of the library's errors. Messages are fit for API responses."""


class ClipNotFound(LibraryError):
    """No clip has this id."""

    def __init__(self, clip_id: str) -> None:
        super().__init__(f"no clip has the id {clip_id!r}")
        self.clip_id = clip_id


class AudioMissing(LibraryError):
    """The clip exists, but its audio file does not. Adding the same audio again restores it."""

    def __init__(self, clip_id: str) -> None:
        super().__init__(f"the audio file of clip {clip_id} is missing; add the same file again to restore it")
        self.clip_id = clip_id


class CheckpointMismatch(LibraryError):
    """Another checkpoint made the library's vectors, so they cannot be compared with this one's."""

    def __init__(
        self, *, library: str, library_dim: int, opened_with: str, dim: int, clips: int, missing: int | None = None
    ) -> None:
        """missing: number of clips that `finelap reindex` has not embedded yet; None if it was never run."""
        if missing is None:
            remedy = "embed them again with `finelap reindex`"
        else:
            remedy = f"run `finelap reindex` again to embed the remaining {missing}"
        super().__init__(
            f"the library's {clips} clips were embedded by checkpoint {library!r} ({library_dim} dimensions), but the "
            f"library was opened with {opened_with!r} ({dim}): {remedy}, use the library's own checkpoint, or use "
            "another data folder"
        )
        self.library, self.opened_with, self.missing = library, opened_with, missing


class InvalidFilter(LibraryError):
    """The filter is malformed or uses an unsupported value."""


class InvalidMetadata(LibraryError):
    """The metadata or file name cannot be represented in JSON and UTF-8."""


class InvalidCursor(LibraryError):
    """The cursor does not come from `Library.list`, or from another sort."""


class StorageFull(LibraryError):
    """No space is left on the disk; the refused change left nothing behind."""


class LibraryUnavailable(LibraryError):
    """A server, disk or lock that the library needs does not respond. Retrying may succeed."""


class LibraryDamaged(LibraryUnavailable):
    """The database is corrupted."""


class LibraryInUse(LibraryError):
    """The library is open already, in this process or another."""


class GpuMissing(LibraryError):
    """A GPU was requested, but FAISS has none; the message says what is missing."""


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
    """A clip to be added, with everything that the library stores of it."""

    filename: str
    sha256: str  # of `audio`, hex
    duration: float  # seconds
    sample_rate: int  # Hz
    channels: int
    metadata: Metadata
    embedding: np.ndarray  # (dim,) float32, unit length
    frames: np.ndarray | FrameCodes  # (frames, dim) float32, unit length, or quantised
    frame_hop: float  # seconds
    audio: bytes | BinaryIO  # the uploaded file; a file object is read from its start
    reference: Path | None = None  # where the file is, if it stays there and is not copied; an absolute path


@dataclass(frozen=True)
class Hit:
    """A search result."""

    clip: Clip
    similarity: float  # inner product of unit vectors: cosine


def check_text(value: str, what: str) -> str:
    """Returns the value. Raises InvalidMetadata if it is not valid Unicode (a lone surrogate)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidMetadata(f"{what} is not valid Unicode: {value!r}") from error
    return value


def nfc(text: str) -> str:
    """The text in Unicode's normalisation form C."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def dump_metadata(metadata: object) -> str:
    """Serialises metadata. Raises InvalidMetadata for anything but a JSON object."""
    if not isinstance(metadata, dict):
        raise InvalidMetadata(f"metadata must be a JSON object, not {type(metadata).__name__}")
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMetadata(f"metadata cannot be serialised as JSON: {error}") from error
    if any(not isinstance(key, str) for key in metadata):
        raise InvalidMetadata("metadata keys must be strings")
    return check_text(text, "metadata")


def merge_patch(target: Any, patch: Any) -> Any:
    """Applies a JSON merge patch (RFC 7396) and returns the result; its arguments are not modified.

    Null removes a key, objects are merged, anything else replaces the value.
    """
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
    """Returns the fact for a JSON string, number or boolean; None for anything else.

    Strings equal only strings, booleans only booleans, and 1 equals 1.0. Integers beyond 64 bits compare as floats.
    Texts and keys are in NFC, so that "é" equals "é" however it was typed.
    """
    key = nfc(key)
    if isinstance(value, str):
        return key, "text", nfc(value)
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
    """Yields what filters can match: each top-level scalar, and each scalar in a top-level list."""
    for key, value in metadata.items():
        for item in value if isinstance(value, list) else [value]:
            fact = scalar_fact(key, item)
            if fact is not None:
                yield fact
