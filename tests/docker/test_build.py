"""The image, built by docker/build-here and run as docker-compose.yml runs it.

Slow: it needs buildah, root and the package registries. FINELAP_BUILD has the options for build-here, such as
--debootstrap; with --storage and --keep-layers a second run builds only what has changed, and with FINELAP_BUILT=1 none
is built: the tests use the image that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.common import SOUNDS
from tests.docker.compose import read
from tests.docker.test_kubernetes import WRITTEN

TAG = "localhost/finelap:cpu"
MAX_BYTES = 1.5e9
PYTHON = "/opt/venv/bin/python"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Buildah:
    """buildah with the storage in which build-here leaves its images."""

    def __init__(self, options: list[str]) -> None:
        def option(name: str, default: str = "") -> str:
            return options[options.index(name) + 1] if name in options else default

        self._command = ["buildah", "--storage-driver", option("--driver", "overlay")]
        if storage := option("--storage"):
            self._command += ["--root", f"{storage}/root", "--runroot", f"{storage}/run"]

    def command(self, *arguments: str) -> list[str]:
        return [*self._command, *arguments]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def image(repo_dir: Path) -> Buildah:
    """Builds the image; a storage that has it."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("needs buildah, from the Debian package of this name, and root")
    if "FINELAP_BUILD" not in os.environ:
        pytest.skip("FINELAP_BUILD has no options for docker/build-here: building takes a quarter of an hour")
    options = shlex.split(os.environ["FINELAP_BUILD"])
    if not os.environ.get("FINELAP_BUILT"):
        done = subprocess.run([repo_dir / "docker" / "build-here", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Buildah(options)


@pytest.fixture(scope="module")
def root(image: Buildah) -> Iterator[Path]:
    """The image's file system."""
    container = image("from", TAG)
    yield Path(image("mount", container))
    image("umount", container)
    image("rm", container)


@pytest.fixture
def container(image: Buildah) -> Iterator[str]:
    name = image("from", TAG)
    yield name
    image("rm", name)


def test_image_is_small_and_describes_itself(image: Buildah) -> None:
    described = json.loads(image("inspect", "--type", "image", TAG))["Docker"]["config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in described["Labels"].items()}
    assert labels["title"] == "FineLAP" and labels["licenses"] == "Apache-2.0" and labels["version"][0].isdigit()
    assert re.fullmatch("[0-9a-f]{40}|unknown", labels["revision"]) and labels["created"][:2] in ("20", "19")
    assert described["User"] == "10001:10001" and described["Healthcheck"]["Test"][0] == "CMD"
    assert described["Entrypoint"] == ["finelap"] and described["StopSignal"] == "SIGTERM"
    (size,) = [one["size"] for one in json.loads(image("images", "--json")) if TAG in (one["names"] or [])]
    number, unit = size.split()
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] < MAX_BYTES


def test_sbom_lists_the_packages(root: Path) -> None:
    sbom = json.loads((root / "opt/finelap/sbom.cdx.json").read_text())
    found = {component["name"].lower(): component for component in sbom["components"]}
    installed = {
        path.name.split("-")[0].lower() for path in root.glob("opt/venv/lib/python*/site-packages/*.dist-info")
    }
    assert {name.replace("-", "_").replace(".", "_") for name in found} >= {n.replace(".", "_") for n in installed}
    assert found["torch"]["version"] == "2.13.0+cpu" and found["fastapi"]["licenses"]


def test_nothing_of_the_building_machine_is_in_the_image(root: Path) -> None:
    settings = [".config", ".npmrc", ".cache", "wheels", "pypi"]
    assert not [name for name in settings if (root / "root" / name).exists()]
    assert not (root / "etc/pip.conf").exists()
    assert not [path for name in WRITTEN for path in (root / name[1:]).iterdir()]
    for name in WRITTEN - {"/tmp"}:
        stat = (root / name[1:]).stat()
        assert (stat.st_uid, stat.st_gid) == (10001, 10001)
    writable = subprocess.run(
        ["find", str(root), "-xdev", "(", "-user", "10001", "-o", "-perm", "-o+w", ")", "-not", "-type", "l"],
        capture_output=True,
        text=True,
    ).stdout.split()
    assert {path.removeprefix(str(root)) for path in writable if not path.startswith(f"{root}/dev")} == {
        *WRITTEN,
        "/outbox",  # of `finelap listen`
        "/run/lock",
        "/var/tmp",
    }


def test_first_search_upload_and_stop(image: Buildah, container: str, repo_dir: Path, tmp_path: Path) -> None:
    """The settings, user, volumes and capabilities of docker-compose.yml, as far as a chroot isolates."""
    service = read(repo_dir / "docker-compose.yml", {}, [])["services"]["finelap"]
    with running(image, container, service, tmp_path) as (address, process):
        answer = httpx.get(f"{address}/search", params={"q": "dog barking"}, timeout=60, trust_env=False).json()
        assert "dog" in answer["hits"][0]["clip"]["filename"] and answer["hits"][0]["match"]
        sound = next(iter(sorted(SOUNDS.glob("*.ogg"))))
        files = {"files": ("ü.ogg", sound.read_bytes() + b"\0")}
        added = httpx.post(f"{address}/clips", files=files, timeout=60, trust_env=False)
        assert added.status_code == 201 and added.json()["clips"][0]["filename"] == "ü.ogg"
        form = {"phrases": ["dog barking"], "format": "png"}
        files = {"file": (sound.name, sound.read_bytes())}
        plot = httpx.post(f"{address}/detect", data=form, files=files, timeout=60, trust_env=False)
        assert plot.status_code == 200 and plot.content.startswith(b"\x89PNG")
        page = httpx.get(f"{address}/", timeout=60, trust_env=False).text
        assert "data-vendor" in page.partition(">")[2].partition(">")[0]  # with the libraries from npm
        port = address.rpartition(":")[2]
        check = ["--env", f"FINELAP_PORT={port}", container, "--", "python", "/opt/finelap/healthcheck.py"]
        image("run", "--isolation", "chroot", *check)
        # buildah itself answers SIGTERM with SIGKILL to its child
        inside = psutil.Process(process.pid).children(recursive=True)
        (main,) = [one for one in inside if one.cmdline()[:3] == [PYTHON, "/opt/venv/bin/finelap", "serve"]]
        assert main.uids().real == 10001 and "CapEff:\t0000000000000000" in Path(f"/proc/{main.pid}/status").read_text()
        main.terminate()
        assert process.wait(60) == 0, (tmp_path / "err").read_text()
    assert "Stopped." in (tmp_path / "out").read_text()
    assert list((tmp_path / "data" / "audio").rglob("*"))


@contextlib.contextmanager
def running(
    image: Buildah, container: str, service: dict[str, Any], folder: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service with the demo sounds, on a free port; ready when this returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    options = ["--isolation", "chroot", "--user", "10001:10001", "--cap-drop", "all"]
    for name, value in (service["environment"] | {"FINELAP_PORT": port, "FINELAP_HOST": "127.0.0.1"}).items():
        options += ["--env", f"{name}={value}"]
    for target in sorted(WRITTEN):
        (folder / target[1:]).mkdir()
        os.chown(folder / target[1:], 10001, 10001)
        options += ["--volume", f"{folder / target[1:]}:{target}"]
    command = image.command("run", *options, container, "--", "finelap", "serve", "--demo", "demo/sounds")
    folder.chmod(0o755)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while "FineLAP is ready" not in (folder / "out").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "err").read_text()[-4000:]
            time.sleep(0.1)
        yield address, process
    finally:
        if process.poll() is None:  # the service outlives buildah
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
        process.wait()
