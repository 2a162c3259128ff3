"""Replacing files and folders so that a stop or a full disk at any moment leaves the old one or the new one, whole.

Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError

from model.weight_files import CheckpointError


class TrainError(ValueError):
    """A training run that cannot go on; what it has kept stays."""


# What writers raise for a disk that is full: Python and its libraries, the safetensors writer, PyTorch's writer.
_WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


def replace_folder(folder: Path, write: Callable[[Path], None], what: str) -> None:
    """`write(new)` fills a folder beside `folder`, which then takes its name. Raises TrainError if it cannot.

    Between the two renames there is a moment without `folder`; `recover` makes up for a stop in it.
    """
    new, old = _beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        write(new)
    except CheckpointError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    except _WRITE_ERRORS as error:
        shutil.rmtree(new, ignore_errors=True)
        raise _failed(folder, what, error) from error
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(file: Path, write: Callable[[Path], None], what: str) -> None:
    """`write(new)` writes a file beside `file`, which then takes its place. Raises TrainError if it cannot."""
    new = _beside(file)[0]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(new)
        os.replace(new, file)
    except _WRITE_ERRORS as error:
        new.unlink(missing_ok=True)
        raise _failed(file, what, error) from error


def recover(parent: Path, names: Iterable[str]) -> None:
    """Gives back their names to folders that a stop in `replace_folder` left without, and clears up after it."""
    for name in names:
        new, old = _beside(parent / name)
        if old.is_dir() and not (parent / name).exists():
            old.rename(parent / name)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new one is written, and where the old one waits until the new one is in its place."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def _failed(path: Path, what: str, error: Exception) -> TrainError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    kept = "the one before is kept" if path.exists() else "there was none before"
    return TrainError(f"{path}: the checkpoint {what} could not be written ({reason}); {kept}")
