"""The vector search benchmark runs completely on a few vectors, and its ground truth is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.index.vector_data import Data
from benchmarks.index.vectors import main


def test_the_ground_truth_is_exact(tmp_path: Path) -> None:
    data = Data(tmp_path / "work", 21_000, 8, 6)  # more than one block
    data.make()
    similarities = data.asked() @ data.vectors().T
    np.testing.assert_array_equal(data.truth(), np.argsort(-similarities, axis=1)[:, :10] + 1)
    with pytest.raises(SystemExit):
        Data(tmp_path / "work", 100, 8, 6).make()


def test_it_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--work", str(tmp_path), "--count", "2000", "--dim", "16", "--queries", "20", "--only"]
    assert main([*small, "opened"]) == 0  # a small index is flat and has no snapshot
    assert "100.0" in capsys.readouterr().out
    results = tmp_path / "result-opened.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"memory": 123.0}))
    assert main([*small, "opened"]) == 0
    assert "| 123 " in capsys.readouterr().out
