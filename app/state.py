"""Application state: engine, library, decoders and thread pools, from startup through draining to shutdown.

Blocking library calls run on threads and files are decoded in processes, so neither holds up the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from app.audio.errors import REASONS
from app.decoding.pool import DecoderPool
from app.errors import NotReady, TooManyStreams
from app.inference.batcher import Batcher, BatchLimits, CallReport, Closed, Device
from app.inference.engine import Engine
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.server.shutdown import RequestCutoff
from app.settings import Settings
from index import Clip, Library, LibraryError, NewClip

R = TypeVar("R")
Load = Callable[[], tuple[Engine, Library]]

log = logging.getLogger(__name__)

_READ_THREADS = 8
_WRITE_THREADS = 4  # separate, so that a search never waits behind an upload
_ADDITION_BATCH = 64  # clips per transaction
_FIND_BATCH = 1024  # hashes per query
_ADDITION_QUEUE = 10_000  # clips; uploads are limited well below this before they get here
_ABORT_GRACE_S = 1.5  # for requests aborted at shutdown to send their error response
_LOAD_GRACE_S = 3.0  # for loading to finish at shutdown; the exit of the process ends what remains
READY_TIMEOUT_S = 30.0  # for one readiness check
_METRICS_WAIT_S = 0.5  # that a scrape of the metrics waits for a readiness check


class AppState:
    """The engine, library, pools and metrics of one app."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.settings, self.metrics, self.tracing = settings, metrics, tracing
        metrics.expect(metrics.decode_failures, REASONS)
        metrics.watch_disk(settings.data_dir)
        self.cutoff = RequestCutoff()
        self.stopping = RequestCutoff()  # ends what would go on for ever: live streams
        self.streams = 0  # live streams that are open
        self.decoders = DecoderPool()
        self._engine: Engine | None = None
        self._library: Library | None = None
        self._additions: Batcher[NewClip, tuple[Clip, bool]] | None = None
        self._finds: Batcher[str, Clip | LibraryError | None] | None = None
        self._failure: str | None = None
        self.opened = asyncio.Event()  # set once engine and library are in service
        self._closing = False
        self._drained = False
        self._active = 0  # requests
        self._calls = 0  # of functions on threads, running or queued
        self._idle = asyncio.Event()
        self._idle.set()
        self._readers = ThreadPoolExecutor(_READ_THREADS, "read")
        self._writers = ThreadPoolExecutor(_WRITE_THREADS, "write")
        self._computers = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "post")

    @property
    def engine(self) -> Engine:
        """The engine. Raises NotReady until it is loaded."""
        if self._engine is None:
            raise NotReady(self._failure or "The model is loading.")
        return self._engine

    @property
    def library(self) -> Library:
        """The library. Raises NotReady until it is open."""
        if self._library is None:
            raise NotReady(self._failure or "The library is opening.")
        return self._library

    @property
    def additions(self) -> Batcher[NewClip, tuple[Clip, bool]]:
        """Adds clips, several per transaction. Raises NotReady until the library is open."""
        if self._additions is None:
            raise NotReady(self._failure or "The library is opening.")
        return self._additions

    async def find(self, sha256: str) -> Clip | None:
        """The clip whose file has this SHA-256. Files that arrive meanwhile share the next query.

        Raises LibraryError, NotReady until the library is open.
        """
        if self._finds is None:
            raise NotReady(self._failure or "The library is opening.")
        with self.stage("index", call="find"):
            found = await self._finds.submit(sha256)
        if isinstance(found, LibraryError):
            raise found
        return found

    # Lifecycle

    async def open(self, engine: Engine, library: Library, decoders: Awaitable[None] | None = None) -> None:
        """Starts the engine and the decoders and puts engine and library into service.

        decoders: the start of the decoder pool, if it is already under way.
        """
        engine.on_batch = self.metrics.observe_batch
        engine.on_call = self._trace_call
        try:
            await asyncio.gather(decoders or self.decoders.start(), engine.start())
        except BaseException:
            await self.decoders.close()
            await engine.close(grace=0)
            library.close()
            raise
        self._register_metrics(engine, library)
        self._additions = Batcher(
            library.add_many,
            device=Device("add"),
            limits=BatchLimits(_ADDITION_BATCH, _ADDITION_QUEUE),
            name="addition",
        )
        self._finds = Batcher(
            partial(_find_all, library),
            device=Device("find"),
            limits=BatchLimits(_FIND_BATCH, _ADDITION_QUEUE),
            name="find",
        )
        self._additions.start()
        self._finds.start()
        self._engine, self._library = engine, library
        self.opened.set()
        log.info("ready: %s on %s, %d clips", engine.name, engine.device, await self.read(len, library))

    async def load(self, load: Load) -> None:
        """Opens what the blocking function `load` returns. Requests get NotReady with the reason if it fails."""
        decoders = asyncio.create_task(self.decoders.start())  # in parallel: the decoders are separate processes
        try:
            engine, library = await asyncio.to_thread(load)
            if self._closing:
                await asyncio.to_thread(library.close)
                return
            await self.open(engine, library, decoders)
        except Exception as error:
            self._failure = f"The service failed to start: {error}"
            raise
        finally:
            decoders.cancel()
            await asyncio.gather(decoders, return_exceptions=True)

    @property
    def closing(self) -> bool:
        """Whether new requests are rejected because the service is shutting down."""
        return self._closing

    def stop_accepting(self) -> None:
        """Rejects new requests from now on. Safe to call from a signal handler."""
        self._closing = True

    async def drain(self) -> None:
        """Rejects new requests, waits `stop_grace_s` for running ones, then aborts the rest with an error response."""
        self._closing = True
        self.stopping.trigger()
        grace = self.settings.stop_grace_s
        if self._drained or await self._wait_idle(grace):
            return
        self._drained = True
        log.warning("aborting %d requests that are still running %g s after the stop signal", self._active, grace)
        self.cutoff.trigger()
        await self._stop_workers()
        if not await self._wait_idle(_ABORT_GRACE_S):
            log.warning("%d requests ended without a response", self._active)

    async def close(self, loading: asyncio.Task[None] | None = None) -> None:
        """Drains, then closes everything. `loading`: a call of `load` that may still be running."""
        await self.drain()
        if loading is not None:
            await asyncio.wait({loading}, timeout=_LOAD_GRACE_S)
            loading.cancel()
        await self._stop_workers()
        for batcher in (self._finds, self._additions):
            if batcher is not None:
                await batcher.close(grace=_ABORT_GRACE_S)
        for pool in (self._computers, self._readers, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._library is not None:
            await asyncio.to_thread(self._library.close)

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncGenerator[AppState, None]:
        """This state, for the length of one request; `drain` waits for it. Raises Closed during shutdown."""
        if self._closing:
            raise Closed("The service is shutting down.")
        self._active += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    @property
    def busy(self) -> bool:
        """Whether the model or the library works for a request, or is about to. May be read from any thread.

        A request that is open but waits for its client, such as a live stream between two windows or a slow upload,
        doesn't count.
        """
        return self._calls > 0 or (self._engine is not None and self._engine.busy)

    @contextlib.contextmanager
    def stream(self) -> Generator[None, None, None]:
        """A place for one live stream. Raises TooManyStreams."""
        if self.streams >= self.settings.max_streams:
            raise TooManyStreams(f"{self.streams} live streams are open, as many as FINELAP_MAX_STREAMS allows.")
        self.streams += 1
        self.metrics.streams.set(self.streams)
        try:
            yield
        finally:
            self.streams -= 1
            self.metrics.streams.set(self.streams)

    async def _wait_idle(self, seconds: float) -> bool:
        """Waits up to `seconds` until no request is running; returns whether that was reached."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _stop_workers(self) -> None:
        """Stops the model and the decoders; requests still waiting for them get Closed."""
        engine = self._engine.close(grace=0) if self._engine is not None else asyncio.sleep(0)
        await asyncio.gather(engine, self.decoders.close())

    # Executors

    async def read(self, function: Callable[..., R], *args: Any) -> R:
        """Runs a library query on a thread, as the stage `index`."""
        return await self._run("index", self._readers, function, *args)

    async def write(self, function: Callable[..., R], *args: Any) -> R:
        """Runs a library change on a thread, as the stage `index`."""
        return await self._run("index", self._writers, function, *args)

    async def compute(self, function: Callable[..., R], *args: Any) -> R:
        """Runs post-processing (scores, events, plots, long responses) on a thread, as the stage `post`."""
        return await self._run("post", self._computers, function, *args)

    @contextlib.contextmanager
    def stage(self, name: str, **attributes: str | float) -> Generator[None, None, None]:
        """Measures a stage of the current request as a metric and as a span of its trace."""
        began = time.perf_counter()
        try:
            with self.metrics.stage(name):
                yield
        finally:
            self.tracing.record(name, began, time.perf_counter(), **attributes)

    async def _run(self, stage: str, pool: ThreadPoolExecutor, function: Callable[..., R], *args: Any) -> R:
        run = contextvars.copy_context().run  # carries the request id to the thread's log lines
        self._calls += 1
        try:
            with self.stage(stage, call=getattr(function, "__name__", "")):
                return await asyncio.get_running_loop().run_in_executor(pool, run, function, *args)
        finally:
            self._calls -= 1

    # Metrics and traces

    def _register_metrics(self, engine: Engine, library: Library) -> None:
        self.metrics.watch_lane("audio", lambda: engine.audio_lane.depth)
        self.metrics.watch_lane("text", lambda: engine.text_lane.depth)
        self.metrics.watch_backlog("audio", engine.backlog_seconds)
        self.metrics.watch_clips(lambda: _count_clips(library))
        self.metrics.model_info.labels(engine.name, engine.device, engine.dtype).set(1)
        if engine.device.startswith("cuda"):
            self.metrics.watch_gpu(engine.gpu_memory, ("allocated", "reserved"))

    def _trace_call(self, lane: str, report: CallReport) -> None:
        """Records the queueing and the inference of one call to a lane as spans of its request."""
        self.tracing.record("queue", report.entered, report.began, lane=lane)
        self.tracing.record("infer", report.began, report.ended, lane=lane, items=report.items, waited_s=report.waited)


def _find_all(library: Library, hashes: list[str]) -> Sequence[Clip | LibraryError | None]:
    """One result for each hash; all get the library's error, which one query for each would only repeat."""
    try:
        found = library.find_many(hashes)
    except LibraryError as error:
        return [error] * len(hashes)
    return [found.get(sha256) for sha256 in hashes]


def _count_clips(library: Library) -> float:
    """Clips in the library; NaN while the library is unavailable."""
    try:
        return len(library)
    except LibraryError:
        return math.nan


async def check_ready(state: AppState) -> None:
    """Raises NotReady with the reason if the forward pass or the library fails or takes longer than READY_TIMEOUT_S."""
    engine, library = state.engine, state.library
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await asyncio.gather(engine.check(), state.read(library.check))
    except TimeoutError as error:
        raise NotReady(f"The check did not finish within {READY_TIMEOUT_S:g} s.") from error
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
            self._check = asyncio.create_task(check_ready(self._state))
        done, _ = await asyncio.wait({self._check}, timeout=_METRICS_WAIT_S)
        if done and self._check in done:
            self._ready = not self._check.cancelled() and self._check.exception() is None
            self._check = None
        return self._ready
