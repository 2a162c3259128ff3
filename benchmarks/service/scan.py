"""Measures a job over the library: hours of sound a second, memory, and searches beside it.

Fills a library with 10,000 clips, 30 hours, whose stored frames are those of recordings made of the demo sounds, each
shifted and shuffled. Then a service of two cores searches alone, runs a job for 20 phrases alone, and both at once:

    python -m benchmarks.service.scan --out scan.json
    python -m benchmarks.service.scan --clips 1000 --seconds 5
    python -m benchmarks.service.scan --data scan-library     # keeps the library for the next time
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.common import REPO, Latency, Server, Tape, machine, revision, section, table, write_json
from index import NewClip, SqliteLibrary
from model import FineLAP
from model.config import SAMPLE_RATE

CHECKPOINT = REPO / "checkpoints" / "finelap-small"
SECONDS = 10.8  # of a clip
TAPES = 24  # recordings whose frames are repeated
BATCH = 250  # clips added at once
EVERY_S = 0.1  # a search begins
PHRASES = [
    "dog barking", "cat meowing", "bird song", "rooster crowing", "frog croaking", "cow mooing", "rain", "thunder",
    "wind", "water flowing", "footsteps", "door closing", "speech", "laughter", "engine", "car horn", "siren",
    "helicopter", "church bells", "glass breaking",
]  # fmt: skip
SUBJECTS = ("dog", "cat", "bird", "frog", "horse", "engine", "train", "bell", "storm", "crowd", "river", "door")
WORDS = ("distant", "loud", "soft", "sudden", "rhythmic", "muffled", "close", "echoing", "sharp", "faint", "old")


def fill(folder: Path, clips: int) -> None:
    """Makes the library."""
    model = FineLAP.from_pretrained(CHECKPOINT)
    tapes = [Tape(seed).read(int(SECONDS * SAMPLE_RATE)) for seed in range(TAPES)]
    encoded = model.encode_audio(tapes, SAMPLE_RATE)
    rng = np.random.default_rng(0)
    with SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp) as library:
        for first in range(0, clips, BATCH):
            library.add_many([_clip(n, encoded[n % TAPES], rng) for n in range(first, min(first + BATCH, clips))])


def _clip(number: int, audio: Any, rng: np.random.Generator) -> NewClip:
    frames = np.roll(np.asarray(audio.frames), int(rng.integers(len(audio.frames))), axis=0)
    vector = np.asarray(audio.clip) + 0.01 * rng.standard_normal(len(audio.clip))
    file = b"clip %d" % number
    return NewClip(
        filename=f"SM4_2024{1 + number // 2800 % 12:02}{1 + number // 100 % 28:02}_{number // 5 % 20:02}0000.wav",
        sha256=hashlib.sha256(file).hexdigest(),
        duration=SECONDS,
        sample_rate=SAMPLE_RATE,
        channels=1,
        metadata={},
        embedding=(vector / np.linalg.norm(vector)).astype(np.float32),
        frames=frames,
        frame_hop=audio.frame_hop,
        audio=file,
    )


class Load:
    """Searches for a new text every EVERY_S seconds, or as fast as it can, until it is stopped."""

    def __init__(self, address: str, queries: Iterator[str]) -> None:
        self._address, self._queries = address, queries
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                began = time.perf_counter()
                client.get("/search", params={"q": next(self._queries)}).raise_for_status()
                self.seconds.append(time.perf_counter() - began)
                self._stop.wait(max(0.0, EVERY_S - self.seconds[-1]))


def run_job(server: Server, threshold: float) -> dict[str, float]:
    """A job to its end: seconds, hours a second, and the service's memory at its start, end and peak in MB."""
    for earlier in server.get("/jobs").json()["jobs"]:
        server.delete(f"/jobs/{earlier['id']}").raise_for_status()  # of which nothing is to be reused
    service = psutil.Process(server.process.pid)
    memory = [service.memory_info().rss / 1e6]
    spent = sum(service.cpu_times()[:2])
    request = {"kind": "detect", "phrases": PHRASES, "threshold": threshold}
    began = time.perf_counter()
    job = server.post("/jobs", json=request).raise_for_status().json()
    while job["state"] in ("queued", "running"):
        time.sleep(0.2)
        job = server.get(f"/jobs/{job['id']}").json()
        memory.append(service.memory_info().rss / 1e6)
    seconds = time.perf_counter() - began
    spent = sum(service.cpu_times()[:2]) - spent
    assert job["state"] == "done" and not job["reused"], job
    began = time.perf_counter()
    csv = server.get(f"/jobs/{job['id']}/events").text
    assert csv.count("\n") == job["events"] + 1
    return {
        "seconds": seconds,
        "cpu_seconds": spent,
        "hours_per_second": job["seconds"] / 3600 / seconds,
        "times_real_time": job["seconds"] / seconds,
        "events": job["events"],
        "table_seconds": time.perf_counter() - began,
        "memory_start_mb": memory[0],
        "memory_end_mb": memory[-1],
        "memory_peak_mb": max(memory),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of searches alone (20)")
    parser.add_argument("--rounds", type=int, default=1, help="searches alone, and beside a job (1)")
    parser.add_argument("--data", type=Path, help="folder of the library; made if it is missing (a temporary one)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    queries = itertools.cycle(f"{a} {s} {w}" for w in SUBJECTS for a in WORDS for s in SUBJECTS)
    with tempfile.TemporaryDirectory(prefix="finelap-scan-") as folder:
        data = (options.data or Path(folder) / "data").resolve()
        hours = options.clips * SECONDS / 3600
        if not data.exists():
            with section(f"a library of {options.clips} clips"):
                fill(data, options.clips)
        alone: list[float] = []
        beside: list[float] = []
        jobs: list[dict[str, float]] = []
        with Server({"data_dir": data}) as server:
            with section("a job alone"):
                quiet = run_job(server, 0.5)
            with Load(server.address, queries):  # warm up
                time.sleep(3)
            for number in range(options.rounds):
                with section("searches alone"), Load(server.address, queries) as load:
                    time.sleep(options.seconds)
                alone += load.seconds
                with section("searches beside a job"), Load(server.address, queries) as load:
                    jobs.append(run_job(server, 0.5 + 0.001 * (number + 1)))  # another threshold: nothing is reused
                beside += load.seconds
    searches = {"alone": Latency.of(alone), "beside a job": Latency.of(beside)}
    print(f"{options.clips} clips, {hours:.1f} hours, {len(PHRASES)} phrases, load {os.getloadavg()[0]:.1f}\n")
    columns = ["seconds", "cpu_seconds", "hours_per_second", "times_real_time"]
    columns += [f"memory_{when}_mb" for when in ("start", "peak", "end")]
    rows = [[name, *(run[c] for c in columns)] for name, run in [("alone", quiet), *(("beside", j) for j in jobs)]]
    print(table(["job", *columns], rows) + "\n")
    print(table(["searches", "n", "p50 ms", "p95 ms", "p99 ms"], [
        [name, one.count, *(1e3 * q for q in (one.p50, one.p95, one.p99))] for name, one in searches.items()
    ]))  # fmt: skip
    print(f"\np95 beside / alone: {searches['beside a job'].p95 / searches['alone'].p95:.2f}")
    report = {"machine": machine(), "revision": revision(REPO), "job": quiet, "beside": jobs}
    write_json(options.out, report | {"searches": {name: vars(one) for name, one in searches.items()}})


if __name__ == "__main__":
    main()
