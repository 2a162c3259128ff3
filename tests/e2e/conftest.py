"""Real servers for the tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.common import SOUNDS, Server


@pytest.fixture(scope="module")
def start_server(small_checkpoint: Path) -> Iterator[Callable[..., Server]]:
    """Starts `finelap serve` with the bundled checkpoint and FINELAP_ settings; stopped at the end of the module."""
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("memory and processes are read from /proc, which this system has not")
    with contextlib.ExitStack() as servers:
        yield lambda **settings: servers.enter_context(Server(settings))
