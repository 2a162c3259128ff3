"""Readers of captioned datasets, whose task is retrieval: AudioCaps and Clotho."""

from __future__ import annotations

from pathlib import Path

from training.evaluation.protocol import FULL, Protocol
from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    caption_in,
    chosen,
    first_file,
    nonempty,
    read_table,
)

AUDIOCAPS_SPLITS = ("train", "val", "test")
CLOTHO_SPLITS = ("development", "validation", "evaluation")
CLOTHO_CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))


def read_audiocaps(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """AudioCaps: ten-second AudioSet clips, with five captions each in validation and test; by default "test".

    Layout: {train,val,test}.csv (audiocap_id, youtube_id, start_time, caption) in the folder or in dataset/, and the
    audio in {split}/, audio/{split}/ or audio/. Copies name the audio after the YouTube id (with or without a leading
    "Y" and the seconds) or after the audiocap_id; all of these are tried. A clip is one item with all its captions, in
    file order.
    """
    split = chosen("audiocaps", split, AUDIOCAPS_SPLITS, "test")
    path = first_file([root / f"{split}.csv", root / f"dataset/{split}.csv"])
    captions: dict[tuple[str, str], list[str]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    for line, row in read_table(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        at = f"{path}, line {line}"
        if not row["start_time"].isdecimal():
            raise DatasetError(f"{at}: start_time {row['start_time']!r}, want whole seconds")
        clip = nonempty(row, "youtube_id", at), row["start_time"]
        captions.setdefault(clip, []).append(caption_in(row, "caption", at, protocol))
        numbers.setdefault(clip, []).append(nonempty(row, "audiocap_id", at))
    entries = []
    for (video, start), texts in captions.items():
        span = f"{start}_{int(start) + 10}"
        exact = f"{int(start)}.000_{int(start) + 10}.000"
        ids = [f"{y}{video}{rest}" for rest in (f"_{exact}", f"_{span}", f"_{start}", "") for y in ("Y", "")]
        entries.append(Entry(f"{video}_{start}", (*ids, *numbers[video, start]), tuple(texts), group=video))
    folders = [root / split, root / "audio" / split, root / "audio"]
    return assemble("audiocaps", "retrieval", entries, folders)


def read_clotho(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """Clotho 2.1: Freesound recordings of 15 to 30 s with five captions each; by default "evaluation".

    Layout: clotho_captions_{split}.csv (file_name, caption_1 … caption_5) and one audio folder per split.
    """
    split = chosen("clotho", split, CLOTHO_SPLITS, "evaluation")
    path = first_file([root / f"clotho_captions_{split}.csv", root / f"clotho_csv_files/clotho_captions_{split}.csv"])
    entries = []
    for line, row in read_table(path, ("file_name", *CLOTHO_CAPTIONS)):
        at = f"{path}, line {line}"
        name = nonempty(row, "file_name", at)
        entries.append(Entry(name, (name,), tuple(caption_in(row, c, at, protocol) for c in CLOTHO_CAPTIONS)))
    folders = [
        root / split,
        root / "clotho_audio_files" / split,
        root / f"clotho_audio_{split}",
        root / "audio" / split,
    ]
    return assemble("clotho", "retrieval", entries, folders)
