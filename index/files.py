"""Files that survive a power cut, their checksums, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.records import LibraryInUse

HOLDER = "{holder}"  # in a message: the process that holds a lock


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


def in_use(folder: Path) -> str:
    """What to say if the library in a folder is open already."""
    return (
        f"the library in {folder} is already open in {HOLDER}: use that service, stop it, or choose another folder "
        "with --data-dir or FINELAP_DATA_DIR"
    )


def lock_file(path: Path, message: str) -> int:
    """Creates the file if needed and locks it; closing the returned descriptor, or process exit, releases the lock.

    The file tells which process holds the lock. Raises LibraryInUse with `message`, in which HOLDER becomes that
    process, if the file is locked already, by this process or another.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise LibraryInUse(message.replace(HOLDER, holder)) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(descriptor: int) -> str:
    """The process that holds a lock, in words."""
    try:
        pid = int(os.pread(descriptor, 20, 0))
    except (OSError, ValueError):
        return "this process or another"
    if pid == os.getpid():
        return "this process"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:  # not Linux, or in another container
        return f"process {pid}"
    return f"process {pid} ({' '.join(words)[:120].strip()})"


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Holds `lock_file` for the block."""
    descriptor = lock_file(path, message)
    try:
        yield
    finally:
        os.close(descriptor)
