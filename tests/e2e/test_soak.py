"""A short soak test; `python -m benchmarks.reliability.soak` runs longer. FINELAP_SOAK_S sets its seconds (25)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.reliability.soak import soak

pytestmark = pytest.mark.slow


@pytest.mark.timeout(7200)
def test_soak(small_checkpoint: Path) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("memory and processes are read from /proc, which does not exist here")
    seconds = float(os.environ.get("FINELAP_SOAK_S", "25"))
    report = soak(seconds, callers=4, pause=2.0, least=51)
    details = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    assert not report.wrong, details
    assert report.clips and report.backups and report.reindexes, details
    assert sum(report.statuses.values()) > 50, details
    assert not any(status >= 500 for what, status in report.statuses if what != "ready"), details
    half = len(report.samples) // 2
    # a leak of a descriptor or of 100 kB per request would exceed this; caches are full by half-time
    before, after = report.samples[half // 2 : half] or report.samples[:1], report.samples[-max(1, half // 2) :]
    assert min(s[2] for s in after) <= max(s[2] for s in before) + 20, details
    assert min(s[1] for s in after) <= max(s[1] for s in before) + 100e6, details
