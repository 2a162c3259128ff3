"""Read-only access to a library that another process may have open, without locking or migrating it.

Each call is a short read transaction of its own, so that it never blocks the writing process.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from index.files import lock_file
from index.records import LibraryError
from index.sqlite import queries
from index.sqlite.audio_files import path_in
from index.sqlite.store import (
    APPLICATION_ID,
    AUDIO_FOLDER,
    CONCEPTS_VERSION,
    DATABASE_FILE,
    MIGRATIONS,
    storage_errors,
)


@dataclass(frozen=True)
class ClipFile:
    """A clip's id and what identifies its audio file."""

    id: str
    sha256: str
    filename: str


class LibraryReader:
    """A read-only library. Close it, or use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises LibraryError if the folder has no library, or one that a newer release wrote."""
        self.folder = folder
        path = folder / DATABASE_FILE
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
            raise LibraryError(f"{self.folder / DATABASE_FILE} is not a FineLAP library")
        version = self._pragma("user_version")
        if version > len(MIGRATIONS):
            raise LibraryError(f"the library in {self.folder} was written by a newer release: use that release")
        if version == 0:
            raise LibraryError(f"the library in {self.folder} is still being created")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: a view of the library from when its first statement runs."""
        with storage_errors(self.folder):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("COMMIT")

    def stamp(self) -> tuple[str, int] | None:
        """Returns the (checkpoint, dim) of the vectors; None in an unused library."""
        with self.view() as view:
            return queries.stamp(view)

    def clips(self) -> list[ClipFile]:
        """Returns all clips, oldest first."""
        with self.view() as view:
            found = view.execute("SELECT id, sha256, filename FROM clips ORDER BY row")
            return [ClipFile(*columns) for columns in found]

    def sounds(self) -> list[ClipFile]:
        """Returns the sounds that came as examples of concepts: an example's id, the hash, and its file name."""
        if self._pragma("user_version") < CONCEPTS_VERSION:
            return []
        with self.view() as view:
            found = view.execute(
                "SELECT min(id), sha256, min(filename) FROM concept_examples JOIN concept_sounds USING (sha256) "
                "GROUP BY sha256 ORDER BY min(number)"
            )
            return [ClipFile(*columns) for columns in found]

    def sound_audio(self, sha256: str) -> bytes:
        """Returns the file of an example's sound. Raises FileNotFoundError if it was deleted."""
        with self.view() as view:
            found = view.execute("SELECT audio FROM concept_sounds WHERE sha256 = ?", (sha256,)).fetchone()
        if found is None:
            raise FileNotFoundError(sha256)
        return bytes(found[0])

    def id_of(self, sha256: str) -> str | None:
        """Returns the id of the clip with this audio, or None."""
        with self.view() as view:
            found = queries.by_sha256(view, sha256)
            return found[1].id if found else None

    def changes(self) -> int:
        """Returns a number that differs whenever another process has changed the library."""
        with storage_errors(self.folder):
            return self._pragma("data_version")

    def audio_path(self, sha256: str) -> Path:
        """Returns the path of the audio file, unless it was deleted."""
        return path_in(self.folder / AUDIO_FOLDER, sha256)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> LibraryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Holds a lock file for the block. Raises LibraryInUse with `message` if it is locked already."""
    with storage_errors(path.parent):
        descriptor = lock_file(path, message)
    try:
        yield
    finally:
        os.close(descriptor)
