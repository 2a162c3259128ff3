"""OpenTelemetry tracing: one span per request and one child span per stage.

Spans go to the collector named by OpenTelemetry's own OTEL_* variables. Without one, the API's no-op tracer is used and
the SDK (the extra `otel`) is never imported. Spans carry no query, body or file name.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_UNTRACED = frozenset(("/health/live", "/health/ready", "/metrics"))  # polled all day by machines
_CLOCK_READINGS = 5


class TracingError(Exception):
    """Tracing is requested but cannot be set up; the message gives the reason."""


class RequestOutcome:
    """The route and status of a request, filled in by the middleware that answers it."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.route = ""
        self.status = 0  # 0: the client disconnected before a response started


class Tracing:
    """Records spans with `provider`, which it owns; by default with the no-op tracer of opentelemetry-api."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider or trace.NoOpTracerProvider()
        self._tracer = self._provider.get_tracer("finelap")
        self._propagator = TraceContextTextMapPropagator()
        self._epoch_offset = min(_measure_epoch_offset() for _ in range(_CLOCK_READINGS))[1]

    @property
    def enabled(self) -> bool:
        """False for the no-op tracer."""
        return not isinstance(self._provider, trace.NoOpTracerProvider)

    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[RequestOutcome]:
        """A server span around a request; `headers` may name its parent (W3C Trace Context)."""
        outcome = RequestOutcome(request_id)
        if path in _UNTRACED:
            yield outcome
            return
        attributes = {"http.request.method": method, "url.path": path, "finelap.request_id": request_id}
        with self._tracer.start_as_current_span(
            method, self._propagator.extract(headers), SpanKind.SERVER, attributes, record_exception=False
        ) as span:
            try:
                yield outcome
            finally:
                if outcome.route:
                    span.update_name(f"{method} {outcome.route}")
                    span.set_attribute("http.route", outcome.route)
                if outcome.status:
                    span.set_attribute("http.response.status_code", outcome.status)
                if outcome.status >= 500:
                    span.set_status(StatusCode.ERROR)

    def record(self, stage: str, began: float, ended: float, **attributes: str | int | float) -> None:
        """Adds a child span for a stage of the current request, between two values of time.perf_counter()."""
        if not trace.get_current_span().get_span_context().is_valid:
            return
        prefixed = {f"finelap.{name}": value for name, value in attributes.items()}
        span = self._tracer.start_span(stage, attributes=prefixed, start_time=self._epoch_ns(began))
        span.end(self._epoch_ns(ended))

    def ids(self) -> Mapping[str, str]:
        """The current trace and span ids for log lines; empty outside a traced request."""
        if not self.enabled:  # the no-op tracer passes the caller's trace on
            return {}
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}

    def close(self, seconds: float) -> None:
        """Exports the remaining spans, for at most `seconds`."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is None:
            return
        # in a daemon thread, so that an unresponsive collector cannot delay the end of the process
        thread = threading.Thread(target=shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(seconds)

    def _epoch_ns(self, moment: float) -> int:
        """Seconds of time.perf_counter() → nanoseconds since the epoch."""
        return self._epoch_offset + int(moment * 1e9)


def open_tracing(environment: Mapping[str, str], version: str) -> Tracing:
    """Tracing as configured by OTEL_* variables: on if they name a collector and do not disable it.

    Raises TracingError if tracing is on and the SDK is not installed or the protocol or exporter is not supported.
    """
    if not any(environment.get(name) for name in _ENDPOINTS):
        return Tracing()
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return Tracing()
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise TracingError(f"{name}={environment[name]} is not supported; use http/protobuf")
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") not in ("", "otlp"):
        name = environment["OTEL_TRACES_EXPORTER"]
        raise TracingError(f"OTEL_TRACES_EXPORTER={name} is not supported; use otlp or none")
    try:
        return Tracing(_otlp_provider(version))
    except ModuleNotFoundError as error:
        raise TracingError(f"OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'finelap[otel]' ({error})") from error


def _otlp_provider(version: str) -> trace.TracerProvider:
    """An SDK provider that exports in the background over OTLP (http/protobuf), to the endpoint in OTEL_* variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "finelap"}
    resource = Resource.create({SERVICE_VERSION: version} | name)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _measure_epoch_offset() -> tuple[int, int]:
    """(uncertainty, offset from perf_counter to the epoch), both in nanoseconds.

    The thread may be preempted between the readings; the reading with the smallest uncertainty is the best one.
    """
    before = time.perf_counter_ns()
    now = time.time_ns()
    after = time.perf_counter_ns()
    return after - before, now - (before + after) // 2
