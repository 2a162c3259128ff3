"""A service under everything at once for as long as you like: does anything grow, break, or get lost?

    python -m benchmarks.reliability.soak [--minutes 60] [--callers 6] [--json FILE]

Callers add, change, delete, search, detect, listen; some leave in the middle of what they send or read, some send a
letter at a time, some send files that are broken, too large or too long. Beside them `finelap backup` and
`finelap reindex` run again and again. A model of the library is kept: what was answered must be there, what was cut off
may be. At the end the library, a restored backup and the model are compared, clip by clip. Memory and descriptors of
the service and all its processes are read every few seconds; their slope is that of a line through the second half.
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

from benchmarks import common, processes
from benchmarks.common import Server, Tape, encode
from model.config import SAMPLE_RATE

SETTINGS = {"max_upload_mb": 8, "max_duration_s": 60, "max_queue_windows": 24, "request_timeout_s": 600}
_KEPT = 25  # clips of each caller; beyond, it deletes more than it adds
_FINELAP = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())"]
_MOST = 1000  # hits of one search
_PATIENCE = 900.0  # seconds; what hangs longer is a finding


@dataclass
class Report:
    """What happened. `statuses`: (what was done, status) → times. `wrong`: sentences; none in a good run."""

    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)  # answers of readiness that were not 200
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)  # s, bytes, descriptors, processes
    backups: int = 0
    reindexes: int = 0
    clips: int = 0
    more: int = 0  # clips of callers who left before they had their answer
    seconds: float = 0.0

    def slope(self, column: int) -> float:
        """Of a column of `samples`, an hour, by least squares through the second half of them."""
        half = np.array(self.samples[len(self.samples) // 2 :], dtype=np.float64)
        return float(np.polyfit(half[:, 0], half[:, column], 1)[0] * 3600) if len(half) > 2 else 0.0

    def tenths(self) -> list[tuple[float, int, int, int]]:
        """The samples at each tenth of the run."""
        return [self.samples[max(0, len(self.samples) * (n + 1) // 10 - 1)] for n in range(10)] if self.samples else []

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
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
            "clips of callers who left": self.more,
            "backups": self.backups,
            "reindexes": self.reindexes,
            "unready": self.unready,
            "wrong": self.wrong,
        }


class Caller(threading.Thread):
    """One caller with clips of its own. known: name → (id, sha256, metadata); unsure: name → sha256, may be there.

    `warm`: it has done everything once, so that whatever a service makes once and keeps is there.
    """

    def __init__(self, number: int, address: str, report: Report, stop: threading.Event) -> None:
        super().__init__(daemon=True, name=f"caller-{number}")
        self.number, self.address, self.report, self.stop = number, address, report, stop
        self.known: dict[str, tuple[str, str, dict[str, Any]]] = {}
        self.unsure: dict[str, str] = {}  # name → sha256
        self.warm = threading.Event()
        self._choose = random.Random(number)
        self._made = 0
        self._http = httpx.Client(base_url=address, timeout=_PATIENCE, trust_env=False)

    def run(self) -> None:
        verbs = {
            self.add: 8, self.change: 3, self.search: 6, self.detect: 4, self.read: 3, self.delete: 4, self.broken: 3,
            self.too_large: 1, self.too_long: 1, self.leave_upload: 2, self.leave_answer: 2, self.slowly: 1,
            self.embed: 2, self.list: 2,
        }  # fmt: skip
        for verb in verbs:
            self.do(verb)
        self.warm.set()
        while not self.stop.is_set():
            verbs[self.delete] = 12 if len(self.known) > _KEPT else 4
            (verb,) = self._choose.choices(list(verbs), list(verbs.values()))
            self.do(verb)

    def do(self, verb: Callable[[], None]) -> None:
        try:
            verb()
        except httpx.HTTPError as error:
            self.wrong(f"{verb.__name__}: {error!r}")
        except Exception as error:
            self.wrong(f"{verb.__name__}: a fault of this script, or an answer nobody expected: {error!r}")

    def wrong(self, said: str) -> None:
        self.report.wrong.append(f"{self.name}: {said}")

    def ask(self, what: str, allowed: tuple[int, ...], method: str, path: str, **content: Any) -> httpx.Response:
        """A request; 429 is obeyed, anything else that is not `allowed` noted."""
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

    # What it does

    def add(self) -> None:
        data, about = self.sound(), {"caller": self.number, "n": self._made, "tags": ["soak"]}
        name = self.new_name()
        form = {"files": (name, data)}
        answer = self.ask("add", (200, 201), "POST", "/clips", files=form, data={"metadata": json.dumps(about)})
        if answer.is_success:
            clip = answer.json()["clips"][0]
            sha256 = hashlib.sha256(data).hexdigest()
            if clip["sha256"] != sha256 or clip["metadata"] | about != clip["metadata"]:
                self.wrong(f"add: another clip than was sent: {clip}")
            if answer.status_code == 201:
                self.known[name] = (clip["id"], sha256, clip["metadata"])
            elif sha256 not in self.unsure.values():
                self.wrong(f"add: {name} was said to be there")

    def delete(self) -> None:
        if name := self.some():
            clip_id = self.known[name][0]
            if self.ask("delete", (204,), "DELETE", f"/clips/{clip_id}").status_code == 204:
                del self.known[name]
                self.ask("deleted", (404,), "GET", f"/clips/{clip_id}")

    def change(self) -> None:
        if name := self.some():
            clip_id, sha256, about = self.known[name]
            patch = {"version": self._choose.randrange(10**6)}
            answer = self.ask("change", (200,), "PATCH", f"/clips/{clip_id}", json={"metadata": patch})
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
        answer = self.ask("search", (200,), "POST", "/search", json=body)
        if "filter" in body and answer.is_success:
            names = {hit["clip"]["filename"] for hit in answer.json()["hits"]}
            if strange := names - set(self.known) - set(self.unsure):
                self.wrong(f"search: found what is not there: {strange}")

    def detect(self) -> None:
        form = {"file": ("a.wav", self.sound())}
        self.ask("detect", (200,), "POST", "/detect", files=form, data={"phrases": ["dog", "rain"]})

    def embed(self) -> None:
        files = [("files", ("a.wav", self.sound(2.0))), ("files", ("b.wav", b"no sound"))]
        answer = self.ask("embed", (200,), "POST", "/embed", files=files)
        if answer.is_success and (len(answer.json()["audio"]), len(answer.json()["errors"])) != (1, 1):
            self.wrong(f"embed: {answer.text[:300]}")

    def list(self) -> None:
        where = json.dumps({"caller": self.number})
        answer = self.ask("list", (200,), "GET", "/clips", params={"filter": where, "limit": 1000})
        if answer.is_success:
            there = {clip["filename"] for clip in answer.json()["clips"]}
            if set(self.known) - there or there - set(self.known) - set(self.unsure):
                self.wrong(f"list: {there ^ set(self.known)}")

    def read(self) -> None:
        if name := self.some():
            clip_id, sha256, _ = self.known[name]
            self.ask("peaks", (200,), "GET", f"/clips/{clip_id}/peaks", params={"n": 100})
            answer = self.ask("audio", (200,), "GET", f"/clips/{clip_id}/audio")
            if hashlib.sha256(answer.content).hexdigest() != sha256:
                self.wrong(f"read: {name} has other bytes")
            self.ask("range", (206,), "GET", f"/clips/{clip_id}/audio", headers={"Range": "bytes=10-99"})
            self.ask("similar", (200,), "GET", f"/clips/{clip_id}/similar")

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
        self.ask("broken", (200, 413, 415, 422), "POST", "/detect", files=form, data={"phrases": "dog"})

    def too_large(self) -> None:
        self.ask("too large", (413,), "POST", "/clips", files={"files": ("large.wav", bytes(9_000_000))})

    def too_long(self) -> None:
        form = {"file": ("long.flac", encode(np.zeros(70 * SAMPLE_RATE, np.float32), "FLAC"))}
        self.ask("too long", (413,), "POST", "/detect", files=form, data={"phrases": "dog"})

    def leave_upload(self) -> None:
        """Sends a part of a form, or all of it, and leaves without waiting for the answer."""
        data = self.sound()
        name = self.new_name()
        self.unsure[name] = hashlib.sha256(data).hexdigest()
        about = {"metadata": json.dumps({"caller": self.number})}
        raw = self._raw("/clips", files={"files": (name, data)}, data=about)
        share = self._choose.choice([0.1, 0.5, 0.9, 1, 1])
        with self._dial() as caller:
            caller.sendall(raw[: int(share * len(raw))])
            time.sleep(self._choose.uniform(0, 0.5))
        self.report.statuses["left an upload", 0] += 1

    def leave_answer(self) -> None:
        """Leaves with the first bytes of a stream."""
        raw = self._raw(
            "/detect", files={"file": ("a.wav", self.sound(30.0))}, data={"phrases": "dog", "format": "ndjson"}
        )
        with self._dial() as caller:
            caller.sendall(raw)
            caller.settimeout(_PATIENCE)
            caller.recv(200)
        self.report.statuses["left a stream", 0] += 1

    def slowly(self) -> None:
        """A request a few bytes at a time, and its answer too."""
        raw = self._raw("/search", json={"query": "slow"})
        with self._dial() as caller, contextlib.suppress(ConnectionError):
            for at in range(0, len(raw), 40):
                caller.sendall(raw[at : at + 40])
                time.sleep(0.05)
            caller.settimeout(_PATIENCE)
            head = b""
            while b"\r\n" not in head and (piece := caller.recv(16)):
                head += piece
            self.report.statuses["slowly", int(head.split(b" ")[1]) if head else 0] += 1

    def _dial(self) -> socket.socket:
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=_PATIENCE)

    def _raw(self, path: str, **content: Any) -> bytes:
        request = httpx.Request("POST", self.address + path, headers={"Connection": "close"}, **content)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def other_checkpoint(folder: Path) -> Path:
    """finelap-small with one number changed: another embedding space, as far as a library can tell."""
    import torch

    from model import FineLAP

    model = FineLAP.from_pretrained(common.REPO / "checkpoints" / "finelap-small")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 0.001
    model.save_pretrained(folder)
    return folder


def upkeep(data: Path, work: Path, checkpoint: Path, report: Report, stop: threading.Event, pause: float) -> None:
    """Backups and reindexes to another checkpoint beside the service, once at least and until `stop`."""
    environment = os.environ | {"PYTHONPATH": str(common.REPO), "FINELAP_DATA_DIR": str(data)}
    commands = {
        "backups": ["backup", str(work / "copies"), "--copy"],
        "reindexes": ["reindex", "--checkpoint", str(checkpoint)],
    }
    stop.wait(pause)
    while True:
        for name, command in commands.items():
            done = subprocess.run([*_FINELAP, *command], env=environment, capture_output=True, text=True, timeout=1800)
            if done.returncode:  # a clip that is deleted while it is embedded is not a fault
                report.wrong.append(f"finelap {command[0]}: {done.returncode} {done.stderr[-300:]}")
            setattr(report, name, getattr(report, name) + 1)
        for leftover in data.glob("reindex-*"):  # the next one begins anew
            leftover.unlink()
        if stop.wait(pause):
            return


def watch(pid: int, report: Report, stop: threading.Event) -> None:
    """Samples until `stop`."""
    began = time.monotonic()
    while not stop.wait(2.0):
        tree = processes.process_tree(pid)
        open_files = 0
        with contextlib.suppress(OSError):
            open_files = len(os.listdir(f"/proc/{pid}/fd"))
        report.samples.append((time.monotonic() - began, processes.memory(pid), open_files, len(tree)))


def listed(server: Server) -> dict[str, dict[str, Any]]:
    """Every clip of a library, by its id."""
    there: dict[str, dict[str, Any]] = {}
    cursor = None
    while True:
        page = server.get("/clips", limit=100, **({"cursor": cursor} if cursor else {})).json()
        there |= {clip["id"]: clip for clip in page["clips"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return there


def compare(server: Server, callers: list[Caller], report: Report, work: Path, data: Path) -> None:
    """The library over HTTP, and a restored backup, against what the callers know."""
    there = listed(server)
    known = {clip_id: (name, sha, about) for c in callers for name, (clip_id, sha, about) in c.known.items()}
    unsure = {sha256 for caller in callers for sha256 in caller.unsure.values()}
    report.clips, report.more = len(known), len(there) - len(known)
    for clip_id, (name, sha256, about) in known.items():
        clip = there.get(clip_id)
        if clip is None or (clip["filename"], clip["sha256"], clip["metadata"]) != (name, sha256, about):
            report.wrong.append(f"lost or changed: {name} {clip}")
        elif hashlib.sha256(server.get(f"/clips/{clip_id}/audio").content).hexdigest() != sha256:
            report.wrong.append(f"its audio changed: {name}")
    report.wrong += [
        f"made up: {clip['filename']}" for i, clip in there.items() if i not in known and clip["sha256"] not in unsure
    ]
    found = {hit["clip"]["id"] for hit in server.get("/search", q="a sound", k=_MOST).json()["hits"]}
    if found - set(there) or len(found) != min(_MOST, len(there)):
        report.wrong.append(f"search found {len(found)} of {len(there)} clips; not in the list: {found - set(there)}")
    environment = os.environ | {"PYTHONPATH": str(common.REPO), "FINELAP_DATA_DIR": str(data)}
    again = environment | {"FINELAP_DATA_DIR": str(work / "restored")}
    for command, env in ((["backup", str(work / "copies")], environment), (["restore", str(work / "copies")], again)):
        done = subprocess.run([*_FINELAP, *command], env=env, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            report.wrong.append(f"finelap {command[0]}: {done.stderr[-300:]}")
            return
    with Server({**SETTINGS, "data_dir": work / "restored"}) as other:
        restored = listed(other)
    if restored != there:
        report.wrong.append("the restored backup is another library")


def soak(seconds: float, callers: int, pause: float = 30.0, least: int = 0) -> Report:
    """The whole run, of `seconds` and at least so many requests. `pause`: seconds between backups and reindexes."""
    report, stop = Report(), threading.Event()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    data = work / "data"
    try:
        checkpoint = other_checkpoint(work / "checkpoint")
        with Server({**SETTINGS, "data_dir": data}) as server:
            people = [Caller(n, server.address, report, stop) for n in range(callers)]
            beside = [
                threading.Thread(target=upkeep, args=(data, work, checkpoint, report, stop, pause)),
                threading.Thread(target=watch, args=(server.process.pid, report, stop)),
            ]
            for caller in people:
                caller.start()
            for caller in people:
                caller.warm.wait(_PATIENCE)
            for thread in beside:
                thread.start()
            began = time.monotonic()

            def goes_on() -> bool:
                return time.monotonic() - began < seconds or report.statuses.total() < least

            while goes_on() and server.process.poll() is None:
                time.sleep(0.5)
                ready = server.get("/health/ready")
                report.statuses["ready", ready.status_code] += 1
                if ready.status_code != 200:
                    said = f"not ready after {time.monotonic() - began:.0f} s: {ready.text[:300]}"
                    report.unready.append(said)
                    again = server.get("/health/ready")  # a machine without a core to spare may be late for once
                    if again.status_code != 200:
                        report.wrong.append(said)
            stop.set()
            for thread in (*people, *beside):
                thread.join(2 * _PATIENCE)
                if thread.is_alive():
                    report.wrong.append(f"{thread.name} hangs")
            report.seconds = time.monotonic() - began
            settle(server)
            compare(server, people, report, work, data)
            log = server.log.read_text(errors="replace")
            if "Traceback" in log:
                report.wrong.append(f"the log has an error: {log[log.index('Traceback') :][-1500:]}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.wrong += [
        f"{what} {status}" for (what, status), n in report.statuses.items() if status >= 500 and n and what != "ready"
    ]
    return report


def settle(server: Server) -> None:
    """Waits until the service has let go of callers who left."""
    deadline = time.monotonic() + 60
    while server.metric('finelap_queue_depth{lane="audio"}') and time.monotonic() < deadline:
        time.sleep(0.2)
    before = None
    while (there := listed(server)) != before and time.monotonic() < deadline:  # no depth tells of a batch under way
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
