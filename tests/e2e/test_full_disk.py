"""A disk that is full under a running service: what is refused says so, nothing is lost, searches go on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import Server, encode
from model.config import SAMPLE_RATE

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, timeout=60)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=60)


def noise(seed: int) -> bytes:
    return encode(np.random.default_rng(seed).uniform(-0.5, 0.5, 8 * SAMPLE_RATE).astype(np.float32))


def test_a_full_disk(small_disk: Path) -> None:
    kept: list[str] = []
    with Server({"data_dir": small_disk / "library"}) as server:
        refused = None
        for seed in range(200):
            answer = server.post("/clips", files={"files": (f"{seed}.wav", noise(seed))})
            if answer.status_code == 201:
                kept.append(answer.json()["clips"][0]["id"])
                continue
            refused = answer
            break
        assert len(kept) > 10 and refused is not None
        assert refused.status_code == 507 and refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"].endswith("storage-full") and "no space left" in refused.json()["detail"]
        assert server.get("/health/ready").status_code == 200
        found = server.get("/search", q="noise", k=1000).json()["hits"]
        assert {hit["clip"]["id"] for hit in found} == set(kept)
        for clip in kept[:4]:  # room can be made although there is none
            answer = server.delete(f"/clips/{clip}")
            assert answer.status_code == 204
        answer = server.post("/clips", files={"files": ("again.wav", noise(500))})
        assert answer.status_code == 201
        kept = [*kept[4:], answer.json()["clips"][0]["id"]]
    with Server({"data_dir": small_disk / "library"}) as server:
        assert {clip["id"] for clip in server.get("/clips", limit=1000).json()["clips"]} == set(kept)
        assert server.get("/clips/" + kept[0] + "/audio").content == noise(4)
