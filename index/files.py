"""Files that survive a power cut, their checksums, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.records import LibraryInUse


def fsync_folder(folder: Path) -> None:
    """Makes names created, renamed or removed in `folder` survive a power cut."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def fsync_file(path: Path) -> None:
    """Makes a file's content survive a power cut."""
    _fsync(path, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and fsyncs it. Its name needs `fsync_folder`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_file(path: Path, message: str) -> int:
    """Creates the file if needed and locks it; closing the returned descriptor, or process exit, releases the lock.

    Raises LibraryInUse with `message` if the file is locked already, by this process or another.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LibraryInUse(message) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Holds `lock_file` for the block."""
    descriptor = lock_file(path, message)
    try:
        yield
    finally:
        os.close(descriptor)
