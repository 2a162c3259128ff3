"""What a call to the service can end with instead of an answer: one tree of errors, read from problem+json.

Knows HTTP statuses and RFC 9457; nothing of what was called for.
"""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.client.parsing import file_errors
from app.client.types import FileError


@dataclass(frozen=True)
class Problem:
    """The service's own account of an error (RFC 9457). `request_id` finds it in the service's log."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    extra: dict[str, Any] = field(default_factory=dict, hash=False)  # members that only some problems have


class ServerError(Exception):
    """The service refused, failed or could not be reached; the message says which in one line.

    `status` and `problem` are None where no answer came; `files` names the files of the request that failed, if that
    was the trouble.
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
        """The files that failed, where every file of a request did."""
        errors = self.problem.extra.get("errors", []) if self.problem else []
        return file_errors([e for e in errors if isinstance(e, dict) and "filename" in e and "problem" in e])


class Unreachable(ServerError):
    """No answer: nothing listens there, or the connection broke, or it took too long."""


class Unauthorized(ServerError):
    """401: the service wants another API key."""


class NotFound(ServerError):
    """404: no such clip, or its audio is missing."""


class Refused(ServerError):
    """Any other 4xx: something is wrong with the request, and sending it again will not help."""


class Busy(ServerError):
    """429 or 503: come back later; `retry_after` in seconds, if the service said when."""


class ServerFault(ServerError):
    """Any other 5xx, or an answer that this client cannot read."""


class Stopped(Exception):
    """Whoever owns the client told it to stop waiting."""


def from_response(response: httpx.Response) -> ServerError:
    """The error of a response, already read, with a status of 400 or more."""
    status, problem = response.status_code, _problem(response)
    said = (problem and (problem.detail or problem.title)) or f"the server answered {status} {response.reason_phrase}"
    if status == 401:
        return Unauthorized(f"{said} (set FINELAP_API_KEY)", status, problem)
    kind = {404: NotFound, 429: Busy, 503: Busy}.get(status, Refused if status < 500 else ServerFault)
    return kind(said, status, problem, _retry_after(response))


def from_problem(members: dict[str, Any]) -> ServerError:
    """The error of a problem that came inside an answer already begun."""
    problem = _read(members)
    kind = Busy if problem.status in (429, 503) else Refused if problem.status < 500 else ServerFault
    return kind(problem.detail or problem.title, problem.status, problem)


def unreachable(server: str, error: httpx.RequestError) -> Unreachable:
    """What a broken connection to `server` means."""
    if isinstance(error, httpx.ConnectError):
        said = f"nothing answers at {server}; start it with `finelap serve`, or give another address"
    elif isinstance(error, httpx.TimeoutException):
        said = f"{server} took too long to answer"
    else:
        said = f"the connection to {server} broke: {error or type(error).__name__}"
    failure = Unreachable(said)
    failure.__cause__ = error
    return failure


def unreadable(server: str, status: int) -> ServerFault:
    """An answer that is none of this service's."""
    return ServerFault(f"{server} answered something that is not FineLAP's", status)


def _problem(response: httpx.Response) -> Problem | None:
    try:
        members = response.json()
    except ValueError:
        return None
    return _read(members) if isinstance(members, dict) else None


def _read(members: dict[str, Any]) -> Problem:
    known = {name: str(members.get(name) or "") for name in ("type", "title", "detail", "request_id")}
    status = members.get("status")
    extra = {name: value for name, value in members.items() if name not in known and name != "status"}
    return Problem(**known, status=status if isinstance(status, int) else 500, extra=extra)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds from the header, given as a number or as a date."""
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
