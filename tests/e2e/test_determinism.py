"""The same sound has the same embedding: whoever shares the batch, in any process, with any threads, in any format."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability import determinism

pytestmark = pytest.mark.slow


def test_the_same_sound_has_the_same_embedding(small_checkpoint: Path) -> None:
    rows = {row.what: row for row in determinism.measure()}
    lossy = {what for what in rows if "lossy" in what}
    assert len(lossy) == 2 and len(rows) == 16
    for what, row in rows.items():
        if what in lossy:  # other samples: as near as they sound
            assert row.clip > 0.98 and row.frame > 0.9, row
        else:
            assert row.difference < 1e-5, row
