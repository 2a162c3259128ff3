"""Sounds to send, however a caller has them, as something that is read while it is sent."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

# A sound to send: a path; a name with bytes or with an open binary file; an open binary file, whose own name counts.
Audio = str | os.PathLike[str] | tuple[str, bytes | BinaryIO] | BinaryIO


def several(files: Audio | Sequence[Audio]) -> Sequence[Audio]:
    """One sound, or several, as several."""
    single = isinstance(files, str | os.PathLike) or hasattr(files, "read")
    pair = isinstance(files, tuple) and len(files) == 2 and isinstance(files[0], str) and _is_content(files[1])
    return [files] if single or pair else list(files)  # type: ignore[list-item, arg-type]


def open_upload(stack: contextlib.ExitStack, audio: Audio) -> tuple[str, bytes | Sent, str]:
    """What httpx takes for a file: its name, its content, its media type."""
    if isinstance(audio, tuple):
        name, content = audio
    elif isinstance(audio, str | os.PathLike):
        name, content = os.fspath(audio), stack.enter_context(open(audio, "rb"))  # noqa: SIM115  # the stack closes it
    else:
        own = getattr(audio, "name", None)
        name, content = own if isinstance(own, str) else "unnamed", audio
    name = os.fsencode(Path(name).name).decode("utf-8", "replace")  # bytes that are no UTF-8: replacement characters
    return name, content if isinstance(content, bytes) else Sent(content), "application/octet-stream"


class Sent:
    """A binary file read from its start to the end it had when the request was made.

    The request has said how long it is. Raises OSError if the file has become shorter; what it grew is not sent.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._left = self._size

    def tell(self) -> int:
        return self._size - self._left

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = min(self._size, offset if whence == io.SEEK_SET else self._size + offset)
        self._file.seek(position)
        self._left = self._size - position
        return position

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        if not data and self._left:
            raise OSError("the file became shorter while it was sent")
        self._left -= len(data)
        return data


def _is_content(value: Any) -> bool:
    return isinstance(value, bytes) or hasattr(value, "read")
