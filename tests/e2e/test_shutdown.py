"""SIGTERM while callers are at work: nothing acknowledged is lost, nobody is cut off without an answer.

A caller's request ends in one of three ways: a whole answer (which may be a 503 problem, or, for a stream that has
begun, lines of which the last is an `error`), or the connection was refused, so that the request was never taken.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from benchmarks.common import REPO, SOUNDS, encode, write_recording
from benchmarks.index.vector_data import insert
from index.sqlite.store import Store
from model.config import SAMPLE_RATE

pytestmark = pytest.mark.slow

LIMIT = 25.0  # seconds from the signal to the end of the process
_READY = re.compile(r"FineLAP is ready: (\S+)")


class Service:
    """`finelap serve` with a library in `folder`, as a process that is stopped in the middle of things."""

    def __init__(self, folder: Path, *arguments: str, **settings: object) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FINELAP_")}
        environment |= {"PYTHONPATH": str(REPO), "FINELAP_DATA_DIR": str(folder / "data")}
        environment |= {f"FINELAP_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())", "serve"]
        command += ["--port", "0", "--checkpoint", str(REPO / "checkpoints" / "finelap-small"), *arguments]
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True
        )
        self.said: list[str] = []
        self.told = 0.0
        self._ended = False
        self._more = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.said.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait_for(self, words: str, within: float = 120) -> str:
        """The first printed line with these words."""
        with self._more:
            self._more.wait_for(lambda: self._ended or any(words in line for line in self.said), within)
            found = next((line for line in self.said if words in line), None)
        assert found is not None, f"{words!r} was not printed: {self.said}\n{self.log.read_text()}"
        return found

    def wait_for_logged(self, words: str) -> None:
        """Until the log has these words."""
        deadline = time.monotonic() + 120
        while words not in self.log.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    @property
    def address(self) -> str:
        """Its URL, once it is ready."""
        found = _READY.search(self.wait_for("FineLAP is ready"))
        assert found
        return found[1]

    def stop(self, again: tuple[float, ...] = ()) -> float:
        """SIGTERM, and more of it after so many seconds; how long the process still took. Its exit code is 0."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.told = time.monotonic()  # whatever is sent from now on comes after the signal
        for seconds in again:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, began + seconds - time.monotonic()))
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(40)
        took = time.monotonic() - began
        log = self.log.read_text()
        assert code == 0, f"exit code {code}\n{log}"
        assert "Traceback" not in log, log
        assert took < LIMIT
        return took

    def kill(self) -> None:
        """For the end of a test that failed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)


@pytest.fixture
def start(small_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services, all with one library."""
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    started: list[Service] = []

    def begin(*arguments: str, **settings: object) -> Service:
        started.append(Service(tmp_path, *arguments, **settings))
        return started[-1]

    yield begin
    for service in started:
        service.kill()


@dataclass
class Callers:
    """Threads that call a service again and again until it refuses connections, and what became of their requests."""

    address: str
    ends: list[tuple[str, str]] = field(default_factory=list)  # kind of call, how it ended
    added: list[str] = field(default_factory=list)  # ids that were acknowledged
    readiness: list[tuple[float, int]] = field(default_factory=list)  # when asked, status
    until: Callable[[], object] = int  # done once readiness has been refused twice
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, count: int, kind: str, call: Callable[[httpx.Client, int], str], keep: bool = True) -> None:
        """`count` threads that do `call`(client, number), each over a connection of its own, kept alive or not."""
        for number in range(count):
            work = threading.Thread(target=self._repeat, args=(kind, call, number, keep), daemon=True)
            self._threads.append(work)
            work.start()

    def end(self) -> None:
        """Waits until all have been refused."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _repeat(self, kind: str, call: Callable[[httpx.Client, int], str], number: int, keep: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keep else 0)
        with httpx.Client(base_url=self.address, timeout=60, trust_env=False, limits=limits) as client:
            for turn in itertools.count():
                try:
                    end = call(client, number + 1000 * turn)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    end = "refused"
                except httpx.TransportError as error:
                    end = f"cut off: {error!r}"
                self.ends.append((kind, end))
                if end == "refused":
                    return
                if end.startswith("503"):
                    time.sleep(0.05)

    def add(self, client: httpx.Client, number: int) -> str:
        files = {"files": (f"noise {number}.wav", noise(number))}
        response = client.post("/clips", files=files)
        if response.status_code == 201:
            self.added.extend(clip["id"] for clip in response.json()["clips"])
        return told(response)

    def watch(self, client: httpx.Client, _: int) -> str:
        asked = time.monotonic()
        response = client.get("/health/ready")
        self.readiness.append((asked, response.status_code))
        if [status for _, status in self.readiness].count(503) == 2:  # the second was asked for after the signal
            self.until()
        time.sleep(0.02)
        return told(response)


def told(response: httpx.Response) -> str:
    """What an answer says, which has to be whole."""
    if response.status_code >= 400:
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json" and problem["request_id"]
        return f"{response.status_code} {problem['type'].rpartition(':')[2]}"
    if response.headers["content-type"].startswith("application/x-ndjson"):
        last = json.loads(response.text.splitlines()[-1])
        return last["type"] if last["type"] == "end" else f"{last['type']} {last['problem']['status']}"
    response.json()
    return str(response.status_code)


def noise(seed: int, seconds: float = 0.5) -> bytes:
    return encode((0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32))


def search(client: httpx.Client, number: int) -> str:
    return told(client.get("/search", params={"q": f"sound {number}"}))


def embed(client: httpx.Client, number: int) -> str:
    return told(client.post("/embed", files={"files": ("a.wav", noise(number, 3))}, data={"frames": "true"}))


def detect(sound: bytes, form: str) -> Callable[[httpx.Client, int], str]:
    def call(client: httpx.Client, number: int) -> str:
        form_data = {"phrases": ["dog barking", "rain"], "format": form}
        return told(client.post("/detect", files={"file": ("long.flac", sound)}, data=form_data))

    return call


def begin_upload(service: Service) -> socket.socket:
    """A connection with a request that is not complete."""
    host, port = service.address.removeprefix("http://").split(":")
    upload = socket.create_connection((host, int(port)))
    head = "POST /embed HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    upload.sendall(f"{head}Content-Length: 100000\r\n\r\n--b\r\n".encode())
    return upload


def test_sigterm_under_load(start: Callable[..., Service], tmp_path: Path) -> None:
    minutes = write_recording(tmp_path / "long.flac", 90, seed=1).read_bytes()
    service = start("--demo", str(SOUNDS))
    callers = Callers(service.address)
    callers.begin(6, "clips", callers.add)
    callers.begin(3, "search", search)
    callers.begin(8, "search anew", search, keep=False)
    callers.begin(3, "embed", embed)
    callers.begin(2, "detect", detect(minutes, "json"))
    callers.begin(2, "stream", detect(minutes, "ndjson"))
    callers.begin(1, "ready", callers.watch)
    deadline = time.monotonic() + 240
    while len(callers.added) < 20 or {kind for kind, _ in callers.ends} < {"clips", "search", "embed", "stream"}:
        assert time.monotonic() < deadline, Counter(callers.ends)
        time.sleep(0.05)
    upload = begin_upload(service)  # so that somebody is served until readiness was asked for after the signal
    callers.until = upload.close
    service.stop(again=(0.2, 0.8))
    callers.end()

    ends = Counter(callers.ends)
    allowed = ("200", "201", "end", "error 503", "503 shutting-down", "429 queue-full", "refused")
    assert not {end for end in ends if end[1] not in allowed}, ends
    assert any(end == "503 shutting-down" for _, end in ends), ends
    later = [status for asked, status in callers.readiness if asked > service.told]
    assert later and set(later) == {503}

    again = start()
    assert len(callers.added) == len(set(callers.added))
    there: set[str] = set()
    cursor: dict[str, Any] = {}
    with httpx.Client(base_url=again.address, timeout=60, trust_env=False) as client:
        while True:
            page = client.get("/clips", params={"limit": 1000, **cursor}).json()
            there |= {clip["id"] for clip in page["clips"]}
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert set(callers.added) <= there
        hits = client.post("/search", json={"query": "noise", "k": 1000}).json()["hits"]
        assert {hit["clip"]["id"] for hit in hits} == there or len(there) > 1000
        audio = client.get(f"/clips/{callers.added[-1]}/audio").content
        assert soundfile.info(io.BytesIO(audio)).duration == 0.5
    assert "library in" not in again.log.read_text()  # nothing had to be put right
    again.stop()


def test_who_takes_too_long_is_told_so(start: Callable[..., Service], tmp_path: Path) -> None:
    """A stream of three hours, an upload that stalls, and a reader who does not read, with a grace of two seconds."""
    hours = write_recording(tmp_path / "hours.flac", 10_800, seed=2, rate=8000).read_bytes()
    service = start(stop_grace_s=2)
    host, port = service.address.removeprefix("http://").split(":")
    lines: list[dict[str, Any]] = []

    def follow() -> None:
        form = {"phrases": ["dog barking"], "format": "ndjson"}
        file = {"file": ("hours.flac", hours)}
        request = httpx.Request("POST", service.address + "/detect", files=file, data=form)
        with (
            httpx.Client(timeout=60, trust_env=False) as client,
            contextlib.closing(client.send(request, stream=True)) as response,
        ):
            lines.extend(json.loads(line) for line in response.iter_lines())

    thread = threading.Thread(target=follow)
    thread.start()
    big = encode((0.1 * np.random.default_rng(1).standard_normal(40 * 192_000)).astype(np.float32), rate=192_000)
    with begin_upload(service) as stalled, socket.socket() as deaf:
        with httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
            (clip,) = client.post("/clips", files={"files": ("big.wav", big)}).json()["clips"]
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(f"GET /clips/{clip['id']}/audio HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert deaf.recv(12) == b"HTTP/1.1 200"
        while len(lines) < 3:
            assert thread.is_alive()
            time.sleep(0.05)
        service.stop()
        stalled.settimeout(10)
        answer = b"".join(iter(lambda: stalled.recv(1 << 16), b""))
        deaf.settimeout(10)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := deaf.recv(1 << 16):
                got += len(piece)
    thread.join(30)
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert answer.startswith(b"HTTP/1.1 503 ") and problem["type"] == "urn:finelap:problem:shutting-down"
    assert b"connection: close" in answer.lower()
    assert lines[-1]["type"] == "error" and lines[-1]["problem"]["status"] == 503
    assert got < len(big)
    log = service.log.read_text()
    assert "aborting 3 requests that are still running 2 s after" in log and "connection closed during" in log, log
    assert "shutdown did not finish" not in log, log


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with more sounds than a machine adds in a moment."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(1000):
        (folder / f"{number}.wav").write_bytes(noise(number))
    return folder


@pytest.mark.parametrize("seconds", [0.0, 0.7, 2.0])
def test_sigterm_while_it_starts(start: Callable[..., Service], many: Path, seconds: float) -> None:
    """While libraries are imported, the model is loaded, or the demo sounds come in."""
    service = start("--demo", str(many))
    service.wait_for("Loading")
    time.sleep(seconds)
    service.stop()
    service.wait_for("Stopped.")
    assert not any("FineLAP is ready" in line for line in service.said)


def test_sigterm_while_the_demo_sounds_are_added(start: Callable[..., Service], many: Path) -> None:
    service = start("--demo", str(many))
    service.wait_for("The library is empty: adding 1000")
    service.stop()
    service.wait_for("Stopped.")
    assert not any("FineLAP is ready" in line for line in service.said)
    again = start()
    clips = httpx.get(again.address + "/info", timeout=60, trust_env=False).json()["clips"]
    assert clips < 1000
    assert "library in" not in again.log.read_text()
    again.stop()


def test_sigterm_while_the_search_index_is_made(start: Callable[..., Service], tmp_path: Path) -> None:
    """A library that is too large to be compared one by one, without a snapshot; and the snapshot after that."""
    service = start()
    model = httpx.get(service.address + "/info", timeout=60, trust_env=False).json()["model"]
    service.stop()
    count = 110_000_000 // (4 * model["dim"])
    database = Store(tmp_path / "data" / "catalog.sqlite3")
    with database.write() as change:
        vectors = np.random.default_rng(0).standard_normal((count, model["dim"])).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        insert(change, np.arange(1, count + 1), vectors)
    database.close()

    service = start()
    service.wait_for_logged(f"building the search index of {count} vectors")
    service.stop()
    assert not (tmp_path / "data" / "index" / "manifest.json").exists()  # it was in the middle of it


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc calls functions with the exit code at the end"
)
@pytest.mark.parametrize(("over", "code"), [(True, signal.SIGTERM), (False, -signal.SIGTERM)])
def test_sigterm_while_python_ends(over: bool, code: int) -> None:
    """Python takes its signal handlers away before the process ends. Here the end itself raises what the code says."""
    program = f"""
import ctypes, os, signal, sys
from app.server.shutdown import ShutdownController

stop = ShutdownController(60.0)
os.kill(os.getpid(), signal.SIGTERM)
stop.requested.wait()
if {over}:
    stop.ignore_signals()
libc = ctypes.CDLL(None)
libc.on_exit(getattr(libc, "raise"), None)
sys.exit(int(signal.SIGTERM))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=REPO, timeout=240).returncode == code
