"""Sources of live sound: raw samples on standard input, files, HTTP and RTSP streams, and recording devices.

Each is read on a thread as chunks of interleaved 16-bit samples at its own rate, so that clips keep its quality.
Decoding happens in this process, which is not the service: the service never opens an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import av
import av.container
import av.error

CHUNK = 0.1  # seconds
MAX_RATE, MAX_CHANNELS = 48_000, 2  # sources with more are converted
_QUEUED = 50  # chunks that wait between the thread and the event loop
_OPEN_TIMEOUT, _READ_TIMEOUT = 10.0, 15.0  # seconds
_DEVICES = {"linux": "alsa:default", "darwin": "avfoundation::0", "win32": "dshow:audio=default"}
_DEVICE_FORMATS = ("alsa", "pulse", "avfoundation", "dshow")
_REMOTE = ("http", "https", "rtsp", "rtsps")
_PROTOCOLS = "http,https,tcp,tls,rtsp,rtp,udp,crypto,hls,data"  # that a remote source may use: no local files


class SourceError(Exception):
    """The source cannot be opened or read; the message says why, in one line."""


@dataclass(frozen=True)
class Format:
    """Interleaved 16-bit samples; `sample_rate` in Hz."""

    sample_rate: int
    channels: int

    def size(self, seconds: float) -> int:
        """The bytes of so many seconds, in whole samples."""
        return int(seconds * self.sample_rate) * 2 * self.channels

    def seconds(self, size: int) -> float:
        """The duration of so many bytes."""
        return size / (2 * self.channels * self.sample_rate)


@dataclass(frozen=True)
class Chunk:
    """Samples as bytes, and the time (Unix, seconds) at which they were there."""

    data: bytes
    arrived: float


@dataclass(frozen=True)
class Source:
    """What the user named. `name` is safe to show and to store: without a user's name, password and query.

    live: it goes on by itself, so it is opened again when it ends.
    """

    address: str
    name: str
    kind: str  # "stdin", "file", "remote" or "device"
    live: bool
    raw: Format = Format(16_000, 1)  # of standard input

    @classmethod
    def parse(cls, address: str, raw: Format = Format(16_000, 1)) -> Source:
        """Reads `-`, a path, an address, `microphone` or `FORMAT:DEVICE`. Raises SourceError."""
        if address == "-":
            return cls(address, "stdin", "stdin", False, raw)
        parts = urlsplit(address)
        if parts.scheme in _REMOTE and parts.hostname:
            port = f":{parts.port}" if parts.port else ""
            return cls(address, urlunsplit((parts.scheme, parts.hostname + port, parts.path, "", "")), "remote", True)
        if address == "microphone" or address.partition(":")[0] in _DEVICE_FORMATS:
            return cls(address, address, "device", True)
        if not Path(address).is_file():
            known = "a file, -, microphone, alsa:DEVICE, or an http, https, rtsp or rtsps address"
            raise SourceError(f"{address!r} is not a source: give {known}")
        return cls(address, Path(address).name, "file", False)


@contextlib.asynccontextmanager
async def open_source(source: Source) -> AsyncGenerator[tuple[Format, AsyncGenerator[Chunk, None]], None]:
    """The format of a source and its chunks. Raises SourceError when opening and while reading."""
    reader = _Reader(source)
    try:
        yield await reader.format, reader.chunks()
    finally:
        await reader.close()


class _Reader:
    """A thread that reads a source, and its chunks on the event loop."""

    def __init__(self, source: Source) -> None:
        self._source, self._loop = source, asyncio.get_running_loop()
        self.format: asyncio.Future[Format] = self._loop.create_future()
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._places, self._stop = threading.Semaphore(_QUEUED), threading.Event()
        self._failure = SourceError(f"{source.name} has no audio")
        self._failed = False
        self._thread = threading.Thread(target=self._read, name=f"source {source.name}", daemon=True)
        self._thread.start()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        while (chunk := await self._queue.get()) is not None:
            self._places.release()
            yield chunk
        if self._failed:
            raise self._failure

    async def close(self) -> None:
        self._stop.set()
        if self.format.done() and not self.format.cancelled():
            self.format.exception()  # mark as retrieved
        if self._source.kind != "stdin":  # a thread that waits for standard input ends with the process
            await asyncio.to_thread(self._thread.join, 2.0)

    def _read(self) -> None:
        try:
            with contextlib.closing(
                _raw(self._source) if self._source.kind == "stdin" else _decoded(self._source)
            ) as pieces:
                format = next(pieces)
                assert isinstance(format, Format)
                self._tell(self._set_format, format)
                for piece in _joined(pieces, format.size(CHUNK)):
                    while not self._places.acquire(timeout=0.2):
                        if self._stop.is_set():
                            return
                    if self._stop.is_set():
                        return
                    self._tell(self._queue.put_nowait, Chunk(piece, time.time()))
        except (av.error.FFmpegError, OSError, ValueError, SourceError) as error:
            self._failed = True
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._failure = error if isinstance(error, SourceError) else SourceError(f"{self._source.name}: {why}")
        finally:
            self._tell(self._set_format, None)
            self._tell(self._queue.put_nowait, None)

    def _set_format(self, format: Format | None) -> None:
        if self.format.done():
            return
        if format is None:
            self.format.set_exception(self._failure)
        else:
            self.format.set_result(format)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            self._loop.call_soon_threadsafe(function, *args)


def _joined(pieces: Iterator[Format | bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `size`, the last one excepted."""
    held = b""
    for piece in pieces:
        assert isinstance(piece, bytes)
        held += piece
        if len(held) >= size:
            yield held
            held = b""
    if held:
        yield held


def _raw(source: Source) -> Generator[Format | bytes, None, None]:
    """The format and the bytes of standard input, whole samples only."""
    yield source.raw
    frame, rest = 2 * source.raw.channels, b""
    while data := sys.stdin.buffer.read1(source.raw.size(CHUNK)):  # type: ignore[union-attr]
        rest += data
        whole = len(rest) - len(rest) % frame
        yield rest[:whole]
        rest = rest[whole:]


def _decoded(source: Source) -> Generator[Format | bytes, None, None]:
    """The format and the bytes of what FFmpeg opens."""
    format, address, options = None, source.address, {}
    if source.kind == "device":
        address = _DEVICES.get(sys.platform, "") if address == "microphone" else address
        format, _, address = address.partition(":")
        if format not in av.formats_available:
            raise SourceError(
                f"this build of FFmpeg has no {format} devices; pipe `ffmpeg … -f s16le -` into `-` instead"
            )
    elif source.kind == "remote":
        options = {"protocol_whitelist": _PROTOCOLS, "rtsp_transport": "tcp"}
        if not source.address.startswith("rtsp"):
            options = {"protocol_whitelist": _PROTOCOLS, "probesize": "65536", "analyzeduration": "500000"}
    container = av.open(address, format=format, options=options, timeout=(_OPEN_TIMEOUT, _READ_TIMEOUT))
    assert isinstance(container, av.container.InputContainer)
    try:
        if not container.streams.audio:
            raise SourceError(f"{source.name} has no audio track")
        track = container.streams.audio[0]
        context = track.codec_context
        rate, channels = min(context.sample_rate, MAX_RATE), min(context.channels, MAX_CHANNELS)
        resampler = av.AudioResampler(format="s16", layout="mono" if channels == 1 else "stereo", rate=rate)
        yield Format(rate, channels)
        for frame in container.decode(track):
            for converted in resampler.resample(frame):
                yield converted.to_ndarray().tobytes()
        for converted in resampler.resample(None):
            yield converted.to_ndarray().tobytes()
    finally:
        container.close()
