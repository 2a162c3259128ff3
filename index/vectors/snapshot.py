"""Codes on the disk between two runs, so that a start does not make them anew, and a manifest that vouches for them.

    index/manifest.json          format, checkpoint, dim, count, highest row, and of each file its name, size, SHA-256
    index/codes-….faiss          the codes as FAISS writes them
    index/codes-….npy            the rows (N,) that have codes, and a number that belongs to each row's clip

Written aside, fsync, renamed, the manifest last: a crash leaves the old snapshot or the new one, and files that the
next writing removes. A snapshot is a cache and trusted only as far as it can be checked; whether the database still has
the clips that it was made of is for the caller to compare, by the numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.sqlite.audio_files import fsync_folder
from index.vectors.ivf_rabitq import Codes

FORMAT = 2
_MANIFEST = "manifest.json"


class SnapshotRefused(Exception):
    """There is a snapshot, and it cannot be used; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """Codes, and whose they are: rows (N,) int64 and clips' numbers (N,) uint64, 0 for rows that were deleted."""

    codes: Codes
    rows: np.ndarray
    keys: np.ndarray


def write(folder: Path, snapshot: Snapshot, stamp: str) -> None:
    """Replaces the snapshot in `folder`, which is made if need be. `stamp`: the checkpoint that made the vectors."""
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
            _fsync(path)
        manifest = {
            "format": FORMAT,
            "checkpoint": stamp,
            "dim": snapshot.codes.dim,
            "count": len(snapshot.rows),
            "highest_row": int(snapshot.rows.max(initial=0)),
            "learnt_from": snapshot.codes.learnt_from,
            "reach": [round(float(reach), 6) for reach in snapshot.codes.reach],
            "files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files],
        }
        aside = folder / f"{name}.json"
        files.append(aside)
        aside.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _fsync(aside)
        fsync_folder(folder)
        aside.replace(folder / _MANIFEST)
        fsync_folder(folder)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    _clear(folder, keep=name)


def read(folder: Path, stamp: str, dim: int) -> Snapshot | None:
    """The snapshot in `folder`; None when there is none. Raises SnapshotRefused."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotRefused(f"its manifest cannot be read: {error}") from error
    try:
        return _read(folder, manifest, stamp, dim)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise SnapshotRefused(f"its manifest is not one: {error!r}") from error
    except (OSError, ValueError) as error:
        raise SnapshotRefused(str(error)) from error


def _read(folder: Path, manifest: dict[str, Any], stamp: str, dim: int) -> Snapshot:
    if manifest["format"] != FORMAT:
        raise SnapshotRefused(f"its format is {manifest['format']}, and this release reads {FORMAT}")
    if (manifest["checkpoint"], manifest["dim"]) != (stamp, dim):
        raise SnapshotRefused("another checkpoint made its vectors")
    codes_file, rows_file = manifest["files"]
    for entry in (codes_file, rows_file):
        path = folder / Path(entry["name"]).name
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise SnapshotRefused(f"{path.name} is damaged")
    rows, keys = np.load(folder / Path(rows_file["name"]).name)
    rows = rows.astype(np.int64)
    if len(rows) != manifest["count"] or int(rows.max(initial=0)) != manifest["highest_row"]:
        raise SnapshotRefused("its rows are not those of its manifest")
    reach = np.array(manifest["reach"], dtype=np.float32)
    codes = Codes.load(folder / Path(codes_file["name"]).name, rows, int(manifest["learnt_from"]), reach)
    if codes.dim != dim:
        raise SnapshotRefused(f"its codes have {codes.dim} dimensions")
    return Snapshot(codes, rows, keys.astype(np.uint64))


def remove(folder: Path) -> None:
    """Takes the snapshot away, if there is one."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        _clear(folder, keep=None)


def _clear(folder: Path, keep: str | None) -> None:
    for path in folder.glob("codes-*"):
        if path.stem != keep:
            with contextlib.suppress(OSError):  # it only takes room
                path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
