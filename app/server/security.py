"""What a browser is told not to do with the service's answers, and which callers' browsers are let in at all.

Headers for every answer, a Content-Security-Policy for the two pages that have scripts, and the door: requests that
another site made a browser send, and names that are not this service's. Plain ASGI; knows no route but those two.
"""

from __future__ import annotations

import functools
import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import CrossOrigin, Misdirected

# of answers that are no page: nothing in them may run or load, wherever they are opened; a sound may play
_DATA_POLICY = (
    "default-src 'none'; img-src 'self'; media-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Content-Security-Policy": _DATA_POLICY,
}
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


def nonce() -> str:
    """A word nobody can guess, for the inline parts of one page."""
    return secrets.token_urlsafe(16)


def page_policy(word: str) -> str:
    """The policy of the page at `/`: its own files, sounds and pictures that it makes itself, nothing from elsewhere.

    `word`: the nonce of wavesurfer's style element, the only one that is not a file.
    """
    return (
        "default-src 'none'; script-src 'self'; "
        f"style-src 'self' 'nonce-{word}'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self' blob:; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


def docs_policy(word: str) -> str:
    """The policy of /docs. `word`: the nonce of its one script; Swagger UI writes styles into its elements."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{word}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'self'"
    )


def harden(headers: MutableHeaders) -> None:
    """Puts the headers of every answer in where the answer has not its own."""
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)


class Door:
    """Refuses what a browser was made to send by somebody else's page.

    A page of another site may send forms to any address, this machine's own included; it says so in `Origin`. And a
    name of an attacker's may point to this address ("DNS rebinding"); the browser then believes page and service to be
    one site, and only the `Host` tells. `hosts`: the names under which the service answers; empty: any, unless
    `local`: then only addresses, localhost, and names without a dot, which nobody can register.
    `origins`: other sites that may call it.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...], local: bool) -> None:
        self.app, self._local = app, local
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Misdirected and CrossOrigin."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if host and not self._is_ours(host):
                raise Misdirected(
                    "This service does not answer under that name; FINELAP_ALLOWED_HOSTS says which names are its own."
                )
            if scope["method"] not in _SAFE and not self._may_change(headers, host):
                raise CrossOrigin("A page of another site may not send this; FINELAP_CORS_ORIGINS says which may.")
        await self.app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if self._hosts:
            return name in self._hosts or "*" in self._hosts
        return not self._local or "." not in name.rstrip(".") or name.endswith(".localhost") or _is_address(name)

    def _may_change(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return True  # only browsers say where a request comes from, and they always do
        try:
            return urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def _name_of(host: str) -> str:
    """The name of a Host header, lower case, without port and brackets; empty if it is none."""
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
    """Whether a service that listens at `host` is reached from this machine only."""
    name = host.strip("[]").lower()
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)
