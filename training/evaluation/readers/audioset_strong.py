"""AudioSet's temporally strong labels: ten-second YouTube clips with events of 456 classes; the task is detection.

Layout: audioset_{train,eval}_strong.tsv (segment_id, start_time_seconds, end_time_seconds, label) and
mid_to_display_name.tsv (no header), in the folder or in metadata/. A segment id is the YouTube id and the start in
milliseconds. The audio is named after either, with or without a leading "Y", in {split}/, audio/{split}/ or audio/.
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
    wanted,
)

SPLITS = ("train", "eval")
COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "eval" unless told. The classes are those that occur in it, by their display names."""
    split = chosen("audioset-strong", split, SPLITS, "eval")
    bases = [root, root / "metadata"]
    names = _display_names(first_file([b / "mid_to_display_name.tsv" for b in bases]))
    path = first_file([b / f"audioset_{split}_strong.tsv" for b in bases])
    events: dict[str, list[tuple[str, tuple[float, float]]]] = {}
    for line, row in read_table(path, COLUMNS, delimiter="\t"):
        at = f"{path}, line {line}"
        if row["label"] not in names:
            raise DatasetError(f"{at}: label {row['label']!r} is not in mid_to_display_name.tsv")
        video, _, start = wanted(row, "segment_id", at).rpartition("_")
        if not (video and start.isdecimal()):
            raise DatasetError(f"{at}: segment_id {row['segment_id']!r}, want a YouTube id, _ and milliseconds")
        times = segment(row["start_time_seconds"], row["end_time_seconds"], at)
        events.setdefault(row["segment_id"], []).append((names[row["label"]], times))
    entries = [Entry(s, _file_names(s), phrases=phrases(e), group=s.rpartition("_")[0]) for s, e in events.items()]
    classes = sorted({label for found in events.values() for label, _ in found})
    folders = [root / split, root / "audio" / split, root / "audio"]
    return assemble("audioset-strong", "detection", entries, folders, classes)


def _display_names(path: Path) -> dict[str, str]:
    names = {}
    for line, row in read_table(path, ("mid", "name"), delimiter="\t", header=False):
        at = f"{path}, line {line}"
        names[wanted(row, "mid", at)] = wanted(row, "name", at)
    return names


def _file_names(segment_id: str) -> tuple[str, ...]:
    video, _, milliseconds = segment_id.rpartition("_")
    start = int(milliseconds) / 1000
    spans = (segment_id, f"{video}_{start:.3f}_{start + 10:.3f}", f"{video}_{start:.0f}_{start + 10:.0f}", video)
    return tuple(f"{y}{name}" for name in spans for y in ("Y", ""))
