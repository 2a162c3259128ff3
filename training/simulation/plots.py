"""Plots the output of `finelap simulate`: the clip cut from a recording, and the timeline of a mixture.

Follows fig. 6 of arXiv 2604.01155. Figures are drawn off screen, without pyplot's global state.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.signal import spectrogram

from model.config import SAMPLE_RATE
from training.checkpointing import write_bytes
from training.data.activity import ClipConfig, log_energy
from training.data.audio_cache import decode

INK, WAVE, KEPT = "#1f2937", "#4a8fc3", "#e8590c"
COLOURS = ("#e8590c", "#2b8a3e", "#7048e8", "#c2255c", "#0b7285", "#e67700")
COLUMNS = 2000  # of a waveform; more would not be visible
NAME = 34  # characters shown of a label


def stretch_png(samples: np.ndarray, stretch: tuple[float, float], threshold_db: float, title: str) -> bytes:
    """PNG of a recording, (n,) at 16 kHz: waveform and log-energy envelope, with the clip's stretch marked in both."""
    figure = Figure(figsize=(10, 4.2), dpi=110, facecolor="white", layout="constrained")
    wave, energy = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    seconds = len(samples) / SAMPLE_RATE
    _draw_wave(wave, samples)
    level = log_energy(samples)
    energy.step(np.arange(len(level)) * 0.01, level, where="post", color=WAVE, linewidth=1)
    energy.axhline(threshold_db, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    energy.annotate(
        f"{threshold_db:g} dB",
        (1, threshold_db),
        (4, 0),
        ("axes fraction", "data"),
        "offset points",
        va="center",
        fontsize=8,
        color=INK,
    )
    energy.set_ylim(min(-80.0, threshold_db - 15), 3)
    energy.set_ylabel("dB below peak", fontsize=9, color=INK)
    for ax in (wave, energy):
        ax.axvspan(*stretch, color=KEPT, alpha=0.16, linewidth=0, zorder=0)
        for edge in stretch:
            ax.axvline(edge, color=KEPT, linewidth=1.4)
    _plain(wave, energy, seconds)
    _title(wave, f"{title}: clip at {stretch[0]:.2f} to {stretch[1]:.2f} s of {seconds:.2f} s")
    return _png(figure)


def mixture_png(
    samples: np.ndarray, events: Sequence[tuple[str, Sequence[tuple[float, float]]]], background: str, title: str
) -> bytes:
    """PNG of a mixture, (n,) at 16 kHz: waveform, spectrogram, and one row of segments per event."""
    rows = len(events) + 1
    height = 4.1 + 0.34 * rows
    figure = Figure(figsize=(10, height), dpi=110, facecolor="white", layout="constrained")
    wave, heat, lines = figure.subplots(3, 1, sharex=True, height_ratios=(1.0, 2.0, 0.34 * rows))
    seconds = len(samples) / SAMPLE_RATE
    _draw_wave(wave, samples)
    pitch, at, power = spectrogram(samples, SAMPLE_RATE, nperseg=512, noverlap=256)
    shown = 10 * np.log10(power + 1e-12)
    top = float(shown.max())
    heat.pcolormesh(at, pitch / 1000, shown, cmap="magma", vmin=top - 75, vmax=top, rasterized=True, shading="nearest")
    heat.set_ylabel("kHz", fontsize=9, color=INK)
    names = [*(name for name, _ in events), background]
    for row, (_, segments) in enumerate(events):
        spans = [(a, b - a) for a, b in segments]
        lines.broken_barh(spans, (row - 0.32, 0.64), facecolors=COLOURS[row % len(COLOURS)], linewidth=0)
    lines.broken_barh([(0, seconds)], (rows - 1.32, 0.64), facecolors="#ced4da", linewidth=0)
    lines.set_ylim(rows - 0.5, -0.5)
    labels = [n if len(n) <= NAME else n[: NAME - 1] + "…" for n in names]
    labels[-1] += " (background)"
    lines.set_yticks(range(rows), labels)
    for name in lines.get_yticklabels():
        name.set_parse_math(False)
    _plain(wave, lines, seconds)
    for ax in (heat, lines):
        ax.tick_params(labelsize=8, colors=INK, length=3)
    _title(wave, title)
    return _png(figure)


def draw_set(out: Path, paths: Mapping[str, Path], cutting: ClipConfig, count: int) -> list[Path]:
    """Plots the first `count` clips and mixtures into pictures/; `paths` maps recording names to files."""
    folder, drawn = out / "pictures", []
    folder.mkdir(exist_ok=True)

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]

    for row in [r for r in rows("clips.jsonl") if r["kind"] == "event"][:count]:
        png = stretch_png(decode(paths[row["recording"]]), tuple(row["at"]), cutting.threshold_db, row["label"])
        drawn.append((folder / f"clip-{Path(row['file']).stem}.png", png))
    for row in rows("mixtures.jsonl")[:count]:
        samples = decode(out / "audio" / f"{row['audio_id']}.flac")
        events = [(f"{e['label']}, {e['snr_db']:.0f} dB", e["segments"]) for e in row["events"]]
        png = mixture_png(samples, events, row["background"]["label"], row["caption"])
        drawn.append((folder / f"{row['audio_id']}.png", png))
    for path, png in drawn:
        write_bytes(path, png)
    return [path for path, _ in drawn]


def _draw_wave(ax: Axes, samples: np.ndarray) -> None:
    groups = np.array_split(samples, min(COLUMNS, len(samples)))
    low, high = np.array([g.min() for g in groups]), np.array([g.max() for g in groups])
    x = np.linspace(0, len(samples) / SAMPLE_RATE, len(groups) + 1).repeat(2)[1:-1]
    ax.fill_between(x, low.repeat(2), high.repeat(2), color=WAVE, linewidth=0.4)
    peak = max(float(np.abs(samples).max()), 1e-4)
    ax.set_ylim(-1.05 * peak, 1.05 * peak)
    ax.set_yticks([])


def _plain(first: Axes, last: Axes, seconds: float) -> None:
    first.set_xlim(0, seconds)
    last.set_xlabel("time (s)", fontsize=9, color=INK)
    for ax in (first, last):
        ax.tick_params(labelsize=8, colors=INK, length=3)
        ax.spines[["top", "right"]].set_visible(False)


def _title(ax: Axes, text: str) -> None:
    shown = text if len(text) <= 110 else text[:109] + "…"
    ax.set_title(shown, loc="left", fontsize=10, color=INK).set_parse_math(False)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
