"""The events of a job as files: CSV, Parquet, Raven, Audacity, NDJSON, piece by piece, so that memory stays flat.

Each writer takes (clip, events (n,) EVENT in order of time) and the phrases that the events count, and yields bytes.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from app.audio.start_time import start_time
from app.export.formats import to_cell
from index import Clip
from model.config import SAMPLE_RATE

Results = Iterable[tuple[Clip, np.ndarray]]
Writer = Callable[[Results, Sequence[str]], Iterator[bytes]]

_ROW_GROUP = 65_536  # rows of a Parquet file held in memory
_FLUSH = 1 << 16  # characters
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same events give the same bytes
_NYQUIST = SAMPLE_RATE // 2  # Hz, upper limit of Raven selections


class Row(NamedTuple):
    """One event; `time` is when it began, where the clip's start is known."""

    clip: Clip
    phrase: str
    onset: float
    offset: float
    score: float
    time: datetime | None


def rows(results: Results, phrases: Sequence[str]) -> Iterator[Row]:
    """The events one by one: seconds with three decimals, scores with six."""
    for clip, events in results:
        if not len(events):
            continue
        began = start_time(clip.filename, clip.metadata)
        for number, onset, offset, score in events.tolist():
            time = None if began is None else began + timedelta(milliseconds=round(onset * 1000))
            yield Row(clip, phrases[number], round(onset, 3), round(offset, 3), round(score, 6), time)


def to_csv(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """The columns of `POST /detect`, then the clip's id and the local time at which the event began, if known.

    File names and phrases that a spreadsheet would evaluate are escaped as in app.export.formats.
    """
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["filename", "onset", "offset", "event_label", "score", "clip_id", "time"])
    for row in rows(results, phrases):
        seconds = f"{row.onset:.3f}", f"{row.offset:.3f}"
        name, label = to_cell(row.clip.filename), to_cell(row.phrase)
        writer.writerow([name, *seconds, label, f"{row.score:.4f}", row.clip.id, _iso(row.time) or ""])
        yield from lines.take()
    yield from lines.take(0)


def to_ndjson(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """A JSON object per line."""
    lines = _Lines()
    for row in rows(results, phrases):
        event = {
            "clip_id": row.clip.id,
            "filename": row.clip.filename,
            "phrase": row.phrase,
            "onset": row.onset,
            "offset": row.offset,
            "score": row.score,
            "time": _iso(row.time),
        }
        lines.write(json.dumps(event, ensure_ascii=False) + "\n")
        yield from lines.take()
    yield from lines.take(0)


def to_raven(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """One selection table over all clips, with Raven's columns for several files.

    "Begin File" and "File Offset (s)" name the place in a clip; "Begin Time (s)" counts as if all clips of the job
    followed one another, which is how Raven opens a list of files.
    """
    columns = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    lines = _Lines()
    lines.write("\t".join([*columns, "Begin File", "File Offset (s)", "Annotation", "Score"]) + "\n")
    number, before = 0, 0.0
    for clip, events in results:
        for row in rows([(clip, events)], phrases):
            number += 1
            begin, end = f"{before + row.onset:.3f}", f"{before + row.offset:.3f}"
            cells = [str(number), "Spectrogram 1", "1", begin, end, "0", str(_NYQUIST)]
            place = [_flat(clip.filename), f"{row.onset:.3f}", _flat(row.phrase), f"{row.score:.4f}"]
            lines.write("\t".join([*cells, *place]) + "\n")
        before += clip.duration
        yield from lines.take()
    yield from lines.take(0)


def to_audacity(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """A ZIP archive with a label track for each clip that has events, under the clip's name."""
    sink = _Sink()
    used: set[str] = set()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for clip, events in results:
            labels = "".join(
                f"{row.onset:.3f}\t{row.offset:.3f}\t{_flat(row.phrase)}\n" for row in rows([(clip, events)], phrases)
            )
            if labels:
                stem = PurePosixPath(clip.filename).stem or clip.id
                name = stem if stem.casefold() not in used else f"{stem}-{clip.id}"
                used.add(name.casefold())
                info = zipfile.ZipInfo(f"{name}.txt", _ZIP_DATE)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, labels)
                yield from sink.take()
    yield from sink.take()


def to_parquet(results: Results, phrases: Sequence[str]) -> Iterator[bytes]:
    """A Parquet file: clip_id, filename, phrase, onset, offset (doubles), score (float), time (timestamp, ms)."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("filename", pa.string()),
            ("phrase", pa.string()),
            ("onset", pa.float64()),
            ("offset", pa.float64()),
            ("score", pa.float32()),
            ("time", pa.timestamp("ms")),
        ]
    )
    sink = _Sink()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in _groups(rows(results, phrases), _ROW_GROUP):
            columns = [
                [row.clip.id for row in group],
                [row.clip.filename for row in group],
                *([row[place] for row in group] for place in range(1, 6)),
            ]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            yield from sink.take()
    yield from sink.take()


WRITERS: dict[str, Writer] = {
    "csv": to_csv,
    "parquet": to_parquet,
    "raven": to_raven,
    "audacity": to_audacity,
    "ndjson": to_ndjson,
}
MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "raven": "text/plain; charset=utf-8",
    "audacity": "application/zip",
    "ndjson": "application/x-ndjson",
}
SUFFIXES = {"csv": ".csv", "parquet": ".parquet", "raven": ".txt", "audacity": ".zip", "ndjson": ".ndjson"}


def _groups(items: Iterator[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")


def _flat(text: str) -> str:
    return " ".join(text.split())


class _Lines(io.StringIO):
    """Text that is written here and taken as bytes once there is enough of it."""

    def take(self, least: int = _FLUSH) -> Iterator[bytes]:
        if self.tell() > least:
            yield self.getvalue().encode()
            self.seek(0)
            self.truncate()


class _Sink:
    """A file that can only be written, and whose bytes are taken from time to time."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def take(self) -> Iterator[bytes]:
        data, self._parts = b"".join(self._parts), []
        if data:
            yield data
