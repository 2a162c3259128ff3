"""`finelap mcp`: the tools of app.agents.server on standard input and output, for agents that start programs."""

from __future__ import annotations

import os

import anyio
import httpx

from app.agents.server import make_server
from app.agents.service import Service
from app.client.retry import Address


def run_mcp(server: str, write: bool) -> None:
    """Serves one agent until its standard input ends. Raises ServerError if `server` is not an address."""
    from app.api.system import version

    address = Address.parse(server)
    http = httpx.AsyncClient(**address.options(os.environ.get("FINELAP_API_KEY"), None))
    anyio.run(make_server(lambda context: Service(http), version(), write).run_stdio_async)
