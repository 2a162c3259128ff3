"""Readers of published benchmarks in their own file layouts; `read_dataset` is the door.

Each module reads one dataset and knows nothing of models or metrics. A row that cannot be used is an error with its
file and line; an item whose audio is not there is left out and named in `Dataset.missing`.
"""

from __future__ import annotations

from pathlib import Path

from training.evaluation.readers import (
    audiocaps,
    audiogrounding,
    audioset_strong,
    clotho,
    desed,
    esc50,
    urbansed,
    urbansound8k,
    vggsound,
)
from training.evaluation.readers.base import Dataset, DatasetError

READERS = {
    "audiocaps": audiocaps.read,
    "clotho": clotho.read,
    "esc50": esc50.read,
    "urbansound8k": urbansound8k.read,
    "vggsound": vggsound.read,
    "desed": desed.read,
    "audioset-strong": audioset_strong.read,
    "urbansed": urbansed.read,
    "audiogrounding": audiogrounding.read,
}
NAMES = tuple(READERS)

__all__ = ["NAMES", "Dataset", "DatasetError", "read_dataset"]


def read_dataset(name: str, root: Path, split: str | None = None) -> Dataset:
    """The dataset `name` that lies in the folder `root`; `split` None is the part it is usually evaluated on.

    Raises DatasetError for an unknown name or split, a layout or row that cannot be used, or if no audio is there.
    """
    if name not in READERS:
        raise DatasetError(f"no dataset {name!r}; there are {', '.join(NAMES)}")
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder")
    return READERS[name](root, split)
