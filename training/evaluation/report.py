"""Writes evaluation reports: JSON, Markdown tables, and plots of frame scores over the true segments.

Figures are drawn off screen, without Matplotlib's global state.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from training.evaluation.benchmark import Report, Shown

ROWS = 8  # phrases per plot
COLUMNS = 3000  # time steps drawn; more would not be visible
_INK, _FAINT, _SCORE, _TRUTH = "#1f2937", "#d5dae1", "#1f6aa5", "#f4a261"


def write_report(folder: Path, reports: Sequence[Report], about: dict[str, Any]) -> list[Path]:
    """Writes report.json, report.md and the plots into `folder`; returns the paths in that order.

    `about` describes the measurement and heads both files. Plots of an earlier report are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / "pictures"
    for old in pictures.glob("*.png") if pictures.is_dir() else ():
        old.unlink()
    files, drawn = [], []
    for at, report in enumerate(reports):
        names = []
        for number, shown in enumerate(report.pictures, start=1):
            pictures.mkdir(exist_ok=True)
            safe = re.sub(r"[^\w.-]+", "_", f"{at + 1}-{report.dataset}-{number:02d}-{shown.audio_id}")[:120]
            path = pictures / f"{safe}.png"
            draw_scores(path, shown, about.get("threshold"))
            names.append(f"pictures/{path.name}")
            files.append(path)
        drawn.append(names)
    as_json = {"about": about, "reports": [_plain(r, names) for r, names in zip(reports, drawn, strict=True)]}
    text = json.dumps(as_json, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(reports, about, drawn), encoding="utf-8")
    return [folder / "report.json", folder / "report.md", *files]


def _plain(report: Report, pictures: list[str]) -> dict[str, Any]:
    return {
        "dataset": report.dataset,
        "task": report.task,
        "protocol": report.protocol,
        "items": report.items,
        "figures": {k: _number(v) for k, v in report.figures.items()},
        "classes": {c: {k: _number(v) for k, v in row.items()} for c, row in report.classes.items()},
        "unreadable": report.unreadable,
        "missing": list(report.missing),
        "notes": list(report.notes),
        "pictures": pictures,
    }


def _number(value: float) -> float | None:
    """The value, or None if it is not finite, because JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def markdown(reports: Sequence[Report], about: dict[str, Any], pictures: Sequence[Sequence[str]] = ()) -> str:
    """One table per task with a column per dataset, then recordings that were not scored, classes and plots."""
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()] + ["", "Figures are percent."]
    for task in dict.fromkeys(r.task for r in reports):
        lines += ["", f"## {task.capitalize()}", "", *figure_table([r for r in reports if r.task == task])]
    for report in reports:
        left_out = [f"- {name}: {reason}" for name, reason in report.unreadable.items()]
        left_out += [f"- {name}: no such file" for name in report.missing]
        if left_out:
            lines += ["", f"## Not scored: {len(left_out)} of {report.dataset}, {report.task}", "", *left_out]
    for at, report in enumerate(reports):
        if report.classes:
            columns = list(dict.fromkeys(k for row in report.classes.values() for k in row))
            rows = [[name, *(_shown(row.get(k)) for k in columns)] for name, row in report.classes.items()]
            lines += ["", f"## Classes of {report.dataset}", "", *table(["class", *columns], rows)]
        if at < len(pictures) and pictures[at]:
            lines += ["", f"## Frame scores on {report.dataset}", ""]
            lines += [f"![{s.audio_id}]({p})" for s, p in zip(report.pictures, pictures[at], strict=True)]
    return "\n".join(lines) + "\n"


def figure_table(reports: Sequence[Report]) -> list[str]:
    """One row per figure and one column per dataset; the last rows count scored and omitted recordings."""
    names = list(dict.fromkeys(k for r in reports for k in r.figures))
    rows = [[name, *(_shown(r.figures.get(name)) for r in reports)] for name in names]
    rows.append(["recordings scored", *(str(r.items) for r in reports)])
    rows.append(["unreadable", *(str(len(r.unreadable)) for r in reports)])
    rows.append(["missing", *(str(len(r.missing)) for r in reports)])
    lines = table(["", *(r.dataset for r in reports)], rows)
    notes = [f"{r.dataset}: {note}." for r in reports for note in r.notes]
    return [*lines, "", *notes] if notes else lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, aligned for reading as plain text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ruler = ["-" * max(3, widths[0])] + ["-" * (max(3, w) - 1) + ":" for w in widths[1:]]
    lined = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    head, *body = [line + " |" for line in lined]
    return [head, "| " + " | ".join(ruler) + " |", *body]


def _shown(value: float | None) -> str:
    return "" if value is None else "—" if not np.isfinite(value) else f"{value:.2f}"


def draw_scores(path: Path, shown: Shown, threshold: float | None = None) -> None:
    """PNG of one recording: one row per phrase, with its score as a curve over bands for its true segments.

    Phrases that occur come first, in order of their first onset, then the highest-scoring phrases that don't.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = shown.scored
    rows = chosen_rows(shown)
    height = 0.95 + 0.62 * len(rows)  # inches
    figure = Figure(figsize=(11, height), dpi=120, facecolor="white")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(0.22, 0.46 / height, 0.95, 1 - 0.42 / height, hspace=0.16)
    for ax, row in zip(axes, rows, strict=True):
        _track(ax, scored.stamps(), scored.scores[row], scored.truth[row], threshold)
        sounding = bool(scored.truth[row])
        name = _line(shown.phrases[row], 34)
        label = ax.text(-0.012, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9, color=_INK)
        label.set_parse_math(False)
        label.set_fontweight("bold" if sounding else "normal")
        best = f"{scored.scores[row].max():.2f}"
        ax.text(1.008, 0.5, best, transform=ax.transAxes, ha="left", va="center", fontsize=8, color=_INK)
        ax.set_xlim(0, max(scored.duration, scored.stamps()[1]))
    axes[-1].set_xlabel("time (s)", fontsize=9, color=_INK)
    hidden = len(shown.phrases) - len(rows)
    title = _line(shown.audio_id, 60) + (f"  ·  {hidden} more phrases" if hidden else "")
    heading = figure.text(0.22, 1 - 0.14 / height, title, fontsize=10, color=_INK, va="top")
    heading.set_parse_math(False)
    _legend(figure, height, threshold)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script without an installed font
        FigureCanvasAgg(figure).print_png(path)


def chosen_rows(shown: Shown, count: int = ROWS) -> list[int]:
    """Rows to plot; at least two are for phrases that don't occur, if there are any, to show false alarms."""
    truth, best = shown.scored.truth, shown.scored.scores.max(1)
    sounding = sorted((r for r in range(len(truth)) if truth[r]), key=lambda r: truth[r][0])
    silent = sorted((r for r in range(len(truth)) if not truth[r]), key=lambda r: -best[r])
    chosen = sounding[: count - min(2, len(silent))]
    return chosen + silent[: min(count - len(chosen), max(2, 5 - len(chosen)))]


def _track(ax: Axes, stamps: np.ndarray, scores: np.ndarray, truth: Any, threshold: float | None) -> None:
    for onset, offset in truth:
        ax.axvspan(onset, offset, color=_TRUTH, alpha=0.55, linewidth=0)
    scores = scores[: len(stamps) - 1]
    step = max(1, -(-len(scores) // COLUMNS))
    starts = np.arange(0, len(scores), step)
    # the maximum of frames that share a pixel, so that short events stay visible
    pooled = np.maximum.reduceat(scores, starts)
    edges = np.append(stamps[starts], stamps[-1])
    ax.stairs(pooled, edges, fill=True, color=_SCORE, alpha=0.3)
    ax.stairs(pooled, edges, color=_SCORE, linewidth=1.3, baseline=None)
    if threshold is not None:
        ax.axhline(threshold, color=_INK, linewidth=0.7, linestyle=(0, (4, 3)))
    ax.set_ylim(0, 1.02)
    ax.set_yticks([])
    ax.tick_params(labelsize=8, colors=_INK, length=2)
    for side in ax.spines.values():
        side.set_color(_FAINT)


def _legend(figure: Any, height: float, threshold: float | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=_TRUTH, alpha=0.55, label="truth"), Line2D([], [], color=_SCORE, label="score")]
    if threshold is not None:
        handles.append(
            Line2D([], [], color=_INK, linewidth=0.7, linestyle=(0, (4, 3)), label=f"threshold {threshold:g}")
        )
    position = {"loc": "upper right", "bbox_to_anchor": (0.955, 1 - 0.06 / height)}
    figure.legend(handles=handles, ncols=len(handles), fontsize=8, frameon=False, **position)


def _line(text: str, width: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
