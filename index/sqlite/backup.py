"""Copies of a library that may be open and changing meanwhile; index.sqlite.restore makes libraries of them.

    <backups>/finelap-backups          this is a folder of backups
              audio/ab/ab12…           every audio file of every snapshot, once
              snapshots/<UTC time>/    catalog.sqlite3, manifest.json

A snapshot is the library as it stood at one moment between the start and the end of the backup. It appears under its
name only whole; what an interrupted backup has copied is used by the next. Knows no model and no HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from index.records import LibraryError
from index.sqlite import store
from index.sqlite.audio_files import AudioFiles, fsync_folder
from index.sqlite.reader import AUDIO, CATALOG, LibraryReader, exclusive_lock
from index.sqlite.store import storage_errors

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much

_MARK, SNAPSHOTS, _MANIFEST = "finelap-backups", "snapshots", "manifest.json"
_FORMAT = 1
_NAME = "%Y%m%dT%H%M%S.%fZ"  # of a snapshot
_PAGES = 4096  # of the database copied at a time
_TOGETHER = 64  # audio files that get their names at once
_PIECE = 1 << 20  # bytes
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class Snapshot:
    """One backup, as its manifest says."""

    name: str  # UTC time of its start
    checkpoint: str | None  # that made the vectors
    clips: int
    catalog_bytes: int
    catalog_sha256: str
    missing: dict[str, str]  # SHA-256 of audio that the library itself did not have, or not whole: the reason


@dataclass(frozen=True)
class BackupResult:
    """What a backup or a restore did."""

    snapshot: Snapshot
    files: int  # audio files that were added
    failed: dict[str, str]  # SHA-256 of audio files that could not be: the reason


def back_up(folder: Path, dest: Path, progress: Progress, copy: bool = False) -> BackupResult:
    """Adds a snapshot of the library in `folder` to the backups in `dest`, which is made when it is not there.

    Audio files are linked where the file system allows it, unless `copy`; each is read once and compared to its name.
    Raises LibraryError when there is no library, or `dest` is something else, LibraryInUse when another backup runs
    there, StorageFull.
    """
    with LibraryReader(folder) as library, storage_errors(dest):
        _open_backups(dest)
        with exclusive_lock(dest / "lock", f"another backup to {dest} is running"):
            return _Backup(library, dest, progress, copy).run()


def _open_backups(dest: Path) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    mark, new = dest / _MARK, dest / (_MARK + ".new")
    if not mark.is_file():
        if set(os.listdir(dest)) - {new.name}:
            raise LibraryError(f"{dest} is not empty and not a folder of backups: choose another")
        _write(new, f"format {_FORMAT}\n".encode())
        os.replace(new, mark)
    (dest / SNAPSHOTS).mkdir(exist_ok=True)
    fsync_folder(dest)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _next_name(now: datetime, folder: Path) -> str:
    """A name for the time, behind those that are there, also when the clock was put back since."""
    for path in folder.iterdir():
        with contextlib.suppress(ValueError):  # what somebody else put there
            now = max(now, datetime.strptime(path.name, _NAME).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return now.strftime(_NAME)


class _Backup:
    """One backup under way."""

    def __init__(self, library: LibraryReader, dest: Path, progress: Progress, copy: bool) -> None:
        self._library, self._dest = library, dest
        self._progress, self._copy = progress, copy
        self._audio = AudioFiles(dest / AUDIO)
        self._name = _next_name(datetime.now(UTC), dest / SNAPSHOTS)
        self._new = dest / SNAPSHOTS / f".{self._name}"
        self._added: set[str] = set()
        self._damaged: dict[str, str] = {}

    def run(self) -> BackupResult:
        self._audio.clear_incoming()
        for leftover in (self._dest / SNAPSHOTS).glob(".*"):
            shutil.rmtree(leftover)
        self._new.mkdir()
        # most audio comes before the snapshot: then little of what that names can be deleted before it is here too
        self._take_audio([clip.sha256 for clip in self._library.clips()])
        while True:
            checkpoint, names = self._copy_catalog()
            gone = self._take_audio(names)
            lost = {sha256 for sha256 in gone if self._is_lost(sha256)}
            if lost == gone:
                break  # else a clip was deleted since: the library as it stands now is another one
        missing = {name: self._damaged.get(name, "it is missing in the library") for name in names if name in gone}
        catalog = self._new / CATALOG
        snapshot = Snapshot(
            self._name, checkpoint, len(names), catalog.stat().st_size, sha256_of(catalog, self._progress), missing
        )
        manifest = {"format": _FORMAT, **asdict(snapshot)}
        _write(self._new / _MANIFEST, json.dumps(manifest, indent=2).encode())
        fsync_folder(self._new)
        os.replace(self._new, self._dest / SNAPSHOTS / self._name)
        fsync_folder(self._dest / SNAPSHOTS)
        return BackupResult(snapshot, len(self._added), missing)

    def _copy_catalog(self) -> tuple[str | None, list[str]]:
        """The database as it is now, in one file that is on the disk: its checkpoint, and the audio that it names."""
        path = self._new / CATALOG
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            with self._library.view() as view:
                store.stamp(view)  # from here on the view is of one moment, so the copy is never begun anew
                view.backup(
                    copy, pages=_PAGES, progress=lambda _, left, total: self._progress("records", total - left, total)
                )
            copy.execute("PRAGMA journal_mode = DELETE")  # whole in one file
            (fault,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise LibraryError(f"the library's database is damaged: {fault}")
            stamp = store.stamp(copy)
            names = [sha256 for sha256, _, _ in store.all_sha256(copy)]
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return stamp[0] if stamp else None, names

    def _take_audio(self, names: list[str]) -> set[str]:
        """Brings audio files here, under their names and on the disk; those that could not be."""
        batch = Batch(self._audio)
        not_there: set[str] = set()
        for number, sha256 in enumerate(names, start=1):
            if not self._audio.has(sha256):
                try:
                    self._take(sha256, batch)
                    self._added.add(sha256)
                except FileNotFoundError:
                    not_there.add(sha256)
                except ValueError:
                    self._damaged[sha256] = "it is damaged in the library"
                    not_there.add(sha256)
            self._progress("audio files", number, len(names))
        batch.flush()
        return not_there

    def _take(self, sha256: str, batch: Batch) -> None:
        with self._library.audio_path(sha256).open("rb") as file:
            if not self._copy:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError("damaged")
                try:
                    batch.link(sha256, self._library.audio_path(sha256))
                    return
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    self._copy = True  # no link will do
            batch.add(sha256, self._audio.stage(file, sha256))

    def _is_lost(self, sha256: str) -> bool:
        """Whether the library has the clip and not its audio, so that another try would not find it either."""
        if sha256 in self._damaged:
            return True
        there = self._library.id_of(sha256)
        # a clip that is there before and after this look, and whose file is not there, did not lose it by deletion
        is_file = self._library.audio_path(sha256).is_file()
        return there is not None and not is_file and self._library.id_of(sha256) == there


class Batch:
    """Audio files that are given their names together, as each time the folders are forced to the disk."""

    def __init__(self, audio: AudioFiles) -> None:
        self._audio = audio
        self._staged: dict[str, Path] = {}

    def add(self, sha256: str, staged: Path) -> None:
        """A staged file."""
        self._staged[sha256] = staged
        if len(self._staged) >= _TOGETHER:
            self.flush()

    def link(self, sha256: str, file: Path) -> None:
        """A file that is whole and on the disk, and never changed in its place."""
        self.add(sha256, self._audio.stage_link(file))

    def flush(self) -> None:
        """Every file has its name on the disk when this returns."""
        self._audio.place(self._staged)
        self._staged = {}


def snapshots(source: Path) -> list[Snapshot]:
    """The snapshots of a folder of backups, oldest first. Raises LibraryError when it is none."""
    if not (source / _MARK).is_file():
        raise LibraryError(f"{source} is not a folder of backups")
    with storage_errors(source):
        names = sorted(p.name for p in (source / SNAPSHOTS).iterdir() if not p.name.startswith("."))
        return [_read_manifest(source, name) for name in names]


def _read_manifest(source: Path, name: str) -> Snapshot:
    path = source / SNAPSHOTS / name / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("format") != _FORMAT:
            raise LibraryError(f"{path} was written by a newer release: use that one")
        return Snapshot(**manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LibraryError(f"{path} is no manifest of a backup: {error}") from error


def sha256_of(path: Path, progress: Progress) -> str:
    """The SHA-256 of a file, hex."""
    total, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        done = 0
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            progress("checksum of records", done, total)
    return digest.hexdigest()
