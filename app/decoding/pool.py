"""Isolated decoding: a pool of worker processes that turn audio files into streams of samples, one file at a time each.

Whatever a file does to a decoder (crash, hang, exhaust memory) happens in a process of its own and is reported as
`DecoderFailed`. Backpressure reaches the decoder: it stops while the consumer does not read. Requires fork and Unix
sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from app.audio.errors import DecoderFailed, MediaError, TruncatedAudio
from app.audio.tag_schema import Value, checked
from app.audio.tracks import MAX_TRACK, Note, Track, read_notes, read_track
from app.decoding import protocol
from app.decoding.fork_server import ForkServer, Worker, open_descriptor
from app.inference.batcher import Closed
from model.config import SAMPLE_RATE

log = logging.getLogger(__name__)

_IDLE_TIMEOUT = 10.0  # seconds until idle workers beyond the warm ones end
_MAX_FILES = 500  # files per worker, in case a decoder leaks
_MAX_MESSAGE = 1 << 20  # bytes; a worker that announces more is corrupted
_EXIT_TIMEOUT = 1.0  # seconds until the fork server reports how a worker ended
_ERRORS: dict[str, type[MediaError]] = {MediaError.reason: MediaError} | {
    kind.reason: kind for kind in MediaError.__subclasses__()
}
_CLOSING = "The decoders are shutting down."
_INVALID_MESSAGE = "sent an invalid message"


class WorkerDied(Exception):
    """A worker failed while it had a file; the message completes "the decoder …".

    Without a message the worker has exited, and its exit status gives the reason.
    """


class DecodedStream:
    """A recording while a worker decodes it: iterate it once for blocks (n,) of float32, mono, at `rate` Hz.

    A block holds what was decoded in a fiftieth of a second, at most twelve seconds of audio at 16 kHz.

    sample_rate (Hz), channels: of the original. track: which of its audio tracks. duration (s, exact), decode_s,
    resample_s (s of work), tags (the file's metadata, see app.audio.tags), notes (what decoding noticed): after the
    last block. Iterating raises a MediaError, or Closed if the pool closes.
    """

    _kind = protocol.DECODE
    _content = protocol.AUDIO  # the kind of messages that iterating yields

    def __init__(
        self, pool: DecoderPool, file: int, filename: str, max_duration: float, options: dict[str, Any] | None = None
    ) -> None:
        """`options`: what the worker is told, see app.decoding.protocol."""
        self._pool, self._file, self._filename, self._max_duration = pool, file, filename, max_duration
        self._options = json.dumps(options or {}).encode()
        self._worker: Worker | None = None
        self._retried = self._delivered = self._ended = False
        self.sample_rate = self.channels = 0
        self.duration = self.decode_s = self.resample_s = 0.0
        self.tags: dict[str, Value] = {}
        self.track, self.notes = Track(0, 1), list[Note]()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            self._discard_worker()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._discard_worker()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._ended:
            try:
                kind, payload = await self._receive()
                if kind == self._content:
                    self._delivered = True
                    return payload
                self._handle_end(kind, payload)
            except WorkerDied as death:
                await self._fail_or_retry(death)
                await self._begin()
        raise StopAsyncIteration

    async def _begin(self) -> None:
        """Acquires a worker and waits for the recording's sample rate and channels."""
        while True:
            self._worker = await self._pool._acquire()
            if not send_request(self._worker, self._kind, self._file, self._max_duration, self._options):
                self._discard_worker()  # it had exited while idle
                continue
            try:
                kind, info = await self._receive()
                if kind != protocol.INFO:
                    raise WorkerDied(_INVALID_MESSAGE)
                self._handle_info(info)
                return
            except WorkerDied as death:
                await self._fail_or_retry(death)

    def _handle_info(self, info: dict[str, Any]) -> None:
        rate, channels = read_numbers(info, "sample_rate", "channels")
        self.sample_rate, self.channels = int(rate), int(channels)
        self.track = read_track(info.get("track"))

    async def _fail_or_retry(self, death: WorkerDied) -> None:
        """Raises DecoderFailed, unless the file may be retried in another worker."""
        why = str(death)
        if self._worker is not None and not why:
            why = await exit_reason(self._worker)
        self._discard_worker()
        if self._pool._closed:
            raise Closed(_CLOSING) from death
        if self._retried or self._delivered:
            raise DecoderFailed(self._filename, f"the decoder {why} while processing this file.") from death
        self._retried = True
        self._pool._discard_idle()

    def _stall_s(self) -> float | None:
        """Seconds without a message after which the worker counts as hung; None for never."""
        return self._pool._stall_s

    async def _receive(self) -> tuple[bytes, Any]:
        """Returns the next message, see `read_message`. Raises WorkerDied, or the error in an ERROR message."""
        assert self._worker is not None
        kind, payload = await read_message(self._worker, self._stall_s())
        if kind == protocol.ERROR:
            self._raise(payload)
        return kind, payload

    def _raise(self, message: dict[str, Any]) -> None:
        reason, why = str(message.get("reason")), str(message.get("why"))
        if reason == protocol.OUT_OF_MEMORY:
            raise WorkerDied(f"exceeded its memory limit of {self._pool._memory_mb} MB")
        if reason == protocol.UNEXPECTED:
            raise WorkerDied(f"failed ({why})")
        if reason not in _ERRORS:
            raise WorkerDied(_INVALID_MESSAGE)
        error = _ERRORS[reason](self._filename, why)
        if isinstance(error, TruncatedAudio):
            error.read = message.get("read")
        raise error

    def _handle_end(self, kind: bytes, end: Any) -> None:
        if kind != protocol.END:
            raise WorkerDied(_INVALID_MESSAGE)
        self.duration, self.decode_s, self.resample_s = read_numbers(end, "duration", "decode_s", "resample_s")
        self.tags = checked(end.get("tags"))  # untrusted: a file may have taken over the worker
        self.notes = read_notes(end.get("notes"))
        self._finish()

    def _finish(self) -> None:
        """Gives the worker back after its last message."""
        assert self._worker is not None
        self._ended = True
        self._pool._release(self._worker)
        self._worker = None

    def _discard_worker(self) -> None:
        """Ends a worker that is busy: forking another one is cheaper than waiting for it."""
        if self._worker is not None:
            self._pool._discard(self._worker)
            self._worker = None


class LiveStream(DecodedStream):
    """Audio that a worker decodes while it arrives at a socket."""

    _kind = protocol.LIVE

    def __init__(self, pool: DecoderPool, source: int, filename: str, max_duration: float) -> None:
        super().__init__(pool, source, filename, max_duration)
        self._retried = True  # what a socket has given does not come again

    def _stall_s(self) -> float | None:
        return None  # sound may arrive at any time


class ExcerptStream(DecodedStream):
    """The file of an excerpt while a worker writes it: iterate it once for its bytes.

    length: bytes of the whole file, None if unknown. first, last: the bytes that are sent of it if a range was wanted;
    first > last if there are none. Iterating raises as in DecodedStream.
    """

    _kind, _content = protocol.EXCERPT, protocol.DATA
    length: int | None = None
    first: int | None = None
    last: int | None = None

    def _handle_info(self, info: dict[str, Any]) -> None:
        values = [info.get(name) for name in ("length", "first", "last")]
        if not all(value is None or (type(value) is int and -1 <= value < 2**62) for value in values):
            raise WorkerDied(_INVALID_MESSAGE)
        self.length, self.first, self.last = values

    def _handle_end(self, kind: bytes, end: Any) -> None:
        if kind != protocol.END:
            raise WorkerDied(_INVALID_MESSAGE)
        self._finish()


class DecoderPool:
    """Worker processes that decode files.

    workers: number kept warm, by default one per core. max_workers: upper bound while all are busy (a worker whose
    consumer pauses costs nothing); further callers wait in order. memory_mb: memory limit of a worker beyond what it
    starts with. stall_s: seconds without a message after which a worker counts as hung.
    """

    def __init__(
        self, *, workers: int | None = None, max_workers: int = 128, memory_mb: int = 1024, stall_s: float = 30.0
    ) -> None:
        self._warm = workers if workers is not None else os.cpu_count() or 1
        self._max = max(self._warm, max_workers, 1)
        self._memory_mb, self._stall_s = memory_mb, stall_s
        self._fork_server = ForkServer(memory_mb, self._on_forked, self._on_exited, self._on_lost)
        self._alive: set[Worker] = set()
        self._idle: list[Worker] = []  # used last in, first out, so that the others stay idle
        self._waiters: deque[asyncio.Future[Worker]] = deque()
        self._starting = 0
        self._unused = 0  # workers idle since the last shrink
        self._shrink_timer: asyncio.TimerHandle | None = None
        self._closed = True

    @property
    def alive(self) -> int:
        """The number of worker processes."""
        return len(self._alive)

    async def start(self) -> None:
        """Starts the warm workers. Raises OSError or RuntimeError if that fails."""
        self._closed = False
        try:
            await self._fork_server.start()
        except BaseException:
            await self.close()
            raise
        self._grow()

    async def close(self) -> None:
        """Ends every process. Open streams and waiting callers get Closed."""
        self._closed = True
        if self._shrink_timer is not None:
            self._shrink_timer.cancel()
        self._fail_waiters(Closed(_CLOSING))
        for worker in self._alive - set(self._idle):
            with contextlib.suppress(OSError):
                worker.socket.shutdown(socket.SHUT_RDWR)  # wakes its stream, which closes the socket
        for worker in list(self._idle):
            self._discard(worker)
        await self._fork_server.close()
        self._alive.clear()
        self._starting = 0

    @asynccontextmanager
    async def open(
        self,
        file: BinaryIO | Path,
        filename: str,
        max_duration: float = 14_400.0,
        track: str | None = None,
        rate: int = SAMPLE_RATE,
    ) -> AsyncIterator[DecodedStream]:
        """Decodes a file from its beginning, at `rate` Hz. `max_duration` in seconds; `filename` is for messages.

        track: number or language of an audio track (app.audio.tracks.choose_track), by default the default one.
        `file` may be a path or any open file; its position does not change if the system can reopen it, as Linux can.
        Raises a MediaError, OSError if the path cannot be opened, Closed.
        """
        options = {"track": track and track[:MAX_TRACK], "rate": rate}
        async with _descriptor(file) as at, DecodedStream(self, at, filename, max_duration, options) as stream:
            yield stream

    @asynccontextmanager
    async def open_excerpt(
        self, file: Path, filename: str, options: dict[str, Any], max_duration: float = 14_400.0
    ) -> AsyncIterator[ExcerptStream]:
        """Writes an excerpt of a file. `options`: of app.audio.excerpt.ExcerptOptions. Raises as `open` does."""
        async with _descriptor(file) as at, ExcerptStream(self, at, filename, max_duration, options) as stream:
            yield stream

    @asynccontextmanager
    async def open_live(self, source: socket.socket, filename: str) -> AsyncIterator[DecodedStream]:
        """Decodes Ogg, WebM or FLAC while it arrives at a socket, which may take any time; `filename` is for messages.

        Its blocks hold what has been decoded, at most _MAX_MESSAGE. Raises a MediaError, Closed.
        """
        async with LiveStream(self, source.fileno(), filename, math.inf) as stream:
            yield stream

    async def _acquire(self) -> Worker:
        """Returns an idle worker, waiting in order for one if necessary."""
        if self._closed:
            raise Closed(_CLOSING)
        if self._idle and not self._waiters:
            worker = self._idle.pop()
            self._unused = min(self._unused, len(self._idle))
            return worker
        waiter: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # it may have been removed already
                    self._waiters.remove(waiter)
            elif waiter.exception() is None:  # a worker was assigned at the same moment
                self._release(waiter.result())
            raise

    def _release(self, worker: Worker) -> None:
        """Passes an idle worker to the first waiter, or keeps it."""
        if worker not in self._alive:
            return
        if self._closed or worker.files >= _MAX_FILES or worker.exited.done():  # killed after its last message
            self._discard(worker)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._idle.append(worker)
        if self._shrink_timer is None:
            self._schedule_shrink()

    def _discard_idle(self) -> None:
        """Ends the idle workers before a retry: whatever ended one worker may have ended them too."""
        for worker in list(self._idle):
            self._discard(worker)

    def _shrink(self) -> None:
        """Ends the workers beyond the warm ones that were idle during the whole interval."""
        self._shrink_timer = None
        surplus = max(0, len(self._alive) - self._warm)
        for worker in self._idle[: min(self._unused, surplus)]:
            self._discard(worker)
        if self._idle:
            self._schedule_shrink()

    def _schedule_shrink(self) -> None:
        """Starts counting unused workers if there are more than the warm ones."""
        if len(self._alive) > self._warm:
            self._unused = len(self._idle)
            self._shrink_timer = asyncio.get_running_loop().call_later(_IDLE_TIMEOUT, self._shrink)

    def _grow(self) -> None:
        """Forks workers for the waiters and up to the warm number."""
        while not self._closed:
            workers = len(self._alive) + self._starting
            if workers >= self._max or (self._starting >= len(self._waiters) and workers >= self._warm):
                break
            try:
                self._fork_server.fork()
            except OSError as error:
                self._on_fork_failed(error)
                break
            self._starting += 1

    def _on_fork_failed(self, error: Exception) -> None:
        """Waiters wait for the other workers, if there are any."""
        log.error("no decoder can be started: %s", error)
        if not self._alive and not self._starting:
            self._fail_waiters(error)

    def _discard(self, worker: Worker) -> None:
        """Ends a worker in any state."""
        worker.socket.close()
        if worker in self._alive:
            self._alive.remove(worker)
            if worker in self._idle:
                self._idle.remove(worker)
            self._fork_server.kill(worker)
            self._grow()

    def _on_forked(self, worker: Worker | None) -> None:
        self._starting -= 1
        if worker is None:
            self._on_fork_failed(OSError("the system cannot create a process"))
            return
        self._alive.add(worker)
        self._release(worker)

    def _on_exited(self, worker: Worker) -> None:
        """Replaces an idle worker that exited. The stream of a busy one notices by itself."""
        if worker in self._idle:
            self._discard(worker)

    def _on_lost(self, error: Exception | None) -> None:
        """Handles the loss of all workers, including those that were starting."""
        self._starting = 0
        for worker in list(self._idle):
            worker.socket.close()
            self._alive.remove(worker)
        self._idle.clear()
        if error is None:
            self._grow()
        else:
            self._on_fork_failed(error)
            self._fail_waiters(error)

    def _fail_waiters(self, error: Exception) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)


@asynccontextmanager
async def _descriptor(file: BinaryIO | Path) -> AsyncIterator[int]:
    """A descriptor of a file for a worker, closed at the end. Raises OSError."""
    descriptor = await open_descriptor(file)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# Messages to and from one worker


def send_request(worker: Worker, kind: bytes, file: int, max_duration: float, options: bytes = b"") -> bool:
    """Passes a file descriptor to an idle worker, with the options of this kind of request (app.decoding.protocol).

    `max_duration` in seconds. False if the worker has exited.
    """
    cpu_s = 60 + min(max_duration, 86_400.0) / 4  # many times what any format needs; stalls are detected much earlier
    worker.files += 1
    try:
        request = protocol.REQUEST.pack(kind, max_duration, cpu_s, len(options))
        socket.send_fds(worker.socket, [request, options], [file])
    except OSError:
        return False
    return True


async def read_message(worker: Worker, stall_s: float | None) -> tuple[bytes, Any]:
    """Returns the worker's next message: AUDIO with an array (n,), DATA with bytes, other kinds with a dict.

    Raises WorkerDied.

    stall_s: seconds without data after which the worker counts as hung; None for never.
    """
    header = bytearray(protocol.HEADER.size)
    await _fill(worker.socket, memoryview(header), stall_s)
    kind, size = protocol.HEADER.unpack(header)
    if size > _MAX_MESSAGE or (kind == protocol.AUDIO and size % 4):
        raise WorkerDied(_INVALID_MESSAGE)
    if kind == protocol.AUDIO:
        samples = np.empty(size // 4, dtype=np.float32)
        await _fill(worker.socket, samples.data.cast("B"), stall_s)
        return kind, samples
    payload = bytearray(size)
    await _fill(worker.socket, memoryview(payload), stall_s)
    if kind == protocol.DATA:
        return kind, bytes(payload)
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WorkerDied(_INVALID_MESSAGE) from error
    if not isinstance(message, dict):
        raise WorkerDied(_INVALID_MESSAGE)
    return kind, message


def read_numbers(message: dict[str, Any], *names: str) -> list[float]:
    """Returns the named numbers of a message. Raises WorkerDied if one is missing or not finite."""
    try:
        values = [float(message[name]) for name in names]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkerDied(_INVALID_MESSAGE) from error
    if not all(map(math.isfinite, values)):
        raise WorkerDied(_INVALID_MESSAGE)
    return values


async def exit_reason(worker: Worker) -> str:
    """How a worker ended, completing "the decoder …"."""
    try:
        async with asyncio.timeout(_EXIT_TIMEOUT):
            status = await asyncio.shield(worker.exited)
    except TimeoutError:
        return "closed its connection"
    if os.WIFSIGNALED(status):
        return f"crashed ({signal.strsignal(os.WTERMSIG(status))})"
    return "exited"


async def _fill(sock: socket.socket, target: memoryview, stall_s: float | None) -> None:
    while target:
        try:
            received = sock.recv_into(target)  # usually there already
        except BlockingIOError:
            received = await _wait_for(sock, target, stall_s)
        except OSError as error:
            raise WorkerDied from error
        if not received:
            raise WorkerDied
        target = target[received:]


async def _wait_for(sock: socket.socket, target: memoryview, stall_s: float | None) -> int:
    try:
        async with asyncio.timeout(stall_s):
            return await asyncio.get_running_loop().sock_recv_into(sock, target)
    except TimeoutError as error:
        raise WorkerDied(f"stalled for {stall_s:g} s") from error
    except OSError as error:
        raise WorkerDied from error
