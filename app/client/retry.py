"""The address of a service, and the policy for retrying a call. Decides only; the clients send and wait."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.client.errors import Busy, ServerError, Unreachable

DEFAULT_SERVER = "http://127.0.0.1:8080"
_CONNECTIONS = 100  # at once
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_SHORTEST, _LONGEST = 0.2, 10.0  # seconds between attempts, unless Retry-After asks for more


@dataclass(frozen=True)
class Address:
    """The base URL of a service, and whether it is on this machine."""

    url: str
    local: bool

    @classmethod
    def parse(cls, server: str) -> Address:
        """Raises ServerError if `server` is not an http(s) URL."""
        try:
            parts = urlsplit(server)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            httpx.URL(server)
        except (ValueError, httpx.InvalidURL):
            fits = False
        if not fits:
            raise ServerError(f"{server!r} is not a server address such as {DEFAULT_SERVER}")
        return cls(server.rstrip("/"), parts.hostname in _LOOPBACK)

    def options(self, api_key: str | None, request_id: str | None) -> dict[str, Any]:
        """The arguments of an httpx client for this service."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if request_id is not None:
            headers["X-Request-ID"] = request_id
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": httpx.Timeout(900.0, connect=10.0),  # a long recording takes minutes
            # by default httpx closes a connection after each request while more than 20 are open
            "limits": httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            "trust_env": not self.local,  # no proxy for the loopback interface
        }


class RetryPolicy:
    """The attempts of one call: retries for `busy` seconds while the service is busy, `gone` while it is unreachable.

    The delay doubles with each attempt that fails in the same way.
    """

    def __init__(self, busy: float, gone: float) -> None:
        self._allowed: dict[type[ServerError], float] = {Busy: busy, Unreachable: gone}
        self._last: type[ServerError] | None = None
        self._since = 0.0
        self._pause = _SHORTEST

    def wait_after(self, failure: ServerError) -> float:
        """Seconds until the next attempt. Raises `failure` if there is none."""
        now = time.monotonic()
        if type(failure) is not self._last:
            self._last, self._since, self._pause = type(failure), now, _SHORTEST
        wait = max(self._pause, failure.retry_after or 0.0)
        if now + wait > self._since + self._allowed.get(type(failure), 0.0):
            raise failure
        self._pause = min(2 * self._pause, _LONGEST)
        return wait
