"""`finelap serve`: settings, a socket, the application, and uvicorn around it until someone stops it.

Owns the process: signals, the listening socket, what is printed. The application itself comes from app.main.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from app.demo import welcome
from app.settings import Settings

_TALKATIVE = ("uvicorn", "httpx", "faiss.loader")  # what they say of a start, the greeting says better
_GRACE = 20  # seconds that running requests have once the service is told to stop


class ServeError(Exception):
    """The service cannot be started; the message says why."""


def serve(settings: Settings, demo: Path | None) -> int:
    """Runs the service until SIGINT or SIGTERM. 0 after a clean stop, 1 if model or library cannot be loaded.

    `demo` is a folder of sounds for an empty library. Raises ServeError if the address cannot be had.
    """
    # first the port, then the model: whoever forgot a running server learns it at once
    with _listen(settings.host, settings.port) as listener:
        print(f"Loading {settings.checkpoint} …", flush=True)
        from app.main import build_app, configure_logging
        from app.protocol import Protocol

        configure_logging(settings)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        app = build_app(settings)
        stop = threading.Event()
        # the application writes its own log, one line a request
        config = uvicorn.Config(app, http=Protocol, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE)
        welcome(_address(listener), next(iter(settings.api_keys), None), demo, stop)
        _run(_Server(config, stop), listener)
    if app.state.failure is not None:  # the log has said why
        return 1
    print("Stopped.", flush=True)
    return 0


class _Server(uvicorn.Server):
    """uvicorn that tells the greeting when it is to stop."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop.is_set() and sig == signal.SIGINT:
            os._exit(130)  # asked twice: at once, whatever still runs; what was acknowledged is on disk
        self._stop.set()
        super().handle_exit(sig, frame)


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


def _run(server: _Server, listener: socket.socket) -> None:
    """Serves. uvicorn raises the signal that stopped it once more at its end; by then the work is done."""
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    for sig in before:
        signal.signal(sig, lambda *_: None)
    try:
        server.run(sockets=[listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
