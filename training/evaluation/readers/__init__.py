"""Reads published benchmarks in their authors' own file layouts, with `read_dataset`.

A row that cannot be used is an error with its file and line; items without an audio file are listed in
`Dataset.missing`.
"""

from __future__ import annotations

from pathlib import Path

from training.evaluation.protocol import FULL, Protocol
from training.evaluation.readers.base import Dataset, DatasetError
from training.evaluation.readers.captioned import read_audiocaps, read_clotho
from training.evaluation.readers.strong import read_audiogrounding, read_audioset_strong, read_desed, read_urbansed
from training.evaluation.readers.tagged import read_esc50, read_urbansound8k, read_vggsound

READERS = {
    "audiocaps": read_audiocaps,
    "clotho": read_clotho,
    "esc50": read_esc50,
    "urbansound8k": read_urbansound8k,
    "vggsound": read_vggsound,
    "desed": read_desed,
    "audioset-strong": read_audioset_strong,
    "urbansed": read_urbansed,
    "audiogrounding": read_audiogrounding,
}
NAMES = tuple(READERS)

__all__ = ["NAMES", "Dataset", "DatasetError", "find_datasets", "read_dataset"]


def read_dataset(name: str, root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """The dataset `name` in the folder `root`; `split` defaults to the split it is usually evaluated on.

    The protocol decides the names of classes, and whether zero-length segments, empty captions and recordings without
    events are valid.

    Raises DatasetError for an unknown name or split, for an invalid layout or row, and if no audio is found.
    """
    if name not in READERS:
        raise DatasetError(f"unknown dataset {name!r}; known: {', '.join(NAMES)}")
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder")
    return READERS[name](root, split, protocol)


def find_datasets(root: Path) -> list[tuple[str, Path]]:
    """(name, folder) of the benchmarks in the folders of `root`, in the order of `NAMES`.

    A folder is recognised by its name in any spelling, with or without a version: ESC-50, URBAN-SED_v2.0.0. Raises
    DatasetError if there is none.
    """
    folders = {_letters(path.name): path for path in sorted(root.iterdir()) if path.is_dir()} if root.is_dir() else {}
    found = []
    for name in NAMES:
        spelled = _letters(name)
        matching = [path for folder, path in folders.items() if folder.startswith(spelled)]
        found += [(name, min(matching, key=lambda path: len(path.name)))] if matching else []
    if not found:
        raise DatasetError(f"{root}: no folder is named after a benchmark; known: {', '.join(NAMES)}")
    return found


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
