"""The service as a user has it: `finelap serve` with the bundled checkpoint, the command line, crashes, bad input."""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import soxr

from model.config import SAMPLE_RATE

FINELAP = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())"]
READY = re.compile(r"FineLAP is ready: (http://\S+)")
# what the library is asked for, and the words of which a right answer's file name has one
QUERIES = {
    "dog barking": ("dog", "bark"),
    "rain": ("rain",),
    "thunder": ("thunder",),
    "horse": ("horse", "neigh", "gallop"),
    "footsteps": ("footstep",),
    "bell": ("bell", "cowbell"),
    "door": ("door",),
}

pytestmark = pytest.mark.slow


class Service:
    """One `finelap serve` process; the same data directory over restarts."""

    def __init__(self, repo: Path, checkpoint: Path, data: Path) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FINELAP_")}
        self.environment |= {"PYTHONPATH": str(repo), "FINELAP_DATA_DIR": str(data)}
        self.checkpoint, self.folder = checkpoint, data.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        self.address = ""
        self.stdout: list[str] = []
        self.log = self.folder / "log.txt"

    def start(self, *arguments: str) -> Service:
        """Starts it and waits until it says that it is ready."""
        command = [*FINELAP, "serve", "--port", "0", "--checkpoint", str(self.checkpoint), *arguments]
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            encoding="utf-8",
        )
        self.stdout = []
        said: queue.Queue[str] = queue.Queue()

        def read() -> None:
            assert self.process.stdout is not None
            address = ""
            for line in self.process.stdout:
                self.stdout.append(line)
                if found := READY.search(line):
                    address = found[1]
                elif address and line == "\n":  # the greeting is over
                    said.put(address)
            said.put("")

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        self.address = said.get(timeout=240)
        assert self.address, self.log.read_text()
        return self

    def end(self, how: signal.Signals) -> int:
        """Sends a signal and returns the exit code; then all that was printed is in `stdout`."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        self._reader.join(30)
        return code

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `finelap` command against this service."""
        environment = self.environment | ({"FINELAP_SERVER": self.address} if self.process.poll() is None else {})
        return subprocess.run(
            [*FINELAP, *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )

    def get(self, path: str, **params: Any) -> Any:
        return httpx.get(self.address + path, params=params, timeout=120, trust_env=False).raise_for_status().json()

    def post(self, path: str, **content: Any) -> httpx.Response:
        return httpx.post(self.address + path, timeout=120, trust_env=False, **content)


@pytest.fixture(scope="module")
def demo(repo_dir: Path) -> Path:
    folder = repo_dir / "demo" / "sounds"
    if not folder.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    return folder


@pytest.fixture(scope="module")
def make_service(
    repo_dir: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Service]]:
    """Makes services with a data directory of their own; none outlives the module."""
    made: list[Service] = []

    def make() -> Service:
        service = Service(repo_dir, small_checkpoint, tmp_path_factory.mktemp("service") / "data")
        made.append(service)
        return service

    yield make
    for service in made:
        if hasattr(service, "process") and service.process.poll() is None:
            service.process.kill()
            service.process.wait(30)


@pytest.fixture(scope="module")
def service(make_service: Callable[[], Service], demo: Path) -> Service:
    """A running service with the demo sounds, added by itself."""
    return make_service().start("--demo", str(demo))


def files_of(demo: Path) -> list[Path]:
    return sorted(p for p in demo.rglob("*") if p.suffix in {".ogg", ".flac", ".wav", ".mp3", ".opus"})


def matches(name: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{word}", name.lower()) for word in words)


def answers_to(demo: Path, query: str) -> list[Path]:
    """Demo sounds whose names say that they answer the query."""
    return [path for path in files_of(demo) if matches(path.name, QUERIES[query])]


def wav(samples: np.ndarray, kind: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, SAMPLE_RATE, format=kind)
    return out.getvalue()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)


def load(path: Path) -> np.ndarray:
    """Mono samples at SAMPLE_RATE, at most 4 s, at a common loudness."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)[: 4 * SAMPLE_RATE]
    return 0.5 * mono / max(1e-6, float(np.abs(mono).max()))


# What a newcomer sees


def test_the_greeting_names_an_address_and_a_curl_that_works(service: Service, demo: Path) -> None:
    said = "".join(service.stdout)
    assert f"{len(files_of(demo))} clips" in said
    curl = re.search(r"curl '(\S+)'", said)
    assert curl
    assert httpx.get(curl[1], timeout=60, trust_env=False).json()["hits"]


@pytest.mark.parametrize("query", QUERIES)
def test_the_first_hit_answers(service: Service, demo: Path, query: str) -> None:
    if not answers_to(demo, query):
        pytest.skip(f"no demo sound is named after {query}")
    hits = service.get("/search", q=query)["hits"]
    assert matches(hits[0]["clip"]["filename"], QUERIES[query]), [hit["clip"]["filename"] for hit in hits[:3]]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("dog barkng", "dog"), ("thunderstrom", "thunder"), ("glas breaking", "glass"), ("explotion", "explosion")],
)
def test_a_misspelled_query_finds_the_sound(service: Service, typed: str, meant: str) -> None:
    answer = service.get("/search", q=typed)
    assert answer["hits"][0]["clip"]["filename"].startswith(meant) and answer["did_you_mean"] != typed


def test_examples_of_real_sounds(service: Service) -> None:
    # of several sounds of a kind the last by name, as the order in which they were added varies
    listed = sorted(service.get("/clips", limit=1000)["clips"], key=lambda clip: clip["filename"])
    clips = {clip["filename"].rsplit("-", 1)[0]: clip["id"] for clip in listed}

    def scores(**body: Any) -> dict[str, float]:
        hits = service.post("/search", json={"k": 1000} | body).json()["hits"]
        return {hit["clip"]["filename"].rsplit("-", 1)[0]: hit["score"] for hit in reversed(hits)}

    dogs = list(reversed(scores(like=[{"clip_id": clips["dog-barking"]}])))
    assert "dog-barking" in dogs[:1]
    doors = scores(query="door")
    without_glass = scores(query="door", unlike=[{"clip_id": clips["glass-door-opening"]}])
    assert "glass-door-opening" not in without_glass
    assert without_glass["glass-door-closing"] / doors["glass-door-closing"] < without_glass["door"] / doors["door"]
    splashing = scores(query="water", like=[{"clip_id": clips["water-splash"]}])
    dripping = scores(query="water", like=[{"clip_id": clips["water-drip"]}])
    assert splashing["swimming"] > dripping["swimming"]


def test_text_and_sound_together(service: Service, demo: Path) -> None:
    (rain,) = demo.glob("rain-*")
    answer = service.post("/search", files={"file": rain.open("rb")}, data={"query": "thunder", "k": "8"}).json()
    found = [hit["clip"]["filename"].split("-")[0] for hit in answer["hits"]]
    assert answer["query"] == "thunder" and {"rain", "thunder"} <= set(found), found


def test_water_without_splashes_keeps_other_water(service: Service) -> None:
    hits = service.get("/search", q="water", without="splash", k=8)["hits"]
    found = [hit["clip"]["filename"].rsplit("-", 1)[0] for hit in hits]
    assert "water-splash" not in found and {"waterfall", "boiling-water"} <= set(found), found


def test_a_sound_finds_itself(service: Service, demo: Path) -> None:
    path = files_of(demo)[3]
    done = service.run("search", "--audio", str(path), "-k", "1", "--moments", "--json")
    assert done.returncode == 0, done.stderr
    (hit,) = json.loads(done.stdout)["hits"]
    assert hit["clip"]["filename"] == path.name
    assert hit["similarity"] > 0.99
    assert hit["moments"]


def test_the_page_and_all_it_needs_are_served(service: Service) -> None:
    page = httpx.get(service.address, timeout=60, trust_env=False)
    assert page.headers["content-type"].startswith("text/html")
    needed = re.findall(r'(?:href|src)="(web/[^"]+)"', page.text)
    assert "web/main.js" in needed
    for path in needed:
        assert httpx.get(f"{service.address}/{path}", timeout=60, trust_env=False).status_code == 200, path
    assert not re.search(r'(?:href|src)="(?:https?:)?//', page.text)


def test_health_info_and_metrics(service: Service, demo: Path) -> None:
    assert service.get("/health/live") == service.get("/health/ready") == {"status": "ok"}
    assert service.get("/info")["clips"] == len(files_of(demo))
    text = httpx.get(service.address + "/metrics", timeout=60, trust_env=False).text
    assert f"finelap_index_clips {float(len(files_of(demo)))}" in text


def test_a_connection_without_a_request_stays_open_longer_than_clients_keep_it(service: Service) -> None:
    """httpx uses one again within 5 s, and uvicorn's default would close it then: on a busy machine some were lost."""
    host, port = service.address.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        for pause in (6, 0):
            connection.request("GET", "/health/live")
            assert connection.getresponse().read()
            used = connection.sock
            time.sleep(pause)
        assert connection.sock is used


def test_ingest_again_adds_nothing(service: Service, demo: Path) -> None:
    done = service.run("ingest", str(demo), "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["added"], summary["already_there"], summary["failed"]) == (0, len(files_of(demo)), [])


# Detection


@pytest.fixture(scope="module")
def placed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[float, float]]]:
    """40 s of faint noise with two demo sounds in it: the file, and where each phrase is, in seconds."""
    pairs = [(query, answers_to(demo, query)) for query in ("thunder", "bell", "dog barking", "door")]
    chosen = [(query, max(paths, key=lambda p: soundfile.info(p).duration)) for query, paths in pairs if paths][:2]
    if len(chosen) < 2:
        pytest.skip("the demo sounds have no two of thunder, bell, dog, door")
    mixture, where = 0.001 * noise(40), {}
    for (query, path), onset in zip(chosen, (8.0, 26.0), strict=True):
        sound = load(path)
        start = int(onset * SAMPLE_RATE)
        mixture[start : start + len(sound)] += sound
        where[query] = (onset, onset + len(sound) / SAMPLE_RATE)
    file = tmp_path_factory.mktemp("placed") / "forty seconds.wav"
    file.write_bytes(wav(mixture))
    return file, where


def test_detect_finds_two_sounds_where_they_are(
    service: Service, placed: tuple[Path, dict[str, tuple[float, float]]]
) -> None:
    file, where = placed
    picture = service.folder / "detection.png"
    phrases = [argument for phrase in where for argument in ("-p", phrase)]
    done = service.run("detect", str(file), *phrases, "--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = json.loads(done.stdout)
    assert answer["duration"] == pytest.approx(40, abs=0.01)
    for found in answer["phrases"]:
        onset, offset = where[found["phrase"]]
        assert found["events"], f"{found['phrase']}: nothing above the threshold, at most {found['max_score']}"
        best = max(found["events"], key=lambda event: event["score"])
        common = min(offset, best["offset"]) - max(onset, best["onset"])
        assert common > 0.5 * (best["offset"] - best["onset"]), (found, where)
        outside = [e for e in found["events"] if e["offset"] < onset - 1 or e["onset"] > offset + 1]
        assert sum(e["offset"] - e["onset"] for e in outside) < 3, (found, where)
        assert all(e["score"] < best["score"] - 0.2 for e in outside), (found, where)


def test_detect_without_a_server_gives_the_same(
    service: Service, placed: tuple[Path, dict[str, tuple[float, float]]], small_checkpoint: Path
) -> None:
    file, where = placed
    arguments = ["detect", str(file), *(a for phrase in where for a in ("-p", phrase)), "--format", "csv"]
    there = service.run(*arguments)
    here = service.run(*arguments, "--checkpoint", str(small_checkpoint))
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr

    def rows(text: str) -> list[tuple[str, float, float]]:
        return [(r["event_label"], float(r["onset"]), float(r["offset"])) for r in csv.DictReader(io.StringIO(text))]

    assert rows(here.stdout) == rows(there.stdout)
    assert rows(here.stdout)


# Bad input


def bad_requests() -> dict[str, tuple[str, str, dict[str, Any]]]:
    def file(data: bytes, name: str = "a.wav", field: str = "files") -> dict[str, Any]:
        return {"files": {field: (name, data)}}

    def listen(**form: Any) -> dict[str, Any]:
        return file(wav(noise(1)), field="file") | {"data": form}

    flac = wav(noise(3), "FLAC")
    return {
        "an empty file": ("POST", "/clips", file(b"")),
        "a text file named .wav": ("POST", "/clips", file(b"This is no sound. " * 40)),
        "a truncated flac": ("POST", "/clips", file(flac[: len(flac) // 2], "a.flac")),
        "0.01 s": ("POST", "/clips", file(wav(noise(0.01)))),
        "no file": ("POST", "/clips", {"data": {"metadata": "{}"}}),
        "500 phrases": ("POST", "/detect", listen(phrases=[f"sound {i}" for i in range(500)])),
        "no phrase": ("POST", "/detect", listen()),
        "an empty phrase": ("POST", "/detect", listen(phrases=[" "])),
        "a threshold of 2": ("POST", "/detect", listen(phrases=["dog"], threshold="2")),
        "an hour of smoothing": ("POST", "/detect", listen(phrases=["dog"], median_filter="3600")),
        "an empty query": ("GET", "/search", {"params": {"q": ""}}),
        "a blank query": ("POST", "/search", {"json": {"query": " \n "}}),
        "three bytes of JSON": (
            "POST",
            "/search",
            {"content": b'{"q', "headers": {"Content-Type": "application/json"}},
        ),
        "JSON that is no object": ("POST", "/search", {"json": [1]}),
        "a clip that is not there": ("GET", "/clips/nothing", {}),
    }


@pytest.mark.parametrize("name", bad_requests())
def test_bad_input_is_a_problem_and_the_next_request_works(service: Service, name: str) -> None:
    method, path, content = bad_requests()[name]
    response = httpx.request(method, service.address + path, timeout=60, trust_env=False, **content)
    problem = response.json()
    assert 400 <= response.status_code < 500, problem
    assert response.headers["content-type"].startswith("application/problem+json")
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"] and problem["detail"]
    assert service.get("/search", q="dog")["hits"]


# Crashes and ends


def test_what_was_answered_with_201_survives_kill_9(make_service: Callable[[], Service]) -> None:
    service = make_service().start()
    added: list[dict[str, Any]] = []

    def add() -> None:
        for seed in range(100_000):
            try:
                response = service.post("/clips", files={"files": (f"шум {seed}.wav", wav(noise(0.5, seed)))})
            except httpx.TransportError:  # it was killed while this one was under way
                return
            assert response.status_code == 201, response.text
            added.extend(response.json()["clips"])

    thread = threading.Thread(target=add)
    thread.start()
    deadline = time.monotonic() + 240
    while len(added) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    service.end(signal.SIGKILL)
    thread.join(60)
    assert len(added) >= 10

    service.start()
    there = {clip["id"]: clip for clip in service.get("/clips", limit=1000)["clips"]}
    assert all(there[clip["id"]] == clip for clip in added)
    hits = service.get("/search", q="noise", k=1000)["hits"]
    assert {hit["clip"]["id"] for hit in hits} == set(there)
    audio = httpx.get(f"{service.address}/clips/{added[1]['id']}/audio", timeout=60, trust_env=False)
    assert audio.content == wav(noise(0.5, 1))
    assert service.end(signal.SIGTERM) == 0


def test_a_taken_port_and_a_missing_checkpoint_are_said(service: Service, tmp_path: Path) -> None:
    port = service.address.rpartition(":")[2]
    elsewhere = ("--data-dir", str(tmp_path))
    done = service.run("serve", "--port", port, *elsewhere)
    assert done.returncode == 1
    assert port in done.stderr and "Traceback" not in done.stderr
    done = service.run("serve", "--port", "0", "--checkpoint", "no/such/folder", *elsewhere)
    assert done.returncode == 1
    assert "no/such/folder" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_ends_it_cleanly(service: Service) -> None:
    """The last test of the shared service: it has worked, and now it goes."""
    began = time.monotonic()
    assert service.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 25
    assert "Traceback" not in service.log.read_text()
    assert service.stdout[-1] == "Stopped.\n"
