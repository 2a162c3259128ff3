"""A backup of a library in Milvus: a copy of Milvus' data and of the files, restored under another address."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index import MilvusLibrary, NewClip
from tests.conftest import Milvus
from tests.support.clips import DIM

Make = Callable[..., NewClip]


def open_it(server: Milvus, files: Path, data: Path) -> MilvusLibrary:
    url = f"milvus://127.0.0.1:{server.port}?files={files}"
    return MilvusLibrary.open(url, data, dim=DIM, checkpoint="checkpoint-a")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Milvus]:
    """Starts a Milvus with its data in a folder of the test."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    monkeypatch.setattr("index.milvus.client._CONNECT_TIMEOUT", 60.0)
    return lambda name: Milvus(tmp_path / name)


def test_a_copy_of_both_is_a_backup(start: Callable[[str], Milvus], tmp_path: Path, new_clip: Make) -> None:
    (tmp_path / "one").mkdir()
    server = start("one")
    try:
        library = open_it(server, tmp_path / "files", tmp_path / "data")
        clips = [library.add(new_clip(seed, {"take": seed}))[0] for seed in range(6)]
        frames = {clip.id: library.frames(clip.id)[0] for clip in clips}
        library.delete(clips.pop().id)
        library.close()
    finally:
        server.process.terminate()
        server.process.wait(60)
    # collections first, then files
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "two" / "data")
    shutil.copytree(tmp_path / "files", tmp_path / "restored")
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "files")

    server = start("two")
    try:
        library = open_it(server, tmp_path / "restored", tmp_path / "fresh")
        assert len(library) == 5 and sorted(library.list(10)[0], key=lambda c: c.id) == sorted(
            clips, key=lambda c: c.id
        )
        for seed, clip in enumerate(clips):
            assert library.get(clip.id).metadata == {"take": seed}
            assert library.audio_path(clip.id).read_bytes() == new_clip(seed).audio
            np.testing.assert_array_equal(library.frames(clip.id)[0], frames[clip.id])
        added, new = library.add(new_clip(5))
        assert new and len(library) == 6 and added.id not in {clip.id for clip in clips}
        library.close()
    finally:
        server.kill()
