"""/mcp: the tools of app.agents.server over streamable HTTP, within the service.

Each request stands alone: nothing is remembered between them, so any replica can answer. The protocol's library is
loaded by the first request. A tool calls the service's own API with the key of the request that called the tool.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from app.agents.service import Service

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

MAX_BODY = 1 << 20  # bytes of a request; tools take no audio
_PASSED = ("authorization", "x-api-key", "host")  # headers of a request that its calls carry on


class McpEndpoint:
    """An ASGI app. `app` is the whole service, `version` its version; `write` adds tools that change the library."""

    def __init__(self, app: ASGIApp, version: str, write: bool) -> None:
        self._app, self._version, self._write = app, version, write
        self._starting = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._running: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._starting:
            if self._manager is None:
                await self._start()
        assert self._manager is not None
        await self._manager.handle_request(scope, receive, send)

    async def close(self) -> None:
        """Ends what the first request started."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._http is not None:
            await self._http.aclose()

    async def _start(self) -> None:
        transport = httpx.ASGITransport(self._app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://service", timeout=None)
        manager = await asyncio.to_thread(self._make_manager)
        ready = asyncio.Event()

        async def run() -> None:
            async with manager.run():
                ready.set()
                await asyncio.Event().wait()

        self._running = asyncio.create_task(run())
        await ready.wait()
        self._manager = manager

    def _make_manager(self) -> StreamableHTTPSessionManager:
        from mcp.server.transport_security import TransportSecuritySettings

        from app.agents.server import make_server

        server = make_server(self._connect, self._version, self._write)
        server.streamable_http_app(
            json_response=True,
            stateless_http=True,
            max_request_body_size=MAX_BODY,
            # Host and Origin are checked by app.server.security, as for every request
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        return server.session_manager

    def _connect(self, context: Any) -> Service:
        assert self._http is not None
        request = context.request_context.request
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        return Service(self._http, headers, str(request.base_url))
