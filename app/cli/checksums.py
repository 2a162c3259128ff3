"""SHA-256 of local files, remembered by path, size and time of change, so that unchanged files are read once.

A cache in the user's cache folder, shared by processes. It is only a saving: where it is missing, damaged, locked or
cannot be written, the file is read again and nothing fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

_SETTLED = 2.0  # seconds: a file changed more recently may change again without its time showing it
_KEPT = 180 * 86_400  # seconds until an entry is made anew, and those of files long gone leave
_TOGETHER = 256  # entries written at once
_PATIENCE = 5.0  # seconds to wait for another process that writes
_SCHEMA = """CREATE TABLE IF NOT EXISTS checksums (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, noted REAL NOT NULL
) WITHOUT ROWID"""

Entry = tuple[bytes, int, int, str, float]


def cache_file() -> Path | None:
    """Where the cache lies by the platform's custom, or None where there is no such place."""
    try:
        if sys.platform == "win32":
            base = Path(os.environ["LOCALAPPDATA"])
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            named = os.environ.get("XDG_CACHE_HOME", "")
            base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except (KeyError, RuntimeError):
        return None
    return base / "finelap" / "checksums.sqlite3"


class Checksums:
    """Checksums of files. May be shared by threads; a `with` block writes down what was learned.

    `file` is the cache; None remembers nothing. `read` counts the files that had to be read.
    """

    def __init__(self, file: Path | None) -> None:
        self._lock = threading.Lock()
        self._new: list[Entry] = []
        self._db = None if file is None else _open(file)
        self.read = 0

    def __enter__(self) -> Checksums:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._write()
            if self._db is not None:
                self._db.close()
                self._db = None

    def of(self, path: Path) -> str:
        """SHA-256 of the file's bytes, in hex. Raises OSError."""
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            key = os.fsencode(path.absolute())
            known = self._find(key, before)
            if known is not None:
                return known
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        now = time.time()
        with self._lock:
            self.read += 1
            steady = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if steady and now - after.st_mtime > _SETTLED:
                self._new.append((key, after.st_size, after.st_mtime_ns, sha256, now))
                if len(self._new) >= _TOGETHER:
                    self._write()
        return sha256

    def _find(self, key: bytes, stat: os.stat_result) -> str | None:
        with self._lock:
            if self._db is None:
                return None
            try:
                row = self._db.execute("SELECT size, mtime_ns, sha256 FROM checksums WHERE path = ?", (key,)).fetchone()
            except sqlite3.Error:
                return None
        if row is None or row[:2] != (stat.st_size, stat.st_mtime_ns):
            return None
        return str(row[2])

    def _write(self) -> None:
        entries, self._new = self._new, []
        if self._db is None or not entries:
            return
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?, ?, ?, ?)", entries)


def _open(file: Path) -> sqlite3.Connection | None:
    """The cache, made anew if it is damaged; None where there cannot be one."""
    for _ in range(2):
        db = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False)
            with db:
                db.execute(_SCHEMA)
                db.execute("DELETE FROM checksums WHERE noted < ?", (time.time() - _KEPT,))
                db.execute("SELECT size, mtime_ns, sha256 FROM checksums LIMIT 1")
            return db
        except sqlite3.OperationalError:  # locked, read-only, or of another shape: not ours to repair
            if db is not None:
                db.close()
            return None
        except sqlite3.DatabaseError:  # no database, or a damaged one
            if db is not None:
                db.close()
            with contextlib.suppress(OSError):
                file.unlink()
        except OSError:
            return None
    return None
