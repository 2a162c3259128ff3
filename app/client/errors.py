"""The client's exceptions, and how HTTP responses and problem+json bodies (RFC 9457) map to them."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.client.types import FileError


@dataclass(frozen=True)
class Problem:
    """The problem details of an error (RFC 9457). `request_id` identifies the request in the service's log."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    extra: dict[str, Any] = field(default_factory=dict, hash=False)  # members specific to one type of problem


class ServerError(Exception):
    """The service rejected the request, failed, or could not be reached. The message is one line.

    `status` and `problem` are None if there was no response. `files` lists the files of the request that failed.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        problem: Problem | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.problem, self.retry_after = status, problem, retry_after

    @property
    def files(self) -> tuple[FileError, ...]:
        """The files that failed, if every file of the request did."""
        errors = self.problem.extra.get("errors", []) if self.problem else []
        return tuple(
            FileError.from_json(e) for e in errors if isinstance(e, dict) and "filename" in e and "problem" in e
        )


class Unreachable(ServerError):
    """No response: connection refused, connection lost, or timeout."""


class Unauthorized(ServerError):
    """401: missing or wrong API key."""


class NotFound(ServerError):
    """404: no such clip, or its audio is missing."""


class Refused(ServerError):
    """Any other 4xx: the request is invalid and must not be retried unchanged."""


class Busy(ServerError):
    """429 or 503: retry later, after `retry_after` seconds if the service sent that header."""


class ServerFault(ServerError):
    """Any other 5xx, or a response that this client cannot read."""


class Stopped(Exception):
    """The client's `stop` event was set while it waited."""


def from_response(response: httpx.Response) -> ServerError:
    """The exception for a response with status 400 or above, whose body has been read."""
    status, problem = response.status_code, _problem(response)
    message = (
        problem and (problem.detail or problem.title)
    ) or f"the server answered {status} {response.reason_phrase}"
    if status == 401:
        return Unauthorized(f"{message} (set FINELAP_API_KEY)", status, problem)
    kind = {404: NotFound, 429: Busy, 503: Busy}.get(status, Refused if status < 500 else ServerFault)
    return kind(message, status, problem, _retry_after(response))


def from_problem(members: dict[str, Any]) -> ServerError:
    """The exception for a problem reported inside a streamed response."""
    problem = _parse_problem(members)
    kind = Busy if problem.status in (429, 503) else Refused if problem.status < 500 else ServerFault
    return kind(problem.detail or problem.title, problem.status, problem)


def unreachable(server: str, error: Exception) -> Unreachable:
    """The exception for a failed connection to `server`."""
    if isinstance(error, httpx.ConnectError | ConnectionRefusedError):
        message = f"no service at {server}; start one with `finelap serve`, or give another address"
    elif isinstance(error, httpx.TimeoutException | TimeoutError):
        message = f"{server} took too long to respond"
    else:
        message = f"the connection to {server} was lost: {error or type(error).__name__}"
    failure = Unreachable(message)
    failure.__cause__ = error
    return failure


def unreadable(server: str, status: int) -> ServerFault:
    """The exception for a response that is not in this API's format."""
    return ServerFault(f"{server} sent a response that is not FineLAP's", status)


def _problem(response: httpx.Response) -> Problem | None:
    try:
        members = response.json()
    except ValueError:
        return None
    return _parse_problem(members) if isinstance(members, dict) else None


def _parse_problem(members: dict[str, Any]) -> Problem:
    known = {name: str(members.get(name) or "") for name in ("type", "title", "detail", "request_id")}
    status = members.get("status")
    extra = {name: value for name, value in members.items() if name not in known and name != "status"}
    return Problem(**known, status=status if isinstance(status, int) else 500, extra=extra)


def _retry_after(response: httpx.Response) -> float | None:
    """The header in seconds; it holds a number or a date."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
