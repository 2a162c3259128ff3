"""AudioGrounding 2: phrases of AudioCaps captions with the segments where they sound; the task is grounding.

Layout: {train,val,test}.json, each a list of {audiocap_id, audio_id, tokens, phrases: [{phrase, start_index,
end_index, segments}]}, in the folder or in label/; the audio in {split}/, audio/{split}/, {split}/audio/ or audio/.
`tokens` and `phrase` are lists of words, or strings as some copies have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data.manifests import Phrase
from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    chosen,
    first_file,
    read_text,
    segment,
)

SPLITS = ("train", "val", "test")


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "test" unless told: an item for each caption, with its phrases. Captions of one clip are one group."""
    split = chosen("audiogrounding", split, SPLITS, "test")
    path = first_file([root / f"{split}.json", root / f"label/{split}.json", root / f"{split}/label.json"])
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: {error.msg}") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: want a list of captions, as in version 2 of the dataset")
    entries = []
    for number, row in enumerate(rows, start=1):
        at = f"{path}, item {number}"
        try:
            entries.append(_entry(row, at))
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{at}: not as published ({error!r})") from error
    folders = [root / split, root / "audio" / split, root / split / "audio", root / "audio"]
    return assemble("audiogrounding", "grounding", entries, folders)


def _entry(row: dict[str, Any], at: str) -> Entry:
    phrases = []
    for asked in row["phrases"]:
        if any(len(pair) != 2 for pair in asked["segments"]):
            raise DatasetError(f"{at}: a segment that is not a pair")
        segments = sorted(segment(onset, offset, at) for onset, offset in asked["segments"])
        phrases.append(Phrase(_words(asked["phrase"], at), tuple(segments)))
    if not phrases:
        raise DatasetError(f"{at}: no phrases")
    audio = row["audio_id"]
    if not (isinstance(audio, str) and audio):
        raise DatasetError(f"{at}: audio_id {audio!r}, want the name of a file")
    caption = _words(row["tokens"], at)
    return Entry(f"{row['audiocap_id']}:{audio}", (audio,), (caption,), tuple(phrases), audio)


def _words(words: str | list[str], at: str) -> str:
    text = words if isinstance(words, str) else " ".join(words)
    if not text.strip():
        raise DatasetError(f"{at}: an empty phrase or caption")
    return text.strip()
