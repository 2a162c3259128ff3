"""Decoders for the tests of services: the process that forks them outlives its service and serves the next one.

Starting it takes a quarter of a second, and hundreds of tests start a service. Its workers are always new. What starts
and ends it, tests/app/decoding tests with processes of their own.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from typing import ClassVar

from app.decoding.fork_server import ForkServer
from tests.support.waiting import until

_PATIENCE = 20.0  # seconds for the workers to end


class KeptForkServer(ForkServer):
    """A fork server whose process, if it is sound when this is closed, is kept for the next one."""

    _kept: ClassVar[dict[int, list[tuple[subprocess.Popen[bytes], socket.socket]]]] = {}  # by memory limit

    async def start(self) -> None:
        """Takes a process that was kept, or starts one. Raises OSError or RuntimeError if it does not come up."""
        kept = self._kept.setdefault(self._memory_mb, [])
        while kept:
            self._process, self._control = kept.pop()
            if self._process.poll() is None:
                self._watcher = asyncio.create_task(self._watch())
                return
            self._stop()
        await super().start()

    async def close(self) -> None:
        """Ends the workers, and waits for them."""
        if await self._is_free() and self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            assert self._process is not None and self._control is not None
            self._kept[self._memory_mb].append((self._process, self._control))
            self._control = None
        else:
            await super().close()

    async def _is_free(self) -> bool:
        """Whether the process is as good as new: all workers have ended, and the next message is another's."""
        watcher = self._watcher
        if watcher is None or watcher.done():
            return False
        for worker in self._workers.values():
            self.kill(worker)
        await until(lambda: watcher.done() or not (self._workers or self._pending), _PATIENCE)
        return not watcher.done()

    @classmethod
    def end_all(cls) -> None:
        """Ends the processes that are kept."""
        for process, control in sum(cls._kept.values(), []):
            control.close()
            process.wait(_PATIENCE)
        cls._kept.clear()
