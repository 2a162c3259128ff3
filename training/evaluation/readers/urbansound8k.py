"""UrbanSound8K: 8,732 excerpts of up to 4 s, 10 classes, ten folds; the task is to name the class.

Layout: metadata/UrbanSound8K.csv (slice_file_name, fsID, start, end, salience, fold, classID, class) and
audio/fold1 … audio/fold10.
"""

from __future__ import annotations

from pathlib import Path

from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    chosen,
    first_file,
    read_table,
    spoken,
    wanted,
)

FOLDS = tuple(str(n) for n in range(1, 11))
COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")


def read(root: Path, split: str | None = None) -> Dataset:
    """All folds, or the one in `split` ("1" to "10"). Excerpts of one Freesound recording are one group."""
    fold = chosen("urbansound8k", split, FOLDS, "")
    entries, classes = [], set()
    path = first_file([root / "metadata/UrbanSound8K.csv"])
    for line, row in read_table(path, COLUMNS):
        at = f"{path}, line {line}"
        if row["fold"] not in FOLDS:
            raise DatasetError(f"{at}: fold {row['fold']!r}, want 1 to 10")
        name, label = wanted(row, "slice_file_name", at), spoken(wanted(row, "class", at))
        classes.add(label)
        if fold in ("", row["fold"]):
            entries.append(Entry(name, (name,), (label,), group=row["fsID"]))
    folders = [root / "audio" / f"fold{n}" for n in ([fold] if fold else FOLDS)]
    return assemble("urbansound8k", "classification", entries, folders, sorted(classes))
