"""Clips whose audio stays where it is: files in the folders of FINELAP_REFERENCE_ROOTS."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import Invalid
from app.services.audio_source import AudioFile
from app.services.ingest import add_file, sha256_of
from app.state import AppState
from index import Clip

_OPENED = "/proc/self/fd"  # on Linux, where an open file really is


async def add_reference(state: AppState, path: str, filename: str, metadata: dict[str, Any]) -> tuple[Clip, bool]:
    """Adds the file at `path` without copying it: (clip, True), or (the existing clip, False).

    An existing clip is not embedded again. If it has no copy of its audio, it refers to `path` from now on. Raises
    Invalid for a path outside of the roots or no regular file, and what add_file raises.
    """
    roots = [Path(os.path.realpath(root)) for root in state.settings.reference_roots]
    target, file = await asyncio.to_thread(open_reference, path, roots)
    with file:
        before = os.fstat(file.fileno())
        sha256 = await asyncio.to_thread(sha256_of, file)
        clip = await state.read(state.library.find, sha256)
        if clip is not None:
            await state.write(state.library.refer, clip.id, target)
            return clip, False
        clip, created = await add_file(state, AudioFile(filename, file), metadata, target)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        if created:
            await state.write(state.library.delete, clip.id)
        raise Invalid(f"{filename}: the file changed while it was read; try again when it is complete.")
    return clip, created


def open_reference(path: str, roots: Sequence[Path]) -> tuple[Path, BinaryIO]:
    """Opens a file within one of the roots (real paths) and returns its real path. Raises Invalid.

    Whether a file outside of the roots exists is not told.
    """
    if not roots:
        raise Invalid("Files can be referenced only in the folders of FINELAP_REFERENCE_ROOTS, which is not set.")
    if "\0" in path or not os.path.isabs(path):
        raise Invalid("path: must be absolute, on the machine of the service.")
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(root) for root in roots):
        raise Invalid("path: is not in a folder of FINELAP_REFERENCE_ROOTS.")
    try:
        # no waiting for the other end of a pipe; a link put here meanwhile is not followed
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Invalid(f"path: cannot be opened ({error.strerror}).") from error
    file = os.fdopen(descriptor, "rb")
    moved = os.path.isdir(_OPENED) and os.readlink(f"{_OPENED}/{descriptor}") != str(target)
    if moved or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Invalid("path: is not a regular file in a folder of FINELAP_REFERENCE_ROOTS.")
    return target, file
