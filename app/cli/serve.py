"""`finelap serve`: settings, a socket, the application, and uvicorn around it until someone stops it.

Owns the process: signals, the listening socket, what is printed. The application itself comes from app.main.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from app.cli.allocator import keep_freed
from app.cli.demo import welcome
from app.observability.tracing import Tracing, TracingError, open_tracing
from app.server.shutdown import Stop, close_door
from app.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_TALKATIVE = ("uvicorn", "httpx", "faiss.loader")  # what they say of a start, the greeting says better
_LEAVE = 0.5  # seconds that callers with an open connection have for a last request and its 503
_REST = 3.0  # seconds that callers have to send the rest of a body, or read the rest of an answer
_CLOSING = 6.0  # seconds from the end of the requests' grace to the end of the process, whatever hangs
_TRACES = 3.0  # seconds, at most, that the last traces have to be sent
_SAVING = 3.0  # seconds of these that are kept for closing the library
_KEPT = 256 << 20  # bytes that the process keeps when they are free: about what batches under way take
_INTERPRETER = 0.001  # seconds that a thread keeps Python's interpreter while others, who compute batches, want it

log = logging.getLogger(__name__)


class ServeError(Exception):
    """The service cannot be started; the message says why."""


def serve(settings: Settings, demo: Path | None) -> int:
    """Runs the service until SIGINT or SIGTERM. 0 after a clean stop, 1 if model or library cannot be loaded.

    `demo` is a folder of sounds for an empty library. Raises ServeError if the address cannot be had.
    """
    # first the port, then the model: whoever forgot a running server learns it at once
    with _listen(settings.host, settings.port) as listener:
        stop = Stop(settings.stop_grace_s + _CLOSING)
        print(f"Loading {settings.checkpoint} …", flush=True)
        keep_freed(_KEPT)
        sys.setswitchinterval(_INTERPRETER)
        from app.api.system import version
        from app.main import build_app
        from app.observability.logs import configure_logging, log_what_nobody_caught
        from app.server.http_protocol import Protocol

        try:
            tracing = open_tracing(os.environ, version())
        except TracingError as error:
            raise ServeError(str(error)) from error
        configure_logging(settings, ids=tracing.ids)
        log_what_nobody_caught()
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        app = build_app(settings, tracing=tracing)
        # the application writes its own log, one line a request, and waits for its requests itself
        config = uvicorn.Config(
            app, http=Protocol, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        welcome(_address(listener), next(iter(settings.api_keys), None), demo, stop.asked)
        if not stop.asked.is_set():
            _Server(config, stop, app, tracing).run(sockets=[listener])
        else:
            print("Stopped.", flush=True)
        stop.over()
    return stop.code


class _Server(uvicorn.Server):
    """uvicorn that lets its callers finish: who comes while it stops is answered with 503 until nobody is served."""

    def __init__(self, config: uvicorn.Config, stop: Stop, app: FastAPI, tracing: Tracing) -> None:
        super().__init__(config)
        self._stop, self._app, self._tracing = stop, app, tracing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        self._stop.handle(sig, frame)
        self._app.state.service.stop_accepting()
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether it is time to stop."""
        return self._stop.asked.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Running requests finish; then the door is closed, and those who came through it have their answer."""
        await self._app.state.service.drain()
        for listener in sockets or []:
            close_door(listener)
        await self._let_go()
        await super().shutdown(sockets)
        # it holds the loop, for which all else is over
        self._tracing.close(max(0.0, min(_TRACES, self._stop.seconds_left - 1)))
        if self._app.state.failure is None:
            print("Stopped.", flush=True)
        else:  # the log has said why
            self._stop.code = 1
        self._stop.saved.set()

    async def _let_go(self) -> None:
        """Waits for the connections that are left: a moment for idle ones, longer for those with an answer to read."""
        began, connections = time.monotonic(), self.server_state.connections
        while (waited := time.monotonic() - began) < _REST and self._stop.seconds_left > _SAVING:
            if not connections or (waited > _LEAVE and not any(_is_busy(c) for c in connections)):
                return
            await asyncio.sleep(0.02)
        for connection in [c for c in connections if _is_busy(c)]:
            log.warning("a caller who does not read its answer, or go on with its request, is cut off")
            connection.transport.abort()


def _is_busy(connection: Any) -> bool:
    """Whether a connection of uvicorn's has an answer that is not complete."""
    return connection.cycle is not None and not connection.cycle.response_complete


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ServeError(f"{host} is not an address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    return listener


def _address(listener: socket.socket) -> str:
    """URL under which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
