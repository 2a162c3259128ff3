"""What `finelap watch` remembers of its folders between runs: each file with its checksum and its clip.

Every change is committed at once, so a run that is killed goes on where it stopped. If the state is lost, the next run
reads all files again and finds their clips by checksum.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path

_SCHEMA = """CREATE TABLE IF NOT EXISTS files (
    server TEXT NOT NULL, path BLOB NOT NULL, root BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    device INTEGER NOT NULL, sha256 TEXT NOT NULL, clip_id TEXT, problem TEXT NOT NULL, missing_since REAL,
    PRIMARY KEY (server, path)
) WITHOUT ROWID"""


@dataclass
class Known:
    """A file as it was when it was last seen.

    root: the watched folder. device: of the volume. clip_id: None if the library refused the file, `problem` says why.
    missing_since: time at which it was first not found, None while it is there.
    """

    path: Path
    root: Path
    size: int
    mtime_ns: int
    device: int
    sha256: str
    clip_id: str | None
    problem: str = ""
    missing_since: float | None = None


def state_file() -> Path:
    """Where the state is by default."""
    named = os.environ.get("XDG_STATE_HOME", "")
    base = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    return base / "finelap" / "watch.sqlite3"


class FolderState:
    """The known files of one service, in a database. Used by one thread."""

    def __init__(self, file: Path, server: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, timeout=10, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(_SCHEMA)
        self._server = server
        self.files: dict[Path, Known] = {}
        self._by_sha256: defaultdict[str, set[Path]] = defaultdict(set)
        rows = self._db.execute(
            "SELECT path, root, size, mtime_ns, device, sha256, clip_id, problem, missing_since FROM files "
            "WHERE server = ?",
            (server,),
        )
        for path, root, *values in rows:
            known = Known(Path(os.fsdecode(path)), Path(os.fsdecode(root)), *values)
            self._keep(known)

    def put(self, known: Known) -> None:
        """Remembers a file."""
        path, root, *values = astuple(known)
        self._db.execute(
            f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * 10)})",
            (self._server, os.fsencode(path), os.fsencode(root), *values),
        )
        self._keep(known)

    def _keep(self, known: Known) -> None:
        before = self.files.get(known.path)
        if before is not None:
            self._by_sha256[before.sha256].discard(known.path)
        self.files[known.path] = known
        self._by_sha256[known.sha256].add(known.path)

    def remove(self, path: Path) -> None:
        """Forgets a file."""
        self._db.execute("DELETE FROM files WHERE server = ? AND path = ?", (self._server, os.fsencode(path)))
        known = self.files.pop(path, None)
        if known is not None:
            self._by_sha256[known.sha256].discard(path)

    def paths_of(self, sha256: str) -> list[Known]:
        """The known files with these bytes."""
        return [self.files[path] for path in self._by_sha256.get(sha256, ())]

    def close(self) -> None:
        self._db.close()
