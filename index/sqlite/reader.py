"""Reading a library that another process may have open: its stamp, its clips, where their audio is.

Knows the database's tables and the audio folder; changes neither, takes no lock and migrates nothing. Every question
is a short transaction of its own, so that the process that writes is never kept waiting.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from index.records import LibraryError, LibraryInUse
from index.sqlite import store
from index.sqlite.audio_files import path_in
from index.sqlite.store import APPLICATION_ID, MIGRATIONS, storage_errors

CATALOG, AUDIO = "catalog.sqlite3", "audio"  # in a library's folder
UNFINISHED = "restoring.sqlite3"  # there while a restore is not finished; becomes the catalog


@dataclass(frozen=True)
class ClipFile:
    """What is needed of a clip to find its audio and to name it."""

    id: str
    sha256: str
    filename: str


class LibraryReader:
    """A library seen from outside. Close it, or use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises LibraryError when there is no library in the folder, or one that a newer release wrote."""
        self.folder = folder
        path = folder / CATALOG
        if not path.is_file():
            raise LibraryError(f"there is no library in {folder}")
        with storage_errors(folder):
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            try:
                self._connection.execute("PRAGMA query_only = ON")
                self._check()
            except BaseException:
                self._connection.close()
                raise

    def _check(self) -> None:
        if self._pragma("application_id") != APPLICATION_ID:
            raise LibraryError(f"{self.folder / CATALOG} is not a FineLAP library")
        version = self._pragma("user_version")
        if version > len(MIGRATIONS):
            raise LibraryError(f"the library in {self.folder} was written by a newer release: use that one")
        if version == 0:
            raise LibraryError(f"there is no library in {self.folder}: it is only being made")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """The library as it is when the first statement runs; later commits do not show."""
        with storage_errors(self.folder):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("COMMIT")

    def stamp(self) -> tuple[str, int] | None:
        """(checkpoint, dim) that made the vectors; None in a library that has not been used."""
        with self.view() as view:
            return store.stamp(view)

    def clips(self) -> list[ClipFile]:
        """Every clip, in order of arrival."""
        with self.view() as view:
            found = view.execute("SELECT id, sha256, filename FROM clips ORDER BY row")
            return [ClipFile(*columns) for columns in found]

    def id_of(self, sha256: str) -> str | None:
        """The id of the clip with this audio."""
        with self.view() as view:
            found = store.by_sha256(view, sha256)
            return found[1].id if found else None

    def changes(self) -> int:
        """A number that is another one after another process has changed the library."""
        with storage_errors(self.folder):
            return self._pragma("data_version")

    def audio_path(self, sha256: str) -> Path:
        """Where the audio is, unless it was deleted."""
        return path_in(self.folder / AUDIO, sha256)

    def close(self) -> None:
        """Ends the reading."""
        self._connection.close()

    def __enter__(self) -> LibraryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def exclusive_lock(path: Path, otherwise: str) -> Iterator[None]:
    """Keeps others that hold the same file out, until the block ends or the process does.

    Raises LibraryInUse with the message `otherwise` when somebody else holds it.
    """
    with storage_errors(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LibraryInUse(otherwise) from None
        yield
    finally:
        os.close(descriptor)
