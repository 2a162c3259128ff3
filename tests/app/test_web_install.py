"""install.py fetches the npm files completely or not at all; a failure prints one line and exits with 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Stands for npm: makes node_modules as the lock file in its folder says, unless a file "broken" lies beside it.
_NPM = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
assert sys.argv[1] == "ci" and "--ignore-scripts" in sys.argv
(here / "calls").open("a").write("x")
if (here / "broken").exists():
    sys.exit("npm error network says no")
locked = json.loads(pathlib.Path("package-lock.json").read_text())["packages"]
for folder, package in locked.items():
    if folder:
        pathlib.Path(folder).mkdir(parents=True)
        for name in ("LICENSE", "code.js"):
            pathlib.Path(folder, name).write_text(f"{{name}} of {{package['version']}}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that requires one package."""
    folder = tmp_path / "wanting"
    folder.mkdir()
    (folder / ".npmrc").write_text("")
    files = {"thing/LICENSE": "LICENSE", "thing/code.js": "thing.js"}
    (folder / "package.json").write_text(json.dumps({"dependencies": {"thing": "1.0.0"}, "vendor": files}))
    lock(folder, "1.0.0")
    return folder


def lock(folder: Path, version: str) -> None:
    packages = {"": {"dependencies": {"thing": version}}, "node_modules/thing": {"version": version}}
    (folder / "package-lock.json").write_text(json.dumps({"packages": packages}))


@pytest.fixture
def install(repo_dir: Path, tmp_path: Path, folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command with that npm, which counts its calls in the file `npm/calls`."""
    place = tmp_path / "npm"
    place.mkdir()
    program = place / "npm"
    program.write_text(_NPM.format(python=sys.executable))
    program.chmod(0o755)

    def install(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repo_dir / "app" / "web" / "install.py"), *options, str(folder)]
        return subprocess.run(
            command, env=os.environ | {"PATH": str(place)}, capture_output=True, text=True, timeout=60
        )

    return install


def test_files_are_fetched_once_per_version(
    install: Callable[..., subprocess.CompletedProcess[str]], folder: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        done = install("--strict")
        assert (done.returncode, done.stderr) == (0, "")
    vendor = folder / "vendor"
    assert {file.name: file.read_text() for file in vendor.iterdir()} == {
        "LICENSE": "LICENSE of 1.0.0",
        "thing.js": "code.js of 1.0.0",
        "VERSION": "1.0.0\n",
    }
    lock(folder, "1.1.0")
    (vendor / "stale.js").write_text("of an earlier version")
    assert install("--strict").returncode == 0
    assert (vendor / "thing.js").read_text() == "code.js of 1.1.0" and not (vendor / "stale.js").exists()
    assert (tmp_path / "npm" / "calls").read_text() == "xx"
    assert sorted(file.name for file in folder.iterdir()) == [".npmrc", "package-lock.json", "package.json", "vendor"]


def test_a_failure_prints_one_line_and_keeps_existing_files(
    install: Callable[..., subprocess.CompletedProcess[str]], folder: Path, tmp_path: Path
) -> None:
    assert install().returncode == 0
    lock(folder, "1.1.0")
    (tmp_path / "npm" / "broken").touch()
    for options, code in (((), 0), (("--strict",), 1)):
        done = install(*options)
        assert done.returncode == code
        assert done.stderr == "Some tests will be skipped, without thing: npm failed: npm error network says no\n"
    assert (folder / "vendor" / "thing.js").read_text() == "code.js of 1.0.0"


def test_packages_are_locked(repo_dir: Path) -> None:
    """By checksum and without a registry URL, so that any registry works."""
    for place in ("app/web", "tests/e2e/browser"):
        text = (repo_dir / place / "package-lock.json").read_text(encoding="utf-8")
        assert "://" not in text
        packages = {name: about for name, about in json.loads(text)["packages"].items() if name}
        wanted = json.loads((repo_dir / place / "package.json").read_text(encoding="utf-8"))
        assert {f"node_modules/{name}" for name in wanted["dependencies"]} == set(packages)
        assert all(about["integrity"].startswith("sha512-") for about in packages.values())
        assert {source.partition("/")[0] for source in wanted["vendor"]} == set(wanted["dependencies"])
        assert any(target == "LICENSE" for target in wanted["vendor"].values())
