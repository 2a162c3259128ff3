"""Snapshots of the search index's codes on disk, so that a start need not rebuild them.

    index/manifest.json          format, checkpoint, dim, count, highest row; name, size and SHA-256 of each file
    index/codes-….faiss          the codes as FAISS writes them
    index/codes-….npy            the coded rows (N,), and for each a number that identifies its clip

Files are written under temporary names, fsynced and renamed, the manifest last: a crash leaves the old snapshot or the
new one, and stray files that the next write removes. The checksums detect damage; the caller compares the clips'
numbers with the database.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.files import fsync_file, fsync_folder, sha256_of, write_file
from index.vectors.ivf_rabitq import Codes

FORMAT = 2
_MANIFEST = "manifest.json"


class SnapshotRefused(Exception):
    """The snapshot cannot be used; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """Codes with their rows (N,) int64 and the clips' numbers (N,) uint64, 0 for rows that were deleted."""

    codes: Codes
    rows: np.ndarray
    keys: np.ndarray


def write(folder: Path, snapshot: Snapshot, stamp: str) -> None:
    """Replaces the snapshot in `folder`, creating the folder if needed. `stamp`: the checkpoint of the vectors."""
    if not folder.is_dir():
        folder.mkdir()
        fsync_folder(folder.parent)
    name = f"codes-{uuid.uuid4().hex[:12]}"
    files = [folder / f"{name}.faiss", folder / f"{name}.npy"]
    try:
        snapshot.codes.save(files[0])
        with files[1].open("wb") as file:
            np.save(file, np.stack([snapshot.rows.astype("<u8"), snapshot.keys.astype("<u8")]))
        for path in files:
            fsync_file(path)
        manifest = {
            "format": FORMAT,
            "checkpoint": stamp,
            "dim": snapshot.codes.dim,
            "count": len(snapshot.rows),
            "highest_row": int(snapshot.rows.max(initial=0)),
            "learnt_from": snapshot.codes.trained_for,
            "reach": [round(float(radius), 6) for radius in snapshot.codes.radii],
            "files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files],
        }
        temporary = folder / f"{name}.json"
        files.append(temporary)
        write_file(temporary, (json.dumps(manifest, indent=1) + "\n").encode())
        fsync_folder(folder)
        temporary.replace(folder / _MANIFEST)
        fsync_folder(folder)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    _clear(folder, keep=name)


def read(folder: Path, stamp: str, dim: int) -> Snapshot | None:
    """Reads the snapshot in `folder`; None if there is none. Raises SnapshotRefused."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotRefused(f"the manifest of the snapshot cannot be read: {error}") from error
    try:
        return _read(folder, manifest, stamp, dim)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise SnapshotRefused(f"the manifest of the snapshot is invalid: {error!r}") from error
    except (OSError, ValueError) as error:
        raise SnapshotRefused(str(error)) from error


def _read(folder: Path, manifest: dict[str, Any], stamp: str, dim: int) -> Snapshot:
    if manifest["format"] != FORMAT:
        raise SnapshotRefused(f"the snapshot has format {manifest['format']}; this release reads format {FORMAT}")
    if (manifest["checkpoint"], manifest["dim"]) != (stamp, dim):
        raise SnapshotRefused("the snapshot's vectors are from another checkpoint")
    codes_file, rows_file = manifest["files"]
    for entry in (codes_file, rows_file):
        path = folder / Path(entry["name"]).name
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise SnapshotRefused(f"{path.name} is damaged")
    rows, keys = np.load(folder / Path(rows_file["name"]).name)
    rows = rows.astype(np.int64)
    if len(rows) != manifest["count"] or int(rows.max(initial=0)) != manifest["highest_row"]:
        raise SnapshotRefused("the snapshot's rows differ from its manifest")
    radii = np.array(manifest["reach"], dtype=np.float32)
    codes = Codes.load(folder / Path(codes_file["name"]).name, rows, int(manifest["learnt_from"]), radii)
    if codes.dim != dim:
        raise SnapshotRefused(f"the snapshot's codes have {codes.dim} dimensions, not {dim}")
    return Snapshot(codes, rows, keys.astype(np.uint64))


def remove(folder: Path) -> None:
    """Removes the snapshot, if there is one."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        _clear(folder, keep=None)


def _clear(folder: Path, keep: str | None) -> None:
    for path in folder.glob("codes-*"):
        if path.stem != keep:
            with contextlib.suppress(OSError):  # a stray file only takes space
                path.unlink()
