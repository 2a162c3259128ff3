"""Hostile files, killed decoders, callers that dawdle or leave: a real server answers, stays ready, keeps nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks import processes
from benchmarks.common import Server, Tape, encode
from tests.support import hostile
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TOGETHER = 25  # files of one request
PATIENCE = 60.0  # seconds
LONG = 500.0  # seconds of sound, more than fits between a decoder and the model


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Iterator[Server]:
    """A server that has done each kind of work once; what it holds then, it holds after the tests, too.

    Decoders that have nothing to do end after ten seconds, so that is seen once, not in each test.
    """
    server = start_server()
    for _ in range(2):
        assert detect(server, minute(0)).status_code == 200
        assert server.post("/clips", files={"files": ("warm up.wav", minute(0))}).status_code in (200, 201)
        assert server.get("/search", q="a sound").status_code == 200
    before = held(server)
    yield server
    assert_returns_to(server, before, SLACK)


@pytest.fixture(scope="module")
def hostile_files() -> list[Any]:
    """The files of tests/support/hostile.py: name, data, the expected outcome and the allowed error statuses."""
    return list(hostile.hostile_files(np.random.default_rng(11)))


def minute(seed: int, seconds: float = 60.0) -> bytes:
    return encode(Tape(seed).read(round(seconds * 16_000)))


def detect(server: Server, data: bytes, name: str = "a.wav", **fields: str) -> httpx.Response:
    return server.post("/detect", data={"phrases": "dog", **fields}, files={"file": (name, data)})


def workers(server: Server) -> list[int]:
    """Processes that the process which forks decoders has made."""
    return [pid for child in children(server.process.pid) for pid in children(child)]


def children(pid: int) -> list[int]:
    return [p for p in processes.process_tree(pid) if p != pid and parent(p) == pid]


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def held(server: Server) -> dict[str, int]:
    """What a leak would show in: open files, threads, processes, what waits for the model."""
    proc = Path(f"/proc/{server.process.pid}")
    depth = sum(server.metric(f'finelap_queue_depth{{lane="{lane}"}}') for lane in ("audio", "text"))
    return {
        "files": len(os.listdir(proc / "fd")),
        "threads": len(os.listdir(proc / "task")),
        "processes": len(processes.process_tree(server.process.pid)),
        "waiting": int(depth),
    }


def assert_returns_to(server: Server, before: dict[str, int], slack: dict[str, int]) -> None:
    """Whatever is held comes down to what was held before, and `slack`, while we watch."""
    deadline = time.monotonic() + PATIENCE
    while any((now := held(server))[what] > before[what] + slack.get(what, 0) for what in before):
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.5)


# threads of the pools are made when they are first needed, and stay
SLACK = {"threads": 40, "files": 12}
# and between two tests there are decoders without work, at most one for each file, each with a socket
BETWEEN = {"threads": 40, "files": 12 + TOGETHER, "processes": TOGETHER}


def check_problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code and problem["title"] and problem["detail"]
    return problem


def wrong_with(file: Any, status: int, detail: str) -> str | None:
    """What is wrong with the refusal of a hostile file; None if nothing is."""
    if file.expect == "ok" or status not in file.statuses:
        return f"{file.name!r}: {status} {detail}"
    return None if file.name in detail else f"{file.name!r} is not named: {detail}"


def test_hostile_files_one_by_one(server: Server, hostile_files: list[Any]) -> None:
    before, memory = held(server), processes.memory(server.process.pid)

    def one(file: Any) -> str | None:
        answer = detect(server, file.data, file.name)
        if answer.status_code != 200:
            return wrong_with(file, answer.status_code, check_problem(answer)["detail"])
        heard = answer.json()
        scores = [heard["duration"], heard["phrases"][0]["clip_score"], heard["phrases"][0]["max_score"]]
        right = file.expect != "error" and scores[0] > 0 and all(map(math.isfinite, scores))
        return None if right else f"{file.name!r}: was heard, {scores}"

    assert len(hostile_files) >= 200
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        wrong = [said for said in pool.map(one, hostile_files) if said]
    assert not wrong, "\n".join(wrong)
    assert_returns_to(server, before, BETWEEN)
    wait_until(lambda: processes.memory(server.process.pid) - memory < 250e6, PATIENCE)
    assert server.get("/health/ready").status_code == 200


@pytest.mark.parametrize("call", ["/clips", "/embed"])
def test_hostile_files_together(server: Server, hostile_files: list[Any], call: str) -> None:
    """Every file of a request is either taken or named with its reason, whatever its neighbours are."""
    files = [file for file in hostile_files if "\n" not in file.name and len(file.name) < 200]
    before, wrong = held(server), []
    for at in range(0, len(files), TOGETHER):
        batch = files[at : at + TOGETHER]
        answer = server.post(call, files=[("files", (file.name, file.data)) for file in batch])
        if answer.status_code >= 400:  # none could be taken
            taken, refused = [], check_problem(answer)["errors"]
        else:
            taken, refused = answer.json()["clips" if call == "/clips" else "audio"], answer.json()["errors"]
        assert len(taken) + len(refused) == len(batch)
        by_name = {file.name: file for file in batch}
        for failure in refused:
            file = by_name[failure["filename"]]
            wrong.append(wrong_with(file, failure["problem"]["status"], failure["problem"]["detail"]))
        refused_names = {failure["filename"] for failure in refused}
        wrong += [f"{f.name!r}: was taken" for f in batch if f.expect == "error" and f.name not in refused_names]
        wrong += [f"{item['filename']!r}: {item['duration']}" for item in taken if not item["duration"] > 0]
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert_returns_to(server, before, BETWEEN)
    assert server.get("/health/ready").status_code == 200


@contextlib.contextmanager
def under_way(server: Server, requests: int) -> Iterator[list[concurrent.futures.Future[httpx.Response]]]:
    """Requests with so much sound that all are being decoded and heard when this is entered: LONG seconds each."""
    sounds = [minute(i, LONG) for i in range(requests)]  # takes longer than hearing them
    began = server.metric("finelap_batch_size_count" + '{lane="audio"}')
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        sent = [pool.submit(detect, server, sound, f"{i}.wav") for i, sound in enumerate(sounds)]
        wait_until(lambda: server.metric("finelap_batch_size_count" + '{lane="audio"}') > began, PATIENCE)
        wait_until(lambda: len(workers(server)) >= requests, PATIENCE)
        yield sent


@pytest.mark.parametrize("which", ["one worker", "every worker", "the process that forks them"])
def test_killed_decoders_touch_only_the_files_they_worked_on(server: Server, which: str) -> None:
    before = held(server)
    with under_way(server, 4) as sent:
        pids = workers(server)
        victims = {"one worker": pids[:1], "every worker": pids}.get(which, children(server.process.pid))
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # whoever needs no decoder does not notice
        assert server.get("/search", q=f"not yet asked, {which}").status_code == 200
        assert server.get("/health/live").status_code == 200
        answers = [request.result(8 * PATIENCE) for request in sent]
    failed = [check_problem(answer) for answer in answers if answer.status_code != 200]
    assert len(failed) <= (1 if which == "one worker" else len(sent)), failed
    assert all(problem["status"] == 415 and "decoder" in problem["detail"] for problem in failed), failed
    assert all(a.json()["duration"] == pytest.approx(LONG) for a in answers if a.status_code == 200)
    assert detect(server, minute(99, 5.0)).status_code == 200
    assert server.get("/health/ready").status_code == 200
    assert_returns_to(server, before, BETWEEN)


# Callers that dawdle or leave


def dial(server: Server) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def request_bytes(data: bytes, kind: str) -> bytes:
    request = httpx.Request(
        "POST", "http://a/detect", data={"phrases": "dog", "format": kind}, files={"file": ("a.wav", data)}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST /detect HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def test_bodies_that_never_end(server: Server) -> None:
    before = held(server)
    whole = request_bytes(minute(1), "json")
    with contextlib.ExitStack() as sockets:
        for i in range(40):
            slow = sockets.enter_context(dial(server))
            slow.sendall(whole[: (i + 1) * len(whole) // 50])
        assert detect(server, minute(2, 5.0)).status_code == 200
        assert server.get("/search", q="while many only half speak").status_code == 200
        assert held(server)["files"] >= before["files"] + 40 - TOGETHER
    assert_returns_to(server, before, BETWEEN)
    assert server.get("/health/ready").status_code == 200


@pytest.mark.parametrize("kind", ["json", "ndjson"])
def test_callers_that_leave_midway(server: Server, kind: str) -> None:
    """They send everything; some leave at once, some with the first bytes of the answer or soon after."""
    before, heard = held(server), server.metric('finelap_batch_size_sum{lane="audio"}')
    whole = request_bytes(minute(3, 120.0), kind)

    def come_and_go(number: int) -> None:
        with dial(server) as caller:
            caller.sendall(whole)
            if kind == "ndjson" and number % 2:
                assert caller.recv(4096).startswith(b"HTTP/1.1 200")
            else:
                time.sleep(0.1 * number)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = time.monotonic()
    assert detect(server, minute(4, 5.0)).status_code == 200
    took = time.monotonic() - began
    # nobody waits for what those twelve would have had: 24 minutes of sound, at least 144 windows
    assert took < 20 or server.metric('finelap_batch_size_sum{lane="audio"}') - heard < 144
    assert_returns_to(server, before, BETWEEN)
    assert server.get("/health/ready").status_code == 200


def test_a_stream_that_breaks_midway_says_so(server: Server) -> None:
    """A file that is cut off after six minutes: the lines so far, then an error that names it; no broken connection."""
    whole = encode(Tape(5).read(720 * 16_000), "FLAC")
    answer = detect(server, whole[: len(whole) // 2], "cut off.flac", format="ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.status_code == 200 and lines[0]["type"] == "start"
    assert lines[-1]["type"] == "error" and "cut off.flac" in lines[-1]["problem"]["detail"]
    assert lines[-1]["problem"]["status"] == 422
