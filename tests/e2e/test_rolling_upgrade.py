"""A rolling upgrade of two services behind nginx, under load: no request fails.

The steps are those of Kubernetes with docker/kubernetes/overlays/scale: a new pod gets requests once it is ready, the
old one is removed from the proxy, then preStop passes, then it gets SIGTERM and finishes what it has.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.common import SOUNDS, Server, Tape, encode
from tests.docker.test_proxy import CONFIG, free_port, nginx
from tests.support.waiting import wait_until

PRE_STOP = 2.0  # seconds; 8 in the manifests, where more has to hear of it
LONG = 120  # seconds of sound


class Proxy:
    """nginx with the repository's configuration in front of the given services, which may change."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, *servers: Server) -> None:
        """Sends new requests to these services only; requests in progress stay where they are."""
        upstream = " ".join(f"server {server.address.removeprefix('http://')};" for server in servers)
        text = CONFIG.read_text(encoding="utf-8")
        for was, now in (
            ("/tmp/", f"{self._folder}/"),
            ("/dev/std", f"{self._folder}/std"),
            ("listen 8080;", f"listen 127.0.0.1:{self.port};"),
            ("    resolver 127.0.0.11 valid=5s ipv6=off;", f"    upstream replicas {{ {upstream} }}"),
            ("http://$replicas:8080", "http://replicas"),
            ("rate=50r/s", "rate=5000r/s"),
        ):
            assert was in text, was
            text = text.replace(was, now)
        config = self._folder / "nginx.conf"
        config.write_text(f"daemon off;\nuser root;\n{text}", encoding="utf-8")
        if self._process is None:
            self._process = subprocess.Popen([nginx(), "-c", str(config), "-p", str(self._folder)])
            wait_until(self._answers, 60)
        else:
            reloads = self._workers()
            self._process.send_signal(signal.SIGHUP)
            wait_until(lambda: self._workers() - reloads, 60)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def _workers(self) -> set[str]:
        assert self._process is not None
        return set(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split())

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/proxy/health", trust_env=False).status_code == 200
        return False


class Load:
    """Callers that search, embed and detect until they are told to stop. Each request has a connection of its own."""

    def __init__(self, address: str) -> None:
        self._address, self._stop = address, threading.Event()
        self.outcomes: Counter[tuple[str, object]] = Counter()
        self._sound = sorted(SOUNDS.glob("dog-barking-*"))[0].read_bytes()
        self._recording = encode(Tape(1).read(LONG * 16_000), "FLAC")
        calls = [self._search, self._search, self._embed, self._detect, self._detect_long]
        self._threads = [threading.Thread(target=self._work, args=(call,), daemon=True) for call in calls]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _work(self, call: object) -> None:
        name, number = call.__name__.strip("_"), 0  # type: ignore[attr-defined]
        while not self._stop.is_set():
            number += 1
            try:
                answer = call(number)  # type: ignore[operator]
                whole = '"type": "end"' in answer.text or '"type":"end"' in answer.text or name != "detect_long"
                self.outcomes[name, answer.status_code if whole else "cut off"] += 1
            except httpx.HTTPError as error:
                self.outcomes[name, repr(error)] += 1
            time.sleep(0.02)

    def _search(self, number: int) -> httpx.Response:
        return httpx.get(f"{self._address}/search", params={"q": f"dog {number}"}, timeout=120, trust_env=False)

    def _embed(self, number: int) -> httpx.Response:
        return httpx.post(f"{self._address}/embed", json={"texts": [f"rain {number}"]}, timeout=120, trust_env=False)

    def _detect(self, number: int) -> httpx.Response:
        return self._post("json", self._sound)

    def _detect_long(self, number: int) -> httpx.Response:
        return self._post("ndjson", self._recording)

    def _post(self, form: str, sound: bytes) -> httpx.Response:
        data = {"phrases": ["dog barking"], "format": form}
        url, files = f"{self._address}/detect", {"file": ("a.flac", sound)}
        return httpx.post(url, data=data, files=files, timeout=120, trust_env=False)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    nginx()  # skips if it is missing
    started = Proxy(tmp_path)
    yield started
    started.close()


@pytest.mark.slow
def test_no_request_fails_during_a_rolling_upgrade(proxy: Proxy, small_checkpoint: Path) -> None:
    old = [Server(), Server()]
    with contextlib.ExitStack() as running:
        for server in old:
            running.enter_context(server)
        proxy.use(*old)
        load = Load(proxy.address)
        current = list(old)
        for server in old:
            new = running.enter_context(Server())  # ready when this returns, as the readiness probe is
            current = [new, *(one for one in current if one is not server)]
            proxy.use(*current)
            time.sleep(PRE_STOP)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(40) == 0
        time.sleep(1)
        load.stop()
        served = [one.metric('finelap_requests_total{endpoint="/search",outcome="ok"}') for one in current]
    assert {status for _, status in load.outcomes} == {200}, load.outcomes
    assert {name for name, _ in load.outcomes} == {"search", "embed", "detect", "detect_long"}
    assert min(load.outcomes.values()) >= 2 and all(served), (load.outcomes, served)
