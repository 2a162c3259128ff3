"""Clotho 2.1: Freesound recordings of 15 to 30 s with five captions each; the task is retrieval.

Layout: clotho_captions_{split}.csv (file_name, caption_1 … caption_5) and a folder of audio for each split.
"""

from __future__ import annotations

from pathlib import Path

from training.evaluation.readers.base import Dataset, Entry, assemble, chosen, first_file, read_table, wanted

SPLITS = ("development", "validation", "evaluation")
CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "evaluation" unless told."""
    split = chosen("clotho", split, SPLITS, "evaluation")
    path = first_file([root / f"clotho_captions_{split}.csv", root / f"clotho_csv_files/clotho_captions_{split}.csv"])
    entries = []
    for line, row in read_table(path, ("file_name", *CAPTIONS)):
        at = f"{path}, line {line}"
        name = wanted(row, "file_name", at)
        entries.append(Entry(name, (name,), tuple(wanted(row, c, at) for c in CAPTIONS)))
    folders = [
        root / split,
        root / "clotho_audio_files" / split,
        root / f"clotho_audio_{split}",
        root / "audio" / split,
    ]
    return assemble("clotho", "retrieval", entries, folders)
