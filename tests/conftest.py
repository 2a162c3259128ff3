"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.s3 import S3

# how long an example takes says more about the machine than about the code
hypothesis.settings.register_profile("finelap", deadline=None)
hypothesis.settings.load_profile("finelap")

REPO = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.support.external"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those with many tests: of two at a time, the last ones end at about once."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path], item.path))


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


@pytest.fixture
def metrics() -> None:
    """For tests of detection metrics, which skip without their library."""
    from training.evaluation.sed_metrics import MetricsMissing, toolbox

    try:
        toolbox()
    except MetricsMissing as error:
        pytest.skip(str(error))


class Milvus:
    """A Milvus (milvus-lite) that runs as a process of its own, with its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Starts the server, again on the same port; it answers when this returns."""
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            listen = ["--host", "127.0.0.1", "--port", str(self.port)]
            self.process = subprocess.Popen([*command, *listen], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None and time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        self.process.kill()
        self.process.wait(30)


@pytest.fixture(scope="session")
def start_milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Milvus]]:
    """Starts a Milvus with nothing in it; stopped at the end of all tests."""
    for package in ("pymilvus", "milvus_lite"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'finelap[milvus]' milvus-lite")
    started: list[Milvus] = []

    def start() -> Milvus:
        started.append(Milvus(tmp_path_factory.mktemp("milvus")))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def milvus_urls(start_milvus: Callable[[], Milvus]) -> Iterator[str]:
    """Addresses of libraries that nobody has used yet, all in one Milvus."""
    server = start_milvus()
    return (f"milvus://127.0.0.1:{server.port}?collection=library_{number}" for number in itertools.count())


@pytest.fixture
def milvus_url(milvus_urls: Iterator[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Gives one of them; a Milvus that is slow to answer is waited for."""
    monkeypatch.setattr("index.milvus.client._CONNECT_TIMEOUT", 60.0)
    return lambda: next(milvus_urls)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A real S3 server with an empty bucket, and its address and keys in the environment."""
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from tests.support.s3 import S3

    server = S3()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.create().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.close()
