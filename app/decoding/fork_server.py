"""The server's side of the fork server: starts the process that forks decoding workers and watches both.

multiprocessing's own fork server is not used: it imports the main module, PyTorch included, into each child if the
server was started as a script, and it shares its preloaded modules with every other user.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.decoding import protocol
from index import StorageFull

log = logging.getLogger(__name__)

_START_TIMEOUT = 120.0  # seconds to load the decoders
_STOP_TIMEOUT = 5.0  # seconds to end the workers
_SEND_BUFFER = 1 << 20  # bytes that a worker may send ahead; most systems grant less
_MAX_ATTEMPTS = 3  # consecutive restarts
_START_FAILED = "The decoder process cannot be started; see the log."
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_MAIN = "import sys; sys.path[:] = {path!r}; from app.decoding.worker import main; main({fd}, {memory_mb})"


@dataclass(eq=False)
class Worker:
    """A worker process and the server's end of its socket.

    exited: resolves to the exit status as returned by waitpid. files: number of files it was given.
    """

    pid: int
    socket: socket.socket
    exited: asyncio.Future[int]
    files: int = 0


class ForkServer:
    """The process that forks workers. It is restarted when it dies.

    on_forked(worker): None if the fork failed. on_exited(worker). on_lost(error): the fork server died, and with it all
    workers and pending forks; `error` is set if it could not be restarted. All are called on the event loop.
    """

    def __init__(
        self,
        memory_mb: int,
        on_forked: Callable[[Worker | None], None],
        on_exited: Callable[[Worker], None],
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._memory_mb = memory_mb
        self._on_forked, self._on_exited, self._on_lost = on_forked, on_exited, on_lost
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pending: deque[socket.socket] = deque()  # the server's ends, in the order in which forks were requested
        self._workers: dict[int, Worker] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process. Raises OSError or RuntimeError if it does not come up."""
        self._launch()
        assert self._control is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                message = await self._receive()
        except TimeoutError:
            message = b""
        if not message:
            await asyncio.to_thread(self._stop)
            raise RuntimeError(_START_FAILED)
        self._handle(*protocol.CONTROL.unpack(message))
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends the process and its workers, and waits for them."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await asyncio.to_thread(self._stop)
        self._forget_workers()

    def fork(self) -> None:
        """Requests a worker, which is passed to `on_forked`. Raises OSError if descriptors or processes run out."""
        if self._watcher is not None and self._watcher.done():  # restarting was given up; try again
            self._launch()
            self._watcher = asyncio.create_task(self._watch())
        assert self._control is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._pending.append(ours)
        with theirs, contextlib.suppress(OSError):  # if the process has died, `on_lost` reports it
            socket.send_fds(self._control, [protocol.CONTROL.pack(protocol.FORK, 0, 0)], [theirs.fileno()])

    def kill(self, worker: Worker) -> None:
        """Kills a worker. Its parent does so, because only the parent knows whether the pid is still this worker's."""
        if not worker.exited.done() and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(protocol.CONTROL.pack(protocol.KILL, worker.pid, 0))

    async def _watch(self) -> None:
        """Handles the process's messages and restarts it when it dies."""
        failures = 0
        while True:
            while message := await self._receive():
                kind, pid, status = protocol.CONTROL.unpack(message)
                self._handle(kind, pid, status)
                failures = 0 if kind == protocol.FORKED else failures
            failures += 1
            log.error("the decoder fork server ended unexpectedly")
            await asyncio.to_thread(self._stop)
            self._forget_workers()
            error: Exception | None = None
            try:
                if failures >= _MAX_ATTEMPTS:
                    raise RuntimeError(_START_FAILED)
                self._launch()
            except (OSError, RuntimeError) as why:
                error = why
            self._on_lost(error)
            if error is not None:
                return

    def _handle(self, kind: bytes, pid: int, status: int) -> None:
        if kind == protocol.FORKED:
            ours = self._pending.popleft()
            if not pid:
                ours.close()
                self._on_forked(None)
                return
            self._workers[pid] = Worker(pid, ours, asyncio.get_running_loop().create_future())
            self._on_forked(self._workers[pid])
        elif kind == protocol.READY and status:
            log.warning(
                "decoders cannot be confined on this system (no seccomp filter): see docs/operations/security.md"
            )
        elif kind == protocol.EXITED:
            worker = self._workers.pop(pid)
            worker.exited.set_result(status)
            self._on_exited(worker)

    async def _receive(self) -> bytes:
        """Returns the next message; empty once the socket is closed."""
        assert self._control is not None
        loop, message = asyncio.get_running_loop(), b""
        while len(message) < protocol.CONTROL.size:
            try:
                part = await loop.sock_recv(self._control, protocol.CONTROL.size - len(message))
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
                start_new_session=True,  # the server handles Ctrl-C and a closed terminal
            )
        self._control = ours

    def _stop(self) -> None:
        """Closes the control socket, which makes the process end its workers and itself. Blocks."""
        if self._control is not None:
            self._control.close()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:  # it could not end its workers
            for pid in list(self._workers):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _forget_workers(self) -> None:
        while self._pending:
            self._pending.popleft().close()
        for worker in self._workers.values():
            worker.exited.set_result(signal.SIGKILL)
        self._workers.clear()


# Files as descriptors that can be passed to a worker


async def open_descriptor(file: BinaryIO | Path) -> int:
    """Opens a descriptor for reading the file, with a file position of its own if the system allows it (Linux does).

    `file` may be a path or any open file, including spooled and in-memory files. The caller closes the descriptor.
    Raises OSError, StorageFull.
    """
    if not isinstance(file, Path) and _is_in_memory(file) and hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("audio", os.MFD_CLOEXEC), "w+b") as copy:
            return _copy(file, copy)  # copying a megabyte is faster than switching to another thread
    opening = asyncio.create_task(asyncio.to_thread(_open_descriptor, file))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:  # the thread continues
        opening.add_done_callback(lambda done: None if done.exception() else os.close(done.result()))
        raise


def _open_descriptor(file: BinaryIO | Path) -> int:
    if isinstance(file, Path):
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _storage_errors():
            file.flush()
            descriptor = file.fileno()  # moves a spooled file to disk on systems without in-memory files
            file.flush()
    except io.UnsupportedOperation:  # in memory only
        with _storage_errors(), tempfile.TemporaryFile() as copy:
            return _copy(file, copy)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(descriptor)


def _is_in_memory(file: BinaryIO) -> bool:
    """Whether `file` is a small spooled file that is still in memory, as most uploads are."""
    return isinstance(file, tempfile.SpooledTemporaryFile) and not getattr(file, "_rolled", True)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turns the errors of a full disk into StorageFull. io.UnsupportedOperation is an OSError too and passes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no space left for uploads in the temporary directory (TMPDIR)") from error
        raise


def _copy(file: BinaryIO, copy: BinaryIO) -> int:
    """Copies a file and returns a descriptor of the copy, at its beginning."""
    position = file.tell()
    file.seek(0)
    try:
        shutil.copyfileobj(file, copy)
    finally:
        file.seek(position)
    copy.seek(0)  # also flushes
    return os.dup(copy.fileno())
