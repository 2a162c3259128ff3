"""The paper's result tables for any number of checkpoints: a row each, with its time and memory.

Retrieval, classification, detection and grounding have a table each, with the columns that papers report.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.benchmark import TASKS, Report
from training.evaluation.report import table

# (name of the figure, heading) in the order of the columns
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "retrieval": tuple(
        (f"{way} {figure}", f"{short} {figure}")
        for way, short in (("text→audio", "T→A"), ("audio→text", "A→T"))
        for figure in ("R@1", "R@5", "R@10", "mAP@10")
    ),
    "classification": (("accuracy", "accuracy"),),
    "detection": (("PSDS1", "PSDS1"), ("PSDS2", "PSDS2")),
    "grounding": (("PSDS", "PSDS"), ("threshold-AUC", "threshold-AUC")),
}


@dataclass(frozen=True)
class Row:
    """The results of one checkpoint, and what they cost."""

    checkpoint: str
    reports: Sequence[Report]
    parameters: int
    peak_memory_mb: float  # of the process, or of the GPU if the model ran on one
    seconds: float  # for everything, loading included


def write_tables(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Writes table.md and table.json into the folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    protocols = sorted({r.protocol for row in rows for r in row.reports})
    text = "\n".join(["# Results", "", f"Protocol: {', '.join(protocols)}. Figures are percent.", *tables(rows)])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps({"protocols": protocols, "checkpoints": [_plain(r) for r in rows]}, indent=2)
    (folder / "table.json").write_text(content + "\n", encoding="utf-8")
    return [folder / "table.md", folder / "table.json"]


def tables(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: one table for each task that occurs, and one of time and memory."""
    lines: list[str] = []
    for task in TASKS:
        datasets = list(dict.fromkeys(r.dataset for row in rows for r in row.reports if r.task == task))
        if datasets:
            lines += ["", f"## {task.capitalize()}", "", *_task_table(rows, task, datasets)]
    header = ["checkpoint", "parameters, million", "audio, s", "encoding, s", "times real time", "total, s", "peak, MB"]
    costs = [[r.checkpoint, f"{r.parameters / 1e6:.1f}", *_times(r), f"{r.peak_memory_mb:.0f}"] for r in rows]
    return [*lines, "", "## Time and memory", "", *table(header, costs)]


def _task_table(rows: Sequence[Row], task: str, datasets: Sequence[str]) -> list[str]:
    found = {(r.dataset, id(row)): r.figures for row in rows for r in row.reports if r.task == task}
    columns = [
        (dataset, figure, f"{dataset} {heading}")
        for dataset in datasets
        for figure, heading in COLUMNS[task]
        if any(figure in found.get((dataset, id(row)), {}) for row in rows)
    ]
    body = [[row.checkpoint, *(_shown(found.get((d, id(row)), {}).get(f)) for d, f, _ in columns)] for row in rows]
    return table(["checkpoint", *(heading for *_, heading in columns)], body)


def _times(row: Row) -> tuple[str, str, str, str]:
    audio, taken = sum(r.audio_seconds for r in row.reports), sum(r.encoding_seconds for r in row.reports)
    return f"{audio:.0f}", f"{taken:.1f}", f"{audio / taken:.0f}" if taken else "", f"{row.seconds:.1f}"


def _shown(value: float | None) -> str:
    return "" if value is None else "—" if value != value else f"{value:.2f}"


def _plain(row: Row) -> dict[str, Any]:
    return {
        "checkpoint": row.checkpoint,
        "parameters": row.parameters,
        "seconds": round(row.seconds, 2),
        "peak_memory_mb": round(row.peak_memory_mb, 1),
        "audio_seconds": round(sum(r.audio_seconds for r in row.reports), 2),
        "encoding_seconds": round(sum(r.encoding_seconds for r in row.reports), 2),
        "results": [
            {"dataset": r.dataset, "task": r.task, "protocol": r.protocol, "items": r.items}
            | {"figures": {k: v if v == v else None for k, v in r.figures.items()}}
            for r in row.reports
        ],
    }


class PeakMemory:
    """The most memory in use since the last `reset`: of the process, or of the GPU the model runs on."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")

    def reset(self) -> None:
        """Starts a new measurement. Where the kernel cannot do that, the peak remains the process's own."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """The peak in MB."""
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated() / 1e6
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
