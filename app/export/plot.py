"""Plots a detection as a PNG: the waveform above a phrases × time heat map with the events.

Uses Matplotlib off screen, without pyplot and its global state. Phrases and titles may be in any script: characters
that no installed font can draw are replaced without a warning.
"""

from __future__ import annotations

import io
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text

from app.audio.peaks import reduce_peaks
from model.detection import Event

_DPI = 110
_WIDTH = 12.0  # inches
_TRACK = 8.6  # inches of the time axis
_WAVE = 1.1  # inches, height of the waveform
_TOP, _GAP, _BOTTOM, _RIGHT = 0.45, 0.14, 0.55, 0.95  # inches
_MARKS = 0.42  # inches for thresholds beside the scores, if they differ
_COLUMNS = 2000  # time steps drawn; more would exceed the pixels
_MAX_BOXES = 80  # events in one row that are drawn as boxes
_LABEL_WIDTH = 28  # characters of a phrase; wide ones count twice
_FONT = "DejaVu Sans"  # bundled with Matplotlib
_INK, _ACCENT = "#1f2937", "#e8590c"
_HEAT = LinearSegmentedColormap.from_list("scores", ["#f8fafc", "#bfd7ea", "#4a8fc3", "#173f6b", "#0b1f3a"])
_lock = threading.Lock()  # Matplotlib is not thread-safe; its font caches are shared


@dataclass(frozen=True)
class DetectionPlot:
    """The content of a plot of P phrases over T frames.

    title: the heading, usually the file name. duration: seconds. peaks: waveform peaks (2, n), see app.audio.peaks.
    scores: (P, T), with a frame every `frame_hop` seconds. events, thresholds: one entry per phrase.
    """

    title: str
    duration: float
    peaks: np.ndarray
    phrases: list[str]
    scores: np.ndarray
    frame_hop: float
    events: list[list[Event]]
    thresholds: list[float]


def detection_png(plot: DetectionPlot) -> bytes:
    """Renders a PNG. Raises ValueError if the numbers of phrases, scores, events and thresholds differ.

    A common threshold is a line on the colour scale; otherwise each threshold is printed beside its row. Rows stay
    readable for up to 100 phrases. If there are more frames than pixels, each pixel shows its highest score, so that no
    event disappears. Events are boxes, or bars if a row has many.
    """
    scores = np.asarray(plot.scores, dtype=np.float32)
    counts = {len(plot.phrases), len(scores), len(plot.events), len(plot.thresholds)}
    if len(counts) > 1 or scores.ndim != 2 or not scores.size:
        raise ValueError(
            f"{len(plot.phrases)} phrases, {len(plot.thresholds)} thresholds, {len(plot.events)} lists of events "
            f"and scores of shape {scores.shape}"
        )
    with _lock:
        return _draw(plot, scores)


def _draw(plot: DetectionPlot, scores: np.ndarray) -> bytes:
    common = len(set(plot.thresholds)) == 1
    track = _TRACK if common else _TRACK - _MARKS
    row = min(0.42, max(0.16, 7.0 / len(plot.phrases)))  # inches
    rows = row * len(plot.phrases)
    height = _TOP + _WAVE + _GAP + rows + _BOTTOM
    left = _WIDTH - _TRACK - _RIGHT
    duration = max(plot.duration, 1e-3)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def axes(bottom: float, inches: float, x: float = left, width: float = track) -> Axes:
        return figure.add_axes((x / _WIDTH, bottom / height, width / _WIDTH, inches / height))

    wave = axes(_BOTTOM + rows + _GAP, _WAVE)
    heat = axes(_BOTTOM, rows)
    _draw_wave(wave, plot.peaks, duration)
    image = _draw_scores(heat, scores, plot.frame_hop)
    _draw_events(heat, plot.events)
    size = min(9.5, row * 48)
    _draw_labels(heat, plot.phrases, scores, size)
    if not common:
        _draw_thresholds(heat, plot.thresholds, size, offset=0.36 / track)
    for each in (wave, heat):
        each.set_xlim(0, duration)
        each.tick_params(labelsize=8, colors=_INK, length=3)
    wave.tick_params(labelbottom=False)
    heat.set_xlabel("time (s)", fontsize=9, color=_INK)
    scale = figure.colorbar(image, cax=axes(_BOTTOM, min(max(rows, 1.2), 2.5), left + _TRACK + 0.5, 0.11))
    scale.ax.tick_params(labelsize=7, colors=_INK, length=2)
    if common:
        scale.ax.axhline(plot.thresholds[0], color=_ACCENT, linewidth=2)
    shown, fonts = _drawable(_shorten(plot.title, 110), "recording")
    name = figure.text(left / _WIDTH, 1 - 0.28 / height, shown, fontsize=11, color=_INK, family=fonts)
    name.set_parse_math(False)
    out = io.BytesIO()
    canvas.print_png(out)
    return out.getvalue()


def _draw_wave(ax: Axes, peaks: np.ndarray, duration: float) -> None:
    low, high = reduce_peaks(peaks, max(1, min(peaks.shape[1], _COLUMNS)))
    # draw each column up to its right edge, so that even a single step has an area
    x = np.linspace(0, duration, len(low) + 1).repeat(2)[1:-1]
    ax.fill_between(x, low.repeat(2), high.repeat(2), color="#4a8fc3", linewidth=0.4)
    peak = max(float(np.abs(peaks).max(initial=0.0)), 1e-4)
    ax.set_ylim(-1.05 * peak, 1.05 * peak)
    ax.set_yticks([])


def _draw_scores(ax: Axes, scores: np.ndarray, frame_hop: float) -> QuadMesh:
    pooled = np.stack([_highest(row) for row in scores])
    edges = np.linspace(0, scores.shape[1], pooled.shape[1] + 1).round() * frame_hop
    mesh = ax.pcolormesh(edges, np.arange(len(scores) + 1), pooled, cmap=_HEAT, vmin=0, vmax=1, rasterized=True)
    ax.set_ylim(len(scores), 0)  # first phrase on top
    return mesh


def _draw_events(ax: Axes, events: list[list[Event]]) -> None:
    """Draws boxes around events, or, if a row has too many, bars at the bottom of all rows."""
    crowded = max(len(found) for found in events) > _MAX_BOXES
    top, bottom = (0.78, 1.0) if crowded else (0.08, 0.92)
    boxes = [
        [(e.onset, row + top), (e.offset, row + top), (e.offset, row + bottom), (e.onset, row + bottom)]
        for row, found in enumerate(events)
        for e in found
    ]
    fill, width = (_ACCENT, 0.4) if crowded else ("none", 1.6)
    ax.add_collection(PolyCollection(boxes, facecolors=fill, edgecolors=_ACCENT, linewidths=width), autolim=False)


def _draw_labels(ax: Axes, phrases: list[str], scores: np.ndarray, size: float) -> None:
    """Draws the phrases on the left of their rows and their highest scores on the right."""
    ax.set_yticks([])
    for row in range(1, len(phrases)):
        ax.axhline(row, color="white", linewidth=0.6)
    side = ax.get_yaxis_transform()  # x in axes, y in rows
    for row, phrase in enumerate(phrases):
        shown, fonts = _drawable(_shorten(phrase, _LABEL_WIDTH), f"phrase {row + 1}")
        label: Text = ax.text(-0.008, row + 0.5, shown, transform=side, ha="right", va="center", family=fonts)
        label.set_parse_math(False)  # a phrase may contain dollar signs
        best = ax.text(1.006, row + 0.5, f"{scores[row].max():.2f}", transform=side, ha="left", va="center")
        for text in (label, best):
            text.set_fontsize(size)
            text.set_color(_INK)
        best.set_fontsize(size * 0.85)


def _draw_thresholds(ax: Axes, thresholds: list[float], size: float, offset: float) -> None:
    """Draws each phrase's threshold to the right of its highest score; `offset` in widths of the axes."""
    side = ax.get_yaxis_transform()
    for row, threshold in enumerate(thresholds):
        mark = ax.text(1 + offset, row + 0.5, f"≥{threshold:.2f}", transform=side, ha="left", va="center")
        mark.set_fontsize(size * 0.85)
        mark.set_color(_ACCENT)


def _highest(track: np.ndarray) -> np.ndarray:
    """track (T,) → at most _COLUMNS values, each the maximum of its share."""
    if len(track) <= _COLUMNS:
        return track
    starts = np.linspace(0, len(track), _COLUMNS + 1).round().astype(np.intp)[:-1]
    return np.asarray(np.maximum.reduceat(track, starts))


def _shorten(text: str, width: int) -> str:
    """Returns one printable line of at most `width` columns; East Asian wide characters count twice."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    used = 0
    for i, c in enumerate(line):
        used += 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if used > width:
            return line[: max(0, i - 1)] + "…"
    return line


def _drawable(text: str, fallback: str) -> tuple[str, list[str]]:
    """Returns the text as installed fonts can draw it, and the fonts; `fallback` if too little of it remains."""
    fonts: list[str] = [_FONT]
    drawn = []
    missing = 0
    for c in text:
        font = _font_for(c)
        if font is None:
            missing += 1
        elif font not in fonts:
            fonts.append(font)
        drawn.append("□" if font is None else c)
    if missing * 2 > len(text) or not text:
        return fallback, [_FONT]
    return "".join(drawn), fonts


@lru_cache(maxsize=4096)
def _font_for(character: str) -> str | None:
    """The family of an installed font with the character, preferably Matplotlib's own; None if there is none."""
    for path, family in _fonts():
        try:
            font = font_manager.get_font(path)
            if font.get_char_index(ord(character)):
                font.set_size(10, _DPI)
                font.load_char(ord(character))  # fails for colour bitmaps, which are listed but cannot be drawn
                return family
        except (RuntimeError, OSError):
            continue
    return None


@lru_cache(maxsize=1)
def _fonts() -> Sequence[tuple[str, str]]:
    own = font_manager.findfont(_FONT)
    unique = {
        font.name: font.fname
        for font in reversed(font_manager.fontManager.ttflist)
        if font.style == "normal" and font.weight in (400, "normal") and not font.name.startswith("Last Resort")
    }  # Last Resort draws placeholder boxes
    return [(own, _FONT), *((path, name) for name, path in sorted(unique.items()) if name != _FONT)]
