"""The parts a request works with, and their life: opened with the app, closed after the last request.

Owns the thread pools and the decoding processes, so that the library and foreign files never run on the event loop.
Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import numpy as np
from fastapi import Depends, Request

from app.audio import errors as media_errors
from app.audio.peaks import Envelope
from app.decoding.pool import DecodedStream, DecoderPool
from app.errors import NotReady
from app.inference.batcher import Batcher, CallReport, Closed, Device, Urgency
from app.inference.engine import Engine
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.server.leaving import Ending
from app.services import audio_source as hearing
from app.services.audio_source import Hearing, Pen, Recording
from app.settings import Settings
from index import Clip, Library, LibraryError, NewClip

R = TypeVar("R")
Load = Callable[[], tuple[Engine, Library]]

log = logging.getLogger(__name__)

_READERS = 8  # threads
_WRITERS = 4  # threads of their own, so that a search never waits behind an ingest
_ADDED_TOGETHER = 64  # clips in one transaction
_ADDING = 10_000  # clips that may wait for theirs; what is let in further up is far less
_LAST = 1.5  # seconds that requests have to say so which are ended because the service stops
_LOADING = 3.0  # seconds that loading has to end; what it has begun is left to the process's end


class Services:
    """Engine, library, pools and metrics of one app."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.settings, self.metrics, self.tracing = settings, metrics, tracing
        metrics.expect(metrics.decode_failures, media_errors.REASONS)
        metrics.watch_disk(settings.data_dir)
        self._engine: Engine | None = None
        self._catalog: Library | None = None
        self._failure: str | None = None
        self._closing = False
        self._drained = False
        self.ending = Ending()
        self._active = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.decoders = DecoderPool()
        self._reading = ThreadPoolExecutor(_READERS, "read")
        self._writing = ThreadPoolExecutor(_WRITERS, "write")
        self._additions: Batcher[NewClip, tuple[Clip, bool]] | None = None
        self._computing = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "post")

    @property
    def engine(self) -> Engine:
        """The engine. Raises NotReady before it is there."""
        if self._engine is None:
            raise NotReady(self._failure or "The model is being loaded.")
        return self._engine

    @property
    def catalog(self) -> Library:
        """The library. Raises NotReady before it is open."""
        if self._catalog is None:
            raise NotReady(self._failure or "The library is being opened.")
        return self._catalog

    async def open(self, engine: Engine, catalog: Library, decoders: Awaitable[None] | None = None) -> None:
        """Starts the engine and takes both into use. `decoders`: their start, if it has begun."""
        engine.on_batch = self.metrics.observe_batch
        engine.on_call = self._trace_call
        try:
            await asyncio.gather(decoders or self.decoders.start(), engine.start())
        except BaseException:
            await self.decoders.close()
            await engine.close(grace=0)
            catalog.close()
            raise
        self.metrics.watch_lane("audio", lambda: engine.audio_lane.depth)
        self.metrics.watch_lane("text", lambda: engine.text_lane.depth)
        self.metrics.watch_clips(lambda: _count(catalog))
        self.metrics.model_info.labels(engine.name, engine.device, engine.dtype).set(1)
        if engine.device.startswith("cuda"):
            self.metrics.watch_gpu(engine.gpu_memory, ("allocated", "reserved"))
        self._additions = Batcher(
            catalog.add_many, device=Device("add"), max_cost=_ADDED_TOGETHER, max_queue=_ADDING, name="addition"
        )
        self._additions.start()
        self._engine, self._catalog = engine, catalog
        log.info("ready: %s on %s, %d clips", engine.name, engine.device, await self.read(len, catalog))

    async def load(self, load: Load) -> None:
        """`open` with what `load` (blocking) makes. What it raises is kept as the reason for not being ready."""
        decoders = asyncio.create_task(self.decoders.start())  # beside loading: they are processes of their own
        try:
            engine, catalog = await asyncio.to_thread(load)
            if self._closing:  # nobody needs them any more
                await asyncio.to_thread(catalog.close)
                return
            await self.open(engine, catalog, decoders)
        except Exception as error:
            self._failure = f"The service could not start: {error}"
            raise
        finally:
            decoders.cancel()
            await asyncio.gather(decoders, return_exceptions=True)

    @property
    def closing(self) -> bool:
        """Whether new requests are refused."""
        return self._closing

    def refuse(self) -> None:
        """Refuses new requests from now on. May be called by a signal handler."""
        self._closing = True

    async def drain(self) -> None:
        """Refuses new requests, lets running ones finish for `stop_grace_s`, and has the rest told that it is over."""
        self._closing = True
        grace = self.settings.stop_grace_s
        if self._drained or await self._is_quiet(grace):
            return
        self._drained = True
        log.warning("%d requests still ran after %g s; they are told that the service stops", self._active, grace)
        self.ending.come()
        await self._stop_working()
        if not await self._is_quiet(_LAST):
            log.warning("%d requests could not be answered", self._active)

    async def _is_quiet(self, within: float) -> bool:
        """Whether no request runs, at the latest after so many seconds."""
        try:
            await asyncio.wait_for(self._quiet.wait(), within)
        except TimeoutError:
            return False
        return True

    async def _stop_working(self) -> None:
        """Ends model and decoders; who still waits for them gets Closed."""
        engine = self._engine.close(grace=0) if self._engine is not None else asyncio.sleep(0)
        await asyncio.gather(engine, self.decoders.close())

    async def close(self, loading: asyncio.Task[None] | None = None) -> None:
        """Drains, then closes everything. `loading`: a `load` that may still be under way."""
        await self.drain()
        if loading is not None:
            await asyncio.wait({loading}, timeout=_LOADING)
            loading.cancel()
        await self._stop_working()
        if self._additions is not None:
            await self._additions.close(grace=_LAST)
        for pool in (self._computing, self._reading, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._catalog is not None:
            await asyncio.to_thread(self._catalog.close)

    async def serving(self) -> AsyncIterator[Services]:
        """These services for one request, which `close` waits for. Raises Closed when none are taken any more."""
        if self._closing:
            raise Closed("The service is shutting down.")
        self._active += 1
        self._quiet.clear()
        try:
            yield self
        finally:
            self._active -= 1
            if not self._active:
                self._quiet.set()

    @contextlib.asynccontextmanager
    async def decoded(self, file: BinaryIO | Path, filename: str) -> AsyncGenerator[DecodedStream, None]:
        """A sound file being decoded in a process of its own, measured when it has ended. Raises a MediaError."""
        began, about = time.perf_counter(), dict[str, float | str]()
        try:
            async with self.decoders.open(file, filename, self.settings.max_duration_s) as sound:
                yield sound
                if sound.duration:  # it was read to its end
                    self.metrics.observe_stage("decode", sound.decode_s)
                    self.metrics.observe_stage("resample", sound.resample_s)
                    self.metrics.audio_seconds.inc(sound.duration)
                    about = {"duration": sound.duration, "decode_s": sound.decode_s, "resample_s": sound.resample_s}
        except media_errors.MediaError as error:
            self.metrics.decode_failures.labels(error.reason).inc()
            about = {"failure": error.reason}
            raise
        finally:
            self.tracing.record("decode", began, time.perf_counter(), **about)

    @contextlib.asynccontextmanager
    async def hear(
        self,
        file: BinaryIO | bytes,
        filename: str,
        *,
        urgency: Urgency = Urgency.INTERACTIVE,
        pen: Pen | None = None,
    ) -> AsyncGenerator[Hearing, None]:
        """A sound file on its way through decoder and model, drawn by `pen`. Raises what both raise."""
        self.engine.refuse_if_full()  # before any work is wasted
        async with (
            self.decoded(io.BytesIO(file) if isinstance(file, bytes) else file, filename) as sound,
            hearing.hear(self.engine, sound, filename, urgency=urgency, pen=pen) as heard,
        ):
            yield heard

    async def embed_file(
        self, file: BinaryIO | bytes, filename: str, *, urgency: Urgency = Urgency.INTERACTIVE
    ) -> Recording:
        """A whole sound file, embedded. Raises what decoding and embedding raise."""
        async with self.hear(file, filename, urgency=urgency) as heard:
            return await hearing.whole(heard)

    async def remember(self, clip_id: str) -> Hearing:
        """A clip of the library by its stored embeddings. Raises ClipNotFound."""
        return await self.read(hearing.remember, self.catalog, clip_id)

    @contextlib.asynccontextmanager
    async def stored(self, clip_id: str) -> AsyncGenerator[DecodedStream, None]:
        """A clip's stored audio being decoded. Raises ClipNotFound, AudioMissing, MediaError."""
        path = await self.read(self.catalog.audio_path, clip_id)
        clip = await self.read(self.catalog.get, clip_id)
        async with self.decoded(path, clip.filename) as sound:
            yield sound

    async def outline(self, clip_id: str) -> np.ndarray:
        """The outline (2, n) of a clip's stored audio, see app.audio.peaks. Raises ClipNotFound, AudioMissing, MediaError."""
        envelope = Envelope()
        async with self.stored(clip_id) as sound:
            async for block in sound:
                envelope.push(block)
        return envelope.levels()

    async def read(self, function: Callable[..., R], *args: Any) -> R:
        """Asks the library something, on a thread, as the stage `index`."""
        return await self._in("index", self._reading, function, *args)

    async def write(self, function: Callable[..., R], *args: Any) -> R:
        """Changes the library, on a thread, as the stage `index`."""
        return await self._in("index", self._writing, function, *args)

    async def add(self, new: NewClip) -> tuple[Clip, bool]:
        """Adds a clip as SqliteLibrary.add does, as the stage `index`; what comes meanwhile shares the next transaction."""
        if self._additions is None:
            raise NotReady(self._failure or "The library is being opened.")
        began = time.perf_counter()
        try:
            with self.metrics.stage("index"):
                return await self._additions.submit(new)
        finally:
            self.tracing.record("index", began, time.perf_counter(), call="add")

    async def compute(self, function: Callable[..., R], *args: Any) -> R:
        """Runs work on results (scores, events, pictures, long answers) on a thread, as the stage `post`."""
        return await self._in("post", self._computing, function, *args)

    async def _in(self, stage: str, pool: ThreadPoolExecutor, function: Callable[..., R], *args: Any) -> R:
        run = contextvars.copy_context().run  # with the request's id, for the log
        began = time.perf_counter()
        try:
            with self.metrics.stage(stage):
                return await asyncio.get_running_loop().run_in_executor(pool, run, function, *args)
        finally:
            self.tracing.record(stage, began, time.perf_counter(), call=getattr(function, "__name__", ""))

    def _trace_call(self, lane: str, report: CallReport) -> None:
        """What a caller's items went through in a lane, as two stages of its request."""
        self.tracing.record("queue", report.entered, report.began, lane=lane)
        self.tracing.record("infer", report.began, report.ended, lane=lane, items=report.items, waited_s=report.waited)


def _count(catalog: Library) -> float:
    """How many clips there are, as a metric: unknown while the library does not answer."""
    try:
        return len(catalog)
    except LibraryError:
        return math.nan


async def _serving(request: Request) -> AsyncIterator[Services]:
    services: Services = request.app.state.services
    async for ready in services.serving():
        yield ready


Serving = Annotated[Services, Depends(_serving)]
