"""Reads published benchmarks in their authors' own file layouts, with `read_dataset`.

A row that cannot be used is an error with its file and line; items without an audio file are listed in
`Dataset.missing`.
"""

from __future__ import annotations

from pathlib import Path

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

__all__ = ["NAMES", "Dataset", "DatasetError", "read_dataset"]


def read_dataset(name: str, root: Path, split: str | None = None) -> Dataset:
    """The dataset `name` in the folder `root`; `split` defaults to the split it is usually evaluated on.

    Raises DatasetError for an unknown name or split, for an invalid layout or row, and if no audio is found.
    """
    if name not in READERS:
        raise DatasetError(f"unknown dataset {name!r}; known: {', '.join(NAMES)}")
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder")
    return READERS[name](root, split)
