"""A real service sends its traces to a receiver of OTLP over HTTP, and its log lines name them."""

from __future__ import annotations

import http.server
import json
import signal
import threading
from collections.abc import Iterator

import pytest

from benchmarks.common import SOUNDS, Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402
from opentelemetry.proto.trace.v1.trace_pb2 import Span  # noqa: E402

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Receiver:
    """Takes what is exported to `address`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
                receiver.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {one.key: one.value.string_value for one in part.resource.attributes}
            self.services.add(about["service.name"])
            self.spans += [span for scope in part.scope_spans for span in scope.spans]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_a_service_sends_its_traces(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, small_checkpoint: object
) -> None:
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # only when it stops: what is left then is not lost
    bark = next(iter(sorted(SOUNDS.glob("dog-barking-*"))))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "call-1"}
    with Server({"log_format": "json"}) as server:
        for path, content in (
            ("/clips", {"files": {"files": (bark.name, bark.read_bytes())}}),
            ("/search", {"json": {"query": "dog barking"}}),
            ("/detect", {"files": {"file": (bark.name, bark.read_bytes())}, "data": {"phrases": ["dog barking"]}}),
        ):
            server.post(path, headers=headers, **content).raise_for_status()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        lines = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    mine = [span for span in receiver.spans if span.trace_id.hex() == TRACE]
    requests = {span.name: span for span in mine if span.parent_span_id.hex() == PARENT}
    assert requests.keys() == {"POST /clips", "POST /search", "POST /detect"} and receiver.services == {"finelap"}
    stages = {
        name: {span.name for span in mine if span.parent_span_id == request.span_id}
        for name, request in requests.items()
    }
    assert stages["POST /clips"] >= {"decode", "queue", "infer", "index"}
    assert stages["POST /search"] >= {"queue", "infer", "index"}
    assert stages["POST /detect"] >= {"decode", "queue", "infer"}
    access = {line["path"]: line for line in lines if line["logger"] == "app.access" and line["request_id"] == "call-1"}
    for name, request in requests.items():
        line = access[name.partition(" ")[2]]
        assert (line["trace_id"], line["span_id"]) == (TRACE, request.span_id.hex())


def test_a_receiver_that_is_away_holds_nothing_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, small_checkpoint: object
) -> None:
    receiver.server.shutdown()
    receiver.server.server_close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    with Server() as server:
        server.get("/search", q="rain").raise_for_status()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
