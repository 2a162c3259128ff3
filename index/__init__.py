"""The library of clips: records, vectors and audio files on disk, and search over them.

Knows NumPy, SQLite and FAISS; no torch, no HTTP, no model. `SqliteLibrary` is the only public door.
"""

from index.records import (
    AudioMissing,
    CheckpointMismatch,
    Clip,
    ClipNotFound,
    Filter,
    GpuMissing,
    Hit,
    InvalidCursor,
    InvalidFilter,
    InvalidMetadata,
    LibraryError,
    LibraryInUse,
    LibraryUnavailable,
    NewClip,
    StorageFull,
)
from index.sqlite.library import SqliteLibrary

__all__ = [
    "AudioMissing",
    "SqliteLibrary",
    "LibraryError",
    "CheckpointMismatch",
    "Clip",
    "ClipNotFound",
    "Filter",
    "Hit",
    "InvalidCursor",
    "InvalidFilter",
    "InvalidMetadata",
    "GpuMissing",
    "LibraryInUse",
    "LibraryUnavailable",
    "NewClip",
    "StorageFull",
]
