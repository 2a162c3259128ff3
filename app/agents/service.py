"""Calls of the service's HTTP API for agents: errors become sentences, and text from files is marked and cleaned."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import httpx

MAX_VALUE = 500  # characters of a metadata value
MAX_FIELDS = 40  # of a clip's metadata
MAX_ITEMS = 20  # of a list in it
# characters that are not displayed, in which instructions can be hidden: format characters, tags, private use, what is
# not assigned, and of other categories those that Unicode calls default ignorable: variation selectors, fillers
_HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_SPACES = re.compile(r"\s+")


class ServiceError(Exception):
    """The service refused a call, or is not there; the message is for the model."""


class Service:
    """The HTTP API of one service, through `http`.

    `headers` are added to each call. `address` is where the agent's user reaches the service, as `http` by default.
    """

    def __init__(self, http: httpx.AsyncClient, headers: Mapping[str, str] | None = None, address: str = "") -> None:
        self._http, self._headers = http, dict(headers or {})
        self._address = address or str(http.base_url)

    async def get(self, path: str, **params: Any) -> Any:
        """GET, as JSON. Parameters that are None are left out. Raises ServiceError."""
        return (await self._send("GET", path, params=_given(params))).json()

    async def post(self, path: str, *, json: dict[str, Any] | None = None, form: dict[str, Any] | None = None) -> Any:
        """POST of a JSON body or form, answered with JSON. Values that are None are left out. Raises ServiceError."""
        body = {"json": _given(json)} if json is not None else {"files": _form(_given(form or {}))}
        return (await self._send("POST", path, **body)).json()

    async def patch(self, path: str, json: dict[str, Any]) -> Any:
        """PATCH of a JSON body, answered with JSON. Raises ServiceError."""
        return (await self._send("PATCH", path, json=json)).json()

    async def concepts(self) -> list[dict[str, Any]]:
        """The taught concepts; none from a service that has no concepts."""
        try:
            response = await self._send("GET", "/concepts")
        except NotFound:
            return []
        found = response.json()
        return list(found.get("concepts", []) if isinstance(found, dict) else found)

    async def audio(self, path: str, params: dict[str, Any], limit: int) -> tuple[bytes, str] | None:
        """An audio file and its media type; None if it has more than `limit` bytes. Raises ServiceError."""
        with contextlib.suppress(ServiceError):  # GET tells the reason, HEAD has no body
            head = await self._send("HEAD", path, params=_given(params))
            if int(head.headers.get("content-length", 0)) > limit:
                return None
        response = await self._send("GET", path, params=_given(params))
        if len(response.content) > limit:
            return None
        return response.content, response.headers.get("content-type", "application/octet-stream")

    def url(self, path: str, params: dict[str, Any]) -> str:
        """The address of a file at the service."""
        return str(httpx.URL(self._address).join(path).copy_merge_params(_given(params)))

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, headers=self._headers, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            where = str(self._http.base_url).rstrip("/")
            raise ServiceError(
                f"The FineLAP service at {where} does not answer ({type(error).__name__}). "
                "It is started with `finelap serve`."
            ) from error
        if response.is_success:
            return response
        kind = NotFound if response.status_code == 404 else ServiceError
        raise kind(_reason(response))


class NotFound(ServiceError):
    """There is no such thing."""


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _form(values: dict[str, Any]) -> list[tuple[str, tuple[None, str]]]:
    """Form fields as httpx takes them for a multipart body without files."""
    pairs = [(name, each) for name, value in values.items() for each in (value if isinstance(value, list) else [value])]
    return [(name, (None, str(value))) for name, value in pairs]


def _reason(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return clean(f"{problem['title']}: {problem['detail']}")  # which may name a file
    except (ValueError, KeyError, TypeError):
        return f"The service returned status {response.status_code}."


# What agents read


def clip_of(clip: dict[str, Any]) -> dict[str, Any]:
    """A clip as agents see it: facts measured by the service, and apart from them text that came with the file."""
    return {
        "clip_id": clip["id"],
        "duration": round(clip["duration"], 3),
        "sample_rate": clip["sample_rate"],
        "channels": clip["channels"],
        "untrusted": {"filename": clean(clip["filename"]), "metadata": clean_metadata(clip["metadata"])},
    }


def clean(text: str) -> str:
    """Text from a file on one line, without characters that are not displayed, of at most MAX_VALUE characters."""
    text = _IGNORABLE.sub("", text)
    shown = "".join(c if unicodedata.category(c) not in _HIDDEN else " " if c.isspace() else "" for c in text)
    short = _SPACES.sub(" ", shown).strip()
    return short if len(short) <= MAX_VALUE else short[:MAX_VALUE].rstrip() + " …"


def clean_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with `clean` text; nested objects are left out."""
    fields: dict[str, Any] = {}
    for name, value in list(metadata.items())[:MAX_FIELDS]:
        if isinstance(value, str):
            fields[clean(name)] = clean(value)
        elif isinstance(value, list):
            scalars = [clean(str(item)) for item in value if isinstance(item, str | int | float)]
            fields[clean(name)] = scalars[:MAX_ITEMS]
        elif isinstance(value, bool | int | float):
            fields[clean(name)] = value
    return fields
