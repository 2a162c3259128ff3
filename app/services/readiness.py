"""Readiness: a real forward pass and a library check, for the readiness probe and the metrics."""

from __future__ import annotations

import asyncio

from app.errors import NotReady
from app.state import AppState

TIMEOUT_S = 30.0  # for one check
_METRICS_WAIT_S = 0.5  # that a scrape of the metrics waits for a check


async def check(state: AppState) -> None:
    """Raises NotReady with the reason if the forward pass or the library fails, or both take longer than TIMEOUT_S."""
    engine, library = state.engine, state.library
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(engine.check(), state.read(library.check))
    except TimeoutError as error:
        raise NotReady(f"The check did not finish within {TIMEOUT_S:g} s.") from error
    except Exception as error:
        raise NotReady(f"The readiness check failed: {error}") from error


class ReadinessMonitor:
    """The result of the most recent check, for the metrics: one check runs at a time, in the background if slow."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._check: asyncio.Task[None] | None = None
        self._ready = False

    async def poll(self) -> bool:
        """Starts a check if none is running, waits briefly for it, and returns the most recent result."""
        if self._state.closing:
            return False
        if self._check is None:
            self._check = asyncio.create_task(check(self._state))
        done, _ = await asyncio.wait({self._check}, timeout=_METRICS_WAIT_S)
        if done and self._check in done:
            self._ready = not self._check.cancelled() and self._check.exception() is None
            self._check = None
        return self._ready
