"""The pages, a real service with the demo sounds, and a folder like the checkout in which their commands are run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.common import SOUNDS, Server, load
from model.config import SAMPLE_RATE
from tests.docs.runner import Reader

_USED = ("dog-barking-bd8430", "door-closing-ee1e10", "rain-9a5405")
_LINKED = ("benchmarks", "checkpoints", "demo", "training")  # what commands read of the checkout


@pytest.fixture(scope="session")
def service(small_checkpoint: Path) -> Iterator[Server]:
    """`finelap serve --demo demo/sounds` with the bundled checkpoint."""
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    with Server(demo=True) as server:
        yield server


@pytest.fixture
def reader(service: Server, tmp_path: Path, repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a folder of their own; afterwards the library has what it had before.

    The folder has dog.wav, example.wav, rain.flac, recording.wav (rain, a dog, a door, rain), and more in sounds/.
    """
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.chdir(tmp_path)
    _prepare(tmp_path, repo_dir)
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
    """Ids of all clips of the library."""
    return {clip["id"] for clip in service.get("/clips", limit=1000).json()["clips"]}


def _prepare(folder: Path, repo: Path) -> None:
    for name in _LINKED:
        (folder / name).symlink_to(repo / name)
    (folder / "docs" / "images").mkdir(parents=True)
    (folder / "sounds" / "field").mkdir(parents=True)
    bark, door, rain = (load(SOUNDS / f"{name}.ogg") for name in _USED)
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    dog = np.concatenate([bark, pause, door])
    soundfile.write(folder / "dog.wav", dog, SAMPLE_RATE)  # then a door
    soundfile.write(folder / "example.wav", bark[: 2 * SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(folder / "rain.flac", rain, SAMPLE_RATE)
    soundfile.write(folder / "recording.wav", np.concatenate([rain[: 5 * SAMPLE_RATE], dog, rain]), SAMPLE_RATE)
    soundfile.write(folder / "sounds" / "field" / "shower.flac", rain[: 4 * SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(folder / "sounds" / "yard.wav", np.concatenate([pause, bark]), SAMPLE_RATE)
