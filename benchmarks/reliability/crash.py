"""A service that is killed again and again while clips are added, changed and deleted: is what it acknowledged there?

    python -m benchmarks.reliability.crash [--kills 50] [--clips 10000] [--json FILE]

Makes a library of `--clips` clips of random vectors, then `--kills` times: starts `finelap serve` with finelap-small on
it, lets callers add short noises, change their metadata and delete them over HTTP, kills it with SIGKILL at a random
moment, and starts it again. After each start every change that was answered must be there, and nothing that was not at
least asked for; list, search by vector and search by words must agree. Start-up counts from the process to
/health/ready, and for the library alone from `SqliteLibrary.open`.
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
from index import NewClip, SqliteLibrary
from model import FineLAP
from model.config import SAMPLE_RATE

_MARK = {"stream": "crash"}  # metadata of what is added over HTTP
_CALLERS = 4


class Stream:
    """Changes over HTTP, and what is known of each clip: its version, or None once it is deleted."""

    def __init__(self, seed: int) -> None:
        self.known: dict[str, int | None] = {}  # acknowledged; by file name
        self.unsure: dict[str, set[int | None]] = {}  # asked for and not answered: what may hold as well
        self.answered = 0
        self._ids: dict[str, str] = {}
        self._seed = seed
        self._lock = threading.Lock()

    def run(self, address: str, number: int) -> None:
        """Changes until the service is gone."""
        choose = random.Random(f"{self._seed} {number}")
        mine: list[str] = []
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
            while True:
                verb = choose.choice(["add", "add", "change", "delete"]) if mine else "add"
                name = f"{self._seed}-{number}-{choose.randrange(10**9)}.wav" if verb == "add" else choose.choice(mine)
                before = self.known.get(name)
                after = {"add": 0, "change": (before or 0) + 1, "delete": None}[verb]
                with self._lock:
                    self.unsure[name] = {before, after}
                try:
                    self._ask(http, verb, name, after)
                except httpx.TransportError:
                    return
                with self._lock:
                    self.known[name] = after
                    del self.unsure[name]
                    self.answered += 1
                if verb == "add":
                    mine.append(name)
                elif verb == "delete":
                    mine.remove(name)

    def _ask(self, http: httpx.Client, verb: str, name: str, version: int | None) -> None:
        if verb == "add":
            files, data = {"files": (name, _noise(name))}, {"metadata": json.dumps(_MARK | {"version": version})}
            answer = http.post("/clips", files=files, data=data)
            if answer.status_code == 201:
                self._ids[name] = answer.json()["clips"][0]["id"]
        elif verb == "change":
            answer = http.patch(f"/clips/{self._ids[name]}", json={"metadata": {"version": version}})
        else:
            answer = http.delete(f"/clips/{self._ids[name]}")
        if answer.status_code not in (200, 201, 204):
            raise SystemExit(f"{verb} was answered with {answer.status_code}: {answer.text}")

    def check(self, server: Server) -> None:
        """Raises SystemExit where the service has lost or made up something."""
        there: dict[str, int] = {}
        ids, cursor = set(), None
        while True:
            page = server.get("/clips", limit=1000, filter=json.dumps(_MARK), **({"cursor": cursor} if cursor else {}))
            for clip in page.json()["clips"]:
                there[clip["filename"]] = clip["metadata"]["version"]
                ids.add(clip["id"])
            cursor = page.json()["next_cursor"]
            if cursor is None:
                break
        for name in self.known.keys() | self.unsure.keys() | there.keys():
            allowed = self.unsure.get(name, {self.known.get(name)})
            if there.get(name) not in allowed:
                raise SystemExit(f"{name}: {there.get(name)} is there, and {allowed} would be right")
        for mode, query in (("semantic", "noise"), ("lexical", "crash")):
            asked = {"query": query, "k": 1000, "mode": mode, "filter": _MARK}
            found = {hit["clip"]["id"] for hit in server.post("/search", json=asked).json()["hits"]}
            if len(ids) <= 1000 and found != ids:
                raise SystemExit(f"{mode} search finds {len(found)} clips, the list has {len(ids)}")
        self.known = dict(there)
        self.unsure = {}


def _noise(name: str) -> bytes:
    file = io.BytesIO()
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.3, 0.3, SAMPLE_RATE // 2), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def fill(folder: Path, clips: int) -> float:
    """Makes the library; the seconds that opening it takes then."""
    model = FineLAP.from_pretrained(common.REPO / "checkpoints" / "finelap-small")
    rng = np.random.default_rng(0)
    with SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp) as catalog:
        for at in range(0, clips, 500):
            vectors = rng.standard_normal((min(500, clips - at), 17, model.dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
            catalog.add_many([_clip(at + i, rows) for i, rows in enumerate(vectors)])
    began = time.perf_counter()
    SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp).close()
    return time.perf_counter() - began


def _clip(number: int, vectors: np.ndarray) -> NewClip:
    audio = b"%d" % number
    sha256 = hashlib.sha256(audio).hexdigest()
    metadata = {"number": number}
    return NewClip(f"{number}.wav", sha256, 2.5, SAMPLE_RATE, 1, metadata, vectors[0], vectors[1:], 0.16, audio)


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
        opening = fill(data, options.clips)
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
            print(f"kill {kill + 1}: {len(stream.known)} names, {len(stream.unsure)} under way", flush=True)
    report = {
        "machine": common.machine(),
        "code": common.revision(common.REPO),
        "kills": options.kills,
        "clips": options.clips,
        "answered_changes": stream.answered,
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
