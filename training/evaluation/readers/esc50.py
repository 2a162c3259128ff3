"""ESC-50: 2,000 recordings of 5 s, 50 classes, five folds; the task is to name the class.

Layout: meta/esc50.csv (filename, fold, target, category, esc10, src_file, take) and audio/.
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

FOLDS = ("1", "2", "3", "4", "5")


def read(root: Path, split: str | None = None) -> Dataset:
    """All folds, or the one in `split` ("1" to "5"). Takes of one Freesound recording are one group."""
    fold = chosen("esc50", split, FOLDS, "")
    entries, classes = [], set()
    path = first_file([root / "meta/esc50.csv"])
    for line, row in read_table(path, ("filename", "fold", "target", "category", "src_file")):
        at = f"{path}, line {line}"
        if row["fold"] not in FOLDS:
            raise DatasetError(f"{at}: fold {row['fold']!r}, want 1 to 5")
        name, label = wanted(row, "filename", at), spoken(wanted(row, "category", at))
        classes.add(label)
        if fold in ("", row["fold"]):
            entries.append(Entry(name, (name,), (label,), group=row["src_file"]))
    return assemble("esc50", "classification", entries, [root / "audio"], sorted(classes))
