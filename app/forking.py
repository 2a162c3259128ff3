"""The process that forks decoding workers, seen from the server: starting it, asking it, noticing what becomes of it.

A fork server of our own and not multiprocessing's: that one imports the server's main module into each child, torch
and all, if it was started as a script, and shares its list of preloaded modules with whoever else uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app import decoder

_START = 120.0  # seconds it may take to load the decoders
_RESTARTS = 3  # in a row, without a worker born between
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_MAIN = "import sys; sys.path[:] = {path!r}; from app.decoder import main; main({fd}, {memory_mb})"


@dataclass(eq=False)
class Worker:
    """A worker process, and our end of its socket. files: how many it was given."""

    pid: int
    socket: socket.socket
    files: int = 0


class ForkServer:
    """The forking process. It is started again when it dies.

    on_born(worker), on_died(pid), and on_lost(error): it died itself, with an error if it cannot be started again.
    All are called on the event loop.
    """

    def __init__(
        self,
        memory_mb: int,
        on_born: Callable[[Worker], None],
        on_died: Callable[[int], None],
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._memory_mb = memory_mb
        self._on_born, self._on_died, self._on_lost = on_born, on_died, on_lost
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._unborn: deque[socket.socket] = deque()  # our ends, in the order in which workers were asked for
        self._children: set[int] = set()
        self._watching: asyncio.Task[None] | None = None
        self._failures = 0

    async def start(self) -> None:
        """Starts it. Raises RuntimeError if it does not come up."""
        ready = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch(ready))
        async with asyncio.timeout(_START):
            await ready

    async def close(self) -> None:
        """Ends it and its workers, and waits until they have."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.to_thread(self._end)

    def fork(self) -> None:
        """Asks for a worker, which `on_born` gets."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._unborn.append(ours)
        with theirs, contextlib.suppress(OSError):  # if it has died, `on_lost` tells
            assert self._control is not None
            socket.send_fds(self._control, [decoder.CONTROL.pack(decoder.FORK, 0)], [theirs.fileno()])

    def kill(self, pid: int) -> None:
        """Kills a worker. By its parent, who knows whether the number is still this worker's."""
        if pid in self._children:
            with contextlib.suppress(OSError):
                assert self._control is not None
                self._control.send(decoder.CONTROL.pack(decoder.KILL, pid))

    async def _watch(self, ready: asyncio.Future[None]) -> None:
        """Starts it, again and again, and passes on what it tells."""
        loop = asyncio.get_running_loop()
        while True:
            self._launch()
            assert self._control is not None
            while message := await self._message(loop, self._control):
                kind, pid = decoder.CONTROL.unpack(message)
                if kind == decoder.READY:
                    if not ready.done():
                        ready.set_result(None)
                elif kind == decoder.BORN:
                    self._failures = 0
                    self._children.add(pid)
                    self._on_born(Worker(pid, self._unborn.popleft()))
                elif kind == decoder.DIED:
                    self._children.discard(pid)
                    self._on_died(pid)
            self._failures += 1
            await asyncio.to_thread(self._end)
            if self._failures >= _RESTARTS or not ready.done():
                error = RuntimeError("The process that decodes sound files cannot be started; the log says why.")
                if not ready.done():
                    ready.set_exception(error)
                self._on_lost(error)
                return
            self._on_lost(None)

    @staticmethod
    async def _message(loop: asyncio.AbstractEventLoop, control: socket.socket) -> bytes:
        message = b""
        while len(message) < decoder.CONTROL.size:
            try:
                part = await loop.sock_recv(control, decoder.CONTROL.size - len(message))
            except OSError:
                return b""
            if not part:
                return b""
            message += part
        return message

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        path = [os.path.abspath(entry) for entry in sys.path]
        path.append(str(Path(__file__).resolve().parent.parent))
        code = _MAIN.format(path=path, fd=theirs.fileno(), memory_mb=self._memory_mb)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
                start_new_session=True,  # Ctrl-C and a closed terminal are the server's business
            )
        self._control = ours

    def _end(self) -> None:
        """Closes the control socket, at which the process ends its workers and itself; blocking."""
        if self._control is not None:
            self._control.close()
        while self._unborn:
            self._unborn.popleft().close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.returncode != 0:  # it could not end its workers
                for pid in self._children:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
        self._children.clear()
