"""Graceful shutdown: signals, a bound on the process's lifetime, and connections that close without losing responses.

The application is drained by app.state; app.cli.serve drives the sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_DRAIN_BODY = 5.0  # seconds to read the rest of a request body after its response
_THREAD_GRACE = 1.5  # seconds for remaining threads once everything is closed
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# classic BPF run on each TCP segment: drop those that open a connection (SYN without ACK), accept all others
_DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26


class ShutdownController:
    """Whether this process is asked to stop. Installs signal handlers for good when created.

    The first SIGINT or SIGTERM requests a graceful shutdown. A second SIGTERM has no effect; a second SIGINT (Ctrl-C
    twice) ends the process at once, which loses nothing that was acknowledged.

    requested: set by the first signal. finished: set by the caller once everything is closed. exit_code: used if the
    process has to be ended by force.
    """

    def __init__(self, limit: float) -> None:
        """`limit`: seconds from the first signal to the end of the process, even if something hangs."""
        self.requested = threading.Event()
        self.finished = threading.Event()
        self.exit_code = 0
        self._limit = limit
        self._deadline = math.inf
        for number in _SIGNALS:
            signal.signal(number, self.handle_signal)
        threading.Thread(target=self._enforce_limit, name="shutdown", daemon=True).start()

    def handle_signal(self, number: int, _: FrameType | None) -> None:
        """Signal handler."""
        if self.requested.is_set() and number == signal.SIGINT:
            os._exit(130)
        self._deadline = min(self._deadline, time.monotonic() + self._limit)
        self.requested.set()

    def ignore_signals(self) -> None:
        """Ignores SIGTERM from now on, with SIG_IGN because Python resets its own handlers while it exits."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @property
    def seconds_left(self) -> float:
        """Seconds until the process is ended by force; infinity before a signal."""
        return self._deadline - time.monotonic()

    def _enforce_limit(self) -> None:
        """Ends the process despite threads that cannot be interrupted, such as one that loads a model."""
        self.requested.wait()
        if self.finished.wait(max(0.0, self.seconds_left)):
            time.sleep(_THREAD_GRACE)
        else:
            log.error("shutdown did not finish within %g s; acknowledged writes are on disk", self._limit)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.exit_code if self.finished.is_set() else 1)


def stop_accepting(listener: socket.socket) -> None:
    """Rejects new connections to a listener; connections already in its backlog can still be accepted.

    Closing the listener would reset the backlog. The socket filter is specific to Linux; elsewhere this does nothing.
    """
    with contextlib.suppress(OSError):
        program = b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN)
        buffer = ctypes.create_string_buffer(program, len(program))
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(buffer))
        )


class RequestCutoff:
    """A one-shot signal that aborts an app's running requests."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def future(self) -> asyncio.Future[None]:
        """Done once `trigger` is called. Wait for it, but don't cancel it."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    def trigger(self) -> None:
        """Ends the requests that still run."""
        if not self.future().done():
            self.future().set_result(None)


class GracefulShutdown:
    """Outermost middleware: sends `Connection: close` during shutdown and drains unread request bodies.

    If a server closes a connection while the client still sends, the client's TCP stack discards the response that it
    has already received. So before a connection closes, the rest of the request body is read.
    """

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        self.app, self._stopping = app, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body_pending = "content-length" in headers or "transfer-encoding" in headers
        closes = scope.get("http_version") == "1.0" or "close" in headers.get("connection", "").lower()

        async def receive_and_track() -> Message:
            nonlocal body_pending
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                body_pending = False
            return message

        async def send_and_drain(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and self._stopping():
                MutableHeaders(scope=message)["Connection"] = "close"
                closes = True
            elif message["type"] == "http.response.body" and not message.get("more_body") and closes and body_pending:
                await send({**message, "more_body": True})  # send the full body, but keep the response open
                with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(_DRAIN_BODY):
                        while body_pending:
                            await receive_and_track()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, receive_and_track, send_and_drain)
