"""The benchmark of concepts reports every method and number of examples, on a folder of synthetic sounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.quality.concepts import main
from model.config import SAMPLE_RATE

pytestmark = pytest.mark.slow


def test_it_reports_every_method(small_checkpoint: Path, tmp_path: Path) -> None:
    folder, rng, rows = tmp_path / "sounds", np.random.default_rng(1), []
    (folder / "scratch").mkdir(parents=True)
    t = np.arange(int(0.7 * SAMPLE_RATE)) / SAMPLE_RATE
    for number in range(16):
        label, hz = (f"water {number}", 3000) if number % 2 else (f"door {number}", 300)
        samples = 0.3 * np.sin(2 * np.pi * (hz + 20 * number) * t) + 0.01 * rng.standard_normal(len(t))
        audio = f"scratch/{label.replace(' ', '-')}.wav"
        soundfile.write(folder / audio, samples, SAMPLE_RATE)
        rows.append({"audio": audio, "label": label, "package": "scratch", "source": audio})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "report.json"
    arguments = [str(folder), "--checkpoint", str(small_checkpoint), "--work", str(tmp_path / "work")]
    report = main([*arguments, "--draws", "1", "--examples", "0,1,5", "--out", str(out)])
    assert json.loads(out.read_text())["summary"] == report["summary"]
    found = {(row["kind"], row["examples"], row["method"]): row for row in report["summary"]}
    for count in (1, 5):
        assert {m for kind, n, m in found if kind == "one sound" and n == count} == {
            "text",
            "example",
            "head",
            "concept",
        }
    (gain,) = [g for g in report["gains"] if (g["kind"], g["examples"], g["over"]) == ("one sound", 5, "text")]
    difference = found["one sound", 5, "concept"]["AP"] - found["one sound", 5, "text"]["AP"]
    assert gain["low"] <= gain["gain"] <= gain["high"] and abs(gain["gain"] - difference) < 1e-9
    assert found["one sound", 5, "concept"]["AP"] > 0.9 and found["one sound", 5, "concept"]["concepts"] == 2
    assert 0 <= found["two sounds", 5, "concept"]["event F1"] <= 1
