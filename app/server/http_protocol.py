"""HTTP as uvicorn reads it, except that bytes which are no HTTP request are refused with a problem, as all else is.

That is also what becomes of an address or header beyond the parser's limit, before any of our own. Knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import errors
from app.server.security import harden

log = logging.getLogger("app.access")


_HEAD = 30.0  # seconds that a caller may take to say what it wants


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with a problem for requests that cannot be parsed; the connection ends with it.

    So does one on which the head of a request does not come: a few callers that say a letter a minute could otherwise
    hold every descriptor. The body has the time that a request has.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is there."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._head_is_there()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The head of a request."""
        self._head_is_there()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(_HEAD, self.transport.close)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        """Answers, logs and closes."""
        request_id = uuid.uuid4().hex
        token = errors.request_id.set(request_id)
        try:
            response = errors.problem_response(
                errors.Malformed("This is not an HTTP request, or one too long to read.")
            )
            log.info("unreadable request 400: %s", msg)
        finally:
            errors.request_id.reset(token)
        response.headers["X-Request-ID"] = request_id
        harden(response.headers)
        response.headers["Connection"] = "close"
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
        self.transport.close()
