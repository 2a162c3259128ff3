"""Tracing with OpenTelemetry: a span for each request, and one below it for each stage. Needs the extra `otel`.

Where spans go, how many of them, and what the service is called is read by OpenTelemetry itself, from OTEL_* variables.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.observability.tracing import Answered, Tracing

_UNTRACED = frozenset(("/health/live", "/health/ready", "/metrics"))  # asked for all day by machines


class OtelTracing(Tracing):
    """Gives spans to a provider, which it owns."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("finelap")
        self._parents = TraceContextTextMapPropagator()
        self._epoch = min(_between_clocks() for _ in range(5))[1]

    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[Answered]:
        answered = Answered(request_id)
        if path in _UNTRACED:
            yield answered
            return
        about = {"http.request.method": method, "url.path": path, "finelap.request_id": request_id}
        with self._tracer.start_as_current_span(
            method, self._parents.extract(headers), SpanKind.SERVER, about, record_exception=False
        ) as span:
            try:
                yield answered
            finally:
                if answered.route:
                    span.update_name(f"{method} {answered.route}")
                    span.set_attribute("http.route", answered.route)
                if answered.status:
                    span.set_attribute("http.response.status_code", answered.status)
                if answered.status >= 500:
                    span.set_status(StatusCode.ERROR)

    def record(self, stage: str, began: float, ended: float, **about: str | int | float) -> None:
        if not trace.get_current_span().get_span_context().is_valid:
            return
        attributes = {f"finelap.{name}": value for name, value in about.items()}
        span = self._tracer.start_span(stage, attributes=attributes, start_time=self._at(began))
        span.end(self._at(ended))

    def ids(self) -> Mapping[str, str]:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}

    def close(self, seconds: float) -> None:
        # a receiver that does not answer is not waited for: the process may end meanwhile
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(seconds)

    def _at(self, moment: float) -> int:
        """perf_counter's seconds → nanoseconds since the epoch."""
        return self._epoch + int(moment * 1e9)


def _between_clocks() -> tuple[int, int]:
    """How far this may be off, and what moves perf_counter to the epoch, both in nanoseconds.

    A thread may be held up between its looks at the clocks.
    """
    before = time.perf_counter_ns()
    now = time.time_ns()
    after = time.perf_counter_ns()
    return after - before, now - (before + after) // 2


def send_to_collector(version: str) -> OtelTracing:
    """Tracing to the receiver that OTEL_* variables name, over OTLP as http/protobuf, in the background."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "finelap"}
    resource = Resource.create({SERVICE_VERSION: version} | name)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider)
