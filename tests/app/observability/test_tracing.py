"""Traces of requests: parents, stages and privacy; tracing is off unless configured."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.inference.engine import Engine
from app.main import create_app
from app.observability.logs import configure_logging
from app.observability.tracing import Tracing, TracingError, open_tracing
from app.settings import Settings
from index.sqlite.library import SqliteLibrary

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced:
    """A client of a traced app, and its finished spans."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
        self.app, self.client, self._spans = app, client, spans

    def spans(self) -> list[ReadableSpan]:
        """Returns the spans finished since the last call, in order."""
        ended = list(self._spans.get_finished_spans())
        self._spans.clear()
        return ended


@pytest.fixture
async def traced(
    make_settings: Callable[..., Settings], fake_model: Any, open_client: Callable[..., httpx.AsyncClient]
) -> AsyncIterator[Traced]:
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    settings = make_settings()
    catalog = SqliteLibrary.open(settings.data_dir, dim=fake_model.dim, checkpoint=fake_model.stamp)
    app = create_app(settings, Engine(fake_model), catalog, Tracing(provider))
    async with app.router.lifespan_context(app), open_client(app) as client:
        yield Traced(app, client, spans)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_detection_has_a_span_per_stage(traced: Traced, sounds: SimpleNamespace) -> None:
    secret = {"files": {"file": ("secret name.wav", sounds.wav(400, 25))}, "data": {"phrases": ["tone 400", "secret"]}}
    response = await traced.client.post("/detect", **secret, headers=TRACEPARENT | {"X-Request-ID": "call-1"})
    assert response.status_code == 200
    spans = traced.spans()
    request = spans[-1]
    assert request.name == "POST /detect" and request.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    assert attributes(request) == {
        "http.request.method": "POST",
        "url.path": "/detect",
        "http.route": "/detect",
        "http.response.status_code": 200,
        "finelap.request_id": "call-1",
    }
    stages = spans[:-1]
    assert {(span.name, attributes(span).get("finelap.lane")) for span in stages} >= {
        ("decode", None),
        ("queue", "text"),
        ("infer", "text"),
        ("queue", "audio"),
        ("infer", "audio"),
    }
    for span in stages:
        assert span.parent is not None and span.parent.span_id == request.context.span_id
        assert (
            request.start_time - 1e6 <= span.start_time <= span.end_time <= request.end_time + 1e6
        )  # 1 ms: two clocks
    (heard,) = [
        attributes(span) for span in stages if (span.name, attributes(span).get("finelap.lane")) == ("infer", "audio")
    ]
    assert heard["finelap.items"] == 3  # windows of 25 s
    (decoded,) = [attributes(span) for span in stages if span.name == "decode"]
    assert decoded["finelap.duration"] == 25
    assert "secret" not in json.dumps([[span.name, attributes(span)] for span in spans])


async def test_search_has_an_index_span(traced: Traced) -> None:
    await traced.client.get("/search", params={"q": "tone 800"})
    *stages, request = traced.spans()
    assert request.parent is None and request.name == "GET /search"
    assert {span.name for span in stages} >= {"queue", "infer", "index"}
    calls = {attributes(span).get("finelap.call") for span in stages if span.name == "index"}
    assert {"nearest", "nearest_segments", "search_words"} <= calls
    await traced.client.get("/search", params={"q": "tone 800"})
    assert "infer" not in {span.name for span in traced.spans()}  # the text is cached


async def test_concurrent_requests_keep_their_spans_apart(traced: Traced, sounds: SimpleNamespace) -> None:
    def embed(number: int) -> Any:
        files = {"files": ("a.wav", sounds.wav(400, 1 + number))}
        return traced.client.post("/embed", files=files, headers={"traceparent": f"00-{number + 1:032x}-{PARENT}-01"})

    assert {response.status_code for response in await asyncio.gather(*map(embed, range(8)))} == {200}
    spans = traced.spans()
    for number in range(8):
        mine = [span for span in spans if span.context.trace_id == number + 1]
        assert sorted(span.name for span in mine if span.name != "post") == ["POST /embed", "decode", "infer", "queue"]
        (decoded,) = [attributes(span)["finelap.duration"] for span in mine if span.name == "decode"]
        assert decoded == 1 + number


@pytest.mark.parametrize(
    ("call", "status", "name"),
    [
        (("GET", "/clips/nothing"), 404, "GET /clips/{clip_id}"),
        (("GET", "/nowhere"), 404, "GET other"),
        (("GET", "/search?q=breaks"), 500, "GET /search"),
    ],
)
async def test_failures_are_recorded(
    traced: Traced, fake_model: Any, call: tuple[str, str], status: int, name: str
) -> None:
    fake_model.fail_on = "breaks"
    assert (await traced.client.request(*call)).status_code == status
    request = traced.spans()[-1]
    assert request.name == name and attributes(request)["http.response.status_code"] == status
    assert (request.status.status_code is StatusCode.ERROR) == (status >= 500)


async def test_decode_failure_is_recorded(traced: Traced) -> None:
    await traced.client.post("/detect", files={"file": ("a.wav", b"no sound" * 100)}, data={"phrases": ["rain"]})
    failed = [attributes(span)["finelap.failure"] for span in traced.spans() if span.name == "decode"]
    assert failed == ["not_audio"]


async def test_probes_are_not_traced(traced: Traced) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert (await traced.client.get(path, headers=TRACEPARENT)).status_code == 200
    assert traced.spans() == []


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_log_lines_have_trace_ids(
    traced: Traced, make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging(make_settings(log_format=kind), ids=traced.app.state.service.tracing.ids)
        await traced.client.get("/clips", headers=TRACEPARENT | {"X-Request-ID": "call-7"})
        logging.getLogger("app").info("outside")
        lines = capsys.readouterr().err.splitlines()
    finally:
        root.handlers, root.level = before, level
    (access,) = [line for line in lines if "app.access" in line]
    (outside,) = [line for line in lines if "outside" in line]
    span = f"{traced.spans()[-1].context.span_id:016x}"
    if kind == "json":
        line = json.loads(access)
        assert (line["request_id"], line["trace_id"], line["span_id"]) == ("call-7", TRACE, span)
        assert line["logger"] == "app.access" and "trace_id" not in json.loads(outside)
    else:
        assert f"[call-7 trace_id={TRACE} span_id={span}] GET /clips 200" in access and "[-] outside" in outside


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_by_default(environment: dict[str, str]) -> None:
    tracing = open_tracing(environment, "1")
    assert not tracing.enabled and tracing.ids() == {}
    tracing.close(1.0)


def test_sdk_is_not_imported_by_default(repo_dir: Path) -> None:
    """Only the API package, which FastAPI imports as well; the SDK and the exporter cost time and memory."""
    modules = "[name for name in sys.modules if name.startswith('opentelemetry.')]"
    code = f"import app.cli.serve, app.main, sys; print({modules}, app.main)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, timeout=120, check=True
    )
    assert "opentelemetry.sdk" not in done.stdout and "opentelemetry.exporter" not in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "use http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
    ],
)
def test_unsupported_settings_are_rejected(more: dict[str, str], message: str) -> None:
    with pytest.raises(TracingError, match=message):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"} | more, "1")


def test_missing_sdk_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracingError, match=r"pip install 'finelap\[otel\]'"):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "1")
