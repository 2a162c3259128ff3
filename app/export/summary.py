"""Summaries of a job's events: for each phrase, clip and hour, and as a heat map of days and hours.

The results are read once, as in app.export.events. Events belong to the hour in which they begin.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from app.audio.start_time import start_time
from app.export.events import Results
from app.export.formats import to_cell

_HOUR = timedelta(hours=1)
_PANELS = 20  # phrases drawn, those with the most events
_MAX_DAYS = 3_700  # drawn, the last ones


@dataclass
class Hour:
    """One hour of local time: the seconds recorded in it, and for P phrases the events (P,) and their seconds (P,)."""

    seconds: float
    events: np.ndarray
    durations: np.ndarray


@dataclass
class Hours:
    """The hours in which something was recorded, and the number of clips whose start is not known."""

    hours: dict[datetime, Hour] = field(default_factory=dict)
    undated: int = 0


def by_hour(results: Results, phrases: Sequence[str]) -> Hours:
    """Adds up the events of each hour."""
    found = Hours()
    for clip, events in results:
        began = start_time(clip.filename, clip.metadata)
        if began is None:
            found.undated += 1
            continue
        for hour, seconds in _split(began, clip.duration):
            _hour(found, hour, len(phrases)).seconds += seconds
        for number, onset, offset, _ in events.tolist():
            hour = _floor(began + timedelta(seconds=onset))
            own = _hour(found, hour, len(phrases))
            own.events[number] += 1
            own.durations[number] += offset - onset
    found.hours = dict(sorted(found.hours.items()))
    return found


def phrases_json(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """{"by": "phrase", "phrases": [{"phrase", "events", "duration", "clips"}]}: clips with at least one event."""
    yield from _json({"by": "phrase"}, "phrases", iter(_phrases(results, phrases)))


def phrases_csv(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """A row for each phrase."""
    yield _row(["event_label", "events", "duration", "clips"])
    for own in _phrases(results, phrases):
        yield _row([to_cell(own["phrase"]), own["events"], f"{own['duration']:.3f}", own["clips"]])


def hours_json(summary: Hours, phrases: Sequence[str]) -> Iterator[bytes]:
    """{"by": "hour", "undated", "phrases", "hours": [{"hour", "seconds", "events", "durations"}]}."""
    head = {"by": "hour", "phrases": list(phrases), "undated": summary.undated}
    rows = (
        {
            "hour": hour.isoformat(timespec="minutes"),
            "seconds": round(own.seconds, 3),
            "events": own.events.tolist(),
            "durations": np.round(own.durations, 3).tolist(),
        }
        for hour, own in summary.hours.items()
    )
    yield from _json(head, "hours", rows)


def hours_csv(summary: Hours, phrases: Sequence[str]) -> Iterator[bytes]:
    """A row for each hour and phrase, with zeros."""
    yield _row(["hour", "recorded", "event_label", "events", "duration"])
    for hour, own in summary.hours.items():
        for number, phrase in enumerate(phrases):
            counted = [int(own.events[number]), f"{own.durations[number]:.3f}"]
            yield _row([hour.isoformat(timespec="minutes"), f"{own.seconds:.3f}", to_cell(phrase), *counted])


def clips_json(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """{"by": "clip", "phrases", "clips": [{"clip_id", "filename", "time", "seconds", "events", "durations"}]}."""
    yield from _json({"by": "clip", "phrases": list(phrases)}, "clips", _clips(results, len(phrases)))


def clips_csv(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """A row for each clip and phrase, with zeros."""
    yield _row(["filename", "recorded", "event_label", "events", "duration", "clip_id", "time"])
    for own in _clips(results, len(phrases)):
        name, seconds = to_cell(own["filename"]), f"{own['seconds']:.3f}"
        for phrase, events, duration in zip(phrases, own["events"], own["durations"], strict=True):
            yield _row([name, seconds, to_cell(phrase), events, f"{duration:.3f}", own["clip_id"], own["time"] or ""])


def hours_png(summary: Hours, phrases: Sequence[str]) -> bytes:
    """A heat map for each of the most frequent phrases: events by hour of the day and date; grey: not recorded."""
    # importing Matplotlib takes a second, and most services never plot
    from app.export.heatmap import HeatMap, heat_maps_png

    days = sorted({hour.date() for hour in summary.hours})[-_MAX_DAYS:]
    if not days:
        return heat_maps_png([], "No clip tells when it was recorded")
    count = min((days[-1] - days[0]).days + 1, _MAX_DAYS)
    first = days[-1] - timedelta(days=count - 1)
    cells = np.full((len(phrases), 24, count), np.nan)
    for hour, own in summary.hours.items():
        if hour.date() >= first:
            cells[:, hour.hour, (hour.date() - first).days] = own.events
    order = np.argsort(-np.nansum(cells, axis=(1, 2)), kind="stable")[:_PANELS]
    maps = [HeatMap(phrases[number], first, cells[number]) for number in order.tolist()]
    return heat_maps_png(maps, f"Events by day and hour, {first} to {days[-1]}")


def _phrases(results: Results, phrases: Sequence[str]) -> list[dict[str, Any]]:
    events, clips = np.zeros(len(phrases), np.int64), np.zeros(len(phrases), np.int64)
    durations = np.zeros(len(phrases))
    for _, own in results:
        counts = np.bincount(own["phrase"], minlength=len(phrases))
        events += counts
        clips += counts > 0
        durations += np.bincount(own["phrase"], own["offset"] - own["onset"], len(phrases))
    return [
        {
            "phrase": phrase,
            "events": int(events[number]),
            "duration": round(float(durations[number]), 3),
            "clips": int(clips[number]),
        }
        for number, phrase in enumerate(phrases)
    ]


def _clips(results: Results, phrases: int) -> Iterator[dict[str, Any]]:
    for clip, events in results:
        began = start_time(clip.filename, clip.metadata)
        lengths = events["offset"] - events["onset"]
        yield {
            "clip_id": clip.id,
            "filename": clip.filename,
            "time": None if began is None else began.isoformat(timespec="seconds"),
            "seconds": round(clip.duration, 3),
            "events": np.bincount(events["phrase"], minlength=phrases).tolist(),
            "durations": np.round(np.bincount(events["phrase"], lengths, phrases).astype(float), 3).tolist(),
        }


def _hour(found: Hours, hour: datetime, phrases: int) -> Hour:
    if hour not in found.hours:
        found.hours[hour] = Hour(0.0, np.zeros(phrases, np.int64), np.zeros(phrases))
    return found.hours[hour]


def _floor(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _split(began: datetime, duration: float) -> Iterator[tuple[datetime, float]]:
    """The hours that a recording lasts through, with the seconds in each."""
    ends = began + timedelta(seconds=duration)
    while began < ends:
        hour = _floor(began)
        stop = min(ends, hour + _HOUR)
        yield hour, (stop - began).total_seconds()
        began = stop


def _json(head: dict[str, Any], name: str, rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """An object with the members of `head` and the list `name`, written row by row."""
    yield f"{json.dumps(head, ensure_ascii=False)[:-1]}, {json.dumps(name)}: [".encode()
    for number, row in enumerate(rows):
        yield f"{', ' if number else ''}{json.dumps(row, ensure_ascii=False)}".encode()
    yield b"]}"


def _row(cells: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
