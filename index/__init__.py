"""The library of clips: records, vectors and audio files in a store, and search over them.

`SqliteLibrary` (SQLite and FAISS, one process) and `MilvusLibrary` (Milvus, many processes) implement `Library`. This
module is the public interface: everything that `app` may use is exported here and imported on first use, so that a
command that needs only an error class does not load SQLite's or Milvus' modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.concepts import (
        MAX_EXAMPLES,
        ClipVectors,
        Concept,
        ConceptExample,
        ConceptExists,
        ConceptNotFound,
        ConceptStore,
        ConceptUntaught,
        ContradictoryExamples,
        ExampleNotFound,
        ExampleSound,
        NewExample,
        NewSound,
        TooManyExamples,
        fit_fingerprint,
    )
    from index.duplicates import near_duplicates
    from index.edits import ClipEdit, Facet
    from index.files import in_use
    from index.jobs import (
        EVENT,
        UNFINISHED,
        Job,
        JobClip,
        JobNotFound,
        Jobs,
        JobsUnsupported,
        JobWork,
        NewJob,
        TooManyJobs,
    )
    from index.library import Library
    from index.milvus.client import parse_milvus_url
    from index.milvus.library import MilvusLibrary
    from index.quantization import FrameCodes, encode_frames
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
        LibraryDamaged,
        LibraryError,
        LibraryInUse,
        LibraryUnavailable,
        NewClip,
        StorageFull,
    )
    from index.segments import LONG_SECONDS, cut_segments
    from index.sqlite.backup import BackupResult, back_up, restore
    from index.sqlite.dataset import DatasetReport, export_library, finish_parts, import_library, write_part
    from index.sqlite.library import SqliteLibrary
    from index.sqlite.reader import ClipFile, LibraryReader, exclusive_lock
    from index.sqlite.reindex import SideDatabase, remove_side, side_path
    from index.text import COLLECTIONS, STOP_WORDS, stem_words, text_columns, words_of

__all__ = [
    "AudioMissing",
    "BackupResult",
    "CheckpointMismatch",
    "Clip",
    "COLLECTIONS",
    "ClipEdit",
    "ClipFile",
    "Facet",
    "ClipNotFound",
    "DatasetReport",
    "EVENT",
    "Concept",
    "ConceptExists",
    "ConceptNotFound",
    "ConceptStore",
    "ConceptUntaught",
    "ContradictoryExamples",
    "ConceptExample",
    "ExampleNotFound",
    "Filter",
    "FrameCodes",
    "GpuMissing",
    "Hit",
    "InvalidCursor",
    "InvalidFilter",
    "InvalidMetadata",
    "LONG_SECONDS",
    "Job",
    "JobClip",
    "JobNotFound",
    "JobWork",
    "Jobs",
    "JobsUnsupported",
    "Library",
    "LibraryDamaged",
    "LibraryError",
    "LibraryInUse",
    "LibraryReader",
    "LibraryUnavailable",
    "MAX_EXAMPLES",
    "MilvusLibrary",
    "NewClip",
    "NewJob",
    "NewExample",
    "NewSound",
    "STOP_WORDS",
    "ClipVectors",
    "SideDatabase",
    "ExampleSound",
    "SqliteLibrary",
    "StorageFull",
    "TooManyJobs",
    "UNFINISHED",
    "TooManyExamples",
    "back_up",
    "cut_segments",
    "encode_frames",
    "exclusive_lock",
    "export_library",
    "finish_parts",
    "import_library",
    "fit_fingerprint",
    "in_use",
    "near_duplicates",
    "parse_milvus_url",
    "remove_side",
    "restore",
    "side_path",
    "stem_words",
    "text_columns",
    "words_of",
    "write_part",
]

_MODULES = {
    "index.concepts": (
        "MAX_EXAMPLES",
        "Concept",
        "ConceptExists",
        "ConceptNotFound",
        "ConceptStore",
        "ConceptUntaught",
        "ContradictoryExamples",
        "ConceptExample",
        "ExampleNotFound",
        "NewExample",
        "NewSound",
        "ClipVectors",
        "ExampleSound",
        "TooManyExamples",
        "fit_fingerprint",
    ),
    "index.duplicates": ("near_duplicates",),
    "index.jobs": (
        "EVENT",
        "Job",
        "JobClip",
        "JobNotFound",
        "JobWork",
        "Jobs",
        "JobsUnsupported",
        "NewJob",
        "TooManyJobs",
        "UNFINISHED",
    ),
    "index.edits": ("ClipEdit", "Facet"),
    "index.files": ("in_use",),
    "index.library": ("Library",),
    "index.milvus.client": ("parse_milvus_url",),
    "index.milvus.library": ("MilvusLibrary",),
    "index.quantization": ("FrameCodes", "encode_frames"),
    "index.segments": ("LONG_SECONDS", "cut_segments"),
    "index.sqlite.backup": ("BackupResult", "back_up", "restore"),
    "index.sqlite.dataset": ("DatasetReport", "export_library", "finish_parts", "import_library", "write_part"),
    "index.sqlite.library": ("SqliteLibrary",),
    "index.sqlite.reader": ("ClipFile", "LibraryReader", "exclusive_lock"),
    "index.sqlite.reindex": ("SideDatabase", "remove_side", "side_path"),
    "index.text": ("COLLECTIONS", "STOP_WORDS", "stem_words", "text_columns", "words_of"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'index' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF.get(name, "index.records")), name)
