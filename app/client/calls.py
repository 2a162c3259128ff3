"""Every API call as a value: what to send and how to read the response. No network, no waiting."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np

from app.client import types
from app.client.types import Json

T = TypeVar("T")
U = TypeVar("U")

# Audio to upload: a path; a name with bytes or with an open binary file; an open binary file, sent under its own name.
Audio = str | os.PathLike[str] | tuple[str, bytes | BinaryIO] | BinaryIO
Filter = Mapping[str, Any]  # metadata keys with a value, or with a list of values of which one must match
# A sound of the library as an example: a clip, its id, a hit, or {"clip_id": …, "start": …, "end": …} in seconds.
Example = str | types.Clip | types.Hit | types.MomentHit | Mapping[str, Any]
Form = dict[str, str | list[str]]

PAGE = 1000  # clips per request when listing the library


class SearchOptions(TypedDict, total=False):
    """Options of a search. Missing keys use the service's defaults."""

    k: int  # maximum number of hits; 10
    filter: Filter | None  # only clips with this metadata
    moments: bool  # whether to return the matching stretches of each clip
    min_score: float | None  # drops hits with a lower score
    mode: Literal["hybrid", "semantic", "lexical"]  # by sound and words, by sound, by words; hybrid
    without: Sequence[str]  # sounds to exclude, in words
    like: Example | Sequence[Example]  # ranks clips that sound like these higher
    unlike: Example | Sequence[Example]  # ranks clips that sound like these lower
    track: str | None  # of a `file` with several audio tracks: its number from 0, or a language


class DetectOptions(TypedDict, total=False):
    """How frame scores become events. Missing keys use the service's defaults; durations in seconds."""

    threshold: float | Sequence[float]  # one, or one per phrase; 0.5, or what was set for a concept
    low_threshold: float | Sequence[float] | None  # an event lasts until its score falls below; one, or one per phrase
    median_filter: float
    min_duration: float
    max_gap: float
    method: Literal["threshold", "sebb"]
    track: str | None  # of a file with several audio tracks: its number from 0, or a language


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and `read`, which turns its response into the result."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str | list[str]] | None = None
    files: Sequence[tuple[str, Audio]] = ()  # form field, audio
    timeout: float | None = None  # seconds; None uses the client's default

    @contextlib.contextmanager
    def request(self, http: httpx.Client | httpx.AsyncClient) -> Iterator[httpx.Request]:
        """Builds the request; its files stay open for streaming until the block ends. Raises OSError."""
        with contextlib.ExitStack() as stack:
            opened = [(name, _open_upload(stack, audio)) for name, audio in self.files]
            yield http.build_request(
                self.method,
                self.path,
                params=self.params or None,
                json=self.json,
                data=self.form,  # lists become repeated fields
                files=opened or None,  # type: ignore[arg-type]  # UploadFile has what httpx uses of a file
                timeout=httpx.USE_CLIENT_DEFAULT if self.timeout is None else self.timeout,
            )


# The library


def add(
    files: Sequence[Audio],
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
    track: str | None = None,
) -> Call[Any]:
    """POST /clips."""
    form: Form = _form(_given({"track": track}))
    if metadata is not None:
        value = metadata if isinstance(metadata, Mapping) else list(metadata)
        form["metadata"] = json.dumps(value, ensure_ascii=False)
    read: Callable[[httpx.Response], types.Added] = lambda r: types.Added.from_json(r.json(), r.status_code == 201)  # noqa: E731
    return Call("POST", "/clips", read, form=form, files=[("files", file) for file in files])


class Cut(TypedDict, total=False):
    """Options of `Client.excerpt`, see docs/reference/http-api.md; times in seconds."""

    start: float | None
    end: float | None
    pad: float
    format: Literal["wav", "flac", "ogg"]
    normalize: bool
    fade: float


def add_reference(path: str, metadata: Mapping[str, Any] | None) -> Call[Any]:
    """POST /clips/reference."""
    read: Callable[[httpx.Response], types.Added] = lambda r: types.Added.from_json(r.json(), r.status_code == 201)  # noqa: E731
    return Call("POST", "/clips/reference", read, json={"path": path, "metadata": dict(metadata or {})})


def clip_page(filter: Filter | None, cursor: str | None) -> Call[types.ClipPage]:
    """GET /clips."""
    params = {"limit": str(PAGE)}
    if filter is not None:
        params["filter"] = json.dumps(filter, ensure_ascii=False)
    if cursor is not None:
        params["cursor"] = cursor
    return Call("GET", "/clips", _json(types.ClipPage.from_json), params)


def clip(clip_id: str) -> Call[types.Clip]:
    """GET /clips/{id}."""
    return Call("GET", _clip(clip_id), _json(types.Clip.from_json))


def update(clip_id: str, metadata: Mapping[str, Any]) -> Call[types.Clip]:
    """PATCH /clips/{id}."""
    return Call("PATCH", _clip(clip_id), _json(types.Clip.from_json), json={"metadata": dict(metadata)})


def rename(clip_id: str, filename: str) -> Call[types.Clip]:
    """PATCH /clips/{id} with a file name."""
    return Call("PATCH", _clip(clip_id), _json(types.Clip.from_json), json={"filename": filename})


class Edit(TypedDict, total=False):
    """A change of many clips: a JSON merge patch, and values to add to and to remove from lists in the metadata."""

    metadata: Mapping[str, Any]
    add: Mapping[str, Sequence[str | float]]
    remove: Mapping[str, Sequence[str | float]]


def edit(clip_ids: Sequence[str] | None, filter: Filter | None, change: Edit) -> Call[int]:
    """POST /clips/edit. Raises ValueError unless exactly one of ids and filter is given."""
    if (clip_ids is None) == (filter is None):
        raise ValueError("an edit takes either the ids of clips or a filter")
    which = {"filter": dict(filter or {})} if clip_ids is None else {"clip_ids": list(clip_ids)}
    return Call("POST", "/clips/edit", lambda response: response.json()["edited"], json={**which, **change})


def facets(keys: Sequence[str], filter: Filter | None, limit: int) -> Call[dict[str, dict[Any, int]]]:
    """GET /clips/facets."""
    params: dict[str, str | list[str]] = {"key": list(keys), "limit": str(limit)}
    if filter is not None:
        params["filter"] = json.dumps(filter, ensure_ascii=False)

    def read(response: httpx.Response) -> dict[str, dict[Any, int]]:
        found = response.json()["facets"]
        return {key: {value["value"]: value["clips"] for value in values} for key, values in found.items()}

    return Call("GET", "/clips/facets", read, params)


def collections() -> Call[dict[str, int]]:
    """GET /collections."""
    return Call(
        "GET", "/collections", lambda response: {one["name"]: one["clips"] for one in response.json()["collections"]}
    )


def rename_collection(name: str, new: str) -> Call[int]:
    """PATCH /collections/{name}."""
    return Call("PATCH", _collection(name), lambda response: response.json()["clips"], json={"name": new})


def delete_collection(name: str) -> Call[None]:
    """DELETE /collections/{name}."""
    return Call("DELETE", _collection(name), lambda response: None)


def _collection(name: str) -> str:
    return f"/collections/{quote(name, safe='')}"


def delete(clip_id: str) -> Call[None]:
    """DELETE /clips/{id}."""
    return Call("DELETE", _clip(clip_id), lambda response: None)


def audio(clip_id: str) -> Call[bytes]:
    """GET /clips/{id}/audio."""
    return Call("GET", _clip(clip_id, "/audio"), lambda response: response.content)


def excerpt(clip_id: str, cut: Cut) -> Call[bytes]:
    """GET /clips/{id}/audio with parameters."""
    params = {name: str(value).lower() for name, value in cut.items() if value is not None}
    return Call("GET", _clip(clip_id, "/audio"), lambda response: response.content, {"format": "wav", **params})


def archive(clip_ids: Sequence[str]) -> Call[bytes]:
    """POST /clips/download."""
    items = [{"clip_id": clip_id} for clip_id in clip_ids]
    return Call("POST", "/clips/download", lambda response: response.content, json={"items": items})


def loudness(clip_id: str) -> Call[types.Loudness]:
    """GET /clips/{id}/loudness."""
    return Call("GET", _clip(clip_id, "/loudness"), _json(types.Loudness.from_json))


def peaks(clip_id: str, n: int | None) -> Call[types.Peaks]:
    """GET /clips/{id}/peaks."""
    return Call("GET", _clip(clip_id, "/peaks"), _json(types.Peaks.from_json), {} if n is None else {"n": str(n)})


# Searching


def search(query: str | None, file: Audio | None, options: SearchOptions) -> Call[types.SearchResult]:
    """POST /search, by text, by audio, by examples in `like`, or by several. Raises ValueError if none is given."""
    if query is None and file is None and not options.get("like"):
        raise ValueError("a search takes a query, a file, examples in like, or several of these")
    chosen = _given({"query": query, **options})
    examples = {name: _examples(chosen.pop(name)) for name in ("like", "unlike") if name in chosen}
    read = _json(types.SearchResult.from_json)
    if file is None:
        return Call("POST", "/search", read, json=chosen | examples)
    form = _form(chosen) | {name: _field(given) for name, given in examples.items()}  # each is one field of JSON
    return Call("POST", "/search", read, form=form, files=[("file", file)])


def search_moments(
    query: str | None, sequence: Sequence[str] | None, max_gap: float | None, k: int | None, filter: Filter | None
) -> Call[types.MomentResult]:
    """POST /search/moments. Raises ValueError unless exactly one of query and sequence is given."""
    if (query is None) == (sequence is None):
        raise ValueError("a search for moments takes either a query or a sequence")
    body = {
        "query": query,
        "sequence": sequence,
        "max_gap": max_gap,
        "k": k,
        "filter": None if filter is None else dict(filter),
    }
    return Call("POST", "/search/moments", _json(types.MomentResult.from_json), json=_given(body))


def similar(clip_id: str, k: int | None) -> Call[types.SearchResult]:
    """GET /clips/{id}/similar."""
    params = {} if k is None else {"k": str(k)}
    return Call("GET", _clip(clip_id, "/similar"), _json(types.SearchResult.from_json), params)


# Analysis


def classify(
    labels: Sequence[str], file: Audio | None, clip_id: str | None, template: str | None
) -> Call[tuple[types.Label, ...]]:
    """POST /classify."""
    form = _form(_given({"labels": labels, "clip_id": clip_id, "template": template}))
    return Call("POST", "/classify", lambda r: _labels(r.json()), form=form, files=_source(file, clip_id))


def detect(
    phrases: Sequence[str], file: Audio | None, clip_id: str | None, frames: bool, options: DetectOptions
) -> Call[types.Detection]:
    """POST /detect, as JSON."""
    return _detect(
        _json(types.Detection.from_json), phrases, file, clip_id, options, {"frames": frames} if frames else {}
    )


def detect_as(
    format: str, phrases: Sequence[str], file: Audio | None, clip_id: str | None, options: DetectOptions
) -> Call[bytes]:
    """POST /detect, as a file in another format."""
    return _detect(lambda r: r.content, phrases, file, clip_id, options, {"format": format})


def detect_stream(
    phrases: Sequence[str], file: Audio | None, clip_id: str | None, frames: bool, options: DetectOptions
) -> Call[None]:
    """POST /detect, as a stream of lines; `types.detection_message` reads a line."""
    output = {"format": "ndjson"} | ({"frames": frames} if frames else {})
    return _detect(lambda r: None, phrases, file, clip_id, options, output)


# Jobs


def start_job(phrases: Sequence[str], filter: Filter | None, options: DetectOptions) -> Call[types.Job]:
    """POST /jobs."""
    body = _given({"kind": "detect", "phrases": phrases, "filter": filter, **options})
    return Call("POST", "/jobs", _json(types.Job.from_json), json=body)


def jobs() -> Call[tuple[types.Job, ...]]:
    """GET /jobs."""
    return Call("GET", "/jobs", lambda r: tuple(types.Job.from_json(job) for job in r.json()["jobs"]))


def job(job_id: str) -> Call[types.Job]:
    """GET /jobs/{id}."""
    return Call("GET", _job(job_id), _json(types.Job.from_json))


def delete_job(job_id: str) -> Call[types.Job | None]:
    """DELETE /jobs/{id}."""

    def read(response: httpx.Response) -> types.Job | None:
        return None if response.status_code == 204 else types.Job.from_json(response.json())

    return Call("DELETE", _job(job_id), read)


def job_events(job_id: str, format: str) -> Call[bytes]:
    """GET /jobs/{id}/events."""
    return Call("GET", _job(job_id, "/events"), lambda response: response.content, {"format": format})


def job_summary(job_id: str, by: str) -> Call[Json]:
    """GET /jobs/{id}/summary, as JSON."""
    return Call("GET", _job(job_id, "/summary"), lambda response: response.json(), {"by": by})


def job_summary_as(format: str, job_id: str, by: str) -> Call[bytes]:
    """GET /jobs/{id}/summary, as a file in another format."""
    params = {"by": by, "format": format}
    return Call("GET", _job(job_id, "/summary"), lambda response: response.content, params)


# Embeddings and the service itself


def embed_texts(texts: Sequence[str]) -> Call[np.ndarray]:
    """POST /embed with texts."""
    return Call("POST", "/embed", _json(types.text_embeddings), json={"texts": list(texts), "encoding": "base64"})


def embed_files(files: Sequence[Audio], frames: bool, track: str | None = None) -> Call[types.Embedded]:
    """POST /embed with files."""
    form = _form(_given({"frames": frames, "encoding": "base64", "track": track}))
    return Call("POST", "/embed", _json(types.Embedded.from_json), form=form, files=[("files", file) for file in files])


def info() -> Call[types.Info]:
    """GET /info."""
    return Call("GET", "/info", _json(types.Info.from_json))


def ready() -> Call[bool]:
    """GET /health/ready."""
    return Call("GET", "/health/ready", lambda response: True, timeout=30.0)


# Helpers


def _detect(
    read: Callable[[httpx.Response], U],
    phrases: Sequence[str],
    file: Audio | None,
    clip_id: str | None,
    options: DetectOptions,
    output: Mapping[str, Any],
) -> Call[U]:
    form = _form(_given({"phrases": phrases, "clip_id": clip_id, **options, **output}))
    return Call("POST", "/detect", read, form=form, files=_source(file, clip_id))


def examples_as_json(given: Example | Sequence[Example]) -> list[dict[str, Any]]:
    """One or several sounds of the library as JSON objects."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return _examples(list(given) if several else given)  # type: ignore[arg-type]


def read_json(read: Callable[[Json], U]) -> Callable[[httpx.Response], U]:
    """Reads a response's JSON with `read`."""
    return _json(read)


def _json(read: Callable[[Json], U]) -> Callable[[httpx.Response], U]:
    return lambda response: read(response.json())


def _clip(clip_id: str, rest: str = "") -> str:
    return f"/clips/{quote(clip_id, safe='')}{rest}"


def _job(job_id: str, rest: str = "") -> str:
    return f"/jobs/{quote(job_id, safe='')}{rest}"


def _source(file: Audio | None, clip_id: str | None) -> list[tuple[str, Audio]]:
    if (file is None) == (clip_id is None):
        raise ValueError("give either a file or a clip_id")
    return [] if file is None else [("file", file)]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None, with every sequence as a list."""
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def _examples(given: Example | list[Example]) -> list[dict[str, Any]]:
    """Sounds of the library as JSON; for a `MomentHit` its stretch of the clip."""
    return [_example(each) for each in (given if isinstance(given, list) else [given])]


def _example(example: Example) -> dict[str, Any]:
    if isinstance(example, str):
        return {"clip_id": example}
    if isinstance(example, types.Clip):
        return {"clip_id": example.id}
    if isinstance(example, types.Hit):
        return {"clip_id": example.clip.id}
    if isinstance(example, types.MomentHit):
        return {"clip_id": example.clip.id, "start": example.start, "end": example.end}
    return dict(example)


def _form(values: Mapping[str, Any]) -> Form:
    """Form fields: lists as repeated fields, other values as JSON."""
    return {
        name: [_field(v) for v in value] if isinstance(value, list) else _field(value) for name, value in values.items()
    }


def _field(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _labels(json: Json) -> tuple[types.Label, ...]:
    return tuple(types.Label.from_json(label) for label in json["labels"])


# Uploads


def as_list(files: Audio | Sequence[Audio]) -> Sequence[Audio]:
    """A single file as a list of one; several as they are."""
    single = isinstance(files, str | os.PathLike) or hasattr(files, "read")
    pair = isinstance(files, tuple) and len(files) == 2 and isinstance(files[0], str) and _is_content(files[1])
    return [files] if single or pair else list(files)  # type: ignore[list-item, arg-type]


def _is_content(value: Any) -> bool:
    return isinstance(value, bytes) or hasattr(value, "read")


def _open_upload(stack: contextlib.ExitStack, audio: Audio) -> tuple[str, bytes | UploadFile, str]:
    """The name, content and media type of a file, as httpx takes them."""
    if isinstance(audio, tuple):
        name, content = audio
    elif isinstance(audio, str | os.PathLike):
        name, content = os.fspath(audio), stack.enter_context(open(audio, "rb"))  # noqa: SIM115  # the stack closes it
    else:
        own = getattr(audio, "name", None)
        name, content = own if isinstance(own, str) else "unnamed", audio
    name = os.fsencode(Path(name).name).decode("utf-8", "replace")  # file names need not be valid UTF-8
    return name, content if isinstance(content, bytes) else UploadFile(content), "application/octet-stream"


class UploadFile:
    """A binary file, read from its start up to the size it had when the request was built.

    That size is the request's Content-Length: bytes appended later are not sent, and a file that shrinks raises
    OSError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._left = self._size

    def tell(self) -> int:
        return self._size - self._left

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = min(self._size, offset if whence == io.SEEK_SET else self._size + offset)
        self._file.seek(position)
        self._left = self._size - position
        return position

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        if not data and self._left:
            raise OSError("the file became shorter while it was being sent")
        self._left -= len(data)
        return data
