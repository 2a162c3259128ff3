"""Faults of what is around a real server: disk, files, descriptors. tests/app/test_faults.py has the others."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.common import Server, encode
from model.config import SAMPLE_RATE

pytestmark = pytest.mark.slow


def noise(seed: int) -> bytes:
    return encode(np.random.default_rng(seed).uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32))


def add(server: Server, seed: int) -> httpx.Response:
    return server.post("/clips", files={"files": (f"{seed}.wav", noise(seed))})


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as if its disk could not be written any more."""
    for command in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        try:
            done = subprocess.run(["mount", *command], capture_output=True, timeout=10)
        except OSError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_disk_that_becomes_read_only(tmp_path: Path, small_checkpoint: Path) -> None:
    data = tmp_path / "library"
    with Server({"data_dir": data}) as server:
        first, second = (add(server, seed).json()["clips"][0]["id"] for seed in (1, 2))
        with read_only(data / "audio"):
            refused = add(server, 3)
            assert refused.status_code == 503 and refused.json()["type"].endswith("library-unavailable"), refused.text
            assert int(refused.headers["retry-after"]) > 0
            assert {hit["clip"]["id"] for hit in server.get("/search", q="noise").json()["hits"]} == {first, second}
            assert server.get(f"/clips/{first}/audio").content == noise(1)
            assert server.delete(f"/clips/{first}").status_code == 204  # its file goes with the next start
            assert server.get("/health/ready").status_code == 200
        third = add(server, 3)
        assert third.status_code == 201
    with Server({"data_dir": data}) as server:
        assert {clip["id"] for clip in server.get("/clips").json()["clips"]} == {second, third.json()["clips"][0]["id"]}
    assert len(list((data / "audio").glob("??/*"))) == 2


def start_and_fail(tmp_path: Path, *arguments: str) -> str:
    """`finelap serve` that ends with 1: what it says on stderr."""
    command = [
        sys.executable,
        "-c",
        "import sys; from app.cli.main import main; sys.exit(main())",
        "serve",
        "--port",
        "0",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_checkpoint_that_is_cut_off(tmp_path: Path, small_checkpoint: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(small_checkpoint, broken)
    weights = next(broken.glob("model-00001*.safetensors"))
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    assert weights.name in start_and_fail(tmp_path, "--checkpoint", str(broken), "--data-dir", str(tmp_path / "data"))


def test_a_database_that_is_damaged(tmp_path: Path, small_checkpoint: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "catalog.sqlite3").write_bytes(os.urandom(50_000))
    said = start_and_fail(tmp_path, "--checkpoint", str(small_checkpoint), "--data-dir", str(data))
    assert "damaged" in said and "restore a backup" in said


def test_descriptors_that_run_out(small_checkpoint: Path) -> None:
    """Callers who connect and say nothing take all there are; when they have gone, it answers again by itself."""
    with Server() as server, contextlib.ExitStack() as sockets:
        assert add(server, 1).status_code == 201
        pid = server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 20, hard))
        host, port = server.address.removeprefix("http://").split(":")
        for _ in range(120):
            sockets.enter_context(socket.create_connection((host, int(port)), timeout=20))
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.address + "/health/live", timeout=2, trust_env=False)
        sockets.close()
        deadline, answered = time.monotonic() + 60, False
        while not answered and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                answered = httpx.get(server.address + "/health/ready", timeout=10, trust_env=False).status_code == 200
        assert answered
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert add(server, 2).status_code == 201
        assert len(server.get("/clips").json()["clips"]) == 2
