"""Where a training run's figures go: a plain CSV, TensorBoard, and Weights & Biases if asked.

Knows nothing of what the figures mean. A run that goes on drops the rows after the step it goes on from.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any


class LogError(ValueError):
    """A log that was asked for and cannot be kept."""


class Logs:
    """Logs in a work folder. Numbers in the CSV are exact: what is read back is what was measured."""

    def __init__(self, folder: Path, step: int, wandb_project: str | None, config: dict[str, Any]) -> None:
        """`step` is where the run starts; rows after it, left by a stopped run, are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.files = {name: folder / f"{name}.csv" for name in ("log", "validation")}
        for file in self.files.values():
            _keep_until(file, step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.wandb: Any = None
        if wandb_project is not None:
            try:
                wandb = importlib.import_module("wandb")
            except ImportError as error:
                raise LogError("wandb is asked for and not installed: pip install wandb") from error
            self.wandb = wandb.init(project=wandb_project, dir=str(folder), config=config, resume="allow")

    def write(self, name: str, step: int, figures: dict[str, float]) -> None:
        """A row of the CSV `name` ("log" or "validation"); the columns of a file are those of its first row."""
        row: dict[str, object] = {"step": step} | {k: repr(float(v)) for k, v in figures.items()}
        file = self.files[name]
        new = not file.is_file() or not file.stat().st_size
        try:
            with file.open("a", newline="", encoding="utf-8") as f:
                writer = csv.DictWriter(f, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise LogError(f"{file}: {error.strerror}; the checkpoints are kept") from error
        for key, value in figures.items():
            self.board.add_scalar(f"{name}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{name}/{key}": value for key, value in figures.items()}, step=step)

    def close(self) -> None:
        """Writes what is held back."""
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _keep_until(file: Path, step: int) -> None:
    """Drops the rows after `step`, and a last line that a stop has cut."""
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    head, rows = lines[:1], [line for line in lines[1:] if line.endswith("\n")]
    kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
    file.write_text("".join(head + kept) if kept else "", encoding="utf-8")
