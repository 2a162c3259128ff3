"""`finelap backup` and `restore`, `export` and `import`: copy a library and bring it back, with progress bars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from index import BackupResult, back_up, export_library, import_library, restore


class _Bars:
    """A progress bar for each step, one after another."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, step: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc.removesuffix(": ") != step:
            self.close()
            self._bar = tqdm(desc=step, total=total, unit="", unit_scale=True)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_backup(folder: Path, dest: Path, copy: bool) -> int:
    """Backs up the library in `folder` to `dest`. Returns 1 if audio was missing or damaged; the rest is saved."""
    with _Bars() as bars:
        copied = back_up(folder, dest, bars, copy)
    print(f"snapshot {copied.snapshot.name}: {copied.snapshot.clips} clips, {copied.files} new audio files")
    return _report_failures(copied)


def run_restore(source: Path, folder: Path, snapshot: str | None, partial: bool) -> int:
    """Restores a backup to a library in `folder`. Returns 1 if audio had to be skipped."""
    with _Bars() as bars:
        copied = restore(source, folder, bars, snapshot, partial)
    print(f"{folder}: {copied.snapshot.clips} clips, as of {copied.snapshot.name}")
    return _report_failures(copied)


def run_export(folder: Path, dest: Path, audio: bool) -> int:
    """Writes the library in `folder` as Parquet files to `dest`. Returns 1 if audio was missing."""
    with _Bars() as bars:
        report = export_library(folder, dest, bars, audio)
    print(f"{dest}: {report.clips} clips of {report.checkpoint}, {report.audio if audio else 'no'} audio files")
    if audio and report.audio < report.clips:
        print(f"the audio of {report.clips - report.audio} clips is missing", file=sys.stderr)
        return 1
    return 0


def run_import(source: Path, folder: Path) -> int:
    """Makes a library in `folder` of exported files."""
    with _Bars() as bars:
        report = import_library(source, folder, bars)
    print(f"{folder}: {report.clips} clips of {report.checkpoint}, {report.audio} with audio")
    return 0


def _report_failures(copied: BackupResult) -> int:
    for sha256, reason in copied.failed.items():
        print(f"audio file {sha256}: {reason}", file=sys.stderr)
    return 1 if copied.failed else 0
