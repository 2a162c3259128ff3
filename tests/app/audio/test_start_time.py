"""The start of a recording, from metadata and from names as recorders write them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from app.audio.start_time import start_time

WHEN = datetime(2024, 1, 31, 5, 45, 0)


@pytest.mark.parametrize(
    "name",
    [
        "20240131_054500.WAV",  # AudioMoth
        "20240131_054500T.WAV",  # AudioMoth, triggered
        "SM4_20240131_054500.wav",  # Song Meter
        "S4A01234_20240131_054500.wav",
        "site7__0__20240131_054500_123.flac",
        "2024-01-31 05.45.00.m4a",
        "rec_2024-01-31T05:45:00Z.ogg",
        "2024-01-31_05-45-00.mp3",
        "鳥 20240131-054500.wav",
    ],
)
def test_names(name: str) -> None:
    assert start_time(name, {}) == WHEN


@pytest.mark.parametrize(
    "name", ["dog.wav", "20241331_054500.wav", "20240131_254500.wav", "120240131_054500.wav", "20240131.wav",
             "20240131_0545001.wav", "take 2024 01.wav", "00000101_000000.wav"]
)  # fmt: skip
def test_names_that_tell_nothing(name: str) -> None:
    assert start_time(name, {}) is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"date": "2024-01-31", "time": "05:45:00"}, WHEN),
        ({"date": "2024"}, None),
        ({"date": "2024", "time": "05:45:00"}, None),
        ({"start_time": "2024-01-31T05:45:00+09:00"}, WHEN),
        ({"recorded_at": "2024-01-31 05:45"}, WHEN),
        ({"recorded": "2024-01-31"}, None),
        ({"recorded": 20240131, "start_time": ["x"]}, None),
        ({"start_time": "yesterday", "date": "2024-01-31", "time": "05:45:00"}, WHEN),
    ],
)
def test_metadata(metadata: dict[str, Any], expected: datetime | None) -> None:
    assert start_time("dog.wav", metadata) == expected


def test_metadata_goes_before_the_name() -> None:
    assert start_time("20230101_000000.wav", {"date": "2024-01-31", "time": "05:45:00"}) == WHEN
