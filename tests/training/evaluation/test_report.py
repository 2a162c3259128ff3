"""Reports are complete and readable, and plots show the right phrases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from app.cli.main import main
from training.evaluation.benchmark import Report, Shown
from training.evaluation.report import chosen_rows, draw_scores, figure_table, table, write_report
from training.evaluation.sed_metrics import Scored


def shown(phrases: int = 12, frames: int = 64, sounding: int = 2, name: str = "street/a b") -> Shown:
    rng = np.random.default_rng(0)
    truth = [[(5.0 - row, 6.0)] if row < sounding else [] for row in range(phrases)]
    names = tuple(f"phrase {i}" for i in range(phrases))
    return Shown(name, names, Scored(rng.random((phrases, frames)).astype(np.float32), truth, 0.16, frames * 0.16))


def report(**changes: object) -> Report:
    values: dict = {
        "dataset": "desed",
        "task": "detection",
        "figures": {"PSDS1": 12.345, "PSDS2": float("nan")},
        "items": 3,
        "unreadable": {"b": "b.wav: no samples"},
        "missing": ("c",),
        "classes": {"a|b": {"PSDS1": 1.0}},
        "notes": ("a note",),
        "pictures": (shown(),),
    }
    return Report(**(values | changes))


def test_a_report_is_json_markdown_and_plots(tmp_path: Path) -> None:
    old = tmp_path / "pictures" / "old.png"
    old.parent.mkdir()
    old.write_bytes(b"")
    other = report(dataset="urbansed", figures={"PSDS1": 50.0}, pictures=(), unreadable={}, missing=())
    files = write_report(tmp_path, [report(), other], {"model": "tiny", "threshold": 0.5})
    assert [f.name for f in files] == ["report.json", "report.md", "1-desed-01-street_a_b.png"]
    assert not old.exists() and files[2].read_bytes()[:4] == b"\x89PNG"

    first, second = json.loads(files[0].read_text())["reports"]
    assert first["figures"] == {"PSDS1": 12.345, "PSDS2": None} and first["unreadable"] == {"b": "b.wav: no samples"}
    assert first["pictures"] == ["pictures/1-desed-01-street_a_b.png"] and second["pictures"] == []

    text = files[1].read_text()
    assert "- model: tiny" in text and text.count("## Detection") == 1
    assert "- b: b.wav: no samples" in text and "- c: no such file" in text and "desed: a note." in text
    assert "![street/a b](pictures/1-desed-01-street_a_b.png)" in text


def test_tables_keep_their_columns() -> None:
    lines = table(["class", "R@1"], [["a|b\nc", "1.00"], ["d", "100.00"]])
    assert lines[2] == "| a\\|b c |   1.00 |" and len({len(line) for line in lines}) == 1
    rows = figure_table([report(), report(dataset="x", figures={"mAP": 1.0}, notes=())])
    assert [line.split("|")[2:4] for line in rows[2:5]] == [
        [" 12.35 ", "      "],
        ["     — ", "      "],
        ["       ", " 1.00 "],
    ]


def test_plots_show_true_phrases_and_the_highest_false_alarms() -> None:
    one = shown(phrases=12, sounding=2)
    rows = chosen_rows(one)
    assert rows[:2] == [1, 0], "in order of onset"
    best = one.scored.scores.max(1)
    assert rows[2:] == sorted(range(2, 12), key=lambda r: -best[r])[:3]
    assert len(chosen_rows(shown(phrases=20, sounding=15))) == 8
    assert chosen_rows(shown(phrases=2, sounding=2)) == [1, 0]


@pytest.mark.parametrize("one", [shown(1, 1, 0), shown(3, 20_000, 1, "$x^ \u0e01 " * 30)])
def test_plots_of_any_length_and_name(tmp_path: Path, one: Shown) -> None:
    draw_scores(tmp_path / "p.png", one)
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "esc50"], "not NAME=ROOT"),
        (["--median-filter", "4"], "odd"),
        (["--threshold", "2"], "from 0 to 1"),
    ],
)
def test_invalid_options_are_one_line_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "nowhere", "--out", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_invalid_datasets_are_reported_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio_id": "a", "audio_path": "a.wav", "caption": "a dog"}\n')
    for arguments, message in (
        ([], "nothing to evaluate"),
        (["--manifest", str(tmp_path / "absent.jsonl")], "absent.jsonl"),
        (["--manifest", str(tmp_path / "m.jsonl"), "--task", "detection"], "detection needs"),
        (["--dataset", f"nobody={tmp_path}"], "unknown dataset 'nobody'"),
    ):
        assert main(["evaluate", "nowhere", "--out", str(tmp_path / "out"), *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundled_checkpoint_on_a_manifest(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise.wav", rng.normal(0, 0.1, 16_000), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = [{"audio_id": n, "audio_path": f"{n}.wav", "caption": [n, "a sound"]} for n in ("noise", "broken")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    manifest = str(tmp_path / "m.jsonl")
    assert main(["evaluate", str(small_checkpoint), "--manifest", manifest, "--out", str(out)]) == 0
    answer = json.loads((out / "report.json").read_text())["reports"][0]
    assert answer["figures"]["text→audio R@1"] == 100.0 and set(answer["unreadable"]) == {"broken"}
    assert "not scored: broken" in capsys.readouterr().out
