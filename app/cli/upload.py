"""Uploads files and folders to a library: finds audio files, checksums them, and uploads in parallel.

An interrupted ingest resumes where it stopped, because files that the library already has, by SHA-256, are not sent
again. Files are chosen by name only; whether a file is valid audio is decided by the service.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import queue
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from app.client import Client, ServerError, Stopped, Unauthorized, Unreachable

if TYPE_CHECKING:
    from app.cli.shards import Shard

# Parallel uploads, of one file each: enough for the service to fill its batches. Requests with several files are no
# faster.
WORKERS = 32

Outcome = Literal["added", "there", "updated", "failed"]
LeftOut = Counter[str]  # why files in folders are no clips → how many

# what the service decodes (app.audio); AUDIO in app/web/library-files.js has the same names
_AUDIO_NAMES = """
wav wave bwf rf64 w64 flac ogg oga ogx opus spx mp3 mp2 mp1 mpga m4a m4b m4r aac adts ac3 eac3 dts
mlp thd aif aiff aifc au snd caf voc svx 8svx nist sph sf ircam paf avr wma asf xwma wv ape tta tak
mpc amr awb 3gp 3g2 3ga dsf dff ra rm oma webm mka mkv mp4 m4v mov qt avi ts mts m2ts mpg mpeg vob
flv f4v f4a wmv ogv mxf nut
"""
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _AUDIO_NAMES.split())

_MIN_AGE = 2.0  # seconds: a file modified more recently may change again within the resolution of its mtime
_MAX_AGE = 180 * 86_400  # seconds after which an entry expires, so that those of deleted files are removed
_BATCH = 256  # entries per write
_LOCK_TIMEOUT = 5.0  # seconds to wait for another process to finish writing
_SCHEMA = """CREATE TABLE IF NOT EXISTS checksums (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, noted REAL NOT NULL
) WITHOUT ROWID"""


@dataclass
class Summary:
    """The result of an ingest. `unsent`: files not yet processed when it was interrupted.

    `left_out`: the numbers of files in folders that are no sources, by reason.
    """

    added: int = 0
    there: int = 0
    updated: int = 0  # of those that were there, whose metadata was updated
    left_out: LeftOut = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)  # file, reason
    unsent: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def files(self) -> int:
        """Number of files processed."""
        return self.added + self.there + len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON types."""
        return {
            "added": self.added,
            "already_there": self.there,
            "metadata_updated": self.updated,
            "left_out": dict(self.left_out),
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "unsent": self.unsent,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        lines = [f"{'added':<15}{self.added:>7}", f"{'already there':<15}{self.there:>7}"]
        if self.updated:
            lines.append(f"{'  updated':<15}{self.updated:>7}  with the given metadata")
        lines.append(f"{'failed':<15}{len(self.failed):>7}")
        if self.left_out:
            lines.append(f"{'left out':<15}{sum(self.left_out.values()):>7}  {left_out_text(self.left_out)}")
        if self.interrupted:
            lines.append(f"{'not processed':<15}{self.unsent:>7}")
        lines += [f"  {file}: {reason}" for file, reason in self.failed]
        rate = self.files / self.seconds if self.seconds else 0.0
        lines.append(f"{self.files} files in {self.seconds:.1f} s, {rate:.1f} clips/s")
        return "\n".join(lines)


@dataclass(frozen=True)
class IngestOptions:
    """What an ingest takes of its files.

    shard: the sources are its files, so of the library's clips only its own are remembered. track: of files with
    several audio tracks.
    """

    shard: Shard | None = None
    track: str | None = None


def ingest(
    client: Client,
    sources: Sequence[Source],
    checksums: Checksums,
    workers: int = WORKERS,
    progress: bool = True,
    options: IngestOptions = IngestOptions(),  # noqa: B008  # immutable
) -> Summary:
    """Uploads the sources that the library does not have, `workers` at a time, and returns a summary of all.

    With a client that reconnects, no file is lost while the service is busy or restarting.

    Ctrl-C sets `client.stop` and returns the summary so far; setting `client.stop` elsewhere does the same. An upload
    in progress at that moment may succeed without being counted; the next ingest skips the file. Raises ServerError if
    the library cannot be listed.
    """
    summary = Summary()
    began = time.monotonic()
    run = _Run(client, checksums, sources, options.track)
    try:
        run.prepare(progress, options.shard)
        # daemon threads: an interrupted command exits without waiting for its uploads
        threads = [threading.Thread(target=run.work, daemon=True) for _ in range(min(workers, len(sources)))]
        for thread in threads:
            thread.start()
        _collect(run, len(threads), summary, progress)
    except KeyboardInterrupt:
        client.stop.set()
        summary.interrupted = True
    summary.failed.sort()
    summary.unsent = len(sources) - summary.files
    summary.seconds = time.monotonic() - began
    return summary


def _collect(run: _Run, threads: int, summary: Summary, progress: bool) -> None:
    """Counts results until every thread has finished."""
    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(run.sources),
        unit="clip",
        desc="adding",
        disable=not progress,
        mininterval=0.1 if terminal else 10.0,  # keep logs short
        dynamic_ncols=terminal,
    ) as bar:
        while threads:
            result = run.results.get()
            if result is None:
                threads -= 1
                continue
            source, outcome, reason = result
            if outcome == "added":
                summary.added += 1
            elif outcome == "updated":
                summary.there += 1
                summary.updated += 1
            elif outcome == "there":
                summary.there += 1
            else:
                # the service's message also names the file
                message = reason.removeprefix(f"{as_text(source.path.name)}: ")
                summary.failed.append((as_text(str(source.path)), message))
                bar.set_postfix_str(f"{len(summary.failed)} failed", refresh=False)
            bar.update()


class _Run:
    """The state that the threads of one ingest share. A thread puts None into `results` when it finishes."""

    def __init__(
        self, client: Client, checksums: Checksums, sources: Sequence[Source], track: str | None = None
    ) -> None:
        self.client, self.checksums, self.sources, self._track = client, checksums, sources, track
        self.results: queue.SimpleQueue[tuple[Source, Outcome, str] | None] = queue.SimpleQueue()
        self._pending: queue.SimpleQueue[Source] = queue.SimpleQueue()
        for source in sources:
            self._pending.put(source)
        self._known: dict[str, str] = {}  # SHA-256 → clip id
        self._max_bytes = math.inf
        self._abort_reason: str | None = None  # set once no further file can succeed

    def prepare(self, progress: bool, shard: Shard | None) -> None:
        """Reads the service's upload limit and the checksums of its clips, or of those in the shard."""
        self._max_bytes = self.client.info().limits.get("max_upload_mb", math.inf) * 1e6
        clips = tqdm(self.client.clips(), "reading the library", unit="clip", delay=2.0, disable=not progress)
        self._known = {clip.sha256: clip.id for clip in clips if shard is None or shard.has(clip.sha256)}

    def work(self) -> None:
        """Processes files until none is left or the client is stopped."""
        try:
            while not self.client.stop.is_set():
                source = self._pending.get_nowait()
                self.results.put((source, *self._process(source)))
        except (queue.Empty, Stopped):
            pass
        finally:
            self.results.put(None)

    def _process(self, source: Source) -> tuple[Outcome, str]:
        if self._abort_reason is not None:
            return "failed", f"not sent: {self._abort_reason}"
        try:
            return self._upload(source), ""
        except Stopped:
            raise
        except OSError as error:
            return "failed", error.strerror or str(error)
        except ServerError as error:
            # these errors would fail every other file too
            if isinstance(error, Unreachable) and not self.client.ready():
                self._abort_reason = "the server is unreachable"
            elif isinstance(error, Unauthorized):
                self._abort_reason = "the server rejected the API key"
            elif error.status == 507:
                self._abort_reason = "the server has no space left"
            return "failed", str(error)
        except Exception as error:  # an uncaught exception would lose the file from the summary
            return "failed", str(error) or type(error).__name__

    def _upload(self, source: Source) -> Outcome:
        size = source.path.stat().st_size
        if size > self._max_bytes:
            raise OSError(f"file size {size / 1e6:.0f} MB exceeds the server's limit of {self._max_bytes / 1e6:g} MB")
        sha256 = self.checksums.of(source.path)
        clip_id = self._known.get(sha256)
        if clip_id is None:
            added = self.client.add(source.path, source.metadata, self._track)
            clip_id = added.clips[0].id if added.clips else ""
            self._known[sha256] = clip_id  # so that a copy of the file is skipped
            if added.new:
                return "added"
        if not source.given or not clip_id:
            return "there"
        self.client.update(clip_id, source.given)
        return "updated"


# Finding files

Report = Callable[[OSError], None]  # called for folders that cannot be read


@dataclass(frozen=True)
class Source:
    """A file to upload, with its metadata; `given` is the part that a clip which is there already gets too."""

    path: Path
    metadata: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)


def find_sources(
    paths: Iterable[Path], metadata: dict[str, Any], report: Report | None = None, left_out: LeftOut | None = None
) -> list[Source]:
    """The given files, and all files with an audio suffix in the given folders, recursively.

    Each file gets `metadata` plus its `path` relative to the given folder. A file reached in several ways is returned
    once. Hidden files and folders are skipped; symbolic links to folders are followed, each folder once, so cycles
    end. `report` is called for folders that cannot be read; without it they raise OSError. `left_out` counts the files
    in folders that are no sources, by reason. Raises FileNotFoundError if a given path does not exist.
    """
    sources: dict[tuple[int, int] | str, Source] = {}
    for path in paths:
        if path.is_dir():
            for file in walk_folder(path, report or _raise, Counter() if left_out is None else left_out):
                relative = file.relative_to(path).as_posix()
                sources.setdefault(_identity(file), Source(file, {"path": as_text(relative)} | metadata, metadata))
        elif os.path.lexists(path):
            sources.setdefault(_identity(path), Source(path, {"path": as_text(path.name)} | metadata, metadata))
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return list(sources.values())


def as_text(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


def left_out_text(left_out: LeftOut) -> str:
    """Why files were left out, most frequent reason first."""
    return ", ".join(f"{number} {reason}" for reason, number in left_out.most_common())


def walk_folder(folder: Path, report: Report, left_out: LeftOut) -> Iterator[Path]:
    """Audio files in a folder in name order: its own first, then those of its subfolders. Counts the others."""
    seen: set[tuple[int, int] | str] = set()

    for at, folders, names in os.walk(folder, followlinks=True, onerror=report):
        identity = _identity(Path(at))
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        if hidden := sum(f.startswith(".") for f in folders):
            left_out["hidden folders"] += hidden
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            suffix = as_text(os.path.splitext(name)[1].lower())
            if name.startswith("."):
                left_out["hidden"] += 1
            elif suffix not in AUDIO_SUFFIXES or (suffix == ".ts" and _is_text(Path(at, name))):
                left_out[f"not audio ({suffix})" if suffix else "without a file name extension"] += 1
            else:
                yield Path(at, name)


def _is_text(path: Path) -> bool:
    """Whether a file called .ts is source code rather than an MPEG transport stream, whose packets begin with 0x47."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return False  # adding it says why
    return head[:1] != b"G" and b"\0" not in head


def _identity(path: Path) -> tuple[int, int] | str:
    """A key that is equal for two paths of one file. A broken link is its own key; opening it reports the error."""
    try:
        stat = path.stat()
    except OSError:
        return str(path.absolute())
    return (stat.st_dev, stat.st_ino) if stat.st_ino else str(path.resolve())


def _raise(error: OSError) -> None:
    raise error


# Checksums

Entry = tuple[bytes, int, int, str, float]


def cache_file() -> Path | None:
    """The platform's path for the cache, or None if it has no such place."""
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
    """SHA-256 checksums of files, cached by path, size and modification time so that unchanged files are read once.

    Threads and processes may share the cache in `file`; None disables it. A missing, damaged, locked or read-only cache
    never fails: files are read again. A `with` block saves new entries. `read` counts the files that were read.
    """

    def __init__(self, file: Path | None) -> None:
        self._lock = threading.Lock()
        self._new: list[Entry] = []
        self._db = None if file is None else _open_cache(file)
        self.read = 0

    def __enter__(self) -> Checksums:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._flush()
            if self._db is not None:
                self._db.close()
                self._db = None

    def save(self) -> None:
        """Saves new entries now."""
        with self._lock:
            self._flush()

    def of(self, path: Path) -> str:
        """The SHA-256 of a file in hex. Raises OSError."""
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
            unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if unchanged and now - after.st_mtime > _MIN_AGE:
                self._new.append((key, after.st_size, after.st_mtime_ns, sha256, now))
                if len(self._new) >= _BATCH:
                    self._flush()
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

    def _flush(self) -> None:
        entries, self._new = self._new, []
        if self._db is None or not entries:
            return
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?, ?, ?, ?)", entries)


def _open_cache(file: Path) -> sqlite3.Connection | None:
    """Opens the cache, recreating it if damaged; None if it cannot be used."""
    for _ in range(2):
        db = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(file, timeout=_LOCK_TIMEOUT, check_same_thread=False)
            with db:
                db.execute(_SCHEMA)
                db.execute("DELETE FROM checksums WHERE noted < ?", (time.time() - _MAX_AGE,))
                db.execute("SELECT size, mtime_ns, sha256 FROM checksums LIMIT 1")
            return db
        except sqlite3.OperationalError:  # locked, read-only, or another schema: leave it
            if db is not None:
                db.close()
            return None
        except sqlite3.DatabaseError:  # not a database, or damaged
            if db is not None:
                db.close()
            with contextlib.suppress(OSError):
                file.unlink()
        except OSError:
            return None
    return None
