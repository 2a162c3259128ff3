"""Reads and writes training manifests: the published JSONL form, and folders of labelled single sounds.

A line of a published manifest is
`{"audio_id", "audio_path", "caption": str | [str], "phrases": [{"phrase", "segments": [[onset, offset], …]}]}`.
An item without "phrases", or with an empty list of them, is supervised at clip level only. A segment of no length,
such as [0, 0], says that the phrase does not sound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class ManifestError(ValueError):
    """An invalid manifest line, with its file and line number."""


@dataclass(frozen=True)
class Phrase:
    """A sound event of an item and its segments, [onset, offset] in seconds."""

    text: str
    segments: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Item:
    """One audio file with its labels; items of a `group` must stay on the same side of a validation split."""

    audio_id: str
    path: Path
    captions: tuple[str, ...]
    phrases: tuple[Phrase, ...] | None = None
    group: str = ""


def read_manifest(path: Path, root: Path | None = None, *, empty_captions: bool = False) -> list[Item]:
    """Items of a manifest in the published form. Raises ManifestError with the line number.

    Relative audio paths start at `root`, by default the manifest's folder. `empty_captions` accepts captions without a
    word.
    """
    root = root or path.parent
    items = []
    with path.open("rb") as lines:  # bytes, so that invalid UTF-8 is reported with its line number
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    items.append(_item(json.loads(line.decode()), root, empty_captions))
                except (ValueError, KeyError, TypeError) as error:
                    what = f"no {error}" if isinstance(error, KeyError) else str(error)
                    raise ManifestError(f"{path.name}, line {number}: {what}") from error
    return items


def _item(row: dict, root: Path, empty_captions: bool) -> Item:
    if not isinstance(row, dict):
        raise ValueError("not an object")
    caption = row.get("caption", [])
    captions = tuple([caption] if isinstance(caption, str) else caption)
    if any(not isinstance(c, str) or not (empty_captions or c.strip()) for c in captions):
        raise ValueError("an empty caption")
    phrases = None
    if row.get("phrases") is not None:
        phrases = tuple(Phrase(p["phrase"], _segments(p["segments"])) for p in row["phrases"])
        if any(not p.text.strip() for p in phrases):
            raise ValueError("an empty phrase")
    if not captions and not phrases:
        raise ValueError("neither a caption nor phrases")
    return Item(str(row["audio_id"]), root / row["audio_path"], captions, phrases, str(row.get("group", "")))


def _segments(pairs: list[list[float]]) -> tuple[tuple[float, float], ...]:
    found = []
    for pair in pairs:
        onset, offset = map(float, pair)
        if not (math.isfinite(onset) and math.isfinite(offset) and 0 <= onset <= offset):
            raise ValueError(f"segment {pair}: want 0 <= onset < offset, in seconds")
        if onset < offset:
            found.append((onset, offset))
    return tuple(found)


def write_manifest(path: Path, items: Iterable[Item], root: Path) -> None:
    """Writes items in the published form, with audio paths relative to `root`."""
    with path.open("w", encoding="utf-8") as f:
        for item in items:
            row: dict = {"audio_id": item.audio_id, "audio_path": str(item.path.relative_to(root))}
            row["caption"] = list(item.captions)
            if item.phrases is not None:
                row["phrases"] = [{"phrase": p.text, "segments": [list(s) for s in p.segments]} for p in item.phrases]
            if item.group:
                row["group"] = item.group
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_labelled(folder: Path, *, exclude_groups: Iterable[str] = ()) -> list[Item]:
    """Items of a folder of single sounds, whose manifest.jsonl has `audio`, `label` (or null) and `package` per line.

    The label becomes the caption and the package the group. Unlabelled sounds have no caption; only distillation uses
    them.
    """
    excluded, items = set(exclude_groups), []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["package"] not in excluded:
            captions = (row["label"],) if row["label"] else ()
            items.append(Item(row["audio"], folder / row["audio"], captions, None, row["package"]))
    return items


def plain_label(label: str) -> str:
    """A label as text: lower case, with underscores and runs of white space replaced by single spaces."""
    return " ".join(label.replace("_", " ").split()).lower()
