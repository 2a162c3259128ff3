"""Every error a caller can meet and the one table that gives each its HTTP status (RFC 9457 problem+json).

The rooms below raise plain exceptions and know no HTTP; here they get their status, their title and their type.
"""

from __future__ import annotations

import contextvars
import json
import logging
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

import index
from app.audio import errors as media_errors
from app.inference import batcher as batching

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "urn:finelap:problem:"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class RequestError(Exception):
    """Something is wrong with the request. `extra` becomes members of the problem."""

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.extra = extra


class Malformed(RequestError):
    """The body is not what its media type says."""


class Unauthorized(RequestError):
    """No API key, or a wrong one."""


class CrossOrigin(RequestError):
    """A browser was made to send this by another site's page."""


class Misdirected(RequestError):
    """The request is for a name that is not this service's."""


class BodyTooLarge(RequestError):
    """More bytes than a request may have."""


class UnsupportedType(RequestError):
    """A body of a media type the call does not take."""


class RangeNotSatisfiable(RequestError):
    """The wanted bytes are not in the file, which has `size`."""

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes.")
        self.size = size


class Invalid(RequestError):
    """A value that does not fit."""


class NotReady(RequestError):
    """The model or the library is not there yet, or no more."""


class AddressTooLong(RequestError):
    """More bytes than an address may have."""


class ModelNotFound(RequestError):
    """A model that this service does not have."""


class TimedOut(RequestError):
    """The request took longer than a request may."""


class FilesFailed(Exception):
    """Every file of a request failed. Answered like the first one's error, with all of them in `errors`."""

    def __init__(self, first: Exception, failures: list[dict[str, Any]]) -> None:
        super().__init__(str(first))
        self.first, self.failures = first, failures


class Kind(NamedTuple):
    """How an error appears over HTTP."""

    status: int
    slug: str
    title: str


INTERNAL = Kind(500, "internal-error", "Internal error")

# The nearest class in an error's ancestry counts.
KINDS: dict[type[Exception], Kind] = {
    Malformed: Kind(400, "malformed", "Malformed request"),
    Unauthorized: Kind(401, "unauthorized", "Missing or wrong API key"),
    CrossOrigin: Kind(403, "cross-origin", "From another site"),
    ModelNotFound: Kind(404, "model-not-found", "No such model"),
    index.ClipNotFound: Kind(404, "clip-not-found", "No such clip"),
    index.AudioMissing: Kind(404, "audio-missing", "The clip's audio is missing"),
    BodyTooLarge: Kind(413, "body-too-large", "Request too large"),
    media_errors.TooLong: Kind(413, "audio-too-long", "Audio too long"),
    AddressTooLong: Kind(414, "address-too-long", "Address too long"),
    UnsupportedType: Kind(415, "unsupported-media-type", "Unsupported media type"),
    media_errors.NotAudio: Kind(415, "not-audio", "Not audio that can be decoded"),
    media_errors.DecoderFailed: Kind(415, "decoder-failed", "The decoder failed on this file"),
    RangeNotSatisfiable: Kind(416, "range-not-satisfiable", "Range not satisfiable"),
    Misdirected: Kind(421, "misdirected", "Not this service's name"),
    Invalid: Kind(422, "invalid-value", "Invalid value"),
    media_errors.EmptyAudio: Kind(422, "audio-empty", "Empty audio"),
    media_errors.TruncatedAudio: Kind(422, "audio-truncated", "Truncated or damaged audio"),
    media_errors.TooShort: Kind(422, "audio-too-short", "Audio too short"),
    media_errors.InvalidSamples: Kind(422, "audio-invalid-samples", "Audio with invalid samples"),
    index.InvalidFilter: Kind(422, "invalid-filter", "Invalid filter"),
    index.InvalidMetadata: Kind(422, "invalid-metadata", "Invalid metadata"),
    index.InvalidCursor: Kind(422, "invalid-cursor", "Invalid cursor"),
    batching.QueueFull: Kind(429, "queue-full", "Queue full"),
    MemoryError: Kind(503, "out-of-memory", "Not enough memory"),
    batching.Closed: Kind(503, "shutting-down", "Shutting down"),
    NotReady: Kind(503, "not-ready", "Not ready"),
    TimedOut: Kind(503, "timed-out", "Took too long"),
    index.LibraryUnavailable: Kind(503, "library-unavailable", "The library does not answer"),
    index.StorageFull: Kind(507, "storage-full", "No room left in storage"),
}

_HTTP = {  # what the framework raises by itself
    400: Kind(400, "malformed", "Malformed request"),
    404: Kind(404, "not-found", "Not found"),
    405: Kind(405, "method-not-allowed", "Method not allowed"),
}


def kind_of(error: BaseException) -> Kind:
    """The table's entry for an error; INTERNAL for what is not in it."""
    if isinstance(error, FilesFailed):
        return kind_of(error.first)
    if isinstance(error, HTTPException):
        return _HTTP.get(error.status_code, Kind(error.status_code, "http-error", "HTTP error"))
    for ancestor in type(error).__mro__:
        if ancestor in KINDS:
            return KINDS[ancestor]
    return INTERNAL


def describe(error: BaseException) -> dict[str, Any]:
    """The problem object of an error. What is not in the table is our fault: the log gets it, the caller does not."""
    kind = kind_of(error)
    if kind is INTERNAL:
        log.error("unexpected error", exc_info=error)
        detail = "An unexpected error; the log has it under this request id."
    elif isinstance(error, MemoryError):
        log.error("out of memory", exc_info=error)
        detail = str(error) or "There is not enough memory for this now."
    elif isinstance(error, HTTPException):
        detail = str(error.detail)
    else:
        detail = str(error)
        if isinstance(error, index.LibraryUnavailable | index.StorageFull):  # nobody's fault who asks
            log.error("%s", detail)
    problem: dict[str, Any] = {
        "type": TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "request_id": request_id.get(),
    }
    if isinstance(error, RequestError):
        problem.update(error.extra)
    if isinstance(error, FilesFailed):
        problem["errors"] = error.failures
    first = error.first if isinstance(error, FilesFailed) else error
    if isinstance(first, media_errors.TruncatedAudio) and first.read is not None:
        problem["readable_s"] = round(first.read, 3)
    return problem


def headers_of(error: BaseException) -> dict[str, str]:
    """Headers an error brings along."""
    if isinstance(error, FilesFailed):
        return headers_of(error.first)
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, batching.QueueFull):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, NotReady | batching.Closed | TimedOut | index.LibraryUnavailable | MemoryError):
        return {"Retry-After": "5"}
    if isinstance(error, RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size}"}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def problem_response(error: BaseException, path: str = "") -> Response:
    """The answer to an error. Below /v1/, where OpenAI's clients call, it has their `error` object too."""
    problem = describe(error)
    if path.startswith("/v1/"):
        kind = problem["type"].removeprefix(TYPE_PREFIX)
        field = next((fault["field"] for fault in problem.get("errors", []) if fault.get("field")), None)
        problem["error"] = {"message": problem["detail"], "type": kind, "param": field, "code": kind}
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", errors="replace")
    return Response(body, problem["status"], headers_of(error), PROBLEM_JSON)
