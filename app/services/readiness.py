"""Whether the service can work now: a real forward pass and an open library, asked for by probes and by the metrics.

Knows the services; knows no route.
"""

from __future__ import annotations

import asyncio

from app.errors import NotReady
from app.state import Services

LIMIT = 30.0  # seconds that a check may take
_GLANCE = 0.5  # seconds that who asks for the metrics waits for one


async def check(services: Services) -> None:
    """Raises NotReady with the reason if a forward pass or the library fails, or takes longer than LIMIT."""
    engine, catalog = services.engine, services.catalog
    try:
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(engine.check(), services.read(catalog.check))
    except TimeoutError as error:
        raise NotReady(f"The model did not answer within {LIMIT:g} s.") from error
    except Exception as error:
        raise NotReady(f"The service cannot work: {error}") from error


class Readiness:
    """The outcome of the last check that has ended. One runs at a time, in the background if it takes long."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._check: asyncio.Task[None] | None = None
        self._ready = False

    async def look(self) -> bool:
        """Begins a check where none runs, waits a moment for it, and says what the last one said."""
        if self._services.closing:
            return False
        if self._check is None:
            self._check = asyncio.create_task(check(self._services))
        done, _ = await asyncio.wait({self._check}, timeout=_GLANCE)
        if done and self._check in done:
            self._ready = not self._check.cancelled() and self._check.exception() is None
            self._check = None
        return self._ready
