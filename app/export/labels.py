"""Labels of other tools, read and written: Raven selection tables, Audacity label tracks, and event lists of DCASE.

Readers are lenient about what these tools and their exports differ in: column order, separators, byte order marks, the
two rows that Raven writes for each selection. Times are seconds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from app.export.formats import from_cell, to_audacity, to_cell, to_raven

MAX_BYTES = 4 << 20
POINT_SECONDS = 0.5  # that a label of a point in time stands for

_RAVEN_START, _RAVEN_END = ("begin time (s)", "begin time"), ("end time (s)", "end time")
_RAVEN_LABEL = ("annotation", "label", "species", "common name", "sound", "type")
_CSV = {
    "filename": ("filename", "file", "audio", "begin file"),
    "onset": ("onset", "start", "begin", "onset_s", "start_s", "start (s)", "start_time", "start time"),
    "offset": ("offset", "end", "stop", "offset_s", "end_s", "end (s)", "end_time", "end time"),
    "label": ("event_label", "label", "class", "annotation", "event", "phrase", "common name"),
}


@dataclass(frozen=True)
class LabelRow:
    """A labelled stretch; `filename` is empty if the format doesn't name the recording."""

    start: float
    end: float
    label: str
    filename: str = ""


def read_file(file: BinaryIO) -> str:
    """A label file's text. Raises ValueError if it is too large or not text."""
    file.seek(0)
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"a label file may have {MAX_BYTES >> 20} MB")
    if b"\0" in data[:100] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("this is not a text file")
    for encoding in ("utf-16",) if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError("the text is neither UTF-8 nor Windows-1252")


# Readers


def read_raven(text: str) -> list[LabelRow]:
    """A Raven selection table. Raises ValueError with the line at fault."""
    table = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not table:
        raise ValueError("the file is empty")
    names = [name.strip().lower() for name in table[0]]
    start, end = _column(names, _RAVEN_START), _column(names, _RAVEN_END)
    if start is None or end is None:
        raise ValueError("line 1: a Raven table has the columns “Begin Time (s)” and “End Time (s)”")
    label = _column(names, _RAVEN_LABEL)
    rows = [
        _row(number, cells, start, end, label)
        for number, cells in enumerate(table[1:], start=2)
        if any(cell.strip() for cell in cells)
    ]
    return list(dict.fromkeys(rows))  # Raven writes a selection once for each of its views


def read_audacity(text: str) -> list[LabelRow]:
    """An Audacity label track. Raises ValueError with the line at fault."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):  # a backslash: the frequencies of the label before
            continue
        cells = line.split("\t")
        if len(cells) < 2:
            raise ValueError(f"line {number}: a label has a start, an end and a text, separated by tabs")
        rows.append(_row(number, cells, 0, 1, 2))
    return rows


def read_csv(text: str) -> list[LabelRow]:
    """An event list of DCASE, with commas, semicolons or tabs, with or without a header. Raises ValueError."""
    first = text.lstrip().partition("\n")[0]
    delimiter = max("\t,;", key=first.count)
    table = [
        (number, cells)
        for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), start=1)
        if any(cell.strip() for cell in cells)
    ]
    if not table:
        raise ValueError("the file is empty")
    names = [name.strip().lower() for name in table[0][1]]
    places = {field: _column(names, known) for field, known in _CSV.items()}
    if places["onset"] is not None and places["offset"] is not None:
        table = table[1:]
    else:  # no header: DCASE has (file name, onset, offset, label), or without the file name
        count = len(names)
        by_count = {
            4: ("filename", "onset", "offset", "label"),
            3: ("onset", "offset", "label"),
            2: ("onset", "offset"),
        }
        if count not in by_count or _seconds(names[by_count[count].index("onset")]) is None:
            raise ValueError("line 1: expected the columns filename, onset, offset and event_label")
        places = {field: None for field in _CSV} | {field: n for n, field in enumerate(by_count[count])}
    onset, offset = places["onset"], places["offset"]
    assert onset is not None and offset is not None
    return [_row(number, cells, onset, offset, places["label"], places["filename"]) for number, cells in table]


READERS: dict[str, Callable[[str], list[LabelRow]]] = {
    "raven": read_raven,
    "audacity": read_audacity,
    "csv": read_csv,
}


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _row(
    number: int, cells: Sequence[str], start: int, end: int, label: int | None = None, filename: int | None = None
) -> LabelRow:
    onset, offset = (_seconds(cells[place]) if place < len(cells) else None for place in (start, end))
    if onset is None or offset is None or offset < onset:
        raise ValueError(f"line {number}: a start and an end in seconds are needed, the end not before the start")
    if offset == onset:
        onset, offset = max(0.0, onset - POINT_SECONDS / 2), onset + POINT_SECONDS / 2

    def text(place: int | None) -> str:
        return "" if place is None or place >= len(cells) else from_cell(" ".join(cells[place].split()))

    return LabelRow(onset, offset, text(label), text(filename))


def _seconds(cell: str) -> float | None:
    text = cell.strip()
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


# Writers


def write_csv(rows: Sequence[LabelRow]) -> str:
    """An event list with the columns of DCASE: filename, onset, offset, event_label."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["filename", "onset", "offset", "event_label"])
    for row in rows:
        writer.writerow([to_cell(row.filename), f"{row.start:.3f}", f"{row.end:.3f}", to_cell(row.label)])
    return out.getvalue()


def write_raven(rows: Sequence[LabelRow]) -> str:
    """A Raven selection table of one recording."""
    table = to_raven(_as_response(rows)).splitlines()
    return "".join(line.rpartition("\t")[0] + "\n" for line in table)  # without the score, which a label has not


def write_audacity(rows: Sequence[LabelRow]) -> str:
    """An Audacity label track of one recording."""
    return to_audacity(_as_response(rows))


WRITERS: dict[str, Callable[[Sequence[LabelRow]], str]] = {
    "raven": write_raven,
    "audacity": write_audacity,
    "csv": write_csv,
}


def _as_response(rows: Sequence[LabelRow]) -> dict:
    """The rows in the form of POST /detect, which app.export.formats writes."""
    phrases = [{"phrase": row.label, "events": [{"onset": row.start, "offset": row.end, "score": 1.0}]} for row in rows]
    return {"filename": rows[0].filename if rows else "", "phrases": phrases}
