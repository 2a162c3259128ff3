"""A library as Parquet files and back: the same records, vectors and answers, and clear words for damaged folders."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from app.cli.main import main
from index import LibraryError, NewClip, SqliteLibrary
from index.sqlite import dataset
from tests.support.clips import DIM, nearest_hits, unit

SILENT = lambda *_: None  # noqa: E731


@pytest.fixture
def filled(library: SqliteLibrary, new_clip: Callable[..., NewClip], monkeypatch: pytest.MonkeyPatch) -> SqliteLibrary:
    """40 clips, some deleted and changed, exported in several files of several row groups."""
    monkeypatch.setattr(dataset, "_GROUP_BYTES", 200)
    monkeypatch.setattr(dataset, "_SHARD_BYTES", 600)
    kinds = ["dog barking", "rain", "犬 “loud”"]
    added = library.add_many([
        new_clip(seed, {"tags": [kind], "n": seed, "deep": {"a": None}}, filename=f"{kind} {seed}.wav")
        for seed, kind in zip(range(40), itertools.cycle(kinds))
    ])  # fmt: skip
    for number in (0, 7, 39):
        library.delete(added[number][0].id)
    library.update_metadata(added[3][0].id, {"n": 300})
    return library


def answers(library: SqliteLibrary) -> list[Any]:
    """50 searches of every kind, with similarities and records."""
    found: list[Any] = []
    rng = np.random.default_rng(5)
    for number in range(10):
        query = unit(rng.standard_normal(DIM))
        found += [
            nearest_hits(library, query, 7),
            nearest_hits(library, query, 5, {"tags": "rain", "n": {"lt": 30}}),
            library.search_segments(query, 6),
            library.search_words(("dog", "rain", "loud", "犬", "barking")[number % 5], query, 9),
            library.nearest_segments(query, 40),
        ]
    return found


def test_a_round_trip(filled: SqliteLibrary, tmp_path: Path) -> None:
    report = dataset.export_library(filled.folder, tmp_path / "out", SILENT, audio=True)
    assert (report.clips, report.audio, report.checkpoint) == (37, 37, "checkpoint-a")
    assert len(list((tmp_path / "out/data").iterdir())) > 2
    again = dataset.import_library(tmp_path / "out", tmp_path / "again", SILENT)
    assert again == report
    with SqliteLibrary.open(tmp_path / "again", dim=DIM, checkpoint="checkpoint-a") as imported:
        assert not imported.recovery_report
        assert len(expected := answers(filled)) == 50
        assert answers(imported) == expected
        clips = filled.list(100)[0]
        assert imported.list(100)[0] == clips
        for clip in clips:
            assert imported.frame_codes(clip.id)[0].to_bytes() == filled.frame_codes(clip.id)[0].to_bytes()
            assert imported.audio_path(clip.id).read_bytes() == filled.audio_path(clip.id).read_bytes()


def test_without_audio(filled: SqliteLibrary, new_clip: Callable[..., NewClip], tmp_path: Path) -> None:
    dataset.export_library(filled.folder, tmp_path / "out", SILENT)
    assert dataset.import_library(tmp_path / "out", tmp_path / "again", SILENT).audio == 0
    with SqliteLibrary.open(tmp_path / "again", dim=DIM, checkpoint="checkpoint-a") as imported:
        assert answers(imported) == answers(filled)
        clip, created = imported.add(new_clip(5))
        assert not created and imported.audio_path(clip.id).is_file()


def test_the_columns(filled: SqliteLibrary, tmp_path: Path) -> None:
    dataset.export_library(filled.folder, tmp_path / "out", SILENT)
    rows = parquet.read_table(tmp_path / "out/data").to_pylist()
    clip = filled.get(rows[0]["id"])
    assert json.loads(rows[0]["metadata"]) == clip.metadata and rows[0]["filename"] == clip.filename
    frames = np.array(rows[0]["frames"], np.float32) * np.array(rows[0]["frame_scales"], np.float32)[:, None]
    assert np.array_equal(frames, filled.frames(clip.id)[0])
    assert np.array_equal(np.array(rows[0]["embedding"], np.float32), filled.clip_vector(clip.id))
    assert "data/train-*.parquet" in (tmp_path / "out/README.md").read_text()


def test_damaged_and_unsuitable_folders(filled: SqliteLibrary, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset.export_library(filled.folder, out, SILENT, audio=True)
    with pytest.raises(LibraryError, match="not empty"):
        dataset.export_library(filled.folder, out, SILENT)
    with pytest.raises(LibraryError, match="not empty"):
        dataset.import_library(out, filled.folder, SILENT)
    with pytest.raises(LibraryError, match="finelap.json is missing"):
        dataset.import_library(tmp_path, tmp_path / "again", SILENT)
    shard = max((out / "data").iterdir())
    kept = shard.read_bytes()
    shard.write_bytes(kept[:100])
    with pytest.raises(LibraryError, match="damaged"):
        dataset.import_library(out, tmp_path / "again", SILENT)
    with pytest.raises(LibraryError, match="again"):
        SqliteLibrary.open(tmp_path / "again", dim=DIM, checkpoint="checkpoint-a")
    shard.unlink()
    with pytest.raises(LibraryError, match="of 37 clips"):
        dataset.import_library(out, tmp_path / "again", SILENT)
    shard.write_bytes(kept)
    assert dataset.import_library(out, tmp_path / "again", SILENT).clips == 37  # over the interrupted one
    (out / "finelap.json").write_text('{"format": 2}')
    with pytest.raises(LibraryError, match="newer"):
        dataset.import_library(out, tmp_path / "other", SILENT)


def test_the_commands(filled: SqliteLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "out"), "--audio", "--data-dir", str(filled.folder)]) == 0
    assert "37 clips of checkpoint-a, 37 audio files" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "out"), "--data-dir", str(tmp_path / "again")]) == 0
    assert "37 clips of checkpoint-a, 37 with audio" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    assert main(["import", str(tmp_path / "out"), "--data-dir", str(tmp_path / "other")]) == 1
    assert "finelap.json" in capsys.readouterr().err


def test_hugging_face_datasets_reads_it(filled: SqliteLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    dataset.export_library(filled.folder, tmp_path / "out", SILENT, audio=True)
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(read) == 37 and isinstance(read.features["audio"], datasets.Audio)
    row = read.cast_column("audio", datasets.Audio(decode=False))[0]
    assert row["audio"]["bytes"] == filled.audio_path(row["id"]).read_bytes()
    assert np.array_equal(np.array(row["embedding"], np.float32), filled.clip_vector(row["id"]))
