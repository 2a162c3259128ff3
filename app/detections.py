"""What `finelap detect` prints: a detection as it is found, line by line or as one text at its end, and how far it is.

Knows the messages of a streamed detection, whoever sends them: a server, or the engine in this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from app.client.types import (
    DetectionEnd,
    DetectionEvent,
    DetectionMessage,
    DetectionProgress,
    DetectionStart,
    to_json,
)
from app.formats import FORMATS

FORMAT_NAMES = (*FORMATS, "ndjson")


class Writer:
    """Takes the messages of one detection and writes them to `out` in a format of FORMAT_NAMES.

    ndjson has a line for each event as soon as it is certain; the others are written when the detection has ended.
    """

    def __init__(self, out: TextIO, format: str, bar: tqdm[Any]) -> None:
        self._out, self._format, self._bar = out, format, bar

    def take(self, message: DetectionMessage) -> None:
        """Writes what there is to write."""
        if isinstance(message, DetectionProgress):
            self._bar.update(round(message.position - self._bar.n, 1))
        elif self._format == "ndjson":
            self._line(message)
        elif isinstance(message, DetectionEnd):
            self._bar.clear()
            self._out.write(FORMATS[self._format](to_json(message.detection)))

    def _line(self, message: DetectionMessage) -> None:
        if isinstance(message, DetectionStart):
            line = {"type": "start"} | to_json(message)
        elif isinstance(message, DetectionEvent):
            line = {"type": "event"} | to_json(message)
        elif isinstance(message, DetectionEnd):
            line = {"type": "end"} | to_json(message.detection)
        else:
            return
        self._bar.clear()
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._out.flush()  # whoever reads along wants it now


@contextmanager
def open_writer(output: Path | None, format: str) -> Iterator[Writer]:
    """A writer to the file, or to standard output, with a bar of the seconds listened to on standard error."""
    with tqdm(desc="listening", unit="s", unit_scale=True, leave=False, delay=1.0) as bar:
        if output is None:
            yield Writer(sys.stdout, format, bar)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                yield Writer(file, format, bar)
