"""The process that forks decoding workers, seen from the server: starting it, asking it, noticing what becomes of it.

A fork server of our own and not multiprocessing's: that one imports the server's main module into each child, torch
and all, if it was started as a script, and shares its list of preloaded modules with whoever else uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.decoding import protocol as wire

log = logging.getLogger(__name__)

_START = 120.0  # seconds it may take to load the decoders
_END = 5.0  # seconds it may take to end its workers
_SENT_AHEAD = 1 << 20  # bytes that a worker may send before the server reads; most systems give less
_ATTEMPTS = 3  # to start it, in a row
_NO_START = "The process that decodes sound files cannot be started; the log says why."
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_MAIN = "import sys; sys.path[:] = {path!r}; from app.decoding.worker import main; main({fd}, {memory_mb})"


@dataclass(eq=False)
class Worker:
    """A worker process, and our end of its socket.

    ended: its exit status, as waitpid gives it, once it has ended. files: how many it was given.
    """

    pid: int
    socket: socket.socket
    ended: asyncio.Future[int]
    files: int = 0


class ForkServer:
    """The forking process. It is started again when it dies.

    on_born(worker): None if the system gave no process. on_died(worker). on_lost(error): the forking process itself
    died, and with it all workers and what was asked for; with an error where it could not be started again.
    All are called on the event loop.
    """

    def __init__(
        self,
        memory_mb: int,
        on_born: Callable[[Worker | None], None],
        on_died: Callable[[Worker], None],
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._memory_mb = memory_mb
        self._on_born, self._on_died, self._on_lost = on_born, on_died, on_lost
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._unborn: deque[socket.socket] = deque()  # our ends, in the order in which workers were asked for
        self._children: dict[int, Worker] = {}
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it. Raises OSError or RuntimeError if it does not come up."""
        self._launch()
        assert self._control is not None
        try:
            async with asyncio.timeout(_START):
                message = await self._message()
        except TimeoutError:
            message = b""
        if not message:
            await asyncio.to_thread(self._end)
            raise RuntimeError(_NO_START)
        self._hear(*wire.CONTROL.unpack(message))
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends it and its workers, and waits until they have."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await asyncio.to_thread(self._end)
        self._forget()

    def fork(self) -> None:
        """Asks for a worker, which `on_born` gets. Raises OSError where there is no descriptor or process left."""
        if self._watching is not None and self._watching.done():  # it was given up; this is a new attempt
            self._launch()
            self._watching = asyncio.create_task(self._watch())
        assert self._control is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD)
        self._unborn.append(ours)
        with theirs, contextlib.suppress(OSError):  # if it has died, `on_lost` tells
            socket.send_fds(self._control, [wire.CONTROL.pack(wire.FORK, 0, 0)], [theirs.fileno()])

    def kill(self, worker: Worker) -> None:
        """Kills a worker. By its parent, who knows whether the number is still this worker's."""
        if not worker.ended.done() and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(wire.CONTROL.pack(wire.KILL, worker.pid, 0))

    async def _watch(self) -> None:
        """Passes on what it tells, and starts it again when it dies."""
        failures = 0
        while True:
            while message := await self._message():
                kind, pid, status = wire.CONTROL.unpack(message)
                self._hear(kind, pid, status)
                failures = 0 if kind == wire.BORN else failures
            failures += 1
            log.error("the process that forks decoders ended")
            await asyncio.to_thread(self._end)
            self._forget()
            error: Exception | None = None
            try:
                if failures >= _ATTEMPTS:
                    raise RuntimeError(_NO_START)
                self._launch()
            except (OSError, RuntimeError) as why:
                error = why
            self._on_lost(error)
            if error is not None:
                return

    def _hear(self, kind: bytes, pid: int, status: int) -> None:
        if kind == wire.BORN:
            ours = self._unborn.popleft()
            if not pid:
                ours.close()
                self._on_born(None)
                return
            self._children[pid] = Worker(pid, ours, asyncio.get_running_loop().create_future())
            self._on_born(self._children[pid])
        elif kind == wire.READY and status:
            log.warning("this system lets nobody refuse decoders the network and other files: see docs/security.md")
        elif kind == wire.DIED:
            worker = self._children.pop(pid)
            worker.ended.set_result(status)
            self._on_died(worker)

    async def _message(self) -> bytes:
        """The next message; empty when there will be none."""
        assert self._control is not None
        loop, message = asyncio.get_running_loop(), b""
        while len(message) < wire.CONTROL.size:
            try:
                part = await loop.sock_recv(self._control, wire.CONTROL.size - len(message))
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
        path.append(str(Path(__file__).resolve().parents[2]))
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
        if self._process is None:
            return
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:  # it could not end its workers
            for pid in list(self._children):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _forget(self) -> None:
        while self._unborn:
            self._unborn.popleft().close()
        for worker in self._children.values():
            worker.ended.set_result(signal.SIGKILL)
        self._children.clear()
