"""Traces: what became of one request, stage by stage, for OpenTelemetry; nothing where its settings name no receiver.

Knows requests by method, path and headers, and stages by name and time. OpenTelemetry is imported only where it is
wanted (app.observability.otel). What callers send is not traced: no query, no body, no file name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

_RECEIVERS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TracingError(Exception):
    """Traces are wanted and cannot be had; the message says why."""


class Answered:
    """What is known of a request at its end, to be filled in by who answers it."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.route = ""
        self.status = 0  # none: the caller has left


class Tracing:
    """Traces nothing: the base of those that do."""

    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[Answered]:
        """Around a request; its headers may name the trace that it belongs to (W3C Trace Context)."""
        yield Answered(request_id)

    def record(self, stage: str, began: float, ended: float, **about: str | int | float) -> None:
        """A stage of the request under way, between two moments of time.perf_counter."""

    def ids(self) -> Mapping[str, str]:
        """The ids of the trace and span under way, for the log; empty outside of a traced request."""
        return {}

    def close(self, seconds: float) -> None:
        """Sends what was not sent yet, for at most so many seconds."""


def open_tracing(environment: Mapping[str, str], version: str) -> Tracing:
    """Tracing as OpenTelemetry's own OTEL_* variables have it: on if they name a receiver, and not switched off.

    Raises TracingError if it is on and OpenTelemetry is not installed, or is to do what we do not.
    """
    if not any(environment.get(name) for name in _RECEIVERS):
        return Tracing()
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return Tracing()
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise TracingError(f"{name}={environment[name]}: traces are sent as http/protobuf only")
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") not in ("", "otlp"):
        raise TracingError(f"OTEL_TRACES_EXPORTER={environment['OTEL_TRACES_EXPORTER']}: otlp and none are known")
    try:
        from app.observability.otel import send_to_collector
    except ModuleNotFoundError as error:
        raise TracingError(f"OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'finelap[otel]' ({error})") from error
    return send_to_collector(version)
