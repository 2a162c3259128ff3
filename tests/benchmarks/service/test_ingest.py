"""The benchmark of an ingest adds all files and reports its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from benchmarks.service import ingest


def test_files_are_as_long_as_they_should_be_and_differ(tmp_path: Path) -> None:
    files = sorted(ingest.make_files(tmp_path, 5, 61.0).rglob("*.wav"))
    assert [soundfile.info(file).duration for file in files] == [61.0] * 5
    assert len({file.read_bytes() for file in files}) == 5


@pytest.mark.slow
def test_short_and_long_files_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "LONG", 100.0)
    report = tmp_path / "report.json"
    assert ingest.main(["--short", "20", "--long", "2", "--work", str(tmp_path), "--json", str(report)]) == 0
    short, long = json.loads(report.read_text())["runs"]
    assert (short["kind"], short["files"], long["kind"], long["files"]) == ("short", 20, "long", 2)
    assert long["seconds of sound/s"] == pytest.approx(100 * long["files/s"])
    assert short["server, CPU ms per file"] > 0 < short["command, CPU ms per file"]
    assert short["peak memory of the server, MB"] > 100
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
