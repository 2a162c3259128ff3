"""Runs a service under every kind of load at once and checks that nothing leaks, breaks or gets lost.

    python -m benchmarks.reliability.soak [--minutes 60] [--callers 6] [--json FILE]

Callers add, change, delete, search, detect and download. Some disconnect while sending or reading, some send a few
bytes at a time, some send files that are broken, too large or too long. Others teach and use concepts, run jobs over
the library, stream live sound, and keep a folder in place with `finelap watch --reference`. Meanwhile `finelap backup`
and `finelap reindex` run repeatedly. A model of the library is maintained: acknowledged changes must be present,
interrupted ones may be. At the end the library, a restored backup and the model are compared clip by clip: records,
audio, concepts, jobs, and what searches find. Memory and descriptors of the service and its child processes are sampled
every few seconds; their slope is that of a line through the second half.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.client import Client
from benchmarks import common, processes
from benchmarks.common import Server, Tape, encode
from benchmarks.reliability import actors
from benchmarks.reliability.actors import Actor, Keeper, Listener, Scanner, Teacher
from model.config import SAMPLE_RATE

SETTINGS = {"max_upload_mb": 8, "max_duration_s": 60, "max_queue_windows": 24, "request_timeout_s": 600}
_CLIPS = 25  # per caller; above it, a caller deletes more than it adds
_MOST = 1000  # hits of one search
_AUDIO_SAMPLE = 300  # clips of the restored backup whose audio is compared
_TIMEOUT = 900.0  # seconds; a request that takes longer is reported


@dataclass
class Report:
    """The results. `statuses` counts (action, status); `wrong` describes each problem and is empty in a good run."""

    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)  # readiness responses other than 200
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)  # s, bytes, descriptors, processes
    backups: int = 0
    reindexes: int = 0
    clips: int = 0
    more: int = 0  # clips whose callers disconnected before the response
    seconds: float = 0.0

    def slope(self, column: int) -> float:
        """The slope of a column of `samples` per hour, by least squares through the second half."""
        half = np.array(self.samples[len(self.samples) // 2 :], dtype=np.float64)
        return float(np.polyfit(half[:, 0], half[:, column], 1)[0] * 3600) if len(half) > 2 else 0.0

    def tenths(self) -> list[tuple[float, int, int, int]]:
        """The sample at the end of each tenth of the run."""
        return [self.samples[max(0, len(self.samples) * (n + 1) // 10 - 1)] for n in range(10)] if self.samples else []

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        counts = [f"{what} {status}: {n}" for (what, status), n in sorted(self.statuses.items())]
        first = self.samples[len(self.samples) // 2] if self.samples else (0.0, 0, 0, 0)
        last = self.samples[-1] if self.samples else first
        return {
            "seconds": round(self.seconds, 1),
            "requests": sum(self.statuses.values()),
            "statuses": counts,
            "server errors": sum(n for (what, status), n in self.statuses.items() if status >= 500 and what != "ready"),
            "memory, MB, at half and end": [round(first[1] / 1e6, 1), round(last[1] / 1e6, 1)],
            "memory, MB, at each tenth": [round(sample[1] / 1e6) for sample in self.tenths()],
            "memory slope, MB an hour": round(self.slope(1) / 1e6, 1),
            "descriptors, at half and end": [first[2], last[2]],
            "descriptor slope, an hour": round(self.slope(2), 1),
            "processes, at half and end": [first[3], last[3]],
            "clips compared": self.clips,
            "clips of callers that disconnected": self.more,
            "backups": self.backups,
            "reindexes": self.reindexes,
            "unready": self.unready,
            "wrong": self.wrong,
        }


class Caller(threading.Thread):
    """One caller with its own clips.

    `known` maps names to (id, sha256, metadata) of acknowledged clips, `unsure` names to the sha256 of clips that may
    have been stored. `warm` is set once it has done everything once, so that the service has filled its caches.
    """

    def __init__(self, number: int, address: str, report: Report, stop: threading.Event) -> None:
        super().__init__(daemon=True, name=f"caller-{number}")
        self.number, self.address, self.report, self.stop = number, address, report, stop
        self.known: dict[str, tuple[str, str, dict[str, Any]]] = {}
        self.unsure: dict[str, str] = {}  # name → sha256
        self.warm = threading.Event()
        self._choose = random.Random(number)
        self._made = 0
        self._http = httpx.Client(base_url=address, timeout=_TIMEOUT, trust_env=False)

    def run(self) -> None:
        verbs = {
            self.add: 8, self.change: 3, self.search: 6, self.detect: 4, self.read: 3, self.delete: 4, self.broken: 3,
            self.too_large: 1, self.too_long: 1, self.abort_upload: 2, self.abort_response: 2, self.slowly: 1,
            self.embed: 2, self.list: 2,
        }  # fmt: skip
        for verb in verbs:
            self.do(verb)
        self.warm.set()
        while not self.stop.is_set():
            verbs[self.delete] = 12 if len(self.known) > _CLIPS else 4
            (verb,) = self._choose.choices(list(verbs), list(verbs.values()))
            self.do(verb)

    def do(self, verb: Callable[[], None]) -> None:
        try:
            verb()
        except httpx.HTTPError as error:
            self.wrong(f"{verb.__name__}: {error!r}")
        except Exception as error:
            self.wrong(f"{verb.__name__}: an unexpected response, or an error of this script: {error!r}")

    def wrong(self, problem: str) -> None:
        self.report.wrong.append(f"{self.name}: {problem}")

    def send(self, what: str, allowed: tuple[int, ...], method: str, path: str, **content: Any) -> httpx.Response:
        """Sends a request, retries after 429, and reports any other status that is not `allowed`."""
        while True:
            answer = self._http.request(method, path, **content)
            self.report.statuses[what, answer.status_code] += 1
            if answer.status_code != 429 or self.stop.is_set():
                break
            self.stop.wait(float(answer.headers["Retry-After"]) * self._choose.uniform(0.5, 1))
        if answer.status_code not in (*allowed, 429):
            self.wrong(f"{what}: {answer.status_code} {answer.text[:300]}")
        return answer

    def sound(self, seconds: float | None = None) -> bytes:
        self._made += 1
        samples = Tape(1000 * self.number + self._made % 50).read(
            int((seconds or self._choose.uniform(0.3, 12)) * SAMPLE_RATE)
        )
        kind = self._choose.choice(["WAV", "FLAC", "OGG", "MP3"])
        return encode(samples, kind, tag=f"{self.number} {self._made}")

    def new_name(self) -> str:
        return f"{self.number}-{self._made}-声.wav"

    def some(self) -> str | None:
        return self._choose.choice(list(self.known)) if self.known else None

    # Actions

    def add(self) -> None:
        data, about = self.sound(), {"caller": self.number, "n": self._made, "tags": ["soak"]}
        name = self.new_name()
        form = {"files": (name, data)}
        answer = self.send("add", (200, 201), "POST", "/clips", files=form, data={"metadata": json.dumps(about)})
        if answer.is_success:
            clip = answer.json()["clips"][0]
            sha256 = hashlib.sha256(data).hexdigest()
            if clip["sha256"] != sha256 or clip["metadata"] | about != clip["metadata"]:
                self.wrong(f"add: returned a different clip than was sent: {clip}")
            if answer.status_code == 201:
                self.known[name] = (clip["id"], sha256, clip["metadata"])
            elif sha256 not in self.unsure.values():
                self.wrong(f"add: {name} was reported as already stored")

    def delete(self) -> None:
        if name := self.some():
            clip_id = self.known[name][0]
            if self.send("delete", (204,), "DELETE", f"/clips/{clip_id}").status_code == 204:
                del self.known[name]
                self.send("deleted", (404,), "GET", f"/clips/{clip_id}")

    def change(self) -> None:
        if name := self.some():
            clip_id, sha256, about = self.known[name]
            patch = {"version": self._choose.randrange(10**6)}
            answer = self.send("change", (200,), "PATCH", f"/clips/{clip_id}", json={"metadata": patch})
            if answer.is_success:
                self.known[name] = (clip_id, sha256, about | patch)
                if answer.json()["metadata"] != about | patch:
                    self.wrong(f"change: {answer.text[:300]}")

    def search(self) -> None:
        query = self._choose.choice(["a dog", "rain", "an engine", "soak", "声", "a bell"]) + f" {self._made % 40}"
        body = {
            "query": query,
            "k": 20,
            "moments": True,
            "mode": self._choose.choice(["semantic", "hybrid", "lexical"]),
        }
        if self._choose.random() < 0.3:
            body["filter"] = {"caller": self.number}
        answer = self.send("search", (200,), "POST", "/search", json=body)
        if "filter" in body and answer.is_success:
            names = {hit["clip"]["filename"] for hit in answer.json()["hits"]}
            if strange := names - set(self.known) - set(self.unsure):
                self.wrong(f"search: found clips that are not stored: {strange}")

    def detect(self) -> None:
        form = {"file": ("a.wav", self.sound())}
        self.send("detect", (200,), "POST", "/detect", files=form, data={"phrases": ["dog", "rain"]})

    def embed(self) -> None:
        files = [("files", ("a.wav", self.sound(2.0))), ("files", ("b.wav", b"no sound"))]
        answer = self.send("embed", (200,), "POST", "/embed", files=files)
        if answer.is_success and (len(answer.json()["audio"]), len(answer.json()["errors"])) != (1, 1):
            self.wrong(f"embed: {answer.text[:300]}")

    def list(self) -> None:
        where = json.dumps({"caller": self.number})
        answer = self.send("list", (200,), "GET", "/clips", params={"filter": where, "limit": 1000})
        if answer.is_success:
            there = {clip["filename"] for clip in answer.json()["clips"]}
            if set(self.known) - there or there - set(self.known) - set(self.unsure):
                self.wrong(f"list: {there ^ set(self.known)}")

    def read(self) -> None:
        if name := self.some():
            clip_id, sha256, _ = self.known[name]
            self.send("peaks", (200,), "GET", f"/clips/{clip_id}/peaks", params={"n": 100})
            answer = self.send("audio", (200,), "GET", f"/clips/{clip_id}/audio")
            if hashlib.sha256(answer.content).hexdigest() != sha256:
                self.wrong(f"read: {name} has different bytes")
            self.send("range", (206,), "GET", f"/clips/{clip_id}/audio", headers={"Range": "bytes=10-99"})
            self.send("similar", (200,), "GET", f"/clips/{clip_id}/similar")

    def broken(self) -> None:
        data = bytearray(self.sound())
        what = self._choose.randrange(3)
        if what == 0:
            data = data[: self._choose.randrange(len(data))]
        elif what == 1:
            for _ in range(50):
                data[self._choose.randrange(len(data))] = self._choose.randrange(256)
        else:
            data = bytearray(self._choose.randbytes(50_000))
        form = {"file": ("broken.wav", bytes(data))}
        self.send("broken", (200, 413, 415, 422), "POST", "/detect", files=form, data={"phrases": "dog"})

    def too_large(self) -> None:
        self.send("too large", (413,), "POST", "/clips", files={"files": ("large.wav", bytes(9_000_000))})

    def too_long(self) -> None:
        form = {"file": ("long.flac", encode(np.zeros(70 * SAMPLE_RATE, np.float32), "FLAC"))}
        self.send("too long", (413,), "POST", "/detect", files=form, data={"phrases": "dog"})

    def abort_upload(self) -> None:
        """Sends part or all of a form and disconnects without waiting for the response."""
        data = self.sound()
        name = self.new_name()
        self.unsure[name] = hashlib.sha256(data).hexdigest()
        about = {"metadata": json.dumps({"caller": self.number})}
        raw = self._raw("/clips", files={"files": (name, data)}, data=about)
        share = self._choose.choice([0.1, 0.5, 0.9, 1, 1])
        with self._connect() as caller:
            caller.sendall(raw[: int(share * len(raw))])
            time.sleep(self._choose.uniform(0, 0.5))
        self.report.statuses["aborted an upload", 0] += 1

    def abort_response(self) -> None:
        """Disconnects after the first bytes of a stream."""
        raw = self._raw(
            "/detect", files={"file": ("a.wav", self.sound(30.0))}, data={"phrases": "dog", "format": "ndjson"}
        )
        with self._connect() as caller:
            caller.sendall(raw)
            caller.settimeout(_TIMEOUT)
            caller.recv(200)
        self.report.statuses["aborted a stream", 0] += 1

    def slowly(self) -> None:
        """Sends a request and reads its response a few bytes at a time."""
        raw = self._raw("/search", json={"query": "slow"})
        with self._connect() as caller, contextlib.suppress(ConnectionError):
            for at in range(0, len(raw), 40):
                caller.sendall(raw[at : at + 40])
                time.sleep(0.05)
            caller.settimeout(_TIMEOUT)
            head = b""
            while b"\r\n" not in head and (piece := caller.recv(16)):
                head += piece
            self.report.statuses["slowly", int(head.split(b" ")[1]) if head else 0] += 1

    def _connect(self) -> socket.socket:
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=_TIMEOUT)

    def _raw(self, path: str, **content: Any) -> bytes:
        request = httpx.Request("POST", self.address + path, headers={"Connection": "close"}, **content)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def other_checkpoint(folder: Path) -> Path:
    """Saves finelap-small with one weight changed, which a library treats as another embedding space."""
    import torch

    from model import FineLAP

    model = FineLAP.from_pretrained(common.REPO / "checkpoints" / "finelap-small")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 0.001
    model.save_pretrained(folder)
    return folder


def maintain(data: Path, work: Path, checkpoint: Path, report: Report, stop: threading.Event, pause: float) -> None:
    """Runs backups and reindexes to another checkpoint beside the service, at least once and until `stop`."""
    environment = os.environ | {"PYTHONPATH": str(common.REPO), "FINELAP_DATA_DIR": str(data)}
    commands = {
        "backups": ["backup", str(work / "copies"), "--copy"],
        "reindexes": ["reindex", "--checkpoint", str(checkpoint)],
    }
    stop.wait(pause)
    while True:
        for name, command in commands.items():
            done = subprocess.run(
                [*common.COMMAND, *command], env=environment, capture_output=True, text=True, timeout=1800
            )
            # files in place that have changed since the last scan
            changed = command[0] == "backup" and any(
                f"{what} in the library" in done.stderr for what in ("missing", "damaged")
            )
            if done.returncode and not changed:  # clips deleted while they are embedded are no error
                report.wrong.append(f"finelap {command[0]}: {done.returncode} {done.stderr[-300:]}")
            setattr(report, name, getattr(report, name) + 1)
        for leftover in data.glob("reindex-*"):  # the next run starts from scratch
            leftover.unlink()
        if stop.wait(pause):
            return


def watch(pid: int, report: Report, stop: threading.Event) -> None:
    """Takes samples until `stop`."""
    began = time.monotonic()
    while not stop.wait(2.0):
        tree = processes.process_tree(pid)
        open_files = 0
        with contextlib.suppress(OSError):
            open_files = len(os.listdir(f"/proc/{pid}/fd"))
        report.samples.append((time.monotonic() - began, processes.memory(pid), open_files, len(tree)))


def listed(server: Server) -> dict[str, dict[str, Any]]:
    """All clips of a library by id."""
    there: dict[str, dict[str, Any]] = {}
    cursor = None
    while True:
        page = server.get("/clips", limit=100, **({"cursor": cursor} if cursor else {})).json()
        there |= {clip["id"]: clip for clip in page["clips"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return there


def compare(server: Server, callers: list[Caller], doing: list[Actor], report: Report, work: Path, data: Path) -> None:
    """Compares the library over HTTP and a restored backup with what the callers and actors expect."""
    there = listed(server)
    known = {clip_id: (name, sha, about) for c in callers for name, (clip_id, sha, about) in c.known.items()}
    unsure = {sha256 for caller in callers for sha256 in caller.unsure.values()}
    others = {i: clip for i, clip in there.items() if i not in known and "path" not in clip["metadata"]}
    report.clips, report.more = len(known), len(others)
    for clip_id, (name, sha256, about) in known.items():
        clip = there.get(clip_id)
        if clip is None or (clip["filename"], clip["sha256"], clip["metadata"]) != (name, sha256, about):
            report.wrong.append(f"lost or changed: {name} {clip}")
        elif hashlib.sha256(server.get(f"/clips/{clip_id}/audio").content).hexdigest() != sha256:
            report.wrong.append(f"audio changed: {name}")
    report.wrong += [f"never added: {clip['filename']}" for clip in others.values() if clip["sha256"] not in unsure]
    with Client(server.address) as client:
        report.wrong += [problem for actor in doing for problem in actor.check(client)]
    found = {hit["clip"]["id"] for hit in server.get("/search", q="a sound", k=_MOST).json()["hits"]}
    if found - set(there) or len(found) != min(_MOST, len(there)):
        report.wrong.append(f"search found {len(found)} of {len(there)} clips; not in the list: {found - set(there)}")
    environment = os.environ | {"PYTHONPATH": str(common.REPO), "FINELAP_DATA_DIR": str(data)}
    again = environment | {"FINELAP_DATA_DIR": str(work / "restored")}
    for command, env in ((["backup", str(work / "copies")], environment), (["restore", str(work / "copies")], again)):
        done = subprocess.run([*common.COMMAND, *command], env=env, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            report.wrong.append(f"finelap {command[0]}: {done.stderr[-300:]}")
            return
    with Server({**SETTINGS, "data_dir": work / "restored"}) as other, Client(other.address) as restored:
        if listed(other) != there:
            report.wrong.append("the restored backup differs from the library")
        with Client(server.address) as client:
            differs = [problem for actor in doing for problem in actor.check(restored)]
            differs += actors.audio_differs(restored, _AUDIO_SAMPLE, random.Random(0))
            differs += actors.vectors_differ(client, restored)
        report.wrong += [f"restored backup: {problem}" for problem in differs]


def soak(seconds: float, callers: int, pause: float = 30.0, least: int = 0) -> Report:
    """Runs for `seconds` and at least `least` requests, with `pause` seconds between backups and reindexes."""
    report, stop = Report(), threading.Event()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    data = work / "data"
    try:
        checkpoint = other_checkpoint(work / "checkpoint")
        place = work / actors.PLACE
        place.mkdir()
        with Server({**SETTINGS, "data_dir": data, "reference_roots": place}) as server:
            threads = [Caller(n, server.address, report, stop) for n in range(callers)]
            doing = start_actors(server.address, place, report, stop)
            background = [
                threading.Thread(target=maintain, args=(data, work, checkpoint, report, stop, pause)),
                threading.Thread(target=watch, args=(server.process.pid, report, stop)),
            ]
            for caller in threads:
                caller.start()
            for caller in threads:
                caller.warm.wait(_TIMEOUT)
            for thread in (*doing, *background):
                thread.start()
            began = time.monotonic()
            while time.monotonic() - began < seconds or report.statuses.total() < least:
                if server.process.poll() is not None:
                    break
                time.sleep(0.5)
                ask_readiness(server, report, time.monotonic() - began)
            stop.set()
            for thread in (*threads, *doing, *background):
                thread.join(2 * _TIMEOUT)
                if thread.is_alive():
                    report.wrong.append(f"{thread.name} did not finish")
            report.seconds = time.monotonic() - began
            settle(server)
            for actor in doing:
                if isinstance(actor, Keeper):
                    actor.settle()
            compare(server, threads, doing, report, work, data)
            log = server.log.read_text(errors="replace")
            if "Traceback" in log:
                report.wrong.append(f"the log contains an error: {log[log.index('Traceback') :][-1500:]}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.wrong += [
        f"{what} {status}" for (what, status), n in report.statuses.items() if status >= 500 and n and what != "ready"
    ]
    return report


def ask_readiness(server: Server, report: Report, at: float) -> None:
    """Notes when the service is not ready, `at` seconds after the start."""
    ready = server.get("/health/ready")
    report.statuses["ready", ready.status_code] += 1
    if ready.status_code != 200:
        problem = f"not ready after {at:.0f} s: {ready.text[:300]}"
        report.unready.append(problem)
        again = server.get("/health/ready")  # a busy machine may be late once
        if again.status_code != 200:
            report.wrong.append(problem)


def start_actors(address: str, place: Path, report: Report, stop: threading.Event) -> list[Actor]:
    """Everything that callers of the plain API don't do, each once; not yet started."""

    def count(what: str, status: int) -> None:
        report.statuses[what, status] += 1

    shared = (address, report.wrong.append, count, stop)
    return [Teacher(*shared), Scanner(*shared), Listener(*shared), Keeper(place, *shared)]


def settle(server: Server) -> None:
    """Waits until the service has finished the requests of callers that disconnected."""
    deadline = time.monotonic() + 60
    while server.metric('finelap_queue_depth{lane="audio"}') and time.monotonic() < deadline:
        time.sleep(0.2)
    before = None
    while (
        there := listed(server)
    ) != before and time.monotonic() < deadline:  # the queue depth does not include a running batch
        before = there
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = soak(60 * args.minutes, args.callers).to_dict()
    report["machine"], report["revision"] = common.machine(), common.revision(common.REPO)
    print(json.dumps(report, indent=1, ensure_ascii=False))
    common.write_json(args.json, report)
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
