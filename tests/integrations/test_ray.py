"""The Ray recipe: its parts, made with and without Ray, become the library that a service makes of the files."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from app.cli.main import main as finelap
from app.client import Client
from benchmarks.common import REPO, SOUNDS, Server
from index import LibraryError, SqliteLibrary, finish_parts, import_library, write_part

FILES = 10
RECIPE = REPO / "integrations" / "ray" / "embed.py"


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ray_recipe"] = module
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sounds, a copy of one under another name, and a file that is no sound."""
    made = tmp_path_factory.mktemp("sounds")
    (made / "sub").mkdir()
    for path in sorted(SOUNDS.glob("*.ogg"))[:FILES]:
        shutil.copy(path, made / "sub" / path.name)
    shutil.copy(next(iter(sorted((made / "sub").iterdir()))), made / "zz copy.ogg")
    (made / "broken.wav").write_bytes(b"no sound at all" * 100)
    return made


def records(client: Client) -> dict[str, tuple[Any, ...]]:
    return {
        clip.sha256: (clip.filename, clip.duration, clip.sample_rate, clip.channels, clip.metadata)
        for clip in client.clips()
    }


@pytest.fixture(scope="module")
def uploaded(folder: Path, small_checkpoint: Path) -> Iterator[Client]:
    """A service that has the files by upload."""
    with Server() as server, Client(server.address) as client:
        assert finelap(["ingest", str(folder), "--server", server.address]) == 1  # broken.wav
        yield client


def same_library(out: Path, data: Path, uploaded: Client) -> None:
    import_library(out, data, lambda *_: None)
    with Server({"data_dir": data}) as server, Client(server.address) as client:
        expected = records(uploaded)
        found = records(client)
        assert len(found) == FILES and found.keys() == expected.keys()
        for sha256, record in found.items():
            assert record[1:4] == expected[sha256][1:4]  # either name of two copies may stand for both
            assert record[4] | {"path": 0} == expected[sha256][4] | {"path": 0}  # either copy may stand for both
        for query in ("a dog barks", "rain"):
            ours, theirs = (
                {hit.clip.sha256: hit.similarity for hit in one.search(query, k=20)} for one in (client, uploaded)
            )
            assert ours.keys() == theirs.keys()
            assert all(abs(ours[key] - theirs[key]) < 1e-5 for key in ours)


@pytest.mark.slow
def test_an_actor_makes_the_library_of_an_upload(
    folder: Path, uploaded: Client, small_checkpoint: Path, tmp_path: Path
) -> None:
    paths = [str(path) for path in sorted(folder.rglob("*.*")) if path.is_file()] + [str(folder / "gone.wav")]
    summed = recipe.checksums({"path": np.array(paths, dtype=object)})
    assert [sha for path, sha in zip(summed["path"], summed["sha256"], strict=True) if path.endswith("gone.wav")] == [
        ""
    ]
    parts = recipe.parts_of([pair for pair in zip(paths, summed["sha256"], strict=True) if pair[1]], 4)
    assert sum(len(part["paths"]) for part in parts) == FILES + 1 and len(parts) == 3
    out = tmp_path / "out"
    actor = recipe.Embed(str(folder), str(out), str(small_checkpoint))
    try:
        batch = {key: np.array([part[key] for part in parts], dtype=object) for key in ("name", "paths", "hashes")}
        made = actor(batch)
        assert made["clips"].sum() == FILES
        assert [line for line in made["failed"] if line][0].startswith(str(folder / "broken.wav"))
        assert not recipe.unwritten(parts, out)
        next((out / "data").iterdir()).unlink()
        (missing,) = recipe.unwritten(parts, out)
        actor({key: np.array([missing[key]], dtype=object) for key in ("name", "paths", "hashes")})
        report = finish_parts(out, actor._model.stamp, actor._model.dim)
    finally:
        actor.close()
    assert report.clips == FILES
    same_library(out, tmp_path / "data", uploaded)


@pytest.mark.slow
def test_ray_on_this_machine(folder: Path, uploaded: Client, tmp_path: Path) -> None:
    """The script as its page runs it; Ray starts on this machine, and its processes end with the script."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'finelap[ray]'")
    out = tmp_path / "out"
    command = [sys.executable, str(RECIPE), str(folder), str(out), "--part", "4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    environment["RAY_worker_niceness"] = "0"  # the default, 15, waits for a machine to be idle

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=550)

    first = run()
    assert first.returncode == 1 and f"{FILES} clips" in first.stdout and "broken.wav" in first.stderr, first
    assert "destroyed" not in first.stderr, "actors are closed"
    files = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    assert run().returncode in (0, 1)
    assert {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()} == files
    same_library(out, tmp_path / "data", uploaded)


def test_parts_follow_the_content() -> None:
    files = [(f"/a/{n}.wav", f"{n % 7:064}") for n in range(14)]
    parts = recipe.parts_of(files, 3)
    assert parts == recipe.parts_of(reversed(files), 3)
    assert [path for part in parts for path in part["paths"]] == [f"/a/{n}.wav" for n in (0, 1, 2, 10, 11, 12, 13)]
    assert len({part["name"] for part in parts}) == 3
    moved = recipe.parts_of([(path.replace("/a", "/b"), sha256) for path, sha256 in files], 3)
    assert [part["name"] for part in moved] == [part["name"] for part in parts]


def test_parts_become_a_library(tmp_path: Path) -> None:
    from tests.support.clips import DIM, make_clip

    clips = [make_clip(seed) for seed in range(5)]
    write_part(tmp_path / "out", "a", clips[:3], "one", DIM)
    write_part(tmp_path / "out", "a", clips[:3], "one", DIM)
    write_part(tmp_path / "out", "b", clips[3:], "one", DIM)
    with pytest.raises(LibraryError, match="another checkpoint"):
        finish_parts(tmp_path / "out", "two", DIM)
    assert finish_parts(tmp_path / "out", "one", DIM).clips == 5
    import_library(tmp_path / "out", tmp_path / "data", lambda *_: None)
    with SqliteLibrary.open(tmp_path / "data", dim=DIM, checkpoint="one") as library:
        assert {clip.sha256 for clip in library.list(9)[0]} == {clip.sha256 for clip in clips}
        for clip in clips:
            there = library.find(clip.sha256)
            assert there is not None
            np.testing.assert_array_equal(library.clip_vector(there.id), clip.embedding)
    with pytest.raises(ValueError, match="needs clips"):
        write_part(tmp_path / "out", "c", [], "one", DIM)
