"""When a recording began, from its metadata or its file name, as the clock of its recorder showed it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

KEYS = ("start_time", "recorded_at", "recorded")  # metadata that says it outright, in ISO 8601

# AudioMoth 20240131_054500.WAV, Song Meter SM4_20240131_054500.wav, Zoom and phones 2024-01-31 05.45.00.wav
_NAME = re.compile(r"(?<!\d)(\d{4})([-_.]?)(\d{2})\2(\d{2})[-_T ]{1,3}(\d{2})([-:._h]?)(\d{2})\6(\d{2})(?!\d)")
_YEARS = range(1950, 2100)


def start_time(filename: str, metadata: Mapping[str, Any]) -> datetime | None:
    """The local time at which a clip's recording began, without a time zone; None if nothing tells it.

    In this order: one of KEYS in the metadata, `date` and `time` (from `bext` and similar chunks), the file name.
    """
    return next(_candidates(filename, metadata), None)


def _candidates(filename: str, metadata: Mapping[str, Any]) -> Iterator[datetime]:
    texts = [metadata.get(key) for key in KEYS]
    date, time = metadata.get("date"), metadata.get("time")
    if isinstance(date, str) and isinstance(time, str) and len(date) == 10:  # a year alone is no date
        texts.append(f"{date}T{time}")
    for text in texts:
        if isinstance(text, str) and (found := _parse(text)) is not None:
            yield found
    if match := _NAME.search(filename):
        year, _, month, day, hour, _, minute, second = match.groups()
        if (found := _parse(f"{year}-{month}-{day}T{hour}:{minute}:{second}")) is not None:
            yield found


def _parse(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if found.year not in _YEARS or len(text.strip()) <= 10:  # a date alone tells no hour
        return None
    return found.replace(tzinfo=None)
