"""Waiting for what comes to hold some time, in place of a pause: `wait_until` blocks, `until` awaits.

Both fail after `seconds`. They are safety nets of tests, so they can be long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_PAUSE = 0.005  # seconds between two looks


def wait_until(holds: Callable[[], object], seconds: float = 60.0, told: Callable[[], str] = str) -> None:
    """Blocks until something holds. `told`: what to say if it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, told() or "it never came to hold"
        time.sleep(_PAUSE)


async def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Lets others work until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        await asyncio.sleep(_PAUSE)
