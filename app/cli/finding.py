"""Finding the files that a command names: audio files, and folders with audio files at any depth.

Goes by names alone; whether a file is a sound is for whoever decodes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_AUDIO_NAMES = """wav wave flac ogg oga opus mp3 m4a aac aif aiff aifc au snd caf w64 rf64 wma webm mka mkv mp4 mov
amr ac3 wv ape tta voc"""
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _AUDIO_NAMES.split())

Report = Callable[[OSError], None]  # hears of folders that cannot be read


@dataclass(frozen=True)
class Source:
    """A file to read, and the metadata that goes with it."""

    path: Path
    metadata: dict[str, Any]


def find_sources(paths: Iterable[Path], metadata: dict[str, Any], report: Report | None = None) -> list[Source]:
    """The named files, and in the named folders, at any depth, all files with the name of an audio format.

    Each gets `metadata` and its own `path`, relative to the folder that was named. A file that is reached in several
    ways counts once. Hidden files and folders are left out; links to folders are followed, each folder once, so that
    loops end. `report` hears of folders that cannot be read; without it they raise OSError. Raises FileNotFoundError
    for a named path that is not there.
    """
    sources: dict[tuple[int, int] | str, Source] = {}
    for path in paths:
        if path.is_dir():
            for file in _walk(path, report or _raise):
                relative = file.relative_to(path).as_posix()
                sources.setdefault(_identity(file), Source(file, {"path": as_text(relative)} | metadata))
        elif os.path.lexists(path):
            sources.setdefault(_identity(path), Source(path, {"path": as_text(path.name)} | metadata))
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return list(sources.values())


def as_text(name: str) -> str:
    """A file name as text; bytes that are no UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


def _walk(folder: Path, report: Report) -> Iterator[Path]:
    """Audio files in a folder, its own first, then those of its folders, in the order of their names."""
    seen: set[tuple[int, int] | str] = set()

    for at, folders, names in os.walk(folder, followlinks=True, onerror=report):
        identity = _identity(Path(at))
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                yield Path(at, name)


def _identity(path: Path) -> tuple[int, int] | str:
    """What is the same for two names of one file. A link that leads nowhere is itself; opening it will say why."""
    try:
        stat = path.stat()
    except OSError:
        return str(path.absolute())
    return (stat.st_dev, stat.st_ino) if stat.st_ino else str(path.resolve())


def _raise(error: OSError) -> None:
    raise error
