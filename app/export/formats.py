"""Formats detected events: JSON, CSV, Audacity labels, Raven selection tables, and a table for terminals.

Input is the response of `POST /detect` as plain JSON types. Files are UTF-8 without a byte order mark;
docs/guide/detection.md describes how to open them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from model.config import SAMPLE_RATE

_NYQUIST = SAMPLE_RATE / 2  # Hz, above which the model hears nothing
_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # a spreadsheet evaluates such cells


def to_json(response: dict[str, Any]) -> str:
    """Returns the response, indented."""
    return json.dumps(response, ensure_ascii=False, indent=2) + "\n"


def to_csv(response: dict[str, Any]) -> str:
    """One row per event, with the columns of DCASE event lists and a score; times in seconds.

    Comma-separated, quoted as in RFC 4180. File names and phrases that a spreadsheet would evaluate as a formula are
    prefixed with an apostrophe, which `from_cell` removes.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["filename", "onset", "offset", "event_label", "score"])
    for phrase, event in _events(response):
        name, label = to_cell(response["filename"]), to_cell(phrase)
        writer.writerow([name, *_times(event), label, f"{event['score']:.4f}"])
    return out.getvalue()


def to_cell(text: str) -> str:
    """Escapes text for a spreadsheet: adds an apostrophe if it looks like a formula."""
    return "'" + text if text.lstrip("'").startswith(_FORMULA_PREFIXES) else text


def from_cell(cell: str) -> str:
    """Reverses `to_cell`."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_PREFIXES) else cell


def to_audacity(response: dict[str, Any]) -> str:
    """An Audacity label track: onset, offset and label, separated by tabs, without a header."""
    return "".join("\t".join([*_times(event), _flat(phrase)]) + "\n" for phrase, event in _events(response))


def to_raven(response: dict[str, Any]) -> str:
    """A Raven selection table: tab-separated, Raven's columns in its order, then the score, over the whole band
    that the model hears and the recording has: Raven opens no selection above half its sample rate.

    The channel is always 1, since channels are mixed down. Raven does not support quoting, so tabs and line breaks in
    phrases become spaces.
    """
    high = f"{min(_NYQUIST, (response.get('sample_rate') or SAMPLE_RATE) / 2):g}"
    lines = [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\tScore",
    ]
    for number, (phrase, event) in enumerate(_events(response), start=1):
        begin, end = _times(event)
        cells = [str(number), "Spectrogram 1", "1", begin, end, "0", high, _flat(phrase)]
        lines.append("\t".join([*cells, f"{event['score']:.4f}"]))
    return "\n".join(lines) + "\n"


def to_table(response: dict[str, Any]) -> str:
    """A readable table: events by time, then the phrases without events and their highest score."""
    rows = list(_events(response))
    lines = [f"{response['filename']}, {response['duration']:.2f} s"]
    if rows:
        lines.append(f"{'onset':>9}  {'offset':>9}  {'score':>5}  phrase")
    lines += [f"{e['onset']:9.2f}  {e['offset']:9.2f}  {e['score']:5.2f}  {_flat(p)}" for p, e in rows]
    for phrase in response["phrases"]:
        if not phrase["events"]:
            lines.append(f"not found: {_flat(phrase['phrase'])} (highest score {phrase['max_score']:.2f})")
    if track := response.get("track"):
        language = f" ({track['language']})" if track.get("language") else ""
        lines.append(f"audio track {track['index']}{language}")
    lines += [f"note: {_flat(note['detail'])}" for note in response.get("notes", [])]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": to_table,
    "json": to_json,
    "csv": to_csv,
    "audacity": to_audacity,
    "raven": to_raven,
}


def _events(response: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(phrase, event), sorted by time."""
    found = [(p["phrase"], event) for p in response["phrases"] for event in p["events"]]
    return iter(sorted(found, key=lambda pair: (pair[1]["onset"], pair[1]["offset"])))


def _times(event: dict[str, Any]) -> tuple[str, str]:
    return f"{event['onset']:.3f}", f"{event['offset']:.3f}"


def _flat(text: str) -> str:
    """The text on one line without tabs, since both are separators in these formats."""
    return " ".join(text.split())
