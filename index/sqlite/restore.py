"""Libraries made of backups: every file checked, and there at one stroke.

Knows what index.sqlite.backup writes. The stroke is the renaming of the database; until then the folder is no library, and
opening it as one is refused. Knows no model and no HTTP.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from index.records import LibraryError
from index.sqlite import store
from index.sqlite.audio_files import AudioFiles, fsync_folder, path_in
from index.sqlite.backup import SNAPSHOTS, BackupResult, Batch, Progress, Snapshot, sha256_of, snapshots
from index.sqlite.reader import AUDIO, CATALOG, UNFINISHED, exclusive_lock
from index.sqlite.store import storage_errors

_PIECE = 1 << 20  # bytes


def restore(
    source: Path, folder: Path, progress: Progress, snapshot: str | None = None, partial: bool = False
) -> BackupResult:
    """Makes a library of a snapshot (the last, unless one is named) in `folder`, which is empty or not there.

    Every file is compared to its checksum. The library is there at one stroke, when all else is; until then the folder
    cannot be opened as one, and restoring again goes on. Audio that is missing or damaged, and was not when the backup
    was made, is an error before that stroke unless `partial`. Raises LibraryError, LibraryInUse, StorageFull.
    """
    chosen = _choose(snapshots(source), snapshot, source)
    with storage_errors(folder):
        _refuse_used(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock", f"{folder} is in use"):
            _refuse_used(folder)
            copied = _restore(source, chosen, folder, progress)
            if copied.failed and not partial:
                name, reason = next(iter(copied.failed.items()))
                raise LibraryError(
                    f"the backup is not whole, audio files missing or damaged: {len(copied.failed)} ({name} is "
                    f"{reason}); --partial restores the others"
                )
            os.replace(folder / UNFINISHED, folder / CATALOG)
            fsync_folder(folder)
            fsync_folder(folder.absolute().parent)
    return copied


def _choose(found: list[Snapshot], name: str | None, source: Path) -> Snapshot:
    if not found:
        raise LibraryError(f"{source} has no finished backup")
    for one in found:
        if one.name == name:
            return one
    if name is not None:
        raise LibraryError(f"{source} has no snapshot {name}; it has {', '.join(one.name for one in found)}")
    return found[-1]


def _refuse_used(folder: Path) -> None:
    """Only an empty folder is restored to, or one where that was begun."""
    there = set(os.listdir(folder)) if folder.exists() else set()
    if UNFINISHED in there and CATALOG not in there:
        return
    if there - {"lock", "lost+found"}:
        raise LibraryError(f"{folder} is not empty: restore to another folder, or move what is in it away")


def _restore(source: Path, snapshot: Snapshot, folder: Path, progress: Progress) -> BackupResult:
    """All but the last stroke."""
    unfinished = folder / UNFINISHED
    if not unfinished.exists() or sha256_of(unfinished, progress) != snapshot.catalog_sha256:
        _copy_file(source / SNAPSHOTS / snapshot.name / CATALOG, unfinished, progress)
        if sha256_of(unfinished, progress) != snapshot.catalog_sha256:
            raise LibraryError(f"{CATALOG} of snapshot {snapshot.name} is damaged")
    with closing(sqlite3.connect(f"{unfinished.absolute().as_uri()}?immutable=1", uri=True)) as catalog:
        names = [sha256 for sha256, _, _ in store.all_sha256(catalog)]
    audio, backups = AudioFiles(folder / AUDIO), source / AUDIO
    audio.clear_incoming()
    audio.remove_unless(set(names).__contains__)  # of another snapshot, begun before
    files, failed = _copy_audio(backups, audio, names, progress)
    return BackupResult(snapshot, files, {name: failed[name] for name in failed if name not in snapshot.missing})


def _copy_audio(source: Path, audio: AudioFiles, names: list[str], progress: Progress) -> tuple[int, dict[str, str]]:
    batch = Batch(audio)
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
        while piece := file.read(_PIECE):
            copy.write(piece)
            done += len(piece)
            progress("records", done, total)
        copy.flush()
        os.fsync(copy.fileno())
