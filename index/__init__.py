"""The library of clips: records, vectors and audio files on disk, and search over them.

Knows NumPy, SQLite and FAISS; no torch, no HTTP, no model. `Catalog` is the only public door.
"""

from index.catalog import Catalog
from index.records import (
    AudioMissing,
    CatalogError,
    CheckpointMismatch,
    Clip,
    ClipNotFound,
    Filter,
    GpuMissing,
    Hit,
    InvalidCursor,
    InvalidFilter,
    InvalidMetadata,
    LibraryInUse,
    LibraryUnavailable,
    NewClip,
    StorageFull,
)

__all__ = [
    "AudioMissing",
    "Catalog",
    "CatalogError",
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
