"""The metrics log of a training run: CSV files, TensorBoard and, optionally, Weights & Biases."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any


class LogError(ValueError):
    """A log that cannot be written, or whose package is not installed."""


class MetricsLog:
    """Logs in a work folder. Numbers in the CSV files read back exactly."""

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
                raise LogError("the configuration asks for wandb, which is not installed: pip install wandb") from error
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
            raise LogError(f"{file}: {error.strerror}; the saved checkpoints are intact") from error
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
