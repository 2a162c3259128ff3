"""Turns response bytes into results, for both clients: JSON bodies, streamed detections, downloads."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from app.client import errors, types
from app.client.calls import Call
from app.client.errors import ServerError, ServerFault

T = TypeVar("T")

# what reading a response raises if it is not in the service's format
INVALID_RESPONSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def read(call: Call[T], response: httpx.Response, server: str) -> T:
    """The result of a call. Raises ServerFault if the response is not in the service's format."""
    try:
        return call.read(response)
    except INVALID_RESPONSE as error:
        raise errors.unreadable(server, response.status_code) from error


class LineReader:
    """Splits bytes into lines at "\\n" only: JSON text may contain Unicode line separators."""

    def __init__(self) -> None:
        self._buffer = b""

    def push(self, data: bytes) -> list[bytes]:
        """The lines completed by `data`."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [line for line in lines if line.strip()]

    def finish(self) -> list[bytes]:
        """The last line, if it has no line end."""
        return [self._buffer] if self._buffer.strip() else []


class DetectionMessages:
    """Reads the lines of a streamed detection as messages. Raises the error that a line reports."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._lines = LineReader()
        self._ended = False

    def push(self, data: bytes) -> Iterator[types.DetectionMessage]:
        """The messages completed by `data`."""
        for line in self._lines.push(data):
            yield from self._read(line)

    def finish(self) -> Iterator[types.DetectionMessage]:
        """The remaining messages. Raises ServerFault if the response ended early."""
        for line in self._lines.finish():
            yield from self._read(line)
        if not self._ended:
            raise ServerFault(f"the response from {self._server} ended early")

    def _read(self, line: bytes) -> Iterator[types.DetectionMessage]:
        try:
            members = json.loads(line)
            failure: ServerError | None = None
            if members["type"] == "error":
                failure = errors.from_problem(members["problem"])
                message = None
            else:
                message = types.detection_message(members)
        except INVALID_RESPONSE as error:
            raise errors.unreadable(self._server, 200) from error
        if failure is not None:
            raise failure
        self._ended = self._ended or isinstance(message, types.DetectionEnd)
        if message is not None:
            yield message


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Writes to a temporary file that replaces `path` when the block succeeds and is deleted otherwise."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
