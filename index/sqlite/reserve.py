"""A little room kept back on the disk, so that a library that has filled it can still be opened and emptied.

Knows a file and its size. SQLite needs room to write down even a removal, and to open a library at all.
"""

from __future__ import annotations

import os
from pathlib import Path

SIZE = 1 << 20  # bytes; a removal writes some pages of 4 KiB, opening a library a shared memory file of 32 KiB


class Reserve:
    """The file that holds the room; made by `restore`, given up by `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def restore(self) -> bool:
        """Takes the room back where it was given up; False when there is none to take."""
        if self._path.exists():
            return True
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
            finally:
                os.close(descriptor)
        except OSError:  # it is a convenience: whatever is wrong with the disk, the caller's own writes will meet
            self._path.unlink(missing_ok=True)
            return False
        return True

    def release(self) -> bool:
        """Gives the room up; False when it was given up before."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
