"""ASGI middleware for every request: context, access control and cancellation.

Plain ASGI rather than Starlette's BaseHTTPMiddleware, so that bodies are streamed and not buffered.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.errors import AddressTooLong, BodyTooLarge, Malformed, TimedOut, Unauthorized, kind_of, problem_response
from app.inference.batcher import Closed
from app.observability.metrics import Metrics
from app.observability.tracing import RequestOutcome, Tracing
from app.server.security import harden, take_signature, websocket_key
from app.server.shutdown import RequestCutoff

log = logging.getLogger("app.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
_PUBLIC = frozenset(("/", "/health/live", "/health/ready", "/favicon.ico"))  # with /web/: they expose no data
_MAX_URL = 1 << 15  # bytes
_WEBSOCKETS = frozenset(("/stream",))
_PROBES = frozenset(("/health/live", "/health/ready", "/metrics"))
_REJECTIONS = frozenset((413, 429, 503, 507))  # statuses that protect the service


class RequestContext:
    """Assigns the request id, turns exceptions into problem responses, and counts, traces and logs the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing
        rejections = [kind.slug for kind in errors.KINDS.values() if kind.status in _REJECTIONS]
        metrics.expect(metrics.rejected, rejections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token = errors.request_id.set(request_id)
        try:
            if scope["type"] == "websocket":
                await self._converse(scope, receive, send, request_id)
                return
            with self.tracing.request(
                scope["method"], quote(scope["path"], errors="replace"), headers, request_id
            ) as outcome:
                await self._respond(scope, receive, send, outcome)
        finally:
            errors.request_id.reset(token)

    async def _respond(self, scope: Scope, receive: Receive, send: Send, outcome: RequestOutcome) -> None:
        request_id = outcome.request_id
        began, status, failure = time.perf_counter(), 0, ""
        counted = int(scope["path"] not in _PROBES)
        self.metrics.inflight.inc(counted)
        # HEAD is GET without a body (RFC 9110, section 9.3.2)
        inner = {**scope, "method": "GET", "finelap.head": True} if scope["method"] == "HEAD" else scope

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                harden(headers)
            elif inner is not scope:
                message = {**message, "body": b""}
            await send(message)

        try:
            _check_url(scope)
            await self.app(inner, receive, send_with_id)
        except Exception as error:
            if status:  # the response has started; the server closes the connection
                raise
            failure = kind_of(error).slug
            if kind_of(error).status in _REJECTIONS:
                self.metrics.rejected.labels(failure).inc()
            await problem_response(error, scope["path"])(scope, receive, send_with_id)
        finally:
            self.metrics.inflight.dec(counted)
            route = getattr(inner.get("route"), "path", "other")
            outcome.route, outcome.status = route, status
            seconds = time.perf_counter() - began
            self.metrics.requests.labels(route, _outcome(status)).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            level = logging.DEBUG if scope["path"] in _PROBES and status < 400 else logging.INFO
            path = quote(scope["path"], errors="replace")  # escapes line breaks
            fields = {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1e3, 1)}
            log.log(level, "%s %s %d %.1f ms %s", *fields.values(), failure, extra={"fields": fields})

    async def _converse(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """A WebSocket, whose handshake is answered with a problem if it is refused."""
        began, status, failure, code = time.perf_counter(), 0, "", 1005

        async def send_and_note(message: Message) -> None:
            nonlocal status, code
            if message["type"] == "websocket.accept":
                status = 101
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif message["type"] == "websocket.close":
                status, code = status or 403, message.get("code", 1000)
            await send(message)

        try:
            _check_url(scope)
            if scope["path"] not in _WEBSOCKETS:
                raise HTTPException(404, "There is no WebSocket at this address.")
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if status:
                raise
            failure, status = kind_of(error).slug, kind_of(error).status
            if status in _REJECTIONS:
                self.metrics.rejected.labels(failure).inc()
            await _refuse(error, scope, send, request_id)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, _outcome(status)).inc()
            path = quote(scope["path"], errors="replace")
            fields = {"method": "WS", "path": path, "status": status, "ms": round(seconds * 1e3, 1), "code": code}
            log.info("%s %s %d %.1f ms %d %s", *fields.values(), failure, extra={"fields": fields})


async def _refuse(error: Exception, scope: Scope, send: Send, request_id: str) -> None:
    """Refuses a WebSocket with a problem response, if the server supports that."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    response = problem_response(error, scope["path"])
    response.headers["X-Request-ID"] = request_id
    harden(response.headers)
    head = {"type": "websocket.http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send(head)
    await send({"type": "websocket.http.response.body", "body": response.body})


class AccessControl:
    """Checks API keys and limits the size of request bodies."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...], max_body: int) -> None:
        """`max_body` in bytes. With no keys, no key is required."""
        self.app, self.max_body = app, max_body
        self._keys = [_digest(key) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = self._keys and scope["path"] not in _PUBLIC and not scope["path"].startswith("/web/")
        if guarded and not take_signature(scope, self._keys, time.time()):
            self._check_key(headers, websocket_key(scope.get("subprotocols", ())))
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body:
            raise self._too_large()
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_body:
                    raise self._too_large()
            return message

        await self.app(scope, count, send)

    def _check_key(self, headers: Headers, otherwise: str) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = given or otherwise
        if not given:
            raise Unauthorized("An API key is required: `Authorization: Bearer <key>` or `X-API-Key: <key>`.")
        digest = _digest(given)
        # compare every key in constant time, so that timing reveals nothing
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise Unauthorized("The API key is invalid.")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request is larger than the limit of {self.max_body / 1e6:g} MB.")


class RequestCancellation:
    """Cancels a request before its response starts: on disconnect, timeout or shutdown."""

    def __init__(self, app: ASGIApp, timeout: float, cutoff: RequestCutoff) -> None:
        """`timeout` in seconds."""
        self.app, self.timeout, self.cutoff = app, timeout, cutoff

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        connection = _Connection(scope, receive, send)
        work = asyncio.ensure_future(self.app(scope, connection.receive, connection.send))
        disconnect = asyncio.ensure_future(connection.wait_for_disconnect())
        cutoff = self.cutoff.future()
        try:
            await asyncio.wait({work, disconnect, cutoff}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or connection.responding:
                try:
                    await work
                except ClientDisconnect:  # while sending its body
                    log.info("client disconnected: %s %s", scope["method"], scope["path"])
            elif disconnect.done():
                log.info("client disconnected: %s %s", scope["method"], scope["path"])
            elif cutoff.done():
                raise Closed("The service is shutting down.")
            else:
                raise TimedOut(f"The request took longer than {self.timeout:g} s and was cancelled.")
        finally:
            for task in (work, disconnect):
                task.cancel()
            # the handler cleans up, temporary files included, before the request ends
            await asyncio.gather(work, disconnect, return_exceptions=True)


class _Connection:
    """The connection of one request, watched for a disconnect once the body is read."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        self._has_body = "content-length" in headers or "transfer-encoding" in headers
        self._body_read = asyncio.Event()
        self._disconnected = asyncio.Event()
        self.responding = False
        if not self._has_body:
            self._body_read.set()

    async def receive(self) -> Message:
        """Receives the body, then waits for the disconnect that `wait_for_disconnect` observes."""
        if not self._has_body:
            self._has_body = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._body_read.is_set():
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._body_read.set()
        return message

    async def send(self, message: Message) -> None:
        """Sends a message and notes that the response has started."""
        self.responding = True
        await self._send(message)

    async def wait_for_disconnect(self) -> None:
        """Returns when the client disconnects before the response starts; later, `receive` reports it instead."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected.set()
        if self.responding:
            await asyncio.Event().wait()


def _check_url(scope: Scope) -> None:
    """Raises AddressTooLong, or Malformed if percent-encoded bytes are not UTF-8."""
    query, path = scope.get("query_string", b""), scope.get("raw_path") or b""
    if len(query) + len(path) > _MAX_URL:
        raise AddressTooLong(f"The URL has {len(query) + len(path)} bytes; the limit is {_MAX_URL}.")
    for part, what in ((path, "path"), (query, "query")):
        try:
            unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"The {what} of the URL is not UTF-8.") from error


def _outcome(status: int) -> str:
    if status in (429, 503):
        return "rejected"
    if status >= 500:
        return "failed"
    if status >= 400:
        return "invalid"
    return "ok" if status else "cancelled"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
