"""AudioCaps: captions of ten-second AudioSet clips, five each in validation and test; the task is retrieval.

Layout: {train,val,test}.csv (audiocap_id, youtube_id, start_time, caption) in the folder or in dataset/, and the audio
in {split}/, audio/{split}/ or audio/. Collections of it name the audio after the YouTube id (with or without a leading
"Y" and the seconds) or after the audiocap_id; all of these are tried.
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
    wanted,
)

SPLITS = ("train", "val", "test")


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "test" unless told: an item for each clip, with all its captions in the order of the file."""
    split = chosen("audiocaps", split, SPLITS, "test")
    path = first_file([root / f"{split}.csv", root / f"dataset/{split}.csv"])
    captions: dict[tuple[str, str], list[str]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    for line, row in read_table(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        at = f"{path}, line {line}"
        if not row["start_time"].isdecimal():
            raise DatasetError(f"{at}: start_time {row['start_time']!r}, want whole seconds")
        clip = wanted(row, "youtube_id", at), row["start_time"]
        captions.setdefault(clip, []).append(wanted(row, "caption", at))
        numbers.setdefault(clip, []).append(wanted(row, "audiocap_id", at))
    entries = []
    for (video, start), texts in captions.items():
        span = f"{start}_{int(start) + 10}"
        exact = f"{int(start)}.000_{int(start) + 10}.000"
        ids = [f"{y}{video}{rest}" for rest in (f"_{exact}", f"_{span}", f"_{start}", "") for y in ("Y", "")]
        entries.append(Entry(f"{video}_{start}", (*ids, *numbers[video, start]), tuple(texts), group=video))
    folders = [root / split, root / "audio" / split, root / "audio"]
    return assemble("audiocaps", "retrieval", entries, folders)
