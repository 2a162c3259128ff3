"""URBAN-SED 2.0: 10,000 mixtures of 10 s made from UrbanSound8K's ten classes; the task is detection.

Layout: annotations/{train,validate,test}/{name}.txt (onset, offset, label; no header) or {name}.jams, and
audio/{train,validate,test}/. A mixture that has both is read from its .txt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    chosen,
    phrases,
    read_text,
    segment,
    spoken,
)

LABELS = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)
SPLITS = ("train", "validate", "test")

Events = list[tuple[str, tuple[float, float]]]


def read(root: Path, split: str | None = None) -> Dataset:
    """The split, "test" unless told. Backgrounds, which JAMS files list too, are not events."""
    split = chosen("urbansed", split, SPLITS, "test")
    folder = root / "annotations" / split
    files = {p.stem: p for suffix in (".jams", ".txt") for p in sorted(folder.glob(f"*{suffix}"))}
    if not files:
        raise DatasetError(f"urbansed: no .txt or .jams in {folder}")
    entries = []
    for name, path in sorted(files.items()):
        events = _text(path) if path.suffix == ".txt" else _jams(path)
        entries.append(Entry(name, (name,), phrases=phrases(events)))
    return assemble("urbansed", "detection", entries, [root / "audio" / split], [spoken(c) for c in LABELS])


def _text(path: Path) -> Events:
    events = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        at, fields = f"{path}, line {number}", line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise DatasetError(f"{at}: {len(fields)} fields where 3 are wanted")
        events.append((_label(fields[2], at), segment(fields[0], fields[1], at)))
    return events


def _jams(path: Path) -> Events:
    """Observations have `time`, `duration` and a `value` with `label` and `role`; `duration` is after stretching."""
    try:
        annotations = json.loads(read_text(path))["annotations"]
        observations: list[dict[str, Any]] = [o for a in annotations for o in a["data"]]
        events = []
        for number, o in enumerate(observations, start=1):
            if o["value"]["role"] == "foreground":
                at = f"{path}, observation {number}"
                events.append((_label(o["value"]["label"], at), segment(o["time"], o["time"] + o["duration"], at)))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not as Scaper writes it ({error!r})") from error
    return events


def _label(label: str, at: str) -> str:
    if label not in LABELS:
        raise DatasetError(f"{at}: label {label!r} is none of {', '.join(LABELS)}")
    return spoken(label)
