"""The table of errors: the HTTP status, type and title of every exception that a client can get (RFC 9457).

Lower layers raise plain exceptions, and KINDS maps them to problems. Errors of requests themselves are defined here.
"""

from __future__ import annotations

import contextvars
import json
import logging
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

import index
from app.audio import errors as audio_errors
from app.inference import batcher

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "urn:finelap:problem:"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class RequestError(Exception):
    """The request is invalid. `extra` becomes members of the problem."""

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.extra = extra


class Malformed(RequestError):
    """The body does not match its media type."""


class Unauthorized(RequestError):
    """The API key is missing or wrong."""


class CrossOrigin(RequestError):
    """A page of another site sent this request through a browser."""


class Misdirected(RequestError):
    """The Host header is not one of this service's names."""


class BodyTooLarge(RequestError):
    """The body exceeds a size limit."""


class UnsupportedType(RequestError):
    """The route does not accept this media type."""


class PreconditionFailed(RequestError):
    """The file is not the version that If-Match or If-Unmodified-Since requires."""


class RangeNotSatisfiable(RequestError):
    """The requested range is outside of the file, which has `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes.")
        self.size = size


class Invalid(RequestError):
    """A value is not valid."""


class FramesUnsupported(RequestError):
    """The model has embeddings of whole clips only."""


class NotReady(RequestError):
    """The model or the library is not loaded."""


class TooManyStreams(RequestError):
    """As many live streams are open as the service allows."""


class AddressTooLong(RequestError):
    """The path and query of the URL exceed the size limit."""


class ModelNotFound(RequestError):
    """The service does not have the requested model."""


class CollectionNotFound(RequestError):
    """No clip is in a collection of this name."""


class TimedOut(RequestError):
    """The request exceeded its time limit."""


class FilesFailed(Exception):
    """Every file of a request failed. Reported like the first one's error, with all of them in `errors`."""

    def __init__(self, first: Exception, failures: list[dict[str, Any]]) -> None:
        super().__init__(str(first))
        self.first, self.failures = first, failures


class Kind(NamedTuple):
    """How an error is reported over HTTP."""

    status: int
    slug: str
    title: str


INTERNAL = Kind(500, "internal-error", "Internal error")

# The most specific class of an error decides.
KINDS: dict[type[Exception], Kind] = {
    Malformed: Kind(400, "malformed", "Malformed request"),
    Unauthorized: Kind(401, "unauthorized", "Missing or wrong API key"),
    CrossOrigin: Kind(403, "cross-origin", "Cross-origin request"),
    ModelNotFound: Kind(404, "model-not-found", "Model not found"),
    CollectionNotFound: Kind(404, "collection-not-found", "Collection not found"),
    index.ClipNotFound: Kind(404, "clip-not-found", "Clip not found"),
    index.AudioMissing: Kind(404, "audio-missing", "Audio file missing"),
    index.JobNotFound: Kind(404, "job-not-found", "Job not found"),
    index.ConceptNotFound: Kind(404, "concept-not-found", "Concept not found"),
    index.ExampleNotFound: Kind(404, "example-not-found", "Example not found"),
    index.ConceptExists: Kind(409, "concept-exists", "Concept exists"),
    index.ConceptUntaught: Kind(409, "concept-untaught", "Concept without examples"),
    index.ContradictoryExamples: Kind(409, "contradictory-examples", "Contradictory examples"),
    PreconditionFailed: Kind(412, "precondition-failed", "Precondition failed"),
    BodyTooLarge: Kind(413, "body-too-large", "Request too large"),
    audio_errors.TooLong: Kind(413, "audio-too-long", "Audio too long"),
    AddressTooLong: Kind(414, "address-too-long", "URI too long"),
    UnsupportedType: Kind(415, "unsupported-media-type", "Unsupported media type"),
    audio_errors.NotAudio: Kind(415, "not-audio", "Not decodable audio"),
    audio_errors.DecoderFailed: Kind(415, "decoder-failed", "Decoder failed"),
    RangeNotSatisfiable: Kind(416, "range-not-satisfiable", "Range not satisfiable"),
    Misdirected: Kind(421, "misdirected", "Host name not allowed"),
    Invalid: Kind(422, "invalid-value", "Invalid value"),
    FramesUnsupported: Kind(422, "frames-unsupported", "Frames not supported by the model"),
    audio_errors.EmptyAudio: Kind(422, "audio-empty", "Empty audio"),
    audio_errors.TruncatedAudio: Kind(422, "audio-truncated", "Truncated or damaged audio"),
    audio_errors.TooShort: Kind(422, "audio-too-short", "Audio too short"),
    audio_errors.InvalidSamples: Kind(422, "audio-invalid-samples", "Audio with invalid samples"),
    audio_errors.TrackMissing: Kind(422, "track-missing", "No such audio track"),
    index.TooManyExamples: Kind(422, "too-many-examples", "Too many examples"),
    index.InvalidFilter: Kind(422, "invalid-filter", "Invalid filter"),
    index.InvalidMetadata: Kind(422, "invalid-metadata", "Invalid metadata"),
    index.InvalidCursor: Kind(422, "invalid-cursor", "Invalid cursor"),
    batcher.QueueFull: Kind(429, "queue-full", "Queue full"),
    index.TooManyJobs: Kind(429, "too-many-jobs", "Too many jobs"),
    index.JobsUnsupported: Kind(501, "jobs-unsupported", "Jobs not supported"),
    TooManyStreams: Kind(429, "too-many-streams", "Too many live streams"),
    MemoryError: Kind(503, "out-of-memory", "Not enough memory"),
    batcher.Closed: Kind(503, "shutting-down", "Shutting down"),
    NotReady: Kind(503, "not-ready", "Not ready"),
    TimedOut: Kind(503, "timed-out", "Timed out"),
    index.LibraryUnavailable: Kind(503, "library-unavailable", "Library unavailable"),
    index.StorageFull: Kind(507, "storage-full", "Storage full"),
}

_HTTP = {  # raised by the framework itself
    400: Kind(400, "malformed", "Malformed request"),
    404: Kind(404, "not-found", "Not found"),
    405: Kind(405, "method-not-allowed", "Method not allowed"),
}


def kind_of(error: BaseException) -> Kind:
    """The entry of KINDS for an error; INTERNAL if there is none."""
    if isinstance(error, FilesFailed):
        return kind_of(error.first)
    if isinstance(error, HTTPException):
        return _HTTP.get(error.status_code, Kind(error.status_code, "http-error", "HTTP error"))
    for ancestor in type(error).__mro__:
        if ancestor in KINDS:
            return KINDS[ancestor]
    return INTERNAL


def describe(error: BaseException) -> dict[str, Any]:
    """The problem object of an error. Internal errors are logged, and their details are not sent to the client."""
    kind = kind_of(error)
    if kind is INTERNAL:
        log.error("unexpected error", exc_info=error)
        detail = "An unexpected error occurred. The log has the details under this request id."
    elif isinstance(error, MemoryError):
        log.error("out of memory", exc_info=error)
        detail = str(error) or "There is not enough memory for this request."
    elif isinstance(error, HTTPException):
        detail = str(error.detail)
    else:
        detail = str(error)
        if isinstance(error, index.LibraryUnavailable | index.StorageFull):  # not the client's fault
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
    if isinstance(first, audio_errors.TruncatedAudio) and first.read is not None:
        problem["readable_s"] = round(first.read, 3)
    return problem


def headers_of(error: BaseException) -> dict[str, str]:
    """The response headers of an error."""
    if isinstance(error, FilesFailed):
        return headers_of(error.first)
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, batcher.QueueFull):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, index.TooManyJobs):
        return {"Retry-After": "60"}
    if isinstance(
        error, NotReady | TooManyStreams | batcher.Closed | TimedOut | index.LibraryUnavailable | MemoryError
    ):
        return {"Retry-After": "5"}
    if isinstance(error, RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size}"}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def problem_response(error: BaseException, path: str = "") -> Response:
    """The response to an error. Below /v1/ it also has the `error` object of the OpenAI API."""
    problem = describe(error)
    if path.startswith("/v1/"):
        kind = problem["type"].removeprefix(TYPE_PREFIX)
        field = next((fault["field"] for fault in problem.get("errors", []) if fault.get("field")), None)
        problem["error"] = {"message": problem["detail"], "type": kind, "param": field, "code": kind}
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", errors="replace")
    return Response(body, problem["status"], headers_of(error), PROBLEM_JSON)
