"""What every dataset reader shares: the Dataset, tables read by line, audio found whatever its extension.

Knows no dataset in particular, and opens no audio: what cannot be decoded shows when it is.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data.manifests import Item, Phrase

# In order of preference where one recording is there in several forms.
EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


class DatasetError(ValueError):
    """A dataset that is not laid out as its authors publish it, with the file and, where there is one, the line."""


@dataclass(frozen=True)
class Dataset:
    """A benchmark: what is asked of which recordings.

    retrieval: `captions` of an item, any number. classification: `captions` is the one class. detection: `phrases`
    are the classes that sound in the item, with segments; an item without events has none. grounding: `phrases` are
    those asked of that item, a phrase that never sounds without segments. `classes` are the names as they are asked,
    for classification and detection. `missing` names the items left out because their audio is not there.
    """

    name: str
    task: Literal["retrieval", "classification", "detection", "grounding"]
    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An annotated recording before its audio is found, under any of `names` (with or without an extension)."""

    audio_id: str
    names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] | None = None
    group: str = ""


class AudioFolders:
    """The audio files directly inside some folders, by name without extension. Folders that do not exist are skipped.

    Each folder is listed once, so that 200,000 files cost one listing and not a million questions. An earlier folder
    goes before a later one.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)
        self._paths: dict[str, Path] = {}
        for folder in self.folders:
            found: dict[str, Path] = {}
            if folder.is_dir():
                names = [(n, *os.path.splitext(n)) for n in os.listdir(folder)]
                files = [(-EXTENSIONS.index(e.lower()), n, s) for n, s, e in names if e.lower() in EXTENSIONS]
                found = {s.strip(): folder / n for _, n, s in sorted(files)}
            self._paths = found | self._paths

    def find(self, names: Iterable[str]) -> Path | None:
        """The file of the first name that is there."""
        return next((self._paths[s] for s in map(stem, names) if s in self._paths), None)


def stem(name: str) -> str:
    """A name without its audio extension and the blanks around it; other dots are part of the name."""
    before, extension = os.path.splitext(name)
    return (before if extension.lower() in EXTENSIONS else name).strip()


def assemble(
    name: str,
    task: Literal["retrieval", "classification", "detection", "grounding"],
    entries: Sequence[Entry],
    folders: Iterable[Path],
    classes: Sequence[str] = (),
) -> Dataset:
    """A dataset of those entries whose audio is there; DatasetError if there are no entries, or no audio of any."""
    audio = AudioFolders(folders)
    if not entries:
        raise DatasetError(f"{name}: nothing is annotated in this split")
    items, missing = [], []
    for entry in entries:
        path = audio.find(entry.names)
        if path is None:
            missing.append(entry.audio_id)
        else:
            items.append(Item(entry.audio_id, path, entry.captions, entry.phrases, entry.group))
    if not items:
        looked = ", ".join(map(str, audio.folders))
        raise DatasetError(
            f"{name}: none of {len(entries)} audio files is there, for example {entries[0].names[0]}; "
            f"looked in {looked} for {' '.join(EXTENSIONS)}"
        )
    return Dataset(name, task, tuple(items), tuple(classes), tuple(missing))


def first_file(paths: Sequence[Path]) -> Path:
    """The first of several places a file may be; DatasetError that names them all if it is in none."""
    for path in paths:
        if path.is_file():
            return path
    raise DatasetError(f"no such file: {' or '.join(map(str, paths))}")


def chosen(name: str, split: str | None, splits: Sequence[str], default: str) -> str:
    """The split that was asked for, or the default; DatasetError for one that does not exist."""
    if split is None:
        return default
    if split not in splits:
        raise DatasetError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return split


def read_table(
    path: Path, columns: Sequence[str] = (), *, delimiter: str = ",", header: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) for each row of a CSV or tab-separated file.

    With a header, `columns` are those that must be in it; without, they name the row's fields from the left. Values
    are stripped. Quotes mean something in CSV only. DatasetError, with file and line, for a row of another length.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
            names = list(columns)
            for row in reader:
                at = f"{path}, line {reader.line_num}"
                if not any(map(str.strip, row)):
                    continue
                if header:
                    header, names = False, [c.strip() for c in row]
                    if absent := [c for c in columns if c not in names]:
                        raise DatasetError(f"{at}: no column {', '.join(absent)}; the columns are {', '.join(names)}")
                    continue
                if len(row) != len(names):
                    raise DatasetError(f"{at}: {len(row)} fields where {len(names)} are wanted")
                yield reader.line_num, {n: v.strip() for n, v in zip(names, row, strict=True)}
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error})") from error
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """A whole UTF-8 file; DatasetError if it cannot be read as one."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error})") from error
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def wanted(row: dict[str, str], column: str, at: str) -> str:
    """A value that may not be empty."""
    if not row[column]:
        raise DatasetError(f"{at}: an empty {column}")
    return row[column]


def segment(onset: object, offset: object, at: str) -> tuple[float, float]:
    """[onset, offset] in seconds, 0 <= onset < offset."""
    try:
        start, end = float(str(onset)), float(str(offset))
    except ValueError:
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise DatasetError(f"{at}: segment [{onset}, {offset}]: want 0 <= onset < offset, in seconds")
    return start, end


def phrases(events: Iterable[tuple[str, tuple[float, float]]]) -> tuple[Phrase, ...]:
    """Events of one recording by class, classes in the order they first come, segments in order of time."""
    by_class: dict[str, list[tuple[float, float]]] = {}
    for label, times in events:
        by_class.setdefault(label, []).append(times)
    return tuple(Phrase(label, tuple(sorted(times))) for label, times in by_class.items())


def spoken(label: str) -> str:
    """A label as it is asked: "Alarm_bell_ringing" is "alarm bell ringing"."""
    return " ".join(label.replace("_", " ").split()).lower()
