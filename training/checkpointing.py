"""What a training run keeps in its work folder: files that are replaced atomically, and the log of its metrics.

After a crash or on a full disk, either the complete old version of a file or the complete new one remains.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PART = ".part"

# A full disk raises OSError in Python, a RuntimeError in PyTorch's writer and a SafetensorError in safetensors.
_WRITE_ERRORS = ("OSError", "RuntimeError", "SafetensorError")


class TrainError(ValueError):
    """A training run that cannot continue. Its saved state is intact."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically. Raises OSError with the file's name."""
    part = path.with_name(path.name + PART)
    try:
        with _removed_on_error(part):
            part.write_bytes(data)
            part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace_file(file: Path, write: Callable[[Path], object], what: str) -> None:
    """Replaces `file` with the one that `write(path)` creates. Raises TrainError if writing fails.

    `what` names the checkpoint in the message, such as "of step 10".
    """
    new, _ = _beside(file)
    with _write_errors(file, what), _removed_on_error(new):
        file.parent.mkdir(parents=True, exist_ok=True)
        write(new)
        os.replace(new, file)


def replace_folder(folder: Path, write: Callable[[Path], object], what: str) -> None:
    """Replaces `folder` with the one that `write(path)` fills. Raises TrainError if writing fails.

    Between its two renames `folder` does not exist; `recover` repairs a stop at that moment.
    """
    new, old = _beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    with _write_errors(folder, what), _removed_on_error(new):
        new.mkdir(parents=True)
        write(new)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_shard(folder: Path, arrays: Mapping[str, Sequence[np.ndarray]], events: Sequence[object]) -> None:
    """Writes a shard of encoded scenes, complete or not at all: arrays (N, …), given in parts, and events as JSON."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, parts in arrays.items():
        np.save(partial / f"{name}.npy", np.concatenate(parts))
    (partial / "events.json").write_text(json.dumps(events))
    partial.rename(folder)


def recover(parent: Path, names: Iterable[str]) -> None:
    """Restores the folders that an interrupted `replace_folder` left under a temporary name; deletes its leftovers."""
    for name in names:
        new, old = _beside(parent / name)
        if old.is_dir() and not (parent / name).exists():
            old.rename(parent / name)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new version is written, and where the old one is moved meanwhile."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _write_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # By name, so that processes that only write small files need not import safetensors.
        if not {kind.__name__ for kind in type(error).__mro__}.intersection(_WRITE_ERRORS):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        kept = "the previous one is kept" if path.exists() else "there was none before"
        raise TrainError(f"{path}: the checkpoint {what} could not be written ({reason}); {kept}") from error


class MetricsLog:
    """CSV files, TensorBoard and, optionally, Weights & Biases. Numbers in the CSV files read back exactly."""

    def __init__(self, folder: Path, step: int, wandb_project: str | None, config: dict[str, Any]) -> None:
        """Drops the rows that a stopped run wrote after `step`, from which this run continues."""
        from torch.utils.tensorboard import SummaryWriter

        self.files = {name: folder / f"{name}.csv" for name in ("log", "validation")}
        for file in self.files.values():
            _truncate(file, step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.wandb: Any = None
        if wandb_project is not None:
            try:
                wandb = importlib.import_module("wandb")
            except ImportError as error:
                raise TrainError(
                    "the configuration asks for wandb, which is not installed: pip install wandb"
                ) from error
            self.wandb = wandb.init(project=wandb_project, dir=str(folder), config=config, resume="allow")

    def write(self, name: str, step: int, metrics: dict[str, float]) -> None:
        """Appends a row to the file `name` ("log" or "validation"), whose first row determines its columns."""
        row: dict[str, object] = {"step": step} | {k: repr(float(v)) for k, v in metrics.items()}
        file = self.files[name]
        new = not file.is_file() or not file.stat().st_size
        try:
            with file.open("a", newline="", encoding="utf-8") as f:
                writer = csv.DictWriter(f, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise TrainError(f"{file}: {error.strerror}; the saved checkpoints are intact") from error
        for key, value in metrics.items():
            self.board.add_scalar(f"{name}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{name}/{key}": value for key, value in metrics.items()}, step=step)

    def close(self) -> None:
        """Flushes and closes all logs."""
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _truncate(file: Path, step: int) -> None:
    """Drops the rows after `step`, and an incomplete last line."""
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    head, rows = lines[:1], [line for line in lines[1:] if line.endswith("\n")]
    kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
    file.write_text("".join(head + kept) if kept else "", encoding="utf-8")
