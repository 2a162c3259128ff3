"""Readers of datasets with one class per recording, whose task is classification: ESC-50, UrbanSound8K, VGGSound."""

from __future__ import annotations

from pathlib import Path

from training.evaluation.protocol import FULL, Protocol
from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    chosen,
    class_name,
    first_file,
    nonempty,
    read_table,
)

ESC50_FOLDS = tuple(str(n) for n in range(1, 6))
URBANSOUND8K_FOLDS = tuple(str(n) for n in range(1, 11))
VGGSOUND_SPLITS = ("train", "test")


def read_esc50(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """ESC-50: 2,000 recordings of 5 s in 50 classes; all folds, or the fold in `split` ("1" to "5").

    Layout: meta/esc50.csv (filename, fold, target, category, esc10, src_file, take) and audio/. Takes of one Freesound
    recording form a group.
    """
    fold = chosen("esc50", split, ESC50_FOLDS, "")
    entries, classes = [], set()
    path = first_file([root / "meta/esc50.csv"])
    for line, row in read_table(path, ("filename", "fold", "target", "category", "src_file")):
        at = f"{path}, line {line}"
        if row["fold"] not in ESC50_FOLDS:
            raise DatasetError(f"{at}: fold {row['fold']!r}, want 1 to 5")
        name, label = nonempty(row, "filename", at), class_name(nonempty(row, "category", at), protocol)
        classes.add(label)
        if fold in ("", row["fold"]):
            entries.append(Entry(name, (name,), (label,), group=row["src_file"]))
    return assemble("esc50", "classification", entries, [root / "audio"], sorted(classes))


def read_urbansound8k(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """UrbanSound8K: 8,732 excerpts of up to 4 s in 10 classes; all folds, or the fold in `split` ("1" to "10").

    Layout: metadata/UrbanSound8K.csv (slice_file_name, fsID, start, end, salience, fold, classID, class) and
    audio/fold1 … audio/fold10. Excerpts of one Freesound recording form a group.
    """
    fold = chosen("urbansound8k", split, URBANSOUND8K_FOLDS, "")
    entries, classes = [], set()
    path = first_file([root / "metadata/UrbanSound8K.csv"])
    for line, row in read_table(path, ("slice_file_name", "fsID", "fold", "classID", "class")):
        at = f"{path}, line {line}"
        if row["fold"] not in URBANSOUND8K_FOLDS:
            raise DatasetError(f"{at}: fold {row['fold']!r}, want 1 to 10")
        name, label = nonempty(row, "slice_file_name", at), class_name(nonempty(row, "class", at), protocol)
        classes.add(label)
        if fold in ("", row["fold"]):
            entries.append(Entry(name, (name,), (label,), group=row["fsID"]))
    folders = [root / "audio" / f"fold{n}" for n in ([fold] if fold else URBANSOUND8K_FOLDS)]
    return assemble("urbansound8k", "classification", entries, folders, sorted(classes))


def read_vggsound(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """VGGSound: ten seconds from each of 200,000 YouTube videos in 309 classes; by default "test".

    Layout: vggsound.csv without a header (YouTube id, start in seconds, label, train or test), and audio files named
    {id}_{start with six digits} in audio/, {split}/, audio/{split}/ or beside the CSV. The classes are those of both
    splits.
    """
    split = chosen("vggsound", split, VGGSOUND_SPLITS, "test")
    path = first_file([root / "vggsound.csv", root / "data/vggsound.csv"])
    entries, classes = [], set()
    for line, row in read_table(path, ("id", "start", "label", "split"), header=False):
        at = f"{path}, line {line}"
        if not row["start"].isdecimal():
            raise DatasetError(f"{at}: start {row['start']!r}, want whole seconds")
        if row["split"] not in VGGSOUND_SPLITS:
            raise DatasetError(f"{at}: split {row['split']!r}, want {' or '.join(VGGSOUND_SPLITS)}")
        video, label = nonempty(row, "id", at), class_name(nonempty(row, "label", at), protocol)
        classes.add(label)
        if row["split"] == split:
            name = f"{video}_{int(row['start']):06d}"
            entries.append(Entry(name, (name, f"{video}_{row['start']}", video), (label,), group=video))
    folders = [root / "audio" / split, root / split, root / "audio", root]
    return assemble("vggsound", "classification", entries, folders, sorted(classes))
