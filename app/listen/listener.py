"""Listens to one source: reads it, sends it to the service, and tells what is detected, whichever of the two fails.

The source and the service fail on their own. A source that ends is opened again, which begins a new stretch; a service
that is away finds the last minutes of sound when it is back, and what is older is marked as a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from app.client import Refused, ServerError, Unauthorized
from app.client.live import LiveSocket
from app.listen.history import Heard, History, Record
from app.listen.metrics import ListenMetrics
from app.listen.sources import Chunk, Source, SourceError, open_source

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 0.5, 30.0  # seconds between attempts
_STEADY = 30.0  # seconds without a failure after which the delay is short again
_UNSENT = 60.0  # seconds of sound that wait for the service before reading waits, where it can
_REPLAY = 25.0  # seconds sent again over a new connection: what may still have been open or unsettled
_SETTLED = 25.0  # seconds after its end from which an event is no longer revised
_MAX_CLIP = 120.0  # seconds
_SEND = 0.5  # seconds sent at once
_MAX_UPLINKS = 8  # stretches that wait for the service; older ones are given up
_GOODBYE = 5.0  # seconds for the last events when the command is ended

Line = dict[str, Any]


@dataclass(frozen=True)
class ListenOptions:
    """How to listen: the service, what to detect, and what to do with it.

    start: the first message to the service, without the format of the audio. keep: seconds around each event that
    become a clip, or None. tell: receives each line. post and store: receive what is to be delivered, if wanted.
    """

    server: str
    api_key: str | None
    start: dict[str, Any]
    tell: Callable[[Line], None]
    post: Callable[[Line], object] | None = None
    keep: float | None = None
    store: Callable[[Line, bytes], object] | None = None
    metrics: ListenMetrics = field(default_factory=ListenMetrics)


class Listener:
    """One source, from its first opening to its end; a live source has none."""

    def __init__(self, source: Source, options: ListenOptions) -> None:
        self._source, self._options, self._metrics = source, options, options.metrics
        self._session = uuid.uuid4().hex[:12]
        self._first = 0.0  # time of the first sample of all
        self._ended = 0.0  # time at which the last stretch ended
        self._stretches = 0
        self._uplinks: list[asyncio.Task[None]] = []  # of stretches that have ended, and of the one that goes on

    async def run(self) -> None:
        """Listens. Raises SourceError for a source that is not live, and ServerError if the service refuses.

        When it is cancelled it still tells what it has heard, if the service is there.
        """
        try:
            await self._read()
        except asyncio.CancelledError:
            await asyncio.wait(self._uplinks or [asyncio.create_task(asyncio.sleep(0))], timeout=_GOODBYE)
            raise
        finally:
            for uplink in self._uplinks:
                uplink.cancel()
            await asyncio.gather(*self._uplinks, return_exceptions=True)

    async def _read(self) -> None:
        delay = _Delay()
        while True:
            try:
                async with open_source(self._source) as (format, chunks):
                    self._metrics.sources.inc()
                    try:
                        await self._stretch(History(format), chunks)
                    finally:
                        self._metrics.sources.dec()
                reason = "the source ended"
            except SourceError as error:
                if not self._source.live:
                    raise
                reason = str(error)
            if not self._source.live:
                for uplink in self._uplinks:
                    await uplink
                return
            if self._first:  # before the first sound nothing is missing
                self._ended = self._ended or time.time()
            log.warning("%s; opening %s again in %.1f s", reason, self._source.name, delay.next)
            self._metrics.reconnects.labels(self._source.name, "source").inc()
            await delay.wait()

    async def _stretch(self, history: History, chunks: AsyncGenerator[Chunk, None]) -> None:
        """One opening of the source: reads it while another task sends it."""
        self._stretches += 1
        uplink = _Uplink(self._source, history, self._options, self._session, self._stretches)
        sending = asyncio.create_task(uplink.run())
        self._uplinks.append(sending)
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    history.add(chunk)
                    self._mark_opening(history, uplink)
                    while uplink.behind and not sending.done():
                        await asyncio.sleep(0.05)
                    if sending.done():
                        break
        finally:
            self._ended = history.began + history.end if history.end else self._ended
            history.close()
        for done in [task for task in self._uplinks if task.done()]:
            self._uplinks.remove(done)
            done.result()  # raises if the service refuses the stream
        if len(self._uplinks) > _MAX_UPLINKS:
            self._uplinks.pop(0).cancel()

    def _mark_opening(self, history: History, uplink: _Uplink) -> None:
        """At the first sample of a stretch: tells how long nothing was heard before it."""
        if uplink.offset is not None:
            return
        self._first = self._first or history.began
        uplink.offset = history.began - self._first if self._source.live else 0.0
        if self._ended:
            uplink.gap(self._ended - history.began, 0.0, "source")
            self._ended = 0.0


class _Uplink:
    """Sends a stretch of sound to the service, over as many connections as it takes, and tells its events."""

    def __init__(self, source: Source, history: History, options: ListenOptions, session: str, stretch: int) -> None:
        self._source, self._history, self._options = source, history, options
        self._metrics = options.metrics
        self._record = Record(f"{session}-{stretch}")
        self.offset: float | None = None  # seconds of the stretch's beginning since the first one's
        self._sent = 0.0  # position
        self._connections = 0
        self._connected = False

    @property
    def behind(self) -> bool:
        """Whether reading should wait: always where the source can, else only while the service is there."""
        waiting = self._history.end - self._sent > _UNSENT
        return waiting and (self._connected or not self._source.live)

    async def run(self) -> None:
        """Sends the stretch to its end. Raises ServerError if the service refuses it."""
        delay = _Delay()
        while True:
            try:
                await self._connect()
                break
            except (Refused, Unauthorized):
                raise
            except ServerError as error:
                self._connected = False
                log.warning("%s; trying again in %.1f s", error, delay.next)
                self._metrics.reconnects.labels(self._source.name, "service").inc()
                await delay.wait()
        self._keep_clips(final=True)

    async def _connect(self) -> None:
        """One connection, from its first message to its last."""
        while not self._history.end and not self._history.closed:
            await self._history.changed()
        format = self._history.format
        audio = {"encoding": "pcm_s16le", "sample_rate": format.sample_rate, "channels": format.channels}
        async with LiveSocket.open(self._options.server, self._options.api_key, self._options.start | audio) as socket:
            base = max(self._history.start, self._sent - _REPLAY, 0.0)
            if base > self._sent:
                self.gap(self._sent, base, "service")
            self._connections += 1
            sending = asyncio.create_task(self._send(socket, base))
            try:
                async for message in socket.messages():
                    if message["type"] == "start":
                        self._connected = True
                        self._metrics.streams.inc()
                    elif message["type"] in ("event", "retraction"):
                        self._take(message, base)
                    self._keep_clips()
            finally:
                if self._connected:
                    self._metrics.streams.dec()
                self._connected = False
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, socket: LiveSocket, at: float) -> None:
        history, size = self._history, self._history.format.size
        position = size(at)
        while True:
            end = min(size(history.end), position + size(_SEND))
            if position >= end:
                if history.closed:
                    break
                await history.changed()
                continue
            seconds = history.format.seconds
            if seconds(position) < history.start - 1e-6:  # the service is too slow for this source
                self.gap(seconds(position), history.start, "service")
                position = size(history.start)
                continue
            await socket.send(history.read(seconds(position), seconds(end)))
            position = end
            self._sent = seconds(position)
        await socket.end()

    # What is told

    def gap(self, start: float, end: float, side: str) -> None:
        """Tells that the sound between two positions was not heard; `side`: "source" or "service"."""
        offset = self.offset or 0.0
        self._metrics.gap_seconds.labels(self._source.name).inc(max(0.0, end - start))
        line = {"type": "gap", "source": self._source.name, "side": side}
        self._options.tell(
            line | {"start": round(offset + start, 3), "end": round(offset + end, 3)} | self._time(start)
        )

    def _take(self, message: dict[str, Any], base: float) -> None:
        taken = self._record.take(self._connections, base, message)
        if taken is None:
            return
        event, before = taken
        line = self._line(event, before)
        self._options.tell(line)
        if not event.open:
            if not before:
                self._metrics.events.labels(self._source.name).inc()
                if self._source.live:
                    late = time.time() - self._history.began - event.offset
                    self._metrics.lag.labels(self._source.name).observe(max(0.0, late))
            if self._options.post is not None and (before or not event.retracted):
                self._options.post(line)

    def _line(self, event: Heard, before: bool) -> Line:
        offset = self.offset or 0.0
        line: Line = {
            "type": "retraction" if event.retracted else "event",
            "id": event.uid,
            "source": self._source.name,
            "phrase": event.phrase,
            "onset": round(offset + event.onset, 3),
            "offset": round(offset + event.offset, 3),
            "score": event.score,
            "open": event.open,
            "revised": before and not event.retracted,
        }
        return line | self._time(event.onset)

    def _time(self, position: float) -> Line:
        return {"time": self._history.time_at(position)} if self._source.live else {}

    # Clips

    def _keep_clips(self, final: bool = False) -> None:
        """Stores the clips of events that are no longer revised, or at the end all that are left."""
        options, history = self._options, self._history
        if options.keep is None or options.store is None:
            return
        until = history.end if final else history.end - max(options.keep, _SETTLED)
        for event in self._record.to_keep(until):
            event.kept = True
            start = max(event.onset - options.keep, history.start)
            end = min(event.offset + options.keep, history.end, start + _MAX_CLIP)
            line = self._line(event, False)
            del line["type"], line["open"], line["revised"]
            metadata = line | {"clip_start": round((self.offset or 0.0) + start, 3)}
            name = f"{event.phrase} {self._source.name} {event.uid}"
            filename = "".join(c if c.isalnum() or c in " -_." else "-" for c in name)[:200] + ".wav"
            options.store({"filename": filename, "metadata": metadata}, history.wav(start, end))


class _Delay:
    """Delays between attempts: each is twice the last, with jitter, until there has been no failure for a while."""

    def __init__(self) -> None:
        self.next = _SHORTEST
        self._last = -_STEADY

    async def wait(self) -> None:
        if time.monotonic() - self._last > _STEADY + self.next:
            self.next = _SHORTEST
        await asyncio.sleep(self.next * random.uniform(0.8, 1.2))
        self._last = time.monotonic()
        self.next = min(2 * self.next, _LONGEST)
