"""uvicorn's HTTP protocol with a problem response for unparsable requests and a timeout for request heads."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app import errors
from app.server.security import harden


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which takes a refused handshake for one that was never answered, and logs an error."""

    async def send(self, message: Any) -> None:
        """Sends an ASGI message."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True


# uvicorn's options for WebSockets. Audio does not compress, and messages are small; app.api.stream has a lower limit,
# and an error message for it.
WEBSOCKETS: dict[str, Any] = {
    "ws": WebSocketProtocol,
    "ws_max_size": 4 << 20,  # bytes
    "ws_per_message_deflate": False,
    "ws_ping_interval": 20.0,  # seconds; a client that does not answer for as long again has gone
    "ws_ping_timeout": 20.0,
}

log = logging.getLogger("app.access")

# seconds that a connection without a request stays open: longer than those that use it again, such as proxies (60 s in
# nginx and cloud load balancers). A request that is sent as the connection closes is lost.
KEEP_ALIVE = 75

_HEAD_TIMEOUT = 30.0  # seconds from the connection or the first byte to the end of the request head


class HttpProtocol(HttpToolsProtocol):
    """Answers requests that cannot be parsed, or exceed the parser's limits, with a problem, and closes the connection.

    Also closes connections whose request head does not arrive in time; otherwise a few clients that send a byte a
    minute could hold every file descriptor. Bodies are bounded by the request timeout.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timeout for the first request head."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timeout."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Starts the timeout for a further request on the same connection."""
        super().on_message_begin()
        self._start_head_timer()

    def on_headers_complete(self) -> None:
        """Cancels the timeout."""
        self._cancel_head_timer()
        super().on_headers_complete()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_TIMEOUT, self.transport.close)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        """Sends a problem, logs the request and closes the connection."""
        request_id = uuid.uuid4().hex
        token = errors.request_id.set(request_id)
        try:
            response = errors.problem_response(
                errors.Malformed("The request is not valid HTTP, or its head is too long.")
            )
            log.info("unparsable request 400: %s", msg)
        finally:
            errors.request_id.reset(token)
        response.headers["X-Request-ID"] = request_id
        harden(response.headers)
        response.headers["Connection"] = "close"
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
        self.transport.close()
