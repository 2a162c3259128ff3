"""What happens around every request: its id, its log line and metrics, keys, limits, deadline, and callers that leave.

Plain ASGI, so that bodies stream through. Knows no route.
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
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.errors import AddressTooLong, BodyTooLarge, Malformed, TimedOut, Unauthorized, kind_of, problem_response
from app.inference.batcher import Closed
from app.observability.metrics import Metrics
from app.observability.tracing import Answered, Tracing
from app.server.leaving import Ending
from app.server.security import harden

log = logging.getLogger("app.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
_OPEN = frozenset(("/", "/health/live", "/health/ready", "/favicon.ico"))  # and /web/: they hold no data
_MAX_ADDRESS = 1 << 15  # bytes
_PROBES = frozenset(("/health/live", "/health/ready", "/metrics"))
_REFUSALS = frozenset((413, 429, 503, 507))  # statuses with which the service protects itself


class Envelope:
    """Gives the request an id, turns whatever is raised into a problem, counts, traces and logs the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing
        refusals = [kind.slug for kind in errors.KINDS.values() if kind.status in _REFUSALS]
        metrics.expect(metrics.rejected, refusals)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token = errors.request_id.set(request_id)
        try:
            with self.tracing.request(
                scope["method"], quote(scope["path"], errors="replace"), headers, request_id
            ) as end:
                await self._answer(scope, receive, send, end)
        finally:
            errors.request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answered: Answered) -> None:
        request_id = answered.request_id
        began, status, failure = time.perf_counter(), 0, ""
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
            _check_address(scope)
            await self.app(inner, receive, send_with_id)
        except Exception as error:
            if status:  # too late for another answer; the server closes the connection
                raise
            failure = kind_of(error).slug
            if kind_of(error).status in _REFUSALS:
                self.metrics.rejected.labels(failure).inc()
            await problem_response(error, scope["path"])(scope, receive, send_with_id)
        finally:
            route = getattr(inner.get("route"), "path", "other")
            answered.route, answered.status = route, status
            seconds = time.perf_counter() - began
            self.metrics.requests.labels(route, _outcome(status)).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            level = logging.DEBUG if scope["path"] in _PROBES and status < 400 else logging.INFO
            path = quote(scope["path"], errors="replace")  # a path may hold line breaks
            fields = {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1e3, 1)}
            log.log(level, "%s %s %d %.1f ms %s", *fields.values(), failure, extra={"fields": fields})


class Gate:
    """Lets in who may come in: API keys, and bodies no larger than allowed."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...], max_body: int) -> None:
        """`max_body` in bytes. Without keys the service is open."""
        self.app, self.max_body = app, max_body
        self._keys = [_digest(key) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and scope["path"] not in _OPEN and not scope["path"].startswith("/web/"):
            self._check_key(headers)
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

    def _check_key(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise Unauthorized("This service wants an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`.")
        digest = _digest(given)
        # every key is compared, in constant time each, so that timing tells nothing
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise Unauthorized("The API key is not one of this service's.")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request is larger than the limit of {self.max_body / 1e6:g} MB.")


class Lifeline:
    """Ends work before its answer began: the caller has left, or the deadline came, or the service's end."""

    def __init__(self, app: ASGIApp, timeout: float, ending: Ending) -> None:
        """`timeout` in seconds."""
        self.app, self.timeout, self.ending = app, timeout, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        line = _Line(scope, receive, send)
        work = asyncio.ensure_future(self.app(scope, line.receive, line.send))
        watch = asyncio.ensure_future(line.watch())
        ending = self.ending.moment()
        try:
            await asyncio.wait({work, watch, ending}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or line.answering:
                try:
                    await work
                except ClientDisconnect:  # in the middle of its body
                    log.info("the caller of %s %s has left", scope["method"], scope["path"])
            elif watch.done():
                log.info("the caller of %s %s has left", scope["method"], scope["path"])
            elif ending.done():
                raise Closed("The service is shutting down.")
            else:
                raise TimedOut(f"The request took longer than {self.timeout:g} s and was given up.")
        finally:
            for task in (work, watch):
                task.cancel()
            # the work's own cleanup, temporary files among it, ends before the request does
            await asyncio.gather(work, watch, return_exceptions=True)


class _Line:
    """The connection of one request, watched for its end from when the body is read until the answer begins."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        self._has_body = "content-length" in headers or "transfer-encoding" in headers
        self._body_read = asyncio.Event()
        self._over = asyncio.Event()
        self.answering = False
        if not self._has_body:
            self._body_read.set()

    async def receive(self) -> Message:
        if not self._has_body:
            self._has_body = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._body_read.is_set():
            await self._over.wait()  # the watcher listens
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._body_read.set()
        return message

    async def send(self, message: Message) -> None:
        self.answering = True
        await self._send(message)

    async def watch(self) -> None:
        """Ends when the caller has left before the answer began; later, who answers learns it from `receive`."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._over.set()
        if self.answering:
            await asyncio.Event().wait()


def _check_address(scope: Scope) -> None:
    """Raises AddressTooLong, or Malformed where percent-encoded bytes are no UTF-8."""
    query, path = scope.get("query_string", b""), scope.get("raw_path") or b""
    if len(query) + len(path) > _MAX_ADDRESS:
        raise AddressTooLong(f"The address has {len(query) + len(path)} bytes; the limit is {_MAX_ADDRESS}.")
    for part, what in ((path, "path"), (query, "query")):
        try:
            unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"The {what} of the address is not UTF-8.") from error


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
