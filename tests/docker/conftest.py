"""A real service for the tests of its environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.common import SOUNDS, Server


@pytest.fixture(scope="package")
def service(small_checkpoint: Path) -> Iterator[Server]:
    """`finelap serve` with the bundled checkpoint, an empty library and no keys."""
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    with Server({"max_upload_mb": 3, "stop_grace_s": 5}) as server:
        yield server
