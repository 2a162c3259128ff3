"""HTTP as uvicorn reads it, except that bytes which are no HTTP request are refused with a problem, as all else is.

That is also what becomes of an address or header beyond the parser's limit, before any of our own. Knows no route.
"""

from __future__ import annotations

import logging
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import errors

log = logging.getLogger("app.access")


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with a problem for requests that cannot be parsed; the connection ends with it."""

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
        response.headers["Connection"] = "close"
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
        self.transport.close()
