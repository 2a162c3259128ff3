"""How a service that is to stop takes leave of its callers, and how a connection ends after an answer.

Plain ASGI; knows no route and no reason for stopping. The process itself is ended by app.cli.serve.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER = 5.0  # seconds that a caller has to send the rest of a body which is not wanted any more


class Ending:
    """The moment from which no request may go on; the same for all of one app."""

    def __init__(self) -> None:
        self._moment: asyncio.Future[None] | None = None

    def moment(self) -> asyncio.Future[None]:
        """To be waited for, not to be cancelled."""
        if self._moment is None:
            self._moment = asyncio.get_running_loop().create_future()
        return self._moment

    def come(self) -> None:
        """It is now."""
        if not self.moment().done():
            self.moment().set_result(None)


class Leave:
    """Outermost: says `Connection: close` while the service stops, and closes no connection into a caller's face.

    A server that closes a connection while the caller still sends makes the caller's system throw away the answer that
    has come already. So where an answer is given before the whole body was read, and the connection is to be closed,
    the rest of the body is read first.
    """

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        self.app, self._stopping = app, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body_left = "content-length" in headers or "transfer-encoding" in headers
        closes = scope.get("http_version") == "1.0" or "close" in headers.get("connection", "").lower()

        async def noting() -> Message:
            nonlocal body_left
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                body_left = False
            return message

        async def closing(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and self._stopping():
                MutableHeaders(scope=message)["Connection"] = "close"
                closes = True
            elif message["type"] == "http.response.body" and not message.get("more_body") and closes and body_left:
                await send({**message, "more_body": True})  # the answer is whole; only its end is kept back
                with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(_LINGER):
                        while body_left:
                            await noting()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, noting, closing)
