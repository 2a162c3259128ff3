"""From the bytes of an answer to what a caller gets, for both clients."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from app.client import errors, parsing, types
from app.client.calls import Call
from app.client.errors import ServerError, ServerFault

T = TypeVar("T")

# what answers raise where they are not made as the service makes them
NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def read(call: Call[T], response: httpx.Response, server: str) -> T:
    """The call's answer. Raises ServerFault for a response of something else than this service."""
    try:
        return call.read(response)
    except NOT_OURS as error:
        raise errors.unreadable(server, response.status_code) from error


class LineReader:
    """Cuts bytes into lines at "\\n" alone: the text of a JSON line may have any other separator in it."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line for line in lines if line.strip()]

    def finish(self) -> list[bytes]:
        """A last line without an end."""
        return [self._rest] if self._rest.strip() else []


class DetectionMessages:
    """The lines of a streamed detection as messages. Raises the error that a line tells of."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._lines = LineReader()
        self._ended = False

    def push(self, data: bytes) -> Iterator[types.DetectionMessage]:
        """The messages that are whole by now."""
        for line in self._lines.push(data):
            yield from self._read(line)

    def finish(self) -> Iterator[types.DetectionMessage]:
        """What is left. Raises ServerFault if the answer broke off before its end."""
        for line in self._lines.finish():
            yield from self._read(line)
        if not self._ended:
            raise ServerFault(f"the answer of {self._server} broke off")

    def _read(self, line: bytes) -> Iterator[types.DetectionMessage]:
        try:
            members = json.loads(line)
            failure: ServerError | None = None
            if members["type"] == "error":
                failure = errors.from_problem(members["problem"])
                message = None
            else:
                message = parsing.detection_message(members)
        except NOT_OURS as error:
            raise errors.unreadable(self._server, 200) from error
        if failure is not None:
            raise failure
        self._ended = self._ended or isinstance(message, types.DetectionEnd)
        if message is not None:
            yield message


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that is at `path` once this ends well, and leaves nothing behind if it does not."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
