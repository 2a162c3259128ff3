"""Backups of a library that may be open and changing, and restoring them.

    <backups>/finelap-backups          marks a folder of backups
              audio/ab/ab12…           every audio file of every snapshot, once
              snapshots/<UTC time>/    catalog.sqlite3, manifest.json

A snapshot is the library's state at one moment between the start and the end of the backup. It appears under its name
only when complete; the next backup reuses the files that an interrupted one copied. A restore checks every file and
takes effect in one step, the rename of the database; until then opening the folder as a library is refused.
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

from index.files import fsync_folder, write_file
from index.records import LibraryError
from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles, path_in
from index.sqlite.reader import LibraryReader, exclusive_lock
from index.sqlite.store import AUDIO_FOLDER, DATABASE_FILE, RESTORING_FILE, storage_errors

Progress = Callable[[str, int, int], None]  # (what is being processed, done, total)

_MARKER, SNAPSHOTS, _MANIFEST = "finelap-backups", "snapshots", "manifest.json"
_FORMAT = 1
_NAME = "%Y%m%dT%H%M%S.%fZ"  # of a snapshot
_PAGES = 4096  # of the database copied at a time
_BATCH = 64  # audio files renamed at once
_CHUNK = 1 << 20  # bytes
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class Snapshot:
    """The manifest of one backup."""

    name: str  # UTC time at the start
    checkpoint: str | None  # of the vectors
    clips: int
    catalog_bytes: int
    catalog_sha256: str
    missing: dict[str, str]  # SHA-256 of audio missing or damaged in the library → reason


@dataclass(frozen=True)
class BackupResult:
    """The result of a backup or a restore."""

    snapshot: Snapshot
    files: int  # audio files added
    failed: dict[str, str]  # SHA-256 of audio files that could not be added → reason


def back_up(folder: Path, dest: Path, progress: Progress, copy: bool = False) -> BackupResult:
    """Adds a snapshot of the library in `folder` to the backups in `dest`, which is created if needed.

    Audio files are hard-linked where the file system allows it, unless `copy`; each new one is checked against its
    hash. Raises LibraryError if there is no library or `dest` is not a folder of backups, LibraryInUse if another
    backup to `dest` is running, StorageFull.
    """
    with LibraryReader(folder) as library, storage_errors(dest):
        _open_backups(dest)
        with exclusive_lock(dest / "lock", f"another backup to {dest} is running"):
            return _Backup(library, dest, progress, copy).run()


def _open_backups(dest: Path) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    mark, new = dest / _MARKER, dest / (_MARKER + ".new")
    if not mark.is_file():
        if set(os.listdir(dest)) - {new.name}:
            raise LibraryError(f"{dest} is neither empty nor a folder of backups: choose another folder")
        write_file(new, f"format {_FORMAT}\n".encode())
        os.replace(new, mark)
    (dest / SNAPSHOTS).mkdir(exist_ok=True)
    fsync_folder(dest)


def _next_name(now: datetime, folder: Path) -> str:
    """Returns a name for the time that sorts after all existing names, even if the clock went backwards."""
    for path in folder.iterdir():
        with contextlib.suppress(ValueError):  # not a snapshot
            now = max(now, datetime.strptime(path.name, _NAME).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return now.strftime(_NAME)


class _Backup:
    """A backup in progress."""

    def __init__(self, library: LibraryReader, dest: Path, progress: Progress, copy: bool) -> None:
        self._library, self._dest = library, dest
        self._progress, self._copy = progress, copy
        self._audio = AudioFiles(dest / AUDIO_FOLDER)
        self._name = _next_name(datetime.now(UTC), dest / SNAPSHOTS)
        self._new = dest / SNAPSHOTS / f".{self._name}"
        self._added: set[str] = set()
        self._damaged: dict[str, str] = {}

    def run(self) -> BackupResult:
        self._audio.clear_incoming()
        for leftover in (self._dest / SNAPSHOTS).glob(".*"):
            shutil.rmtree(leftover)
        self._new.mkdir()
        # Copy most audio before the database, so that little of it can be deleted from the library in between.
        self._copy_audio([clip.sha256 for clip in self._library.clips()])
        while True:
            checkpoint, names = self._copy_database()
            gone = self._copy_audio(names)
            lost = {sha256 for sha256 in gone if self._is_lost(sha256)}
            if lost == gone:
                break  # otherwise a clip was deleted meanwhile: copy the database again
        missing = {name: self._damaged.get(name, "missing in the library") for name in names if name in gone}
        database = self._new / DATABASE_FILE
        sha256 = _sha256_of(database, self._progress)
        snapshot = Snapshot(self._name, checkpoint, len(names), database.stat().st_size, sha256, missing)
        manifest = {"format": _FORMAT, **asdict(snapshot)}
        write_file(self._new / _MANIFEST, json.dumps(manifest, indent=2).encode())
        fsync_folder(self._new)
        os.replace(self._new, self._dest / SNAPSHOTS / self._name)
        fsync_folder(self._dest / SNAPSHOTS)
        return BackupResult(snapshot, len(self._added), missing)

    def _copy_database(self) -> tuple[str | None, list[str]]:
        """Copies the database to one file on disk. Returns its checkpoint and the hashes of its audio files."""
        path = self._new / DATABASE_FILE
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            with self._library.view() as view:
                queries.stamp(view)  # starts the transaction: a fixed view, so that the copy never restarts
                view.backup(
                    copy, pages=_PAGES, progress=lambda _, left, total: self._progress("records", total - left, total)
                )
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log
            (fault,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise LibraryError(f"the library's database is damaged: {fault}")
            stamp = queries.stamp(copy)
            names = list(queries.all_sha256(copy))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return stamp[0] if stamp else None, names

    def _copy_audio(self, names: list[str]) -> set[str]:
        """Links or copies audio files, durably. Returns the hashes of those that failed."""
        batch = _RenameBatch(self._audio)
        failed: set[str] = set()
        for number, sha256 in enumerate(names, start=1):
            if not self._audio.has(sha256):
                try:
                    self._link_or_copy(sha256, batch)
                    self._added.add(sha256)
                except FileNotFoundError:
                    failed.add(sha256)
                except ValueError:
                    self._damaged[sha256] = "damaged in the library"
                    failed.add(sha256)
            self._progress("audio files", number, len(names))
        batch.flush()
        return failed

    def _link_or_copy(self, sha256: str, batch: _RenameBatch) -> None:
        with self._library.audio_path(sha256).open("rb") as file:
            # a referenced file is copied: it belongs to somebody else, who may change it
            if not self._copy and not self._library.audio_path(sha256).is_symlink():
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError("damaged")
                try:
                    batch.link(sha256, self._library.audio_path(sha256))
                    return
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    self._copy = True  # the file system cannot link
            batch.add(sha256, self._audio.stage(file, sha256))

    def _is_lost(self, sha256: str) -> bool:
        """Whether the library has the clip but not its audio, so that a retry would fail too."""
        if sha256 in self._damaged:
            return True
        clip_id = self._library.id_of(sha256)
        # If the clip exists before and after this check, its file was not removed by a delete.
        exists = self._library.audio_path(sha256).is_file()
        return clip_id is not None and not exists and self._library.id_of(sha256) == clip_id


class _RenameBatch:
    """Renames staged audio files in batches, because each rename needs an fsync of its folder."""

    def __init__(self, audio: AudioFiles) -> None:
        self._audio = audio
        self._staged: dict[str, Path] = {}

    def add(self, sha256: str, staged: Path) -> None:
        """Adds a staged file."""
        self._staged[sha256] = staged
        if len(self._staged) >= _BATCH:
            self.flush()

    def link(self, sha256: str, file: Path) -> None:
        """Adds a hard link to a file that is complete, on disk and never modified."""
        self.add(sha256, self._audio.stage_link(file))

    def flush(self) -> None:
        """Renames all files, durably when this returns."""
        self._audio.place(self._staged)
        self._staged = {}


def snapshots(source: Path) -> list[Snapshot]:
    """Returns the snapshots in a folder of backups, oldest first. Raises LibraryError if it is not one."""
    if not (source / _MARKER).is_file():
        raise LibraryError(f"{source} is not a folder of backups")
    with storage_errors(source):
        names = sorted(p.name for p in (source / SNAPSHOTS).iterdir() if not p.name.startswith("."))
        return [_read_manifest(source, name) for name in names]


def _read_manifest(source: Path, name: str) -> Snapshot:
    path = source / SNAPSHOTS / name / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("format") != _FORMAT:
            raise LibraryError(f"{path} was written by a newer release: use that release")
        return Snapshot(**manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LibraryError(f"{path} is not the manifest of a backup: {error}") from error


def restore(
    source: Path, folder: Path, progress: Progress, snapshot: str | None = None, partial: bool = False
) -> BackupResult:
    """Restores a snapshot (by default the last) to `folder`, which must be empty or not exist.

    Every file is checked against its checksum. The last step makes the folder a library; until then it cannot be opened
    as one, and another restore continues the work. Audio that is missing or damaged, but was not so in the library, is
    an error before that step unless `partial`. Raises LibraryError, LibraryInUse, StorageFull.
    """
    chosen = _choose(snapshots(source), snapshot, source)
    with storage_errors(folder):
        check_restorable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock", f"{folder} is in use"):
            check_restorable(folder)
            result = _restore(source, chosen, folder, progress)
            if result.failed and not partial:
                name, reason = next(iter(result.failed.items()))
                raise LibraryError(
                    f"the backup is incomplete: {len(result.failed)} audio files are missing or damaged ({name} is "
                    f"{reason}); --partial restores the others"
                )
            os.replace(folder / RESTORING_FILE, folder / DATABASE_FILE)
            fsync_folder(folder)
            fsync_folder(folder.absolute().parent)
    return result


def _choose(found: list[Snapshot], name: str | None, source: Path) -> Snapshot:
    if not found:
        raise LibraryError(f"{source} has no complete backup")
    for one in found:
        if one.name == name:
            return one
    if name is not None:
        raise LibraryError(f"{source} has no snapshot {name}; it has {', '.join(one.name for one in found)}")
    return found[-1]


def check_restorable(folder: Path) -> None:
    """Raises LibraryError unless the folder is empty or has an interrupted restore or import."""
    names = set(os.listdir(folder)) if folder.exists() else set()
    if RESTORING_FILE in names and DATABASE_FILE not in names:
        return
    if names - {"lock", "lost+found"}:
        raise LibraryError(f"{folder} is not empty: restore to another folder, or move its files away")


def _restore(source: Path, snapshot: Snapshot, folder: Path, progress: Progress) -> BackupResult:
    """Restores everything but the database's name."""
    restoring = folder / RESTORING_FILE
    if not restoring.exists() or _sha256_of(restoring, progress) != snapshot.catalog_sha256:
        _copy_file(source / SNAPSHOTS / snapshot.name / DATABASE_FILE, restoring, progress)
        if _sha256_of(restoring, progress) != snapshot.catalog_sha256:
            raise LibraryError(f"{DATABASE_FILE} of snapshot {snapshot.name} is damaged")
    with closing(sqlite3.connect(f"{restoring.absolute().as_uri()}?immutable=1", uri=True)) as database:
        names = list(queries.all_sha256(database))
    audio, backups = AudioFiles(folder / AUDIO_FOLDER), source / AUDIO_FOLDER
    audio.clear_incoming()
    audio.remove_unless(set(names).__contains__)  # left by the interrupted restore of another snapshot
    files, failed = _copy_audio(backups, audio, names, progress)
    return BackupResult(snapshot, files, {name: failed[name] for name in failed if name not in snapshot.missing})


def _copy_audio(source: Path, audio: AudioFiles, names: list[str], progress: Progress) -> tuple[int, dict[str, str]]:
    batch = _RenameBatch(audio)
    files, failed = 0, {}
    for number, sha256 in enumerate(names, start=1):
        if not audio.has(sha256):
            try:
                with path_in(source, sha256).open("rb") as file:
                    batch.add(sha256, audio.stage(file, sha256))
                files += 1
            except FileNotFoundError:
                failed[sha256] = "missing"
            except ValueError:
                failed[sha256] = "damaged"
        progress("audio files", number, len(names))
    batch.flush()
    return files, failed


def _copy_file(source: Path, target: Path, progress: Progress) -> None:
    total, done = source.stat().st_size, 0
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(_CHUNK):
            copy.write(piece)
            done += len(piece)
            progress("records", done, total)
        copy.flush()
        os.fsync(copy.fileno())


def _sha256_of(path: Path, progress: Progress) -> str:
    """Returns the file's SHA-256 in hex and reports progress."""
    total, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        done = 0
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            progress("checksum of records", done, total)
    return digest.hexdigest()
