"""The bundled sounds: each is credited, free to pass on, short, and can be heard."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

LICENCES = {"CC0-1.0", "CC-BY-3.0", "public domain"}
SHARED_ALIKE = {"dog barking"}  # no dog was found under a freer licence than CC-BY-SA-3.0
FIRST_QUERIES = {  # what people type first has an answer
    "dog barking",
    "footsteps",
    "whoosh",
    "UI click",
    "rain",
    "wind",
    "thunder",
    "door closing",
    "explosion",
    "glass shattering",
    "bell",
    "beep",
    "phone ringtone",
    "airplane engine",
    "birds singing",
    "guitar",
    "laser",
}
COLUMNS = ["file", "label", "package", "path", "author", "licence", "sha1", "changes", "licence_url"]


@pytest.fixture(scope="module")
def folder(repo_dir: Path) -> Path:
    return repo_dir / "demo" / "sounds"


@pytest.fixture(scope="module")
def credits(folder: Path) -> list[dict[str, str]]:
    with (folder / "CREDITS.csv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        assert rows.fieldnames == COLUMNS
        return list(rows)


def test_every_sound_is_credited_and_every_credit_has_its_sound(folder: Path, credits: list[dict[str, str]]) -> None:
    credited = [row["file"] for row in credits]
    assert len(set(credited)) == len(credited)
    assert set(credited) == {path.name for path in folder.iterdir()} - {"CREDITS.csv"}


def test_credits_are_complete_and_allow_passing_on(credits: list[dict[str, str]]) -> None:
    for row in credits:
        free = LICENCES | ({"CC-BY-SA-3.0"} if row["label"] in SHARED_ALIKE else set())
        assert row["licence"] in free, row
        assert all(row[column] for column in ("label", "package", "path", "author", "changes")), row
        assert re.fullmatch(r"[0-9a-f]{40}", row["sha1"]), row
        assert row["file"] == f"{row['label'].replace(' ', '-')}-{row['sha1'][:6]}.ogg"
        assert bool(row["licence_url"]) == (row["licence"] != "public domain")


def test_there_are_enough_and_they_are_small(folder: Path, credits: list[dict[str, str]]) -> None:
    assert 120 <= len(credits) <= 160
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    labels = {row["label"] for row in credits}
    assert len(labels) > 100
    assert labels >= FIRST_QUERIES


def test_every_sound_can_be_decoded_and_heard(folder: Path, credits: list[dict[str, str]]) -> None:
    for row in credits:
        samples, rate = soundfile.read(folder / row["file"], dtype="float32", always_2d=True)
        assert 0.3 <= len(samples) / rate <= 12.0, row["file"]
        assert np.isfinite(samples).all(), row["file"]
        assert 0.1 < np.abs(samples).max() < 1.5, row["file"]  # neither near silence nor badly clipped
