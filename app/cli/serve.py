"""`finelap serve`: opens the socket, runs the application under uvicorn until a signal stops it, and adds demo sounds.

Owns the process: signals, the listening socket, and what is printed. The application itself comes from app.main.
"""

from __future__ import annotations

import asyncio
import csv
import errno
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from app.client import Client, ServerError, Stopped
from app.errors import request_id
from app.observability.tracing import Tracing, TracingError, open_tracing
from app.server.allocator import keep_freed
from app.server.shutdown import ShutdownController, stop_accepting
from app.settings import Settings
from index import LibraryUnavailable, StorageFull, exclusive_lock, in_use

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.cli.upload import Source

_NOISY_LOGGERS = ("uvicorn", "httpx", "faiss.loader")  # their start-up messages repeat the greeting
_IDLE_GRACE = 0.5  # seconds that idle connections stay open, to answer a last request with 503
_TRANSFER_GRACE = 3.0  # seconds for clients to finish sending a body or reading a response
_CLOSING = 6.0  # seconds from the end of the requests' grace period to the end of the process, even if it hangs
_TRACES = 3.0  # seconds, at most, for sending the last traces
_SAVING = 3.0  # seconds of _CLOSING reserved for closing the library
_RETAINED = 256 << 20  # bytes of freed memory that the process retains: about what running batches take
_SWITCH_INTERVAL = 0.001  # seconds before a thread yields the GIL, so that threads running batches get it sooner
_NEEDED = 1 << 20  # bytes that a new library needs at least
_DEMO_REQUEST_ID = "demo"  # of the requests that add demo sounds; the access log skips them
_DEMO_PATIENCE = 60.0  # seconds to retry one demo sound while the service is busy

log = logging.getLogger(__name__)


class ServeError(Exception):
    """The service cannot start; the message says why."""


def serve(settings: Settings, demo: Path | None) -> int:
    """Runs the service until SIGINT or SIGTERM. Returns 0 after a clean stop, 1 if the model or library fails to load.

    `demo` is a folder of sounds to add to an empty library. Raises ServeError if the address or the data folder is not
    available, LibraryInUse if another process has the library.
    """
    # before loading the model, so that a port in use and a folder that cannot be used are reported at once
    _check_data_dir(settings)
    with _bind(settings.host, settings.port) as listener:
        stop = ShutdownController(settings.stop_grace_s + _CLOSING)
        print(f"Loading {settings.checkpoint} …", flush=True)
        keep_freed(_RETAINED)
        sys.setswitchinterval(_SWITCH_INTERVAL)
        from app.api.system import version
        from app.main import build_app
        from app.observability.logs import configure_logging, log_uncaught_exceptions
        from app.server.http_protocol import KEEP_ALIVE, WEBSOCKETS, HttpProtocol

        try:
            tracing = open_tracing(os.environ, version())
        except TracingError as error:
            raise ServeError(str(error)) from error
        configure_logging(settings, ids=tracing.ids)
        log_uncaught_exceptions()
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        app = build_app(settings, tracing=tracing)
        # the application logs requests and drains them itself
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            **WEBSOCKETS,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
        )
        _start_greeting(_address(listener), next(iter(settings.api_keys), None), demo, stop.requested)
        if not stop.requested.is_set():
            _Server(config, stop, app, tracing).run(sockets=[listener])
        else:
            print("Stopped.", flush=True)
        stop.ignore_signals()
    return stop.exit_code


class _Server(uvicorn.Server):
    """A uvicorn server with graceful shutdown: running requests finish, and new ones get 503 in the meantime."""

    def __init__(self, config: uvicorn.Config, stop: ShutdownController, app: FastAPI, tracing: Tracing) -> None:
        super().__init__(config)
        self._stop, self._app, self._tracing = stop, app, tracing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._stop.handle_signal(sig, frame)
        self._app.state.service.stop_accepting()
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; called ten times a second."""
        return self._stop.requested.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains running requests, closes the listeners, then closes connections once their responses are sent."""
        await self._app.state.service.drain()
        for listener in sockets or []:
            stop_accepting(listener)
        await self._close_connections()
        await super().shutdown(sockets)
        # blocks the event loop, which has nothing left to run
        self._tracing.close(max(0.0, min(_TRACES, self._stop.seconds_left - 1)))
        if self._app.state.failure is None:
            print("Stopped.", flush=True)
        else:  # the log has the reason
            self._stop.exit_code = 1
        self._stop.finished.set()

    async def _close_connections(self) -> None:
        """Waits for open connections: _IDLE_GRACE for idle ones, _TRANSFER_GRACE for those still transferring."""
        began, connections = time.monotonic(), self.server_state.connections
        while (waited := time.monotonic() - began) < _TRANSFER_GRACE and self._stop.seconds_left > _SAVING:
            if not connections or (waited > _IDLE_GRACE and not any(_is_busy(c) for c in connections)):
                return
            await asyncio.sleep(0.02)
        for connection in [c for c in connections if _is_busy(c)]:
            log.warning("connection closed during shutdown: the client did not finish its request or read its response")
            connection.transport.abort()


def _is_busy(connection: Any) -> bool:
    """Whether a uvicorn connection has an incomplete response."""
    cycle = getattr(connection, "cycle", None)  # WebSockets have none; draining has closed them
    return cycle is not None and not cycle.response_complete


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ServeError(f"cannot resolve host {host}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    return listener


def _check_data_dir(settings: Settings) -> None:
    """Raises ServeError if the library's folder cannot be written to, LibraryInUse if the library is open already."""
    folder = settings.data_dir
    if not settings.in_folder:
        return
    new = not (folder / "catalog.sqlite3").exists()
    remedy = "choose another folder with --data-dir or FINELAP_DATA_DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock", in_use(folder)), tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_NEEDED))
            probe.flush()
    except (OSError, LibraryUnavailable, StorageFull) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            if not new:  # starts with its reserve, so that clips can be deleted
                print(f"No space left in {folder}: delete clips, or free space.", flush=True)
                return
            raise ServeError(f"no space left in the data folder {folder}: free some, or {remedy}") from error
        why = os.strerror(number) if number else str(error)
        raise ServeError(f"cannot write to the data folder {folder} ({why}): {remedy}") from error


def _address(listener: socket.socket) -> str:
    """The URL of the listener from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# Demo sounds


def _start_greeting(server: str, api_key: str | None, demo: Path | None, stop: threading.Event) -> None:
    """Starts a thread that adds the demo sounds as a client of the service, then prints how to use it.

    A failure prints one line and does not affect the service. Setting `stop` ends the thread.
    """
    logging.getLogger("app.access").addFilter(lambda record: request_id.get() != _DEMO_REQUEST_ID)
    threading.Thread(target=_greet, args=(server, api_key, demo, stop), name="greeting", daemon=True).start()


def _greet(server: str, api_key: str | None, demo: Path | None, stop: threading.Event) -> None:
    with Client(server, api_key, _DEMO_PATIENCE, stop, _DEMO_REQUEST_ID) as client:
        while not client.ready():
            if stop.wait(0.2):
                return
        try:
            if demo is not None:
                _add_demo(client, demo)
            clips = client.info().clips
        except Stopped:
            return
        except (ServerError, OSError) as error:
            print(f"The demo sounds were not added: {error}", flush=True)
            clips = 0
    if not stop.is_set():
        print(_greeting(server, clips, api_key is not None), flush=True)


def _greeting(server: str, clips: int, requires_key: bool) -> str:
    key = " -H 'Authorization: Bearer <your key>'" if requires_key else ""
    lines = ["", f"FineLAP is ready: {server}", f"  {clips} clips in the library; API at {server}/docs; Ctrl-C stops"]
    if clips:
        lines.append(f"  curl{key} '{server}/search?q=dog+barking'")
    else:
        lines.append(f"  finelap ingest FOLDER --server {server}")
    return "\n".join([*lines, ""])


def _add_demo(client: Client, folder: Path) -> None:
    if client.info().clips:
        return
    from app.cli.upload import Checksums, find_sources, ingest  # few starts need them

    credits = _credits(folder)
    sources = [_with_credits(source, credits) for source in find_sources([folder], {})]

    print(f"The library is empty: adding {len(sources)} demo sounds from {folder}", flush=True)
    with Checksums(None) as checksums:
        summary = ingest(client, sources, checksums)
    if not client.stop.is_set():
        for file, reason in summary.failed:
            print(f"{file}: {reason}", flush=True)
        print(f"Added {summary.added} sounds in {summary.seconds:.1f} s", flush=True)


def _credits(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of CREDITS.csv, in or beside the folder, by the name in their column `file`; empty if missing."""
    table = next((p for p in (folder / "CREDITS.csv", folder.parent / "CREDITS.csv") if p.is_file()), None)
    if table is None:
        return {}
    with table.open(newline="", encoding="utf-8") as text:
        return {Path(row["file"]).name: row for row in csv.DictReader(text)}


def _with_credits(source: Source, credits: dict[str, dict[str, str]]) -> Source:
    row: dict[str, Any] = {k: v for k, v in credits.get(source.path.name, {}).items() if k and k != "file" and v}
    return replace(source, metadata=source.metadata | row)
