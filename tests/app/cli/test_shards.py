"""Shards of an ingest: together they have every file once, whatever its name; manifests of sha256sum are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.cli.main import main
from app.cli.shards import ManifestError, Shard, choose, read_manifest
from app.cli.upload import Checksums, find_sources
from app.client import Client

SHARDS = 4


@pytest.fixture
def folder(tmp_path: Path, sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen sounds and a copy of each under another name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "sounds"
    (root / "copies").mkdir(parents=True)
    for n in range(16):
        (root / f"{n:02} 音.wav").write_bytes(sounds.wav(400, 0.5 + n / 1000))
        shutil.copy(root / f"{n:02} 音.wav", root / "copies" / f"copy-{n:02}.wav")
    return root


def chosen(folder: Path, index: int, count: int = SHARDS) -> list[str]:
    with Checksums(None) as checksums:
        return [source.path.name for source in choose(find_sources([folder], {}), Shard(index, count), checksums)]


def test_every_file_is_in_one_shard_and_copies_stay_together(folder: Path) -> None:
    shards = [chosen(folder, index) for index in range(SHARDS)]
    assert sorted(name for shard in shards for name in shard) == sorted(path.name for path in folder.rglob("*.wav"))
    assert all(shards)
    for shard in shards:
        originals = {name[:2] for name in shard if not name.startswith("copy")}
        assert originals == {name[5:7] for name in shard if name.startswith("copy")}


def test_shards_follow_the_content_and_not_the_path(folder: Path, tmp_path: Path) -> None:
    before = [sorted(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in chosen(folder, i)
              if not name.startswith("copy")) for i in range(SHARDS)]  # fmt: skip
    moved = tmp_path / "moved"
    moved.mkdir()
    for n, path in enumerate(sorted(folder.glob("*.wav"))):
        shutil.copy(path, moved / f"{100 - n}.wav")
    after = [sorted(hashlib.sha256((moved / name).read_bytes()).hexdigest() for name in chosen(moved, i))
             for i in range(SHARDS)]  # fmt: skip
    assert before == after
    # checksums that were true when this was written: a later version must not move files between shards
    assert [Shard(i, 3).has("0" * 63 + "1") for i in range(3)] == [True, False, False]
    assert [Shard(i, 3).has("f" * 16 + "0" * 48) for i in range(3)] == [True, False, False]
    assert [Shard(i, 7).has("0000000000000005" + "f" * 48) for i in range(7)].index(True) == 5


def test_shards_are_of_similar_size() -> None:
    sums = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(10_000)]
    sizes = [sum(Shard(i, 16).has(one) for one in sums) for i in range(16)]
    assert sum(sizes) == 10_000 and max(sizes) < 750 and min(sizes) > 500


def test_an_unreadable_file_is_reported_by_one_shard(folder: Path) -> None:
    (folder / "gone.wav").symlink_to("nowhere.wav")
    assert [chosen(folder, index).count("gone.wav") for index in range(SHARDS)].count(1) == 1


def test_ingest_by_shards(folder: Path, run_server: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    server = run_server()
    added = []
    for index in (0, 1, 1, 2, 3):  # the second one a second time
        assert main(["ingest", str(folder), "--server", server, "--shard", f"{index}/{SHARDS}", "--json"]) == 0
        added.append(json.loads(capsys.readouterr().out))
    assert [summary["added"] for summary in added][2] == 0 and sum(summary["added"] for summary in added) == 16
    assert sum(summary["already_there"] for summary in added) == 16 + 2 * added[1]["added"]
    with Client(server) as client:
        assert client.info().clips == 16


def test_a_manifest_saves_the_reading(folder: Path, tmp_path: Path) -> None:
    odd = folder / "line\nbreak \\n.wav"
    shutil.copy(folder / "00 音.wav", odd)
    names = sorted(os.path.relpath(path, tmp_path) for path in folder.rglob("*.wav"))
    done = subprocess.run(["sha256sum", *names], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "sums").write_bytes(done.stdout)
    listed = read_manifest(tmp_path / "sums")
    assert listed[str(odd)] == hashlib.sha256(odd.read_bytes()).hexdigest() and len(listed) == 33
    with Checksums(None) as checksums:
        shards = [choose(find_sources([folder], {}), Shard(i, SHARDS), checksums, listed) for i in range(SHARDS)]
        assert checksums.read == 0
    assert [sorted(s.path.name for s in shard) for shard in shards] == [
        sorted(chosen(folder, i)) for i in range(SHARDS)
    ]
    (tmp_path / "sums").write_text("MD5 (x) = 0\n")
    with pytest.raises(ManifestError, match="line 1"):
        read_manifest(tmp_path / "sums")


@pytest.mark.parametrize("shard", ["4/4", "1", "1/0", "-1/4", "a/b", "1/2/3"])
def test_invalid_shards(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["ingest", ".", f"--shard={shard}"])
    assert stopped.value.code == 2 and "0/N to N-1/N" in capsys.readouterr().err


def test_a_manifest_needs_a_shard(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", ".", "--manifest", "sums"]) == 2
    assert "--manifest needs --shard" in capsys.readouterr().err
