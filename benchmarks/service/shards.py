"""Adds a folder in shards, each of them killed once and resumed, and compares the library with that of one run.

    python -m benchmarks.service.shards [--files 20000] [--shards 3] [--stores sqlite milvus ray] [--json FILE]

Makes short files (0.3 s of noise at 16 kHz) and adds all of them with one `finelap ingest` to SQLite: the reference.
Then, for each store, all `finelap ingest --shard i/n` run at once against a new library, each is killed (SIGKILL) when
the library is partly filled, and started again. Every record has to be the same but for the id and the time; the clips'
vectors are compared for a sample. The model is a tiny one of random weights, so the stores and HTTP take the time.
`milvus` starts milvus-lite's server, which has to be installed. `ray`, if it is installed, embeds the folder with
integrations/ray/embed.py, killed when half of the parts are written and started again, and imports them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.client import Client
from benchmarks import common
from benchmarks.common import REPO, Server, encode, section
from benchmarks.library import save_tiny_checkpoint
from index import Library, MilvusLibrary, SqliteLibrary
from model import FineLAP
from model.config import SAMPLE_RATE

_SECONDS = 0.3  # of each file
_SAMPLE = 200  # clips whose vectors are compared
_FOLDERS = 100
_PART = 256  # files in each Parquet file of Ray

Record = tuple[str, float, int, int, str]  # name, duration, sample rate, channels, metadata


@dataclass
class Run:
    """The result of one ingest: seconds, what the commands said, and all records by SHA-256 with some vectors."""

    seconds: float = 0.0
    killed: list[int] = field(default_factory=list)  # clips in the library at each kill
    summaries: list[dict[str, Any]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


def make_files(folder: Path, count: int) -> None:
    """Writes `count` different files in 100 folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % _FOLDERS:02}" / f"sound {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = rng.uniform(0.05, 0.5)
        path.write_bytes(encode((level * rng.standard_normal(int(_SECONDS * SAMPLE_RATE))).clip(-1, 1)))


class Ingest:
    """A `finelap ingest` process."""

    def __init__(self, folder: Path, address: str, work: Path, *more: str) -> None:
        self._command = [*common.COMMAND, "ingest", str(folder), "--server", address, "--json", *more]
        self._environment = os.environ | {"PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(work)}
        self._start()

    def _start(self) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, env=self._environment, **pipes)

    def restart(self) -> None:
        """Kills it and starts it again."""
        self._process.kill()
        self._process.communicate()
        self._start()

    def summary(self) -> dict[str, Any]:
        """Waits for its end."""
        out, _ = self._process.communicate()
        return dict(json.loads(out))


@contextmanager
def milvus_lite(folder: Path) -> Iterator[str]:
    """Runs milvus-lite's server; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"milvus://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def ingest(folder: Path, work: Path, store: str, shards: int) -> Run:
    """Adds the folder to a new library, in `shards` killed and resumed shards if more than one."""
    run = Run()
    checkpoint = save_tiny_checkpoint(work / "tiny")
    data = work / "data"
    address = milvus_lite(work / "milvus") if store == "milvus" else nullcontext("faiss://")
    with address as url:
        settings = {"checkpoint": checkpoint, "data_dir": data, "index_url": url, "max_queue_windows": 64}
        if store == "ray":
            _embed(folder, work, checkpoint, run)
        else:
            with Server(settings) as server:
                _ingest(folder, work, server.address, shards, run)
        model = FineLAP.from_pretrained(checkpoint)
        opened: Library = (
            MilvusLibrary.open(url, data, dim=model.dim, checkpoint=model.stamp)
            if store == "milvus"
            else SqliteLibrary.open(data, dim=model.dim, checkpoint=model.stamp)
        )
        _read(opened, run)
        opened.close()
    return run


def _read(library: Library, run: Run) -> None:
    """Reads all records, and the vectors of some."""
    ids, cursor = {}, None
    while True:
        clips, cursor = library.list(1000, cursor)
        for clip in clips:
            about = json.dumps(clip.metadata, sort_keys=True)
            run.records[clip.sha256] = (clip.filename, clip.duration, clip.sample_rate, clip.channels, about)
            ids[clip.sha256] = clip.id
        if cursor is None:
            break
    for sha256 in sorted(ids)[:: max(1, len(ids) // _SAMPLE)]:
        run.vectors[sha256] = library.clip_vector(ids[sha256])


def _embed(folder: Path, work: Path, checkpoint: Path, run: Run) -> None:
    """Embeds with Ray, killed when half of the parts are there and started again, and imports."""
    out = work / "embedded"
    files = sum(1 for _ in folder.rglob("*.wav"))
    size = max(1, min(_PART, files // 6))
    command = [sys.executable, str(REPO / "integrations" / "ray" / "embed.py"), str(folder), str(out)]
    command += ["--checkpoint", str(checkpoint), "--concurrency", "2", "--part", str(size)]
    environment = os.environ | {"PYTHONPATH": str(REPO), "RAY_worker_niceness": "0"}  # its default is 15
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, **pipes)
    while 2 * size * len(parts := list((out / "data").glob("*.parquet"))) < files:
        assert process.poll() is None, "the recipe ended before half of the parts were written"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run.killed.append(size * len(parts))
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    imported = [*common.COMMAND, "import", str(out), "--data-dir", str(work / "data")]
    subprocess.run(imported, env=environment, check=True, **pipes)
    run.seconds = time.monotonic() - began


def _ingest(folder: Path, work: Path, address: str, shards: int, run: Run) -> None:
    files = sum(1 for _ in folder.rglob("*.wav"))
    began = time.monotonic()
    names = [["--shard", f"{i}/{shards}"] if shards > 1 else [] for i in range(shards)]
    parts = [Ingest(folder, address, work, *more) for more in names]
    with Client(address) as client:
        for number, part in enumerate(parts if shards > 1 else []):
            at = files * (number + 1) // (2 * shards)  # all while every shard has much of its work before it
            while (there := client.info().clips) < at:
                time.sleep(0.02)
            part.restart()
            run.killed.append(there)
    run.summaries = [part.summary() for part in parts]
    run.seconds = time.monotonic() - began


def differences(run: Run, one: Run) -> dict[str, Any]:
    """What is different from the library of one run."""
    common_vectors = run.vectors.keys() & one.vectors.keys()
    apart = [float(np.abs(run.vectors[key] - one.vectors[key]).max()) for key in common_vectors]
    return {
        "missing": len(one.records.keys() - run.records.keys()),
        "more": len(run.records.keys() - one.records.keys()),
        "different": sum(run.records[key] != one.records[key] for key in run.records.keys() & one.records.keys()),
        "vectors compared": len(apart),
        "largest difference of a value": max(apart, default=0.0),
    }


def measure(files: int, shards: int, stores: list[str]) -> dict[str, Any]:
    """Runs everything; the report."""
    report: dict[str, Any] = {"files": files, "shards": shards, "machine": common.machine(), "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with section(f"making {files} files"):
            make_files(work / "sounds", files)
        with section("one run, SQLite"):
            one = ingest(work / "sounds", work / "one", "sqlite", 1)
        report["one run, s"] = round(one.seconds, 1)
        assert len(one.records) == files, f"{len(one.records)} clips of {files} files: {one.summaries}"
        for store in stores:
            with section(store if store == "ray" else f"{shards} shards, {store}"):
                run = ingest(work / "sounds", work / store, store, shards)
            counts = [(s["added"], s["already_there"], len(s["failed"])) for s in run.summaries]
            report["runs"][store] = {
                "s": round(run.seconds, 1),
                "clips in the library at each kill": run.killed,
                "after the kill: added, already there, failed": counts,
                **differences(run, one),
            }
            print(store, json.dumps(report["runs"][store]), file=sys.stderr, flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--stores", nargs="*", default=["sqlite", "milvus"], choices=["sqlite", "milvus", "ray"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.files, args.shards, args.stores)
    report["revision"] = common.revision(REPO)
    print(json.dumps(report, indent=1))
    common.write_json(args.json, report)
    wrong = [run for run in report["runs"].values() if run["missing"] or run["more"] or run["different"]]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
