"""Export formats, parsed as the programs that read them do."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.export.formats import FORMATS, from_cell, to_audacity, to_cell, to_csv, to_json, to_raven, to_table

PHRASES = [
    "dog barking",
    'a "loud", long bang; twice',
    "tab\tand\nline break",
    "犬が吠える",
    "狗叫",
    "=1+1",
    "-20 dB noise",
    "@home",
    "＝１",
    "'quoted'",
]
RAVEN = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]


def answer(phrases: list[str], filename: str = "street, night.wav") -> dict[str, Any]:
    """A response of `POST /detect` with events in reverse order and a phrase without events."""
    events = [{"onset": 10.0 - n, "offset": 10.5 - n, "score": 0.51 + n / 100} for n in range(len(phrases))]
    found = [
        {"phrase": phrase, "clip_score": 0.5, "max_score": 0.9, "events": [event], "frame_scores": None}
        for phrase, event in zip(phrases, events, strict=True)
    ]
    silent = {"phrase": "never heard", "clip_score": 0.1, "max_score": 0.2, "events": [], "frame_scores": None}
    return {"filename": filename, "duration": 12.0, "frame_hop": 0.16, "phrases": [*found, silent]}


def test_csv_round_trips() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(answer(PHRASES)), newline="")))
    assert [from_cell(row["event_label"]) for row in rows] == PHRASES[::-1]
    assert {row["filename"] for row in rows} == {"street, night.wav"}
    assert [float(row["onset"]) for row in rows] == [10.0 - n for n in range(len(PHRASES))][::-1]
    assert float(rows[-1]["offset"]) == 10.5 and float(rows[-1]["score"]) == 0.51


def test_csv_cells_are_not_formulas() -> None:
    text = to_csv(answer(PHRASES, filename='=HYPERLINK("http://x")'))
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝"))]
    assert "'=1+1" in cells and "'-20 dB noise" in cells and "'quoted'" in cells


@given(st.text(alphabet="'=+-@ \t\ra＝", max_size=6))
def test_cell_escaping_round_trips(text: str) -> None:
    assert from_cell(to_cell(text)) == text


@pytest.fixture
def dcase_readers(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """sed_eval and the io module of sed_scores_eval. A dependency of both imports pkg_resources without using it."""
    if importlib.util.find_spec("pkg_resources") is None:
        monkeypatch.setitem(sys.modules, "pkg_resources", ModuleType("pkg_resources"))
    sed_eval = pytest.importorskip("sed_eval", reason="sed_eval is not installed", exc_type=ImportError)
    scores = pytest.importorskip("sed_scores_eval", reason="sed_scores_eval is not installed", exc_type=ImportError)
    return sed_eval, scores.io


def test_sed_eval_and_dcase_tools_read_the_csv(tmp_path: Path, dcase_readers: tuple[Any, Any]) -> None:
    sed_eval, scores_io = dcase_readers
    file = tmp_path / "events.csv"
    file.write_text(to_csv(answer(["dog barking", "狗叫", 'a "loud", long bang'], "a.wav")), encoding="utf-8")
    events = sed_eval.io.load_event_list(str(file), delimiter=",")
    assert [(e.filename, e.onset, e.offset, e.event_label) for e in events] == [
        ("a.wav", 8.0, 8.5, 'a "loud", long bang'),
        ("a.wav", 9.0, 9.5, "狗叫"),
        ("a.wav", 10.0, 10.5, "dog barking"),
    ]
    metrics = sed_eval.sound_event.EventBasedMetrics(event_label_list=events.unique_event_labels, t_collar=0.2)
    metrics.evaluate(reference_event_list=events, estimated_event_list=events)
    assert metrics.results_overall_metrics()["f_measure"]["f_measure"] == 1.0
    pandas = pytest.importorskip("pandas")
    truth = scores_io.read_ground_truth_events(pandas.read_csv(file))
    assert truth == {"a": [[8.0, 8.5, 'a "loud", long bang'], [9.0, 9.5, "狗叫"], [10.0, 10.5, "dog barking"]]}


def test_audacity_labels() -> None:
    lines = to_audacity(answer(PHRASES)).splitlines()
    assert lines[-1] == "10.000\t10.500\tdog barking"
    assert len(lines) == len(PHRASES)
    for line in lines:  # a line starting with a backslash would hold the frequencies of the previous label
        onset, offset, label = line.split("\t")
        assert 0 <= float(onset) < float(offset) and label.strip() == label != ""
    assert lines[-3].split("\t")[2] == "tab and line break"


def test_raven_selection_table() -> None:
    lines = to_raven(answer(PHRASES)).splitlines()
    assert lines[0].split("\t")[:7] == RAVEN
    rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    assert [row["Selection"] for row in rows] == [str(n + 1) for n in range(len(PHRASES))]
    assert [float(row["Begin Time (s)"]) for row in rows] == sorted(10.0 - n for n in range(len(PHRASES)))
    assert {(row["View"], row["Channel"], row["Low Freq (Hz)"], row["High Freq (Hz)"]) for row in rows} == {
        ("Spectrogram 1", "1", "0", "8000")
    }
    assert rows[-1]["Annotation"] == "dog barking" and rows[-1]["Score"] == "0.5100"


def test_json_preserves_every_character() -> None:
    assert json.loads(to_json(answer(PHRASES))) == answer(PHRASES)
    assert "狗叫" in to_json(answer(PHRASES))


def test_table_lists_phrases_without_events() -> None:
    lines = to_table(answer(PHRASES)).splitlines()
    assert lines[0] == "street, night.wav, 12.00 s"
    assert lines[-2].split() == ["10.00", "10.50", "0.51", "dog", "barking"]
    assert lines[-1] == "not found: never heard (highest score 0.20)"


@pytest.mark.parametrize("name", list(FORMATS))
def test_files_without_events(name: str) -> None:
    text = FORMATS[name](answer([]))
    assert text.count("\n") == {"table": 2, "csv": 1, "audacity": 0, "raven": 1}.get(name, text.count("\n"))
