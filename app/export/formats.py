"""Detected events as text: a table to read, and the files of other programs.

Takes the answer of `POST /detect` as plain JSON types; knows neither where it came from nor where it goes. Files are
UTF-8 without a byte order mark. docs/detection.md tells how each is read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

_NYQUIST = 8000  # Hz: what the model hears, the height of a Raven selection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # a spreadsheet computes cells that begin so


def to_json(answer: dict[str, Any]) -> str:
    """The answer itself, indented."""
    return json.dumps(answer, ensure_ascii=False, indent=2) + "\n"


def to_csv(answer: dict[str, Any]) -> str:
    """One row an event, with the column names of DCASE's event lists and the score as one more; times in seconds.

    Commas, quoted as RFC 4180 says. A name or phrase that a spreadsheet would take for a formula has an apostrophe
    before it: `from_cell` takes it away.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["filename", "onset", "offset", "event_label", "score"])
    for phrase, event in _events(answer):
        name, label = to_cell(answer["filename"]), to_cell(phrase)
        writer.writerow([name, *_times(event), label, f"{event['score']:.4f}"])
    return out.getvalue()


def to_cell(text: str) -> str:
    """Text as a spreadsheet keeps it: with an apostrophe in front where it looks like a formula."""
    return "'" + text if text.lstrip("'").startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def to_audacity(answer: dict[str, Any]) -> str:
    """An Audacity label track in its standard format: onset, offset, label, separated by tabs; no header."""
    return "".join("\t".join([*_times(event), _flat(phrase)]) + "\n" for phrase, event in _events(answer))


def to_raven(answer: dict[str, Any]) -> str:
    """A Raven selection table: tabs, Raven's own columns in its order, then ours; the whole band that the model hears.

    Channel 1, since all channels are heard as one. Raven knows no quotes, so tabs and line breaks become spaces.
    """
    lines = [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\tScore",
    ]
    for number, (phrase, event) in enumerate(_events(answer), start=1):
        begin, end = _times(event)
        cells = [str(number), "Spectrogram 1", "1", begin, end, "0", str(_NYQUIST), _flat(phrase)]
        lines.append("\t".join([*cells, f"{event['score']:.4f}"]))
    return "\n".join(lines) + "\n"


def to_table(answer: dict[str, Any]) -> str:
    """For people: events in order of time, and the phrases that were not found with their best score."""
    rows = list(_events(answer))
    lines = [f"{answer['filename']}, {answer['duration']:.2f} s"]
    if rows:
        lines.append(f"{'onset':>9}  {'offset':>9}  {'score':>5}  phrase")
    lines += [f"{e['onset']:9.2f}  {e['offset']:9.2f}  {e['score']:5.2f}  {_flat(p)}" for p, e in rows]
    for phrase in answer["phrases"]:
        if not phrase["events"]:
            lines.append(f"not found: {_flat(phrase['phrase'])} (highest score {phrase['max_score']:.2f})")
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": to_table,
    "json": to_json,
    "csv": to_csv,
    "audacity": to_audacity,
    "raven": to_raven,
}


def _events(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(phrase, event), in order of time."""
    found = [(p["phrase"], event) for p in answer["phrases"] for event in p["events"]]
    return iter(sorted(found, key=lambda pair: (pair[1]["onset"], pair[1]["offset"])))


def _times(event: dict[str, Any]) -> tuple[str, str]:
    return f"{event['onset']:.3f}", f"{event['offset']:.3f}"


def _flat(text: str) -> str:
    """One line without tabs: both separate fields in these files."""
    return " ".join(text.split())
