"""Security headers, Content-Security-Policy, and checks of the Host and Origin headers."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import CrossOrigin, Misdirected, Unauthorized

# for responses other than pages: nothing may run or load, except that audio may play
_DATA_POLICY = (
    "default-src 'none'; img-src 'self'; media-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self), payment=(), usb=()",
    "Content-Security-Policy": _DATA_POLICY,
}
_MCP = "/mcp"
SUBPROTOCOL = "finelap"  # of WebSockets; a browser sends its API key in another one, because it cannot set headers
_KEY_SUBPROTOCOL = "finelap.key."
_SIGNABLE = re.compile(r"/clips/[^/]+/(?:audio|preview)")
_MAX_VALID = 24 * 3600  # seconds that a signed link may be valid
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_PROBES = frozenset(("/health/live", "/health/ready", "/metrics"))


def nonce() -> str:
    """A random CSP nonce for the inline elements of one page."""
    return secrets.token_urlsafe(16)


def page_policy(nonce: str) -> str:
    """The policy of the page at `/`: same-origin files, and audio and images that the page creates.

    `nonce`: of wavesurfer's inline style element.
    """
    return (
        "default-src 'none'; script-src 'self'; "
        f"style-src 'self' 'nonce-{nonce}'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self' blob:; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


def docs_policy(nonce: str) -> str:
    """The policy of /docs. `nonce`: of its inline script. Swagger UI sets inline styles."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'self'"
    )


def harden(headers: MutableHeaders) -> None:
    """Adds the security headers that the response does not set itself."""
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)


def take_signature(scope: Scope, keys: Iterable[bytes], now: float) -> bool:
    """Whether the URL of audio is signed with one of the keys, given as SHA-256 digests; for what sends no headers.

    Such a URL ends with `expires=T&signature=S`. T: seconds since 1970, at most a day from now. S: the HMAC-SHA256, in
    hexadecimal, of path and query up to T, with the SHA-256 of the API key as its key. Both parameters are removed
    from the scope. Raises Unauthorized if the signature is wrong or has expired.
    """
    query, found, signature = bytes(scope.get("query_string", b"")).rpartition(b"&signature=")
    rest, _, expires = query.rpartition(b"expires=")
    safe = scope.get("method") in ("GET", "HEAD") and _SIGNABLE.fullmatch(scope["path"])
    if not (found and safe and expires.isdigit()):
        return False
    signed = scope["path"].encode() + b"?" + query
    expected = [hmac.new(key, signed, hashlib.sha256).hexdigest().encode() for key in keys]
    if not sum(hmac.compare_digest(signature, one) for one in expected):
        raise Unauthorized("The link's signature is invalid.")
    if not now <= int(expires) <= now + _MAX_VALID:
        raise Unauthorized("The link has expired.")
    scope["query_string"] = rest.rstrip(b"&")
    return True


class OriginGuard:
    """Rejects requests that a page of another site makes a browser send.

    Such a page can post forms to any address, this machine's included; the browser then names it in `Origin`. With DNS
    rebinding, its host name resolves to this address, so the browser considers both the same site and only `Host`
    differs.

    hosts: names under which the service is reachable; if empty, any name, or with `local` only addresses, localhost and
    names without a dot, which cannot be registered. origins: other sites that may call the service.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...], local: bool) -> None:
        self.app, self._local = app, local
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Misdirected and CrossOrigin."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if host and not (self._is_own_host(host) or _is_probe(scope["path"], host)):
                raise Misdirected(
                    "The Host header does not name this service; FINELAP_ALLOWED_HOSTS lists the names it accepts."
                )
            # of the safe methods, only MCP's GET is guarded, as its protocol wants; browsers let any page open a
            # WebSocket to any address, so each needs an allowed origin
            safe = scope["type"] == "http" and scope["method"] in _SAFE and scope["path"] != _MCP
            if not safe and not self._is_allowed_origin(headers, host):
                raise CrossOrigin(
                    "Requests from this origin are not allowed; FINELAP_CORS_ORIGINS lists the allowed origins."
                )
        await self.app(scope, receive, send)

    def _is_own_host(self, host: str) -> bool:
        name = _host_name(host)
        if self._hosts:
            return name in self._hosts or "*" in self._hosts
        return not self._local or "." not in name.rstrip(".") or name.endswith(".localhost") or _is_address(name)

    def _is_allowed_origin(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return True  # only browsers send Origin, and they always do
        try:
            return urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def _is_probe(path: str, host: str) -> bool:
    """Whether this is a probe of the health checks or of Prometheus, which use addresses: rebinding needs a name."""
    return path in _PROBES and _is_address(_host_name(host))


def websocket_key(subprotocols: Iterable[str]) -> str:
    """The API key among the offered subprotocols: base64url after `finelap.key.`; empty if there is none."""
    for offered in subprotocols:
        if offered.startswith(_KEY_SUBPROTOCOL):
            encoded = offered.removeprefix(_KEY_SUBPROTOCOL)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("utf-8")
            except ValueError:
                return ""
    return ""


def _host_name(host: str) -> str:
    """The lower-case name in a Host header without port and brackets; empty if it is invalid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


@functools.lru_cache(maxsize=64)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_local(host: str) -> bool:
    """Whether a service listening on `host` is reachable only from this machine."""
    name = host.strip("[]").lower()
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)
