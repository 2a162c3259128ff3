"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference numbers and sounds kept beside the repository, not in it; tests that need them skip without."""
    folder = Path(os.environ.get("FINELAP_SHARED", REPO.parent / "shared"))
    if not (folder / "reference" / "golden.npz").is_file():
        pytest.skip("reference data is not here: put it beside the repository or set FINELAP_SHARED")
    return folder


@pytest.fixture(scope="session")
def small_checkpoint() -> Path:
    """The bundled checkpoint."""
    folder = REPO / "checkpoints" / "finelap-small"
    if not (folder / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not in this checkout")
    return folder


@pytest.fixture(scope="session")
def milvus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Addresses of libraries that nobody has used yet, in a Milvus (milvus-lite) that runs as a process of its own."""
    for package in ("pymilvus", "milvus_lite"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'finelap[milvus]' milvus-lite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("milvus")
    command = ["-m", "milvus_lite", "server", "--data-dir", str(folder / "data"), "--host", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *command, "--port", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        numbers = itertools.count()
        yield lambda: f"milvus://127.0.0.1:{port}?collection=library_{next(numbers)}"
    finally:
        server.terminate()
        server.wait(30)
