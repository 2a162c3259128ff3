"""Fixtures: a real service with the demo sounds, and a folder like the checkout in which the pages' commands run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.common import SOUNDS, Server
from tests.docs.runner import Reader

_LINKED = ("benchmarks", "checkpoints", "demo", "training")  # folders of the checkout that commands read


@pytest.fixture(scope="session")
def service(small_checkpoint: Path) -> Iterator[Server]:
    """`finelap serve --demo demo/sounds` with the bundled checkpoint."""
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    with Server(demo=True) as server:
        yield server


@pytest.fixture
def reader(service: Server, tmp_path: Path, repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a new folder with only the checkout's files; clips that the page adds are deleted afterwards."""
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.chdir(tmp_path)
    for name in _LINKED:
        (tmp_path / name).symlink_to(repo_dir / name)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FINELAP_")}
    environment |= {
        "FINELAP_DATA_DIR": str(service.log.parent / "data"),
        "PYTHONPATH": str(repo_dir),
        "XDG_CACHE_HOME": str(tmp_path / ".cache"),
        "no_proxy": "*",
    }
    before = _clips(service)
    yield Reader(tmp_path, service.address, environment)
    for clip in _clips(service) - before:
        service.delete(f"/clips/{clip}").raise_for_status()


def _clips(service: Server) -> set[str]:
    """Ids of all clips in the library."""
    return {clip["id"] for clip in service.get("/clips", limit=1000).json()["clips"]}
