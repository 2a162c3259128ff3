"""VGGSound: ten seconds of each of 200,000 YouTube videos, 309 classes; the task is to name the class.

Layout: vggsound.csv without a header (YouTube id, start in seconds, label, train or test), and the audio named
{id}_{start with six digits}, in audio/, {split}/, audio/{split}/ or beside the CSV.
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

SPLITS = ("train", "test")


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "test" unless told. The classes are those of both splits."""
    split = chosen("vggsound", split, SPLITS, "test")
    path = first_file([root / "vggsound.csv", root / "data/vggsound.csv"])
    entries, classes = [], set()
    for line, row in read_table(path, ("id", "start", "label", "split"), header=False):
        at = f"{path}, line {line}"
        if not row["start"].isdecimal():
            raise DatasetError(f"{at}: start {row['start']!r}, want whole seconds")
        if row["split"] not in SPLITS:
            raise DatasetError(f"{at}: split {row['split']!r}, want {' or '.join(SPLITS)}")
        video, label = wanted(row, "id", at), spoken(wanted(row, "label", at))
        classes.add(label)
        if row["split"] == split:
            name = f"{video}_{int(row['start']):06d}"
            entries.append(Entry(name, (name, f"{video}_{row['start']}", video), (label,), group=video))
    folders = [root / "audio" / split, root / split, root / "audio", root]
    return assemble("vggsound", "classification", entries, folders, sorted(classes))
