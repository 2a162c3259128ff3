"""One picture of a detection: the waveform above, phrases × time below, events boxed, one time axis in seconds.

Knows outline, scores and events as plain arrays; no model, no HTTP. Drawn off screen, without pyplot and its global
state. Phrases and titles may be in any script: characters that no installed font can draw are replaced, never warned
about.
"""

from __future__ import annotations

import io
import threading
import unicodedata
from collections.abc import Sequence
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
_MARKS = 0.42  # inches for the thresholds beside the scores, where each phrase has its own
_COLUMNS = 2000  # time steps drawn; more would fall between pixels
_BOXES = 80  # events of one row that can have a box each
_LABEL_WIDTH = 28  # characters of a phrase, wide ones counted twice
_FONT = "DejaVu Sans"  # comes with Matplotlib, so it is always there
_INK, _ACCENT = "#1f2937", "#e8590c"
_HEAT = LinearSegmentedColormap.from_list("scores", ["#f8fafc", "#bfd7ea", "#4a8fc3", "#173f6b", "#0b1f3a"])
_drawing = threading.Lock()  # Matplotlib promises nothing about threads; its font caches are shared


def detection_png(
    envelope: np.ndarray,
    duration: float,
    frame_hop: float,
    phrases: list[str],
    scores: np.ndarray,
    events: list[list[Event]],
    title: str,
    thresholds: list[float],
) -> bytes:
    """PNG of a recording's outline (2, n), see app.audio.peaks, and the `scores` (P, T) of P phrases with their events.

    `duration` and `frame_hop` are seconds; `events` has a list for each phrase, `thresholds` a number. One threshold
    for all is a line on the colour scale; otherwise each stands beside its row. A row is high enough to read up to 100
    phrases. Recordings with more frames than pixels show the highest score of each pixel, so no event vanishes. Events
    are boxes, or bars where a row has many. Raises ValueError where the counts do not agree.
    """
    scores = np.asarray(scores, dtype=np.float32)
    counts = {len(phrases), len(scores), len(events), len(thresholds)}
    if len(counts) > 1 or scores.ndim != 2 or not scores.size:
        raise ValueError(
            f"{len(phrases)} phrases, {len(thresholds)} thresholds, {len(events)} lists of events "
            f"and scores of shape {scores.shape}"
        )
    common = len(set(thresholds)) == 1
    track = _TRACK if common else _TRACK - _MARKS
    duration = max(duration, 1e-3)
    row = min(0.42, max(0.16, 7.0 / len(phrases)))  # inches
    rows = row * len(phrases)
    height = _TOP + _WAVE + _GAP + rows + _BOTTOM
    left = _WIDTH - _TRACK - _RIGHT
    with _drawing:
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)

        def axes(bottom: float, inches: float, x: float = left, width: float = track) -> Axes:
            return figure.add_axes((x / _WIDTH, bottom / height, width / _WIDTH, inches / height))

        wave = axes(_BOTTOM + rows + _GAP, _WAVE)
        heat = axes(_BOTTOM, rows)
        _draw_wave(wave, envelope, duration)
        image = _draw_scores(heat, scores, frame_hop)
        _draw_events(heat, events)
        size = min(9.5, row * 48)
        _draw_labels(heat, phrases, scores, size)
        if not common:
            _draw_thresholds(heat, thresholds, size, offset=0.36 / track)
        for each in (wave, heat):
            each.set_xlim(0, duration)
            each.tick_params(labelsize=8, colors=_INK, length=3)
        wave.tick_params(labelbottom=False)
        heat.set_xlabel("time (s)", fontsize=9, color=_INK)
        scale = figure.colorbar(image, cax=axes(_BOTTOM, min(max(rows, 1.2), 2.5), left + _TRACK + 0.5, 0.11))
        scale.ax.tick_params(labelsize=7, colors=_INK, length=2)
        if common:
            scale.ax.axhline(thresholds[0], color=_ACCENT, linewidth=2)
        shown, fonts = _drawable(_shorten(title, 110), "recording")
        name = figure.text(left / _WIDTH, 1 - 0.28 / height, shown, fontsize=11, color=_INK, family=fonts)
        name.set_parse_math(False)
        out = io.BytesIO()
        canvas.print_png(out)
    return out.getvalue()


def _draw_wave(ax: Axes, envelope: np.ndarray, duration: float) -> None:
    low, high = reduce_peaks(envelope, max(1, min(envelope.shape[1], _COLUMNS)))
    # each column is drawn to its right edge, so that the shape has an area even where it is a single step
    x = np.linspace(0, duration, len(low) + 1).repeat(2)[1:-1]
    ax.fill_between(x, low.repeat(2), high.repeat(2), color="#4a8fc3", linewidth=0.4)
    peak = max(float(np.abs(envelope).max(initial=0.0)), 1e-4)
    ax.set_ylim(-1.05 * peak, 1.05 * peak)
    ax.set_yticks([])


def _draw_scores(ax: Axes, scores: np.ndarray, frame_hop: float) -> QuadMesh:
    pooled = np.stack([_highest(row) for row in scores])
    edges = np.linspace(0, scores.shape[1], pooled.shape[1] + 1).round() * frame_hop
    mesh = ax.pcolormesh(edges, np.arange(len(scores) + 1), pooled, cmap=_HEAT, vmin=0, vmax=1, rasterized=True)
    ax.set_ylim(len(scores), 0)  # the first phrase on top
    return mesh


def _draw_events(ax: Axes, events: list[list[Event]]) -> None:
    """A box around each event; where a row has too many, bars along the feet of all rows leave the scores visible."""
    crowded = max(len(found) for found in events) > _BOXES
    top, bottom = (0.78, 1.0) if crowded else (0.08, 0.92)
    boxes = [
        [(e.onset, row + top), (e.offset, row + top), (e.offset, row + bottom), (e.onset, row + bottom)]
        for row, found in enumerate(events)
        for e in found
    ]
    fill, width = (_ACCENT, 0.4) if crowded else ("none", 1.6)
    ax.add_collection(PolyCollection(boxes, facecolors=fill, edgecolors=_ACCENT, linewidths=width), autolim=False)


def _draw_labels(ax: Axes, phrases: list[str], scores: np.ndarray, size: float) -> None:
    """Phrases left of their rows, the highest score of each on the right."""
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
    """Each phrase's threshold to the right of its highest score; `offset` in widths of the axes."""
    side = ax.get_yaxis_transform()
    for row, threshold in enumerate(thresholds):
        mark = ax.text(1 + offset, row + 0.5, f"≥{threshold:.2f}", transform=side, ha="left", va="center")
        mark.set_fontsize(size * 0.85)
        mark.set_color(_ACCENT)


def _highest(track: np.ndarray) -> np.ndarray:
    """track (T,) → at most _COLUMNS values, each the highest of its share."""
    if len(track) <= _COLUMNS:
        return track
    starts = np.linspace(0, len(track), _COLUMNS + 1).round().astype(np.intp)[:-1]
    return np.asarray(np.maximum.reduceat(track, starts))


def _shorten(text: str, width: int) -> str:
    """One printable line of at most `width` columns; East Asian wide characters count as two."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    used = 0
    for i, c in enumerate(line):
        used += 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if used > width:
            return line[: max(0, i - 1)] + "…"
    return line


def _drawable(text: str, otherwise: str) -> tuple[str, list[str]]:
    """The text as installed fonts can draw it, and those fonts; `otherwise` where too little of it would remain."""
    fonts: list[str] = [_FONT]
    kept = []
    missing = 0
    for c in text:
        font = _font_for(c)
        if font is None:
            missing += 1
        elif font not in fonts:
            fonts.append(font)
        kept.append("□" if font is None else c)
    if missing * 2 > len(text) or not text:
        return otherwise, [_FONT]
    return "".join(kept), fonts


@lru_cache(maxsize=4096)
def _font_for(character: str) -> str | None:
    """Family of an installed font that can draw the character, Matplotlib's own first; None if there is none."""
    for path, family in _fonts():
        try:
            font = font_manager.get_font(path)
            if font.get_char_index(ord(character)):
                font.set_size(10, _DPI)
                font.load_char(ord(character))  # colour bitmaps are in the table but cannot be drawn
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
    }  # the last resort draws a box for every script: a replacement like ours, not the text
    return [(own, _FONT), *((path, name) for name, path in sorted(unique.items()) if name != _FONT)]
