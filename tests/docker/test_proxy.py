"""The proxy configuration in a real nginx: valid, transparent for the service, with limits and failover."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from benchmarks.common import SOUNDS, Server
from tests.support.waiting import wait_until

CONFIG = Path(__file__).resolve().parent.parent.parent / "docker" / "nginx" / "nginx.conf"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed: Debian has it in the package nginx-light")
    return found


def test_proxy_timeout_exceeds_the_service_timeout() -> None:
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s", CONFIG.read_text(encoding="utf-8"))
    assert float(seconds) > Settings(_env_file=None).request_timeout_s  # type: ignore[call-arg]


def test_configuration_is_valid(tmp_path: Path) -> None:
    """Unchanged except for the folders it writes to."""
    copy = tmp_path / "nginx.conf"
    text = CONFIG.read_text(encoding="utf-8")
    copy.write_text(text.replace("/tmp/", f"{tmp_path}/").replace("/dev/std", f"{tmp_path}/std"), encoding="utf-8")
    done = subprocess.run([nginx(), "-t", "-c", str(copy), "-p", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts nginx in front of local servers instead of the replicas' common name; returns its address."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*backends: str, rate: str = "50r/s") -> str:
        (tmp_path / "nginx").mkdir()
        for _ in range(5):  # another program may take the port before nginx does
            if address := run(free_port(), *backends, rate=rate):
                return address
        raise AssertionError((tmp_path / "nginx" / "stderr").read_text())

    def run(port: int, *backends: str, rate: str) -> str | None:
        folder, servers = tmp_path / "nginx", " ".join(f"server {backend};" for backend in backends)
        text = CONFIG.read_text(encoding="utf-8")
        for was, now in (
            ("/tmp/", f"{folder}/"),
            ("/dev/std", f"{folder}/std"),
            ("listen 8080;", f"listen 127.0.0.1:{port};"),
            ("    resolver 127.0.0.11 valid=5s ipv6=off;", f"    upstream replicas {{ {servers} }}"),
            ("http://$replicas:8080", "http://replicas"),
            ("rate=50r/s", f"rate={rate}"),
        ):
            assert text.count(was) >= 1, was
            text = text.replace(was, now)
        (folder / "nginx.conf").write_text(f"daemon off; master_process off;\n{text}", encoding="utf-8")
        running.append(subprocess.Popen([nginx(), "-c", str(folder / "nginx.conf"), "-p", str(folder)]))
        deadline = time.monotonic() + 60
        while running[-1].poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/proxy/health", timeout=60, trust_env=False).raise_for_status()
                return f"http://127.0.0.1:{port}"
            assert time.monotonic() < deadline, (folder / "stderr").read_text()
            time.sleep(0.05)
        return None

    yield begin
    for process in running:
        process.terminate()
        process.wait(60)


def logged(log: Path, request_id: str) -> dict[str, object]:
    """The log line of a request; nginx writes it after sending the response."""

    def lines() -> list[str]:
        text = log.read_text(encoding="utf-8")
        return [line for line in text.splitlines() if request_id in line and line.endswith("}")]

    wait_until(lines, 30, lambda: log.read_text(encoding="utf-8"))
    found = [json.loads(line) for line in lines()]
    assert [line["request_id"] for line in found] == [request_id]
    return dict(found[0])


def test_a_service_behind_the_proxy(service: Server, start: Callable[..., str], tmp_path: Path) -> None:
    address = start(service.address.removeprefix("http://"))
    bark = next(iter(sorted(SOUNDS.glob("dog-barking-*"))))
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        added = client.post("/clips", files={"files": ("ü.ogg", bark.read_bytes())}, headers={"Origin": address})
        (clip,) = added.raise_for_status().json()["clips"]
        assert client.get("/search", params={"q": "dog"}).json()["hits"][0]["clip"]["id"] == clip["id"]
        part = client.get(f"/clips/{clip['id']}/audio", headers={"Range": "bytes=10-19"})
        assert part.status_code == 206 and part.content == bark.read_bytes()[10:20]
        form = {"phrases": ["dog barking"], "format": "ndjson"}
        answer = client.post("/detect", files={"file": (bark.name, bark.read_bytes())}, data=form)
        assert json.loads(answer.text.splitlines()[-1])["type"] == "end"
        assert client.get("/metrics").status_code == 404
        large = httpx.post(
            f"{address}/clips", files={"files": ("large.wav", bytes(4_000_000))}, timeout=60, trust_env=False
        )
        assert large.status_code == 413 and large.json()["type"] == "urn:finelap:problem:body-too-large"
        other = client.delete(f"/clips/{clip['id']}", headers={"Origin": "http://elsewhere.example"})
        assert other.status_code == 403
        assert client.delete(f"/clips/{clip['id']}", headers={"X-Request-ID": "call-1"}).status_code == 204
    last = logged(tmp_path / "nginx" / "stdout", "call-1")
    assert (last["method"], last["status"]) == ("DELETE", 204)


class _Replica:
    """Responds with its name, or with 503 while it `stops`."""

    def __init__(self, name: str) -> None:
        self.stops = False
        self.asked: list[str] = []
        replica = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                replica.asked.append(self.command)
                self.send_response(503 if replica.stops else 200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_failover_when_a_replica_stops(start: Callable[..., str]) -> None:
    """Reads go to the other replica; a rejected write must be repeated by the client."""
    replicas = [_Replica("a"), _Replica("b")]
    address = start(*(replica.address for replica in replicas))
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert {client.get("/search").text for _ in range(10)} == {"a", "b"}
        replicas[0].stops = True
        told = [client.get("/search") for _ in range(10)]
        assert {(answer.status_code, answer.text) for answer in told} == {(200, "b")} and len(replicas[0].asked) > 5
        replicas[0].server.shutdown()
        replicas[0].server.server_close()
        assert {client.post("/clips", content=b"x").status_code for _ in range(10)} == {200}
    replicas[1].server.shutdown()
    replicas[1].server.server_close()


def test_limits_per_client_address(start: Callable[..., str]) -> None:
    replica = _Replica("a")
    # with the limit lowered to what every machine exceeds
    with httpx.Client(base_url=start(replica.address, rate="1r/s"), timeout=60, trust_env=False) as client:
        answers = [client.get("/search").status_code for _ in range(600)]
    assert set(answers) == {200, 429} and answers[:150] == [200] * 150
    replica.server.shutdown()
    replica.server.server_close()
