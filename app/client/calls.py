"""Every call of the API as a value: what to send, and how its answer is read. No network and no waiting in here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np

from app.client import parsing, types
from app.client.audio import Audio, open_upload
from app.client.parsing import Json

T = TypeVar("T")
U = TypeVar("U")

Filter = Mapping[str, Any]  # metadata keys with the value, or a list of values of which one must match
Form = dict[str, str | list[str]]

PAGE = 1000  # clips asked for at once


class SearchOptions(TypedDict, total=False):
    """How to search. What is left out is the service's default."""

    k: int  # how many hits, at most; 10
    filter: Filter | None  # only clips with this metadata
    moments: bool  # whether the stretches of each clip that answer are wanted
    min_score: float | None  # hits with a lower score are left out
    mode: Literal["semantic", "hybrid", "lexical"]
    without: Sequence[str]  # what the clips should not sound like


class DetectOptions(TypedDict, total=False):
    """How frame scores become events. What is left out is the service's default; durations in seconds."""

    threshold: float | Sequence[float]  # one, or one for each phrase; 0.5
    low_threshold: float | Sequence[float] | None  # an event goes on until its score falls below; one, or one for each
    median_filter: float
    min_duration: float
    max_gap: float
    method: Literal["threshold", "sebb"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and `read`, which makes the answer of its response."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str | list[str]] | None = None
    files: Sequence[tuple[str, Audio]] = ()  # form field, sound
    timeout: float | None = None  # seconds; None leaves the client's own

    @contextlib.contextmanager
    def request(self, http: httpx.Client | httpx.AsyncClient) -> Iterator[httpx.Request]:
        """The request, to be sent while this is open; its files are read as they are sent. Raises OSError."""
        with contextlib.ExitStack() as stack:
            opened = [(name, open_upload(stack, audio)) for name, audio in self.files]
            yield http.build_request(
                self.method,
                self.path,
                params=self.params or None,
                json=self.json,
                data=self.form,  # a list repeats the field
                files=opened or None,  # type: ignore[arg-type]  # Sent has all of a file that is needed
                timeout=httpx.USE_CLIENT_DEFAULT if self.timeout is None else self.timeout,
            )


# The library


def add(files: Sequence[Audio], metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None) -> Call[Any]:
    """POST /clips."""
    about = None if metadata is None else metadata if isinstance(metadata, Mapping) else list(metadata)
    form: Form = {} if about is None else {"metadata": json.dumps(about, ensure_ascii=False)}
    read: Callable[[httpx.Response], types.Added] = lambda r: parsing.added(r.json(), r.status_code == 201)  # noqa: E731
    return Call("POST", "/clips", read, form=form, files=[("files", file) for file in files])


def clip_page(filter: Filter | None, cursor: str | None) -> Call[types.ClipPage]:
    """GET /clips."""
    params = {"limit": str(PAGE)}
    if filter is not None:
        params["filter"] = json.dumps(filter, ensure_ascii=False)
    if cursor is not None:
        params["cursor"] = cursor
    return Call("GET", "/clips", _json(parsing.clip_page), params)


def clip(clip_id: str) -> Call[types.Clip]:
    """GET /clips/{id}."""
    return Call("GET", _clip(clip_id), _json(parsing.clip))


def update(clip_id: str, metadata: Mapping[str, Any]) -> Call[types.Clip]:
    """PATCH /clips/{id}."""
    return Call("PATCH", _clip(clip_id), _json(parsing.clip), json={"metadata": dict(metadata)})


def delete(clip_id: str) -> Call[None]:
    """DELETE /clips/{id}."""
    return Call("DELETE", _clip(clip_id), lambda response: None)


def audio(clip_id: str) -> Call[bytes]:
    """GET /clips/{id}/audio."""
    return Call("GET", _clip(clip_id, "/audio"), lambda response: response.content)


def peaks(clip_id: str, n: int | None) -> Call[types.Peaks]:
    """GET /clips/{id}/peaks."""
    return Call("GET", _clip(clip_id, "/peaks"), _json(parsing.peaks), {} if n is None else {"n": str(n)})


# Searching


def search(query: str | None, file: Audio | None, options: SearchOptions) -> Call[types.SearchResult]:
    """POST /search, by words or by a sound. Raises ValueError unless there is exactly one of them."""
    if (query is None) == (file is None):
        raise ValueError("a search takes either a query or a file")
    chosen = _given(options)
    if file is None:
        return Call("POST", "/search", _json(parsing.search_result), json={"query": query} | chosen)
    return Call("POST", "/search", _json(parsing.search_result), form=_form(chosen), files=[("file", file)])


def search_moments(
    query: str | None, sequence: Sequence[str] | None, max_gap: float | None, k: int | None, filter: Filter | None
) -> Call[types.MomentResult]:
    """POST /search/moments. Raises ValueError unless there is exactly one of query and sequence."""
    if (query is None) == (sequence is None):
        raise ValueError("a search for moments takes either a query or a sequence")
    wanted = {
        "query": query,
        "sequence": sequence,
        "max_gap": max_gap,
        "k": k,
        "filter": None if filter is None else dict(filter),
    }
    return Call("POST", "/search/moments", _json(parsing.moment_result), json=_given(wanted))


def similar(clip_id: str, k: int | None) -> Call[types.SearchResult]:
    """GET /clips/{id}/similar."""
    params = {} if k is None else {"k": str(k)}
    return Call("GET", _clip(clip_id, "/similar"), _json(parsing.search_result), params)


# Listening


def classify(
    labels: Sequence[str], file: Audio | None, clip_id: str | None, template: str | None
) -> Call[tuple[types.Label, ...]]:
    """POST /classify."""
    form = _form(_given({"labels": labels, "clip_id": clip_id, "template": template}))
    return Call("POST", "/classify", _json(parsing.labels), form=form, files=_one(file, clip_id))


def detect(
    phrases: Sequence[str], file: Audio | None, clip_id: str | None, frames: bool, options: DetectOptions
) -> Call[types.Detection]:
    """POST /detect, with the typed answer."""
    return _detect(_json(parsing.detection), phrases, file, clip_id, options, {"frames": frames} if frames else {})


def detect_as(
    format: str, phrases: Sequence[str], file: Audio | None, clip_id: str | None, options: DetectOptions
) -> Call[bytes]:
    """POST /detect, as a file of the format."""
    return _detect(lambda r: r.content, phrases, file, clip_id, options, {"format": format})


def detect_stream(
    phrases: Sequence[str], file: Audio | None, clip_id: str | None, frames: bool, options: DetectOptions
) -> Call[None]:
    """POST /detect whose answer comes line by line; `parsing.detection_message` reads a line."""
    more = {"format": "ndjson"} | ({"frames": frames} if frames else {})
    return _detect(lambda r: None, phrases, file, clip_id, options, more)


# Embeddings and the service itself


def embed_texts(texts: Sequence[str]) -> Call[np.ndarray]:
    """POST /embed with texts."""
    return Call("POST", "/embed", _json(parsing.text_embeddings), json={"texts": list(texts), "encoding": "base64"})


def embed_files(files: Sequence[Audio], frames: bool) -> Call[types.Embedded]:
    """POST /embed with files."""
    form = _form({"frames": frames, "encoding": "base64"})
    return Call("POST", "/embed", _json(parsing.embedded), form=form, files=[("files", file) for file in files])


def info() -> Call[types.Info]:
    """GET /info."""
    return Call("GET", "/info", _json(parsing.info))


def ready() -> Call[bool]:
    """GET /health/ready."""
    return Call("GET", "/health/ready", lambda response: True, timeout=30.0)


# Parts of calls


def _detect(
    read: Callable[[httpx.Response], U],
    phrases: Sequence[str],
    file: Audio | None,
    clip_id: str | None,
    options: DetectOptions,
    more: Mapping[str, Any],
) -> Call[U]:
    form = _form(_given({"phrases": phrases, "clip_id": clip_id, **options, **more}))
    return Call("POST", "/detect", read, form=form, files=_one(file, clip_id))


def _json(read: Callable[[Json], U]) -> Callable[[httpx.Response], U]:
    return lambda response: read(response.json())


def _clip(clip_id: str, rest: str = "") -> str:
    return f"/clips/{quote(clip_id, safe='')}{rest}"


def _one(file: Audio | None, clip_id: str | None) -> list[tuple[str, Audio]]:
    if (file is None) == (clip_id is None):
        raise ValueError("give either a file or the id of a clip")
    return [] if file is None else [("file", file)]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that there are, any sequence as a list."""
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def _form(values: Mapping[str, Any]) -> Form:
    """Form fields: lists as repeated fields, objects as JSON."""
    return {
        name: [_field(v) for v in value] if isinstance(value, list) else _field(value) for name, value in values.items()
    }


def _field(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
