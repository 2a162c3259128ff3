"""Read-only views of a seekable file: a part of it, or the file with some of its header's bytes replaced."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import BinaryIO


class FileView(io.RawIOBase):
    """The bytes of `file` from `start` to `end`, with `patches` (offset in the view → bytes) in place of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int, patches: Mapping[int, bytes] | None = None) -> None:
        self._file, self._start, self._length = file, start, end - start
        self._patches = dict(patches or {})
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fills `buffer`; 0 at the end of the view."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes from the current position, all that are left by default."""
        left = max(0, self._length - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        for offset, patch in self._patches.items():
            first, last = max(offset, self._at), min(offset + len(patch), self._at + len(data))
            if first < last:
                at = first - self._at
                data = data[:at] + patch[first - offset : last - offset] + data[at + last - first :]
        self._at += len(data)
        return data
