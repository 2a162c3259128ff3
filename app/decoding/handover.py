"""Files as descriptors that another process can be given. Knows nothing of their content."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from index import StorageFull


async def open_apart(file: BinaryIO | Path) -> int:
    """A descriptor of the file, for reading, with a position of its own where the system can give that (Linux can).

    `file` may be a path, any open file, also one spooled or held in memory. The caller closes the descriptor. Raises
    OSError, StorageFull.
    """
    if not isinstance(file, Path) and _in_memory(file) and hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("sound", os.MFD_CLOEXEC), "w+b") as copy:
            return _copied(file, copy)  # a megabyte takes less time than another thread
    opening = asyncio.create_task(asyncio.to_thread(_descriptor, file))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:  # the thread goes on
        opening.add_done_callback(lambda done: None if done.exception() else os.close(done.result()))
        raise


def _descriptor(file: BinaryIO | Path) -> int:
    if isinstance(file, Path):
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _room():
            file.flush()
            descriptor = file.fileno()  # where the system has no files in memory, a spooled one moves to disk for this
            file.flush()
    except io.UnsupportedOperation:  # in memory for good
        with _room(), tempfile.TemporaryFile() as copy:
            return _copied(file, copy)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(descriptor)


def _in_memory(file: BinaryIO) -> bool:
    """Whether it is a small file spooled in memory, as uploads are."""
    return isinstance(file, tempfile.SpooledTemporaryFile) and not getattr(file, "_rolled", True)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """A full disk by its name. io.UnsupportedOperation is an OSError too."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no room left for uploads in the folder of temporary files (TMPDIR)") from error
        raise


def _copied(file: BinaryIO, copy: BinaryIO) -> int:
    """A descriptor of `copy`, at its beginning, when all of the file is in it."""
    position = file.tell()
    file.seek(0)
    try:
        shutil.copyfileobj(file, copy)
    finally:
        file.seek(position)
    copy.seek(0)  # flushes
    return os.dup(copy.fileno())
