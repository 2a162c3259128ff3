"""`finelap watch` over thousands of files: a first pass that is killed, a move, a volume that goes, deletions.

    python -m benchmarks.reliability.watch [--files 5000] [--moved 1000] [--reference] [--json FILE]

Files are 0.5 s of noise, each another one, in 50 folders. After every step the library must equal the folder: nothing
is analysed twice (by the seconds of audio that the service has analysed), and no clip is lost or has another id.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.common import COMMAND, REPO, Server

RATE = 16_000
SECONDS = 0.5
FOLDERS = 50


def main() -> None:
    """Runs the steps and prints what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--moved", type=int, default=1000)
    parser.add_argument("--reference", action="store_true", help="leave the audio where it is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finelap-watch-") as temporary:
        work = Path(temporary)
        make_files(work / "sounds", options.files)
        settings: dict[str, object] = {"reference_roots": str(work)} if options.reference else {}
        with Server(settings) as server:
            steps = Steps(server, work, options.reference)
            found = steps.run(options.files, options.moved)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def make_files(folder: Path, count: int) -> None:
    """Writes the files, each with other noise."""
    rng = np.random.default_rng(4)
    for number in range(count):
        place = folder / f"{number % FOLDERS:02d}"
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.normal(0, 0.1, int(SECONDS * RATE)).astype(np.float32)
        soundfile.write(place / f"noise {number:05d}.wav", noise, RATE)


class Steps:
    """The steps, each followed by a check of the library."""

    def __init__(self, server: Server, work: Path, reference: bool) -> None:
        self._server, self._work = server, work
        self._folder = work / "sounds"
        self._options = ["--reference"] if reference else []
        self._found: dict[str, Any] = {}

    def run(self, files: int, moved: int) -> dict[str, Any]:
        """All steps, and what they took, in seconds."""
        self._kill_first_pass(files // 2)
        report = self._scan("first pass, after the kill")
        self._check(files, report["failed"] == [])
        ids = self._ids()
        heard = self._heard()
        self._found["audio_seconds"] = {"of_the_files": files * SECONDS, "analysed": heard}

        self._scan("nothing new")
        sources = sorted(self._folder.rglob("*.wav"))[:moved]
        for number, source in enumerate(sources):
            target = self._folder / "moved" / f"{number % 10}" / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        report = self._scan("a move")
        self._check(files, report["moved"] == moved and report["added"] == report["deleted"] == 0)

        away = self._work / "away"
        self._folder.rename(away)
        self._folder.mkdir()  # the mount point of a volume
        report = self._scan("the volume is not mounted", code=1)
        self._check(files, report["deleted"] == 0 and len(report["offline"]) == 1)
        self._folder.rmdir()
        away.rename(self._folder)
        report = self._scan("it is back")
        self._check(files, report["unchanged"] == files)

        assert self._ids() == ids, "clips have other ids"
        assert self._heard() == heard, "audio was analysed twice"
        shutil.rmtree(self._folder / "moved" / "0")
        report = self._scan("deletions")
        self._check(files - report["deleted"], report["deleted"] == len(range(0, moved, 10)))
        return self._found

    def _command(self) -> list[str]:
        return [
            *COMMAND,
            "watch",
            str(self._folder),
            "--once",
            "--json",
            "--server",
            self._server.address,
            *self._options,
        ]

    def _environment(self) -> dict[str, str]:
        home = str(self._work / "home")
        return {**os.environ, "PYTHONPATH": str(REPO), "XDG_STATE_HOME": home, "XDG_CACHE_HOME": home}

    def _kill_first_pass(self, clips: int) -> None:
        began = time.monotonic()
        process = subprocess.Popen(
            self._command(), env=self._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while self._server.get("/info").json()["clips"] < clips:
            assert process.poll() is None, "the first pass ended before it was killed"
            time.sleep(0.2)
        process.kill()
        process.wait()
        there = self._server.get("/info").json()["clips"]
        seconds = time.monotonic() - began
        self._found["first pass, killed"] = {
            "seconds": round(seconds, 2),
            "clips": there,
            "per_second": round(there / seconds, 1),
        }

    def _scan(self, name: str, code: int = 0) -> dict[str, Any]:
        began = time.monotonic()
        done = subprocess.run(self._command(), env=self._environment(), capture_output=True, text=True)
        seconds = time.monotonic() - began
        assert done.returncode == code, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        counts = {key: value for key, value in report.items() if isinstance(value, int) and value}
        self._found[name] = {"seconds": round(seconds, 2), **counts}
        print(f"{name}: {self._found[name]}", file=sys.stderr, flush=True)
        return report

    def _check(self, clips: int, holds: bool) -> None:
        there = self._server.get("/info").json()["clips"]
        assert holds and there == clips, f"{there} clips, not {clips}; {self._found}"

    def _ids(self) -> dict[str, str]:
        found: dict[str, str] = {}
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
            page = self._server.get("/clips", limit=1000, **cursor).json()
            found.update((clip["sha256"], clip["id"]) for clip in page["clips"])
        return found

    def _heard(self) -> float:
        return self._server.metric("finelap_audio_seconds_total")


if __name__ == "__main__":
    main()
