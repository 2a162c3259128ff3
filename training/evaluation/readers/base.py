"""Shared by all dataset readers: the Dataset type, tables read row by row, audio files found by name.

Readers don't open audio; files that cannot be decoded are reported during the evaluation.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data.manifests import Item, Phrase, plain_label
from training.evaluation.protocol import Protocol

# In order of preference, for recordings that exist in several formats.
EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


class DatasetError(ValueError):
    """A dataset that differs from its published layout, with the file and, if possible, the line."""


@dataclass(frozen=True)
class Dataset:
    """A benchmark: its task, and the recordings with their labels.

    Retrieval: an item has any number of `captions`. Classification: `captions` is the one class. Detection: `phrases`
    are the classes that occur in the item, with segments; an item without events has none. Grounding: `phrases` are the
    item's queries; one that does not occur has no segments. `classes` are the class names used as queries, for
    classification and detection. `missing` lists the ids of items without an audio file.
    """

    name: str
    task: Literal["retrieval", "classification", "detection", "grounding"]
    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An annotated recording whose audio file has one of `names`, with or without an extension."""

    audio_id: str
    names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] | None = None
    group: str = ""


class AudioFolders:
    """Index of the audio files directly inside some folders, by name without extension.

    Each folder is listed once, which is fast even for 200,000 files. Earlier folders take precedence; folders that
    don't exist are skipped.
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
        """The file of the first name that exists, or None."""
        return next((self._paths[s] for s in map(stem, names) if s in self._paths), None)


def stem(name: str) -> str:
    """A name without its audio extension and surrounding blanks; other dots are part of the name."""
    before, extension = os.path.splitext(name)
    return (before if extension.lower() in EXTENSIONS else name).strip()


def assemble(
    name: str,
    task: Literal["retrieval", "classification", "detection", "grounding"],
    entries: Sequence[Entry],
    folders: Iterable[Path],
    classes: Sequence[str] = (),
) -> Dataset:
    """A dataset of the entries whose audio exists. Raises DatasetError if there are no entries or no audio files."""
    audio = AudioFolders(folders)
    if not entries:
        raise DatasetError(f"{name}: no annotations in this split")
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
            f"{name}: none of {len(entries)} audio files exists, for example {entries[0].names[0]}; "
            f"looked in {looked} for {' '.join(EXTENSIONS)}"
        )
    return Dataset(name, task, tuple(items), tuple(classes), tuple(missing))


def heard(entries: Iterable[Entry], protocol: Protocol) -> list[Entry]:
    """The entries of a detection set that are scored: all of them, or those with events."""
    return [e for e in entries if protocol.silent_files == "score" or any(p.segments for p in e.phrases or ())]


def first_file(paths: Sequence[Path]) -> Path:
    """The first of the paths that is a file. Raises DatasetError that lists all of them."""
    for path in paths:
        if path.is_file():
            return path
    raise DatasetError(f"no such file: {' or '.join(map(str, paths))}")


def chosen(name: str, split: str | None, splits: Sequence[str], default: str) -> str:
    """`split`, or the default if it is None. Raises DatasetError for an unknown split."""
    if split is None:
        return default
    if split not in splits:
        raise DatasetError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return split


def read_table(
    path: Path, columns: Sequence[str] = (), *, delimiter: str = ",", header: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) for each row of a CSV or tab-separated file.

    With a header, `columns` must be among its names; without one, they name the fields from the left. Values are
    stripped, and quotes are interpreted in CSV only. Raises DatasetError, with file and line, for an invalid row.
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
                    raise DatasetError(f"{at}: {len(row)} fields where {len(names)} are expected")
                yield reader.line_num, {n: v.strip() for n, v in zip(names, row, strict=True)}
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error})") from error
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises DatasetError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error})") from error
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def nonempty(row: dict[str, str], column: str, at: str) -> str:
    """The value of a column. Raises DatasetError if it is empty."""
    if not row[column]:
        raise DatasetError(f"{at}: an empty {column}")
    return row[column]


def caption_in(row: dict[str, str], column: str, at: str, protocol: Protocol) -> str:
    """The caption in a column. Raises DatasetError if it is empty and the protocol rejects that."""
    return row[column] if protocol.empty_texts == "query" else nonempty(row, column, at)


def class_name(label: str, protocol: Protocol) -> str:
    """A class of a classification set as text: without underscores, and in lower case where labels are spoken."""
    return plain_label(label) if protocol.labels == "spoken" else label.replace("_", " ")


def event_name(label: str, protocol: Protocol) -> str:
    """A class of a detection set as text, or the label itself where labels are raw."""
    return plain_label(label) if protocol.labels == "spoken" else label


def segment(onset: object, offset: object, at: str, *, zero_length: bool = False) -> tuple[float, float]:
    """(onset, offset) in seconds. Raises DatasetError unless 0 <= onset < offset, or equal with `zero_length`."""
    try:
        start, end = float(str(onset)), float(str(offset))
    except ValueError:
        start = end = math.nan
    ordered = start <= end if zero_length else start < end
    if not (math.isfinite(start) and math.isfinite(end) and start >= 0 and ordered):
        raise DatasetError(f"{at}: segment [{onset}, {offset}]: want 0 <= onset < offset, in seconds")
    return start, end


def phrases(events: Iterable[tuple[str, tuple[float, float]]]) -> tuple[Phrase, ...]:
    """Events of one recording grouped by class: classes by first occurrence, segments in order of time.

    Segments of no length are skipped.
    """
    by_class: dict[str, list[tuple[float, float]]] = {}
    for label, times in events:
        if times[0] == times[1]:
            continue
        by_class.setdefault(label, []).append(times)
    return tuple(Phrase(label, tuple(sorted(times))) for label, times in by_class.items())
