"""Plots heat maps of days and hours as a PNG, in the style of app.export.plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.export.plot import _ACCENT, _DPI, _HEAT, _INK, _WIDTH, _drawable, _lock, _shorten

_PANEL, _SPACE, _TOP, _BOTTOM = 1.35, 0.5, 0.45, 0.45  # inches
_LEFT, _RIGHT = 0.07, 0.94  # of the width
_NOT_RECORDED = "#e2e8f0"
_TICKS = 12  # dates named at most


@dataclass(frozen=True)
class HeatMap:
    """The events of a phrase: (24 hours, D days) from the day `first` on; NaN where nothing was recorded."""

    phrase: str
    first: date
    cells: np.ndarray


def heat_maps_png(maps: Sequence[HeatMap], title: str) -> bytes:
    """Renders a PNG with a panel for each map, all on the same time axis."""
    with _lock:
        height = _TOP + _BOTTOM + max(len(maps), 1) * (_PANEL + _SPACE)
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        figure.text(_LEFT, 1 - 0.3 / height, title, fontsize=11, color=_INK)
        for number, own in enumerate(maps):
            bottom = height - _TOP - (number + 1) * (_PANEL + _SPACE) + 0.1
            ax = figure.add_axes((_LEFT, bottom / height, _RIGHT - _LEFT, _PANEL / height))
            _draw(figure, ax, own)
        out = io.BytesIO()
        canvas.print_png(out)
        return out.getvalue()


def _draw(figure: Figure, ax, own: HeatMap) -> None:  # type: ignore[no-untyped-def]  # an Axes
    days = own.cells.shape[1]
    ax.set_facecolor(_NOT_RECORDED)
    most = max(1.0, float(np.nanmax(own.cells, initial=0.0)))
    image = ax.pcolormesh(
        np.arange(days + 1), np.arange(25), np.ma.masked_invalid(own.cells), cmap=_HEAT, vmin=0, vmax=most
    )
    label, fonts = _drawable(_shorten(own.phrase, 90), "phrase")
    ax.set_title(label, fontsize=9.5, color=_INK, loc="left", family=fonts, parse_math=False)
    ax.set_ylim(24, 0)
    ax.set_yticks([0, 6, 12, 18, 24])
    step = max(1, -(-days // _TICKS))
    ax.set_xticks(np.arange(0, days, step) + 0.5)
    ax.set_xticklabels([str(own.first + timedelta(days=int(day))) for day in range(0, days, step)])
    ax.tick_params(labelsize=7, colors=_INK, length=2)
    bar = figure.colorbar(image, ax=ax, pad=0.01, fraction=0.02)
    bar.ax.tick_params(labelsize=7, colors=_INK, length=2)
    bar.outline.set_edgecolor(_ACCENT)
    bar.outline.set_linewidth(0.3)
