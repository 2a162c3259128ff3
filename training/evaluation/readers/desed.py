"""DESED: ten-second recordings of homes with ten classes of events; the task is detection.

Layout: metadata/{validation,eval}/{split}.tsv (filename, onset, offset, event_label) and audio/validation or
audio/eval/public, directly in the folder or in dataset/ as the archives unpack. A recording without events has a row
with empty fields; or it has no row and stands in {split}_durations.tsv (filename, duration) beside the events.
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
    phrases,
    read_table,
    segment,
    spoken,
    wanted,
)

LABELS = (
    "Alarm_bell_ringing",
    "Blender",
    "Cat",
    "Dishes",
    "Dog",
    "Electric_shaver_toothbrush",
    "Frying",
    "Running_water",
    "Speech",
    "Vacuum_cleaner",
)
SPLITS = {"public": "eval", "validation": "validation"}


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "public" (the public evaluation set) unless told."""
    split = chosen("desed", split, tuple(SPLITS), "public")
    bases = [root, root / "dataset"]
    path = first_file([b / "metadata" / SPLITS[split] / f"{split}.tsv" for b in bases])
    events: dict[str, list[tuple[str, tuple[float, float]]]] = {}
    for line, row in read_table(path, ("filename", "onset", "offset", "event_label"), delimiter="\t"):
        at = f"{path}, line {line}"
        found = events.setdefault(wanted(row, "filename", at), [])
        if row["onset"] or row["offset"] or row["event_label"]:
            if row["event_label"] not in LABELS:
                raise DatasetError(f"{at}: event_label {row['event_label']!r} is none of {', '.join(LABELS)}")
            found.append((spoken(row["event_label"]), segment(row["onset"], row["offset"], at)))
    durations = path.with_name(f"{split}_durations.tsv")
    if durations.is_file():
        for line, row in read_table(durations, ("filename", "duration"), delimiter="\t"):
            events.setdefault(wanted(row, "filename", f"{durations}, line {line}"), [])
    entries = [Entry(name, (name,), phrases=phrases(found)) for name, found in events.items()]
    folder = "audio/eval/public" if split == "public" else "audio/validation"
    return assemble("desed", "detection", entries, [b / folder for b in bases], [spoken(c) for c in LABELS])
