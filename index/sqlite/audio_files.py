"""The uploaded files on disk, each named by the SHA-256 of its bytes: `<root>/ab/ab…`.

Knows no record: which files ought to be there, it is told. A file appears under its name only whole and on the disk
(written aside, fsync, rename, fsync of the folder). One process at a time may write; the catalog's lock sees to that.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_INCOMING = ".incoming"
_PIECE = 1 << 20  # bytes copied at a time
_NAME = re.compile(r"[0-9a-f]{64}")


def fsync_folder(folder: Path) -> None:
    """Makes names created, renamed or removed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def path_in(root: Path, sha256: str) -> Path:
    """Where the file with this hash is under `root`, or would be."""
    return root / sha256[:2] / sha256


class AudioFiles:
    """The folder of audio files; `root` is created when it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / _INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)
        fsync_folder(root)

    def path(self, sha256: str) -> Path:
        """Where the file with this hash is, or would be."""
        return path_in(self.root, sha256)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def stage(self, audio: bytes | BinaryIO, sha256: str) -> Path:
        """Writes the bytes to a file of their own, on the disk when this returns, under no lasting name yet.

        A file is copied from its start, piece by piece. Raises ValueError when `sha256` is not theirs, OSError when
        they cannot be written (then nothing is left).
        """
        staged = self._incoming / uuid.uuid4().hex
        try:
            with staged.open("x+b") as file:
                if isinstance(audio, bytes):
                    file.write(audio)
                else:
                    audio.seek(0)
                    shutil.copyfileobj(audio, file, _PIECE)
                file.flush()
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError(f"the audio's SHA-256 is not {sha256!r}")
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def stage_link(self, file: Path) -> Path:
        """`stage` for a file that is whole, on the disk and never changed in its place: a link to it, no copy.

        Raises OSError where links will not do.
        """
        staged = self._incoming / uuid.uuid4().hex
        os.link(file, staged)
        return staged

    def place(self, staged: dict[str, Path]) -> None:
        """Gives staged files (hash → file) their names; they survive a power cut when this returns."""
        folders = {self.path(sha256).parent for sha256 in staged}
        new_folders = [folder for folder in folders if not folder.is_dir()]
        for folder in new_folders:
            folder.mkdir(exist_ok=True)
        for sha256, file in staged.items():
            os.replace(file, self.path(sha256))
        for folder in folders:
            fsync_folder(folder)
        if new_folders:
            fsync_folder(self.root)

    def remove(self, sha256: str) -> None:
        """Forgets a file; nothing happens when it is not there."""
        self.path(sha256).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """The hash of every file that is there."""
        for folder in self.root.iterdir():
            if len(folder.name) == 2 and folder.is_dir():
                with os.scandir(folder) as entries:
                    yield from (e.name for e in entries if _NAME.fullmatch(e.name) and e.name[:2] == folder.name)

    def clear_incoming(self) -> int:
        """Removes what an interrupted `stage` left behind; how many files."""
        leftovers = list(self._incoming.iterdir())
        for file in leftovers:
            file.unlink()
        return len(leftovers)

    def remove_unless(self, wanted: Callable[[str], bool]) -> tuple[list[str], set[str]]:
        """Removes every file whose hash is not wanted: the hashes removed, and those that stay.

        Only files that this class could have named are looked at; anything else in the folder is left alone.
        """
        removed, kept = [], set()
        for sha256 in self.names():
            if wanted(sha256):
                kept.add(sha256)
            else:
                self.remove(sha256)
                removed.append(sha256)
        return removed, kept
