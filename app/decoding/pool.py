"""Isolated decoding: a pool of processes that turn sound files into streams of samples, one file each at a time.

Whatever a file does to a decoder (crash, hang, swallow memory) happens in a process of its own and comes back as a
`DecoderFailed`. The caller's pace is the decoder's: who does not read on stops it. asyncio code; knows no HTTP.
Needs a system with fork and Unix sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.audio import errors as media_errors
from app.audio.errors import DecoderFailed, MediaError
from app.audio.tag_schema import Value, checked
from app.decoding import protocol as wire
from app.decoding.conversation import NONSENSE, Died, cause, numbers, read_message, send_request
from app.decoding.fork_server import ForkServer, Worker
from app.decoding.handover import open_apart
from app.inference.batcher import Closed

log = logging.getLogger(__name__)

_KEEP = 10.0  # seconds that workers beyond the warm ones stay idle before they end
_FILES = 500  # files a worker decodes before it is replaced, should a decoder leak
_ERRORS: dict[str, type[MediaError]] = {
    kind.reason: kind for kind in vars(media_errors).values() if isinstance(kind, type) and issubclass(kind, MediaError)
}
_CLOSING = "The decoders are shutting down."


class DecodedStream:
    """A recording while a worker decodes it: iterates, once, over blocks (n,) of float32, mono, 16 kHz.

    A block has what was decoded in a fiftieth of a second, at most twelve seconds of sound.

    sample_rate (Hz), channels: of the original. duration (s, exact), decode_s, resample_s (s of work), tags (what the
    file says about itself, see app.audio.tags): after the last block. Iterating raises a MediaError, or Closed if the pool
    closes.
    """

    def __init__(self, pool: DecoderPool, file: int, filename: str, max_duration: float) -> None:
        self._pool, self._file, self._filename, self._max_duration = pool, file, filename, max_duration
        self._worker: Worker | None = None
        self._retried = self._delivered = self._ended = False
        self.sample_rate = self.channels = 0
        self.duration = self.decode_s = self.resample_s = 0.0
        self.tags: dict[str, Value] = {}

    def __aiter__(self) -> DecodedStream:
        return self

    async def __anext__(self) -> np.ndarray:
        while not self._ended:
            try:
                kind, payload = await self._receive()
                if kind == wire.AUDIO:
                    self._delivered = True
                    return payload
                self._take_end(kind, payload)
            except Died as death:
                await self._fail_or_retry(death)
                await self._begin()
        raise StopAsyncIteration

    async def _begin(self) -> None:
        """Has a worker, and knows the recording's clock, when it returns."""
        while True:
            self._worker = await self._pool._take()
            if not send_request(self._worker, self._file, self._max_duration):
                self._drop()  # it had ended while nothing was asked of it
                continue
            try:
                kind, info = await self._receive()
                if kind != wire.INFO:
                    raise Died(NONSENSE)
                rate, channels = numbers(info, "sample_rate", "channels")
                self.sample_rate, self.channels = int(rate), int(channels)
                return
            except Died as death:
                await self._fail_or_retry(death)

    async def _fail_or_retry(self, death: Died) -> None:
        """Raises what follows from a worker's death, unless the file gets its second chance in another one."""
        why = str(death)
        if self._worker is not None and not why:
            why = await cause(self._worker)
        self._drop()
        if self._pool._closed:
            raise Closed(_CLOSING) from death
        if self._retried or self._delivered:
            raise DecoderFailed(self._filename, f"the decoder {why} while it worked on this file.") from death
        self._retried = True
        self._pool._renew()

    async def _receive(self) -> tuple[bytes, Any]:
        """The next message: AUDIO with an array, any other kind with a dict. Raises Died, or what ERROR tells of."""
        assert self._worker is not None
        kind, payload = await read_message(self._worker, self._pool._stall_s)
        if kind == wire.ERROR:
            self._raise(payload)
        return kind, payload

    def _raise(self, told: dict[str, Any]) -> None:
        reason, why = str(told.get("reason")), str(told.get("why"))
        if reason == wire.OUT_OF_MEMORY:
            raise Died(f"needed more than its {self._pool._memory_mb} MB of memory")
        if reason == wire.UNEXPECTED:
            raise Died(f"failed ({why})")
        if reason not in _ERRORS:
            raise Died(NONSENSE)
        error = _ERRORS[reason](self._filename, why)
        if isinstance(error, media_errors.TruncatedAudio):
            error.read = told.get("read")
        raise error

    def _take_end(self, kind: bytes, end: Any) -> None:
        if kind != wire.END:
            raise Died(NONSENSE)
        self.duration, self.decode_s, self.resample_s = numbers(end, "duration", "decode_s", "resample_s")
        self.tags = checked(end.get("tags"))  # a worker says what a file made it say
        assert self._worker is not None
        self._ended = True
        self._pool._give(self._worker)
        self._worker = None

    def _drop(self) -> None:
        """The worker is in the middle of something: forking another is cheaper than waiting for it."""
        if self._worker is not None:
            self._pool._discard(self._worker)
            self._worker = None


class DecoderPool:
    """Worker processes that decode files.

    workers: kept warm, by default one a core. max_workers: how many there may be while all are busy (those whose reader
    pauses cost nothing); callers beyond wait in line. memory_mb: what a worker may take beyond what it starts with.
    stall_s: seconds without any sign after which a worker counts as hung.
    """

    def __init__(
        self, *, workers: int | None = None, max_workers: int = 128, memory_mb: int = 1024, stall_s: float = 30.0
    ) -> None:
        self._warm = workers if workers is not None else os.cpu_count() or 1
        self._max = max(self._warm, max_workers, 1)
        self._memory_mb, self._stall_s = memory_mb, stall_s
        self._forks = ForkServer(memory_mb, self._born, self._died, self._lost)
        self._alive: set[Worker] = set()
        self._idle: list[Worker] = []  # the last used is taken first, so that the others can rest
        self._line: deque[asyncio.Future[Worker]] = deque()
        self._starting = 0
        self._spare = 0  # workers that have rested ever since `_shrink` was last due
        self._shrinking: asyncio.TimerHandle | None = None
        self._closed = True

    @property
    def alive(self) -> int:
        """Worker processes there are."""
        return len(self._alive)

    async def start(self) -> None:
        """Starts the warm workers. Raises RuntimeError if that is impossible here."""
        self._closed = False
        try:
            await self._forks.start()
        except BaseException:
            await self.close()
            raise
        self._grow()

    async def close(self) -> None:
        """Ends every process. Streams under way and callers in line get Closed."""
        self._closed = True
        if self._shrinking is not None:
            self._shrinking.cancel()
        self._fail_line(Closed(_CLOSING))
        for worker in self._alive - set(self._idle):
            with contextlib.suppress(OSError):
                worker.socket.shutdown(socket.SHUT_RDWR)  # wakes its stream, which closes the socket
        for worker in list(self._idle):
            self._discard(worker)
        await self._forks.close()
        self._alive.clear()
        self._starting = 0

    @asynccontextmanager
    async def open(
        self, file: BinaryIO | Path, filename: str, max_duration: float = 14_400.0
    ) -> AsyncIterator[DecodedStream]:
        """Decodes a file from its beginning. `max_duration` in seconds; `filename` is for messages only.

        `file` may be any open file (its position stays as it is where the system can reopen it, as Linux can) or a
        path. Raises a MediaError, OSError if the path cannot be opened, Closed.
        """
        descriptor = await open_apart(file)
        stream = DecodedStream(self, descriptor, filename, max_duration)
        try:
            await stream._begin()
            yield stream
        finally:
            stream._drop()
            os.close(descriptor)

    async def _take(self) -> Worker:
        """A worker that is free, waiting in line for one if need be."""
        if self._closed:
            raise Closed(_CLOSING)
        if self._idle and not self._line:
            worker = self._idle.pop()
            self._spare = min(self._spare, len(self._idle))
            return worker
        place: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._grow()
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                with contextlib.suppress(ValueError):  # it may have been passed over already
                    self._line.remove(place)
            elif place.exception() is None:  # it came at the same moment
                self._give(place.result())
            raise

    def _give(self, worker: Worker) -> None:
        """Takes a worker that is free: for the first in line, or for later."""
        if worker not in self._alive:
            return
        if self._closed or worker.files >= _FILES or worker.ended.done():  # it had sent all before it was killed
            self._discard(worker)
            return
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(worker)
                return
        self._idle.append(worker)
        if self._shrinking is None:
            self._shrink_later()

    def _renew(self) -> None:
        """Ends the idle workers: what ended one may have ended them too, and a second chance wants a sound one."""
        for worker in list(self._idle):
            self._discard(worker)

    def _shrink(self) -> None:
        """Ends the workers that nobody needed for a while: those above the warm ones that rested all the time."""
        self._shrinking = None
        beyond = max(0, len(self._alive) - self._warm)
        for worker in self._idle[: min(self._spare, beyond)]:
            self._discard(worker)
        if self._idle:
            self._shrink_later()

    def _shrink_later(self) -> None:
        """From here on it is noted how many rest, if there are more workers than the warm ones."""
        if len(self._alive) > self._warm:
            self._spare = len(self._idle)
            self._shrinking = asyncio.get_running_loop().call_later(_KEEP, self._shrink)

    def _grow(self) -> None:
        """Starts as many workers as the line and the warm number ask for."""
        while not self._closed:
            workers = len(self._alive) + self._starting
            if workers >= self._max or (self._starting >= len(self._line) and workers >= self._warm):
                break
            try:
                self._forks.fork()
            except OSError as error:
                self._no_more(error)
                break
            self._starting += 1

    def _no_more(self, error: Exception) -> None:
        """There is no new worker to be had. Those in line wait for the others, if there are any."""
        log.error("no decoder can be started: %s", error)
        if not self._alive and not self._starting:
            self._fail_line(error)

    def _discard(self, worker: Worker) -> None:
        """Ends a worker, whatever it does."""
        worker.socket.close()
        if worker in self._alive:
            self._alive.remove(worker)
            if worker in self._idle:
                self._idle.remove(worker)
            self._forks.kill(worker)
            self._grow()

    def _born(self, worker: Worker | None) -> None:
        self._starting -= 1
        if worker is None:
            self._no_more(OSError("the system gives no process"))
            return
        self._alive.add(worker)
        self._give(worker)

    def _died(self, worker: Worker) -> None:
        """A worker has ended. One with a file is missed by its stream; one without is replaced here."""
        if worker in self._idle:
            self._discard(worker)

    def _lost(self, error: Exception | None) -> None:
        """All workers are gone, and those that were starting."""
        self._starting = 0
        for worker in list(self._idle):
            worker.socket.close()
            self._alive.remove(worker)
        self._idle.clear()
        if error is None:
            self._grow()
        else:
            self._no_more(error)
            self._fail_line(error)

    def _fail_line(self, error: Exception) -> None:
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_exception(error)
