"""Kills a service repeatedly while clips change, and checks that no acknowledged change is lost.

    python -m benchmarks.reliability.crash [--kills 50] [--clips 10000] [--json FILE]

Creates a library of `--clips` clips of random vectors, then, `--kills` times, starts `finelap serve` with
finelap-small, lets callers add short noises, change their metadata and delete them over HTTP, and sends SIGKILL at a
random moment. After each restart every acknowledged change must be present and nothing that was never requested; list,
vector search and text search must agree. Start-up time counts from the process to /health/ready; for the library alone
it is the duration of `SqliteLibrary.open`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import soundfile

from benchmarks import common
from benchmarks.common import Server
from benchmarks.library import fill_library
from model.config import SAMPLE_RATE

_TAG = {"stream": "crash"}  # metadata of the clips added over HTTP
_CALLERS = 4


class Stream:
    """Makes changes over HTTP and tracks each clip's expected version, None once it is deleted."""

    def __init__(self, seed: int) -> None:
        self.known: dict[str, int | None] = {}  # acknowledged versions by file name
        self.unacknowledged: dict[str, set[int | None]] = {}  # possible versions by file name
        self.acknowledged = 0
        self._ids: dict[str, str] = {}
        self._seed = seed
        self._lock = threading.Lock()

    def run(self, address: str, number: int) -> None:
        """Makes changes until the service is killed."""
        choose = random.Random(f"{self._seed} {number}")
        mine: list[str] = []
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
            while True:
                verb = choose.choice(["add", "add", "change", "delete"]) if mine else "add"
                name = f"{self._seed}-{number}-{choose.randrange(10**9)}.wav" if verb == "add" else choose.choice(mine)
                before = self.known.get(name)
                after = {"add": 0, "change": (before or 0) + 1, "delete": None}[verb]
                with self._lock:
                    self.unacknowledged[name] = {before, after}
                try:
                    self._send(http, verb, name, after)
                except httpx.TransportError:
                    return
                with self._lock:
                    self.known[name] = after
                    del self.unacknowledged[name]
                    self.acknowledged += 1
                if verb == "add":
                    mine.append(name)
                elif verb == "delete":
                    mine.remove(name)

    def _send(self, http: httpx.Client, verb: str, name: str, version: int | None) -> None:
        if verb == "add":
            files, data = {"files": (name, _noise(name))}, {"metadata": json.dumps(_TAG | {"version": version})}
            response = http.post("/clips", files=files, data=data)
            if response.status_code == 201:
                self._ids[name] = response.json()["clips"][0]["id"]
        elif verb == "change":
            response = http.patch(f"/clips/{self._ids[name]}", json={"metadata": {"version": version}})
        else:
            response = http.delete(f"/clips/{self._ids[name]}")
        if response.status_code not in (200, 201, 204):
            raise SystemExit(f"{verb} failed with {response.status_code}: {response.text}")

    def check(self, server: Server) -> None:
        """Raises SystemExit if the service lost a change or has one that was never requested."""
        stored: dict[str, int] = {}
        ids, cursor = set(), None
        while True:
            page = server.get("/clips", limit=1000, filter=json.dumps(_TAG), **({"cursor": cursor} if cursor else {}))
            for clip in page.json()["clips"]:
                stored[clip["filename"]] = clip["metadata"]["version"]
                ids.add(clip["id"])
            cursor = page.json()["next_cursor"]
            if cursor is None:
                break
        for name in self.known.keys() | self.unacknowledged.keys() | stored.keys():
            allowed = self.unacknowledged.get(name, {self.known.get(name)})
            if stored.get(name) not in allowed:
                raise SystemExit(f"{name}: version {stored.get(name)} is stored, expected one of {allowed}")
        for mode, query in (("semantic", "noise"), ("lexical", "crash")):
            body = {"query": query, "k": 1000, "mode": mode, "filter": _TAG}
            found = {hit["clip"]["id"] for hit in server.post("/search", json=body).json()["hits"]}
            if len(ids) <= 1000 and found != ids:
                raise SystemExit(f"{mode} search finds {len(found)} clips, the list has {len(ids)}")
        self.known = dict(stored)
        self.unacknowledged = {}


def _noise(name: str) -> bytes:
    file = io.BytesIO()
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.3, 0.3, SAMPLE_RATE // 2), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    choose = random.Random(5)
    starts: list[float] = []
    with tempfile.TemporaryDirectory(prefix="finelap-") as folder:
        data = Path(folder) / "data"
        opening = fill_library(data, options.clips)
        stream = Stream(0)
        for kill in range(options.kills + 1):
            stream._seed = kill
            began = time.perf_counter()
            with Server({"data_dir": data}) as server:
                starts.append(time.perf_counter() - began)
                stream.check(server)
                if kill == options.kills:
                    break
                callers = [threading.Thread(target=stream.run, args=(server.address, n)) for n in range(_CALLERS)]
                for caller in callers:
                    caller.start()
                time.sleep(choose.uniform(0.1, 1.5))
                server.process.kill()
                for caller in callers:
                    caller.join()
            print(f"kill {kill + 1}: {len(stream.known)} names, {len(stream.unacknowledged)} pending", flush=True)
    report = {
        "machine": common.machine(),
        "code": common.revision(common.REPO),
        "kills": options.kills,
        "clips": options.clips,
        "answered_changes": stream.acknowledged,
        "lost": 0,
        "library_opens_s": round(opening, 2),
        "ready_after_s": {"median": round(statistics.median(starts), 2), "max": round(max(starts), 2)},
    }
    print(json.dumps(report, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
