"""What is to be delivered, on disk until it is: events for a webhook, and clips for the library.

An item is written and synced before its delivery is first tried, and deleted after it, so that neither a receiver that
is down nor the end of this process loses it. Items are tried on their own, each with a delay that doubles.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 300.0  # seconds between attempts
MAX_ITEMS = 100_000  # in an outbox; the oldest are dropped
_PART = ".part"


class Undeliverable(Exception):
    """The delivery failed and may succeed later; the message says why."""


@dataclass(frozen=True)
class Item:
    """A delivery: its id, which stays the same when it is tried again, its content, and a file that belongs to it."""

    id: str
    content: dict[str, Any]
    file: Path | None


class Outbox:
    """A folder of items and the task that delivers them. Call `run` once, and `add` from the same event loop."""

    def __init__(self, folder: Path, deliver: Callable[[Item], Awaitable[None]], failed: Callable[[], None]) -> None:
        """`deliver` raises Undeliverable. `failed` is called after each failed attempt and for dropped items."""
        self._folder, self._deliver, self._failed = folder, deliver, failed
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(f"*{_PART}"):
            part.unlink()
        self._due: dict[str, tuple[float, float]] = {path.stem: (0.0, _SHORTEST) for path in folder.glob("*.json")}
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, content: dict[str, Any], data: bytes | None = None) -> str:
        """Stores an item, with `data` as its file, and returns its id."""
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        if data is not None:
            self._write(name + ".wav", data)
        self._write(name + ".json", json.dumps(content, ensure_ascii=False).encode())
        self._due[name] = (0.0, _SHORTEST)
        if len(self._due) > MAX_ITEMS:
            log.error("%s is full; its oldest item is dropped", self._folder)
            self._failed()
            self._forget(min(self._due))
        self._added.set()
        return name

    async def run(self) -> None:
        """Delivers items, oldest first, until it is cancelled."""
        while True:
            now = time.monotonic()
            ready = sorted(name for name, (due, _) in self._due.items() if due <= now)
            for name in ready:
                await self._attempt(name)
            self._added.clear()
            wait = min((due for due, _ in self._due.values()), default=now + 60) - time.monotonic()
            try:
                await asyncio.wait_for(self._added.wait(), max(0.05, wait))
            except TimeoutError:
                continue

    async def flush(self) -> None:
        """Tries every item once more, without waiting."""
        for name in sorted(self._due):
            await self._attempt(name)

    async def _attempt(self, name: str) -> None:
        path = self._folder / f"{name}.json"
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):  # deleted or damaged by somebody else
            self._forget(name)
            return
        file = path.with_suffix(".wav")
        try:
            await self._deliver(Item(name, content, file if file.exists() else None))
        except Undeliverable as error:
            _, delay = self._due.get(name, (0.0, _SHORTEST))
            self._due[name] = (time.monotonic() + delay, min(2 * delay, _LONGEST))
            self._failed()
            log.warning("%s; trying again in %g s", error, delay)
        else:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._due.pop(name, None)
        for suffix in (".json", ".wav"):
            (self._folder / (name + suffix)).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        part = self._folder / (name + _PART)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._folder / name)
