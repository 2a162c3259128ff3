"""What `finelap detect` prints: a detection as it is found, line by line or as one text at its end, and how far it is.

Knows the messages of a streamed detection, whoever sends them: a server, or the engine in this process.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
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
from app.export.formats import FORMATS

_BAR = "{desc}: {n:.0f} s of sound in {elapsed}"


class Writer:
    """Takes the messages of one detection and writes them in a format: "ndjson" or one of FORMATS.

    ndjson has a line for the start, for each event as soon as it is certain, and for the end; the others are written
    when the detection has ended. `output` is the file to write, standard output if None; a detection that fails before
    it has anything to say leaves the file alone.
    """

    def __init__(self, stack: contextlib.ExitStack, output: Path | None, format: str, bar: tqdm[Any]) -> None:
        self._stack, self._output, self._format, self._bar = stack, output, format, bar
        self._out: TextIO | None = None if output is not None else sys.stdout

    def take(self, message: DetectionMessage) -> None:
        """Writes what there is to write by now."""
        if isinstance(message, DetectionProgress):
            self._bar.update(message.position - self._bar.n)
        elif self._format != "ndjson":
            if isinstance(message, DetectionEnd):
                self._write(FORMATS[self._format](to_json(message.detection)))
        elif isinstance(message, DetectionStart):
            self._line("start", message)
        elif isinstance(message, DetectionEvent):
            self._line("event", message)
        elif isinstance(message, DetectionEnd):
            self._line("end", message.detection)

    def _line(self, kind: str, value: Any) -> None:
        self._write(json.dumps({"type": kind} | to_json(value), ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        self._bar.clear()
        if self._out is None:
            assert self._output is not None
            self._out = self._stack.enter_context(self._output.open("w", encoding="utf-8", newline=""))
        self._out.write(text)
        self._out.flush()  # whoever reads along wants it now


@contextlib.contextmanager
def open_writer(output: Path | None, format: str) -> Iterator[Writer]:
    """A writer, with the seconds listened to on standard error while it takes long."""
    terminal = sys.stderr.isatty()
    with (
        contextlib.ExitStack() as stack,
        tqdm(
            desc="listening",
            bar_format=_BAR,
            leave=False,
            delay=1.0,
            mininterval=0.1 if terminal else 10.0,  # a log wants a line now and then, not ten a second
        ) as bar,
    ):
        yield Writer(stack, output, format, bar)
