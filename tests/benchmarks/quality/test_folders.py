"""Folders of retrieval and grounding tasks are read in the layouts described, and give one table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from benchmarks.quality.folders import main, read_grounding, read_retrieval
from training.evaluation.metrics import both_ways
from training.evaluation.readers import DatasetError

RATE = 16_000


def tone(hz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)).astype(np.float32)


def wav(hz: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(hz), RATE, format="WAV")
    return file.getvalue()


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def text_to_audio(folder: Path) -> Path:
    """Three clips in Parquet, their bytes inside, one of them without a text."""
    clips = [{"id": f"c{n}", "audio": {"bytes": wav(200 * (n + 1)), "path": f"{n}.wav"}} for n in range(3)]
    parquet(folder / "en-corpus" / "test-00000-of-00001.parquet", clips)
    parquet(
        folder / "en-queries" / "test-0.parquet", [{"id": f"q{n}", "text": t} for n, t in enumerate(["low", "high"])]
    )
    qrels = [("q0", "c0", 1), ("q1", "c1", 1), ("q0", "c1", 0)]
    rows = [{"query-id": q, "corpus-id": c, "score": s} for q, c, s in qrels]
    parquet(folder / "en-qrels" / "test-0.parquet", rows)
    return folder


def audio_to_text(folder: Path) -> Path:
    """Two clips as files, with JSON lines and a table of tabs."""
    (folder / "qrels").mkdir(parents=True)
    queries, corpus = [], []
    for n, text in enumerate(["low", "high"]):
        soundfile.write(folder / f"{n}.wav", tone(300 * (n + 1)), RATE)
        queries.append(json.dumps({"_id": f"q{n}", "audio": f"{n}.wav"}))
        corpus.append(json.dumps({"_id": f"t{n}", "text": text}))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tt0\t1\nq1\tt1\t1\n")
    return folder


def grounding(folder: Path) -> Path:
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(400), RATE)
    rows = [
        {"audio": "a.wav", "phrase": "a beep", "segments": [[0.2, 0.6]]},
        {"audio": "a.wav", "query": "a dog", "relevant_windows": []},
        {"audio": "a.wav", "caption": "a tone", "timestamps": [[0.0, 0.0], [0.5, 0.9]]},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_retrieval_with_the_audio_in_the_corpus(tmp_path: Path) -> None:
    dataset = read_retrieval(text_to_audio(tmp_path / "task"), tmp_path / "audio")
    assert [(i.audio_id, i.captions) for i in dataset.items] == [("c0", ("low",)), ("c1", ("high",)), ("c2", ())]
    samples, rate = soundfile.read(dataset.items[1].path)
    assert rate == RATE and np.allclose(samples, tone(400), atol=1e-3)


def test_retrieval_with_the_audio_in_the_queries(tmp_path: Path) -> None:
    dataset = read_retrieval(audio_to_text(tmp_path / "task"), tmp_path / "audio")
    assert [(i.audio_id, i.captions, i.path.name) for i in dataset.items] == [
        ("q0", ("low",), "0.wav"),
        ("q1", ("high",), "1.wav"),
    ]


def test_clips_without_a_text_are_candidates_only() -> None:
    similarity, captions = np.array([[0.5, 0.1, 0.9]]), np.array([[True, False, False]])
    figures = both_ways(similarity, captions)
    assert figures["text→audio R@1"] == 0 and figures["audio→text R@1"] == 1


def test_phrases_of_a_recording_are_one_item(tmp_path: Path) -> None:
    (item,) = read_grounding(grounding(tmp_path / "task"), tmp_path / "audio").items
    found = {p.text: p.segments for p in item.phrases or ()}
    assert found == {"a beep": ((0.2, 0.6),), "a dog": (), "a tone": ((0.5, 0.9),)}


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    folder = audio_to_text(tmp_path / "task")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tt9\t1\n")
    with pytest.raises(DatasetError, match="'t9'"):
        read_retrieval(folder, tmp_path)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DatasetError, match="no corpus"):
        read_retrieval(folder, tmp_path)
    other = grounding(tmp_path / "other")
    (other / "test.jsonl").write_text('{"audio": "a.wav", "phrase": "x"}\n')
    with pytest.raises(DatasetError, match="line 1: .*none of segments"):
        read_grounding(other, tmp_path)
    with pytest.raises(SystemExit, match="no .jsonl file"):
        (other / "test.jsonl").unlink()
        main(["checkpoint", "--grounding", str(other), "--out", str(tmp_path / "out")])


def test_one_table_for_all_folders(
    tmp_path: Path, small_checkpoint: Path, metrics: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folders = [str(text_to_audio(tmp_path / "t2a")), str(audio_to_text(tmp_path / "a2t"))]
    arguments = [str(small_checkpoint), "--retrieval", *folders, "--grounding", str(grounding(tmp_path / "g"))]
    main([*arguments, "--protocol", "published", "--out", str(out)])
    content = json.loads((out / "table.json").read_text())
    assert content["protocols"] == ["published"]
    found = {(r["dataset"], r["task"]) for r in content["checkpoints"][0]["results"]}
    assert found == {("t2a", "retrieval"), ("a2t", "retrieval"), ("g", "grounding")}
    assert "T→A R@1" in capsys.readouterr().out
