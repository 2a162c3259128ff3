"""Measures `finelap ingest` of many short files and of long ones: rates, processor time and memory.

    python -m benchmarks.service.ingest [--short 5000] [--long 2] [--checkpoint DIR] [--baseline TREE] [--rounds 1]

Short files last one second, long ones an hour: 16-bit WAV at 16 kHz, cut from demo sounds with a trace of noise, so
that no two have the same bytes. Each kind is added to a library of its own by one `finelap ingest` with a new server.
Without --checkpoint the model is a tiny one of random weights, so the figures are of everything beside the model:
processor seconds per file of the server with its decoders, and of the command. --baseline runs another checkout's
server and command before each run of this one. --work is where the files and the libraries are made: 32 kB for each
short file, 115 MB for each long one, and as much again in the library.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks import common
from benchmarks.common import REPO, Server, Tape, section
from benchmarks.library import save_tiny_checkpoint
from benchmarks.processes import MemoryWatch, cpu_seconds
from model.config import SAMPLE_RATE

SHORT, LONG = 1.0, 3600.0  # seconds of audio
_FOLDERS = 100
_TAPE = 60.0  # seconds of sounds, of which all files consist
_NOISE = 1e-4


def make_files(folder: Path, count: int, seconds: float) -> Path:
    """Writes `count` different files of `seconds` into 100 folders."""
    rng = np.random.default_rng(0)
    tape = Tape(0).read(round(_TAPE * SAMPLE_RATE))
    samples = round(seconds * SAMPLE_RATE)
    looped = np.tile(tape, 1 + -(-samples // len(tape)))
    for number in range(count):
        path = folder / f"{number % _FOLDERS:02}" / f"sound {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = rng.integers(len(tape))
        noise = _NOISE * rng.standard_normal(samples, dtype=np.float32)
        soundfile.write(path, looped[start : start + samples] + noise, SAMPLE_RATE)
    return folder


def measure(folder: Path, seconds: float, tree: Path, checkpoint: Path) -> dict[str, float]:
    """Adds the files of a folder, which last `seconds` each, to a new library with the server and command of `tree`."""
    files = sum(1 for _ in folder.rglob("*.wav"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        settings = {"checkpoint": checkpoint, "data_dir": Path(name) / "data", "max_queue_windows": 64}
        with Server(settings, tree=tree) as server, MemoryWatch(server.process.pid, every=0.5) as watch:
            command = [*common.COMMAND, "ingest", str(folder), "--server", server.address, "--json"]
            environment = os.environ | {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": name}
            before, began = cpu_seconds(server.process.pid), time.perf_counter()
            ours = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            wall, used = time.perf_counter() - began, cpu_seconds(server.process.pid) - before
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(done.stdout)
    if summary["added"] != files:
        raise RuntimeError(f"{summary['added']} of {files} files were added: {summary['failed'][:3]}")
    return {
        "files": files,
        "files/s": files / wall,
        "seconds of sound/s": files * seconds / wall,
        "server, CPU ms per file": 1000 * used / files,
        "command, CPU ms per file": 1000 * (after.ru_utime - ours.ru_utime + after.ru_stime - ours.ru_stime) / files,
        "peak memory of the server, MB": watch.peak / 1e6,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=5000)
    parser.add_argument("--long", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.short + options.long < 1:
        parser.error("there are no files to add")
    trees = [tree.resolve() for tree in (options.baseline, REPO) if tree is not None]
    rows: list[list[Any]] = []
    report: dict[str, Any] = {"machine": common.machine(), "runs": []}
    with tempfile.TemporaryDirectory(prefix="finelap-", dir=options.work) as name:
        checkpoint = options.checkpoint or save_tiny_checkpoint(Path(name) / "tiny")
        for kind, count, seconds in (("short", options.short, SHORT), ("long", options.long, LONG)):
            if not count:
                continue
            with section(f"making {count} {kind} files"):
                folder = make_files(Path(name) / kind, count, seconds)
            for _ in range(options.rounds):
                for tree in trees:
                    with section(f"adding {count} {kind} files, {common.revision(tree)}"):
                        figures = measure(folder, seconds, tree, checkpoint.resolve())
                    report["runs"].append({"kind": kind, "code": common.revision(tree)} | figures)
                    rows.append([kind, common.revision(tree), *figures.values()])
    print(common.table(["files of", "code", *figures], rows))
    common.write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
