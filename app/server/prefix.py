"""The path under which a proxy serves the service, such as /sounds.

Most proxies strip it before they pass a request on; then nothing here matters but `prefix_of`, which takes it from
X-Forwarded-Prefix for the addresses that the service writes itself. Others pass it on: FINELAP_ROOT_PATH names it, and
`PathPrefix` strips it. The page and /docs use relative addresses and need neither.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"(?:/[\w.~-]+){1,16}", re.ASCII)
_MAX = 256  # characters
_KEY = "finelap.prefix"


class PathPrefix:
    """Strips `root_path` from the paths of requests, so that everything further in sees the service's own paths."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            stripped = self._root and _strip(scope, self._root)
            scope[_KEY] = self._root if stripped else _forwarded(scope)
        await self.app(scope, receive, send)


def prefix_of(scope: Scope) -> str:
    """The path before the service's own paths, as the client sees them; empty if there is none, or it is not known."""
    return str(scope.get(_KEY, ""))


def _strip(scope: MutableMapping[str, Any], root: str) -> bool:
    path = scope["path"]
    if path != root and not path.startswith(root + "/"):
        return False
    scope["path"] = path[len(root) :] or "/"
    raw = scope.get("raw_path")
    if isinstance(raw, bytes) and raw.startswith(root.encode()):
        scope["raw_path"] = raw[len(root) :] or b"/"
    return True


def _forwarded(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-forwarded-prefix", "").split(",")[0].strip().rstrip("/")
    return given if len(given) <= _MAX and _PATH.fullmatch(given) and "/.." not in given else ""
