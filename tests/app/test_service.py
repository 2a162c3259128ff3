"""The whole service: problems, request ids, API keys, limits, health, metrics, startup and shutdown."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.routing import Mount

from app import main
from app.inference.engine import Engine
from app.main import build_app
from app.observability.logs import configure_logging
from app.server.http_protocol import HttpProtocol
from app.settings import Settings
from index.sqlite.library import SqliteLibrary

Make = Callable[..., FastAPI]
Connect = Callable[..., httpx.AsyncClient]

METRICS = {
    "finelap_requests_total",
    "finelap_request_duration_seconds",
    "finelap_stage_duration_seconds",
    "finelap_inflight_requests",
    "finelap_queue_depth",
    "finelap_queue_seconds",
    "finelap_batch_size",
    "finelap_audio_seconds_total",
    "finelap_decode_failures_total",
    "finelap_rejected_total",
    "finelap_index_clips",
    "finelap_index_search_duration_seconds",
    "finelap_model_info",
    "finelap_gpu_memory_bytes",
}


def is_problem(response: httpx.Response, status: int) -> bool:
    problem = response.json()
    assert response.status_code == problem["status"] == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"].startswith("urn:finelap:problem:") and problem["title"] and problem["detail"]
    return bool(problem["request_id"] == response.headers["x-request-id"])


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for path in ("/nowhere", "/web/nothing.js", "/docs/files/nothing.js", "/v1/nothing", "/clips/x/y/z"):
        assert is_problem(await client.get(path), 404), path
    for path, allowed in (
        ("/search", {"GET", "HEAD", "POST"}),
        ("/clips", {"GET", "HEAD", "POST"}),
        ("/clips/abc", {"DELETE", "GET", "HEAD", "PATCH"}),
        ("/clips/abc/peaks", {"GET", "HEAD"}),
        ("/embed", {"POST"}),
        ("/v1/embeddings", {"POST"}),
        ("/health/live", {"GET", "HEAD"}),
    ):
        for method in ("PUT", "OPTIONS", "TRACE", "BREW"):
            refused = await client.request(method, path)
            assert is_problem(refused, 405) and set(refused.headers["allow"].split(", ")) == allowed, (method, path)


async def test_head_equals_get_without_a_body(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    (clip,) = (await client.post("/clips", files={"files": ("a.wav", sounds.wav())})).json()["clips"]
    url = f"/clips/{clip['id']}"
    for path, status in (
        ("/", 200), ("/info", 200), ("/clips", 200), (url, 200), (f"{url}/audio", 200), ("/docs", 200),
        ("/search?q=rain", 200), ("/search", 422), ("/clips/unknown", 404), ("/embed", 405), ("/nowhere", 404),
    ):  # fmt: skip
        head, get = await client.head(path), await client.get(path)
        assert head.status_code == get.status_code == status and head.content == b"", path
        for name in ("content-type", "allow"):
            assert head.headers.get(name) == get.headers.get(name), path
        assert head.headers["x-request-id"] and int(head.headers["content-length"]) > 0
    assert (await client.head(f"{url}/audio")).headers["content-length"] == str(len(sounds.wav()))
    metrics = (await client.get("/metrics")).text
    assert 'finelap_requests_total{endpoint="/clips/{clip_id}/audio",outcome="ok"} 3.0' in metrics


async def test_head_of_a_large_file_does_not_read_it(
    make_app: Make, open_client: Connect, sounds: SimpleNamespace
) -> None:
    app, sent = make_app(), []
    large = sounds.wav(400, 10)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async with app.router.lifespan_context(app), open_client(app) as client:
        (clip,) = (await client.post("/clips", files={"files": ("a.wav", large)})).json()["clips"]
        path = f"/clips/{clip['id']}/audio"
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "HEAD", "path": path,
            "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"", "headers": [],
            "client": ("test", 1), "server": ("test", 80),
        }  # fmt: skip
        await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (b"content-length", str(len(large)).encode()) in sent[0]["headers"] and not sent[1]["body"]


async def test_urls_that_are_not_utf8_are_rejected(client: httpx.AsyncClient) -> None:
    for path in ("/search?q=%ff%fe", "/clips?filter=%C3%28", "/clips/%ff", "/%80", "/v1/models/%ff"):
        assert is_problem(await client.get(path), 400), path
    odd = await client.get("/search?q=100%&k=5")  # a lone percent sign is literal
    assert odd.status_code == 200 and odd.json()["query"] == "100%"
    assert (await client.get("/search?q=%E7%8A%AC")).json()["query"] == "犬"


async def test_urls_that_are_too_long_are_rejected(client: httpx.AsyncClient) -> None:
    for path in ("/search?q=" + "x" * 40_000, "/clips?cursor=" + "x" * 40_000, "/" + "x" * 40_000):
        assert is_problem(await client.get(path), 414)
    assert is_problem(await client.get("/search?q=" + "x" * 30_000), 422)


async def test_bodies_that_do_not_match_their_media_type(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sounds.wav() + b"\r\n"
    whole = part + b"--b--\r\n"
    form = "multipart/form-data; boundary=b"
    for path in ("/search", "/detect", "/classify", "/embed", "/clips"):
        for kind, content, statuses in (
            ("multipart/form-data", whole, {400}),
            ("multipart/form-data; boundary=", whole, {400}),
            ("multipart/form-data; boundary=c", whole, {400, 422}),
            (form, b"", {400, 422}),
            (form, b"--b\r\nnonsense", {400, 422}),
            (form, b"--b\r\n\xff\xfe: \x00\r\n\r\n\r\n--b--\r\n", {400}),
            (form, whole.replace(b'name="file"', b'name="nothing"'), {422}),
            ("text/plain", b"rain", {415}),
            ("nonsense", b"rain", {415}),
            ("audio/wav", sounds.wav(), {415}),
        ):
            response = await client.post(path, content=content, headers={"content-type": kind})
            assert response.status_code in statuses, (path, kind, response.text)
            assert is_problem(response, response.status_code)
    for path in ("/search", "/search/moments", "/embed", "/v1/embeddings"):
        for content, kind, status in (
            (b"{", "application/json", 400),
            (b"", "application/json", 400),
            (b'{"query": "\xff"}', "application/json; charset=latin-1", 400),
            (b"[" * 100_000, "application/json", 400),
            (b"{}", "application/xml", 415),
        ):
            response = await client.request("POST", path, content=content, headers={"content-type": kind})
            assert is_problem(response, status), (path, kind)


async def test_request_ids(client: httpx.AsyncClient) -> None:
    own = await client.get("/health/live", headers={"X-Request-ID": "abc-123"})
    assert own.headers["x-request-id"] == "abc-123"
    for bad in ("x" * 200, "a b", "a\tb", ""):
        given = await client.get("/health/live", headers={"X-Request-ID": bad})
        assert given.headers["x-request-id"] != bad and len(given.headers["x-request-id"]) == 32
    one, two = [(await client.get("/nowhere")).headers["x-request-id"] for _ in range(2)]
    assert one != two


async def test_an_internal_error_reveals_nothing_and_the_next_request_works(
    client: httpx.AsyncClient, fake_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake_model.fail_on = "secret text"
    response = await client.post("/embed", json={"texts": ["secret text"]})
    assert is_problem(response, 500) and "breaks the model" not in response.text
    assert "breaks the model" in caplog.text  # it is in the log
    assert (await client.post("/embed", json={"texts": ["other"]})).status_code == 200


async def test_an_item_that_fails_in_a_batch_fails_alone(
    client: httpx.AsyncClient, fake_model: Any, sounds: SimpleNamespace
) -> None:
    fake_model.fail_on = 800
    calls = [client.post("/embed", files={"files": ("a.wav", sounds.wav(hz))}) for hz in (400, 800, 1600, 800, 400)]
    assert [r.status_code for r in await asyncio.gather(*calls)] == [200, 500, 200, 500, 200]


async def test_the_openapi_document(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    wanted = {
        "/embed": {"post"},
        "/v1/embeddings": {"post"},
        "/v1/models": {"get"},
        "/v1/models/{model}": {"get"},
        "/clips": {"get", "post"},
        "/clips/{clip_id}": {"get", "patch", "delete"},
        "/clips/{clip_id}/audio": {"get"},
        "/clips/duplicates": {"get"},
        "/clips/{clip_id}/peaks": {"get"},
        "/clips/{clip_id}/loudness": {"get"},
        "/clips/{clip_id}/similar": {"get"},
        "/clips/{clip_id}/preview": {"get"},
        "/clips/download": {"post"},
        "/clips/edit": {"post"},
        "/clips/facets": {"get"},
        "/collections": {"get"},
        "/collections/{name}": {"patch", "delete"},
        "/clips/reference": {"post"},
        "/search": {"get", "post"},
        "/search/moments": {"post"},
        "/concepts": {"get", "post"},
        "/concepts/{key}": {"get", "patch", "delete"},
        "/concepts/{key}/examples": {"get", "post"},
        "/concepts/{key}/examples/{example_id}": {"delete"},
        "/concepts/{key}/examples/{example_id}/audio": {"get"},
        "/concepts/{key}/suggestions": {"get"},
        "/jobs": {"get", "post"},
        "/jobs/{job_id}": {"get", "delete"},
        "/jobs/{job_id}/events": {"get"},
        "/jobs/{job_id}/summary": {"get"},
        "/classify": {"post"},
        "/detect": {"post"},
        "/health/live": {"get"},
        "/health/ready": {"get"},
        "/info": {"get"},
        "/metrics": {"get"},
    }
    assert {path: set(calls) for path, calls in document["paths"].items()} == wanted
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for status, response in call["responses"].items():
                if int(status) >= 400:
                    assert set(response["content"]) == {"application/problem+json"}, (path, method, status)
            if method in ("post", "patch"):
                assert call["requestBody"]["content"]


async def test_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert "FineLAP" in response.text


async def test_info(client: httpx.AsyncClient) -> None:
    info = (await client.get("/info")).json()
    assert info["model"]["name"] == "fake" and info["model"]["stamp"] == "fake-stamp" and info["clips"] == 0
    assert info["limits"]["max_phrases"] == 100 and info["limits"]["min_duration_s"] == 0.05


async def test_all_documented_metrics_exist(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    await client.post("/clips", files={"files": ("a.wav", sounds.encode(sounds.tone(400, 2, 8000), rate=8000))})
    await client.post("/clips", files={"files": ("b.wav", b"text")})
    await client.get("/search", params={"q": "tone 400"})
    await client.get("/clips/unknown")
    text = (await client.get("/metrics")).text
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert declared >= METRICS
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["finelap_audio_seconds_total"] == "2.0"
    assert values['finelap_decode_failures_total{reason="not_audio"}'] == "1.0"
    assert values["finelap_index_clips"] == "1.0"
    assert values["finelap_index_search_duration_seconds_count"] == "2.0"  # of clips and of segments
    assert values['finelap_requests_total{endpoint="/clips",outcome="ok"}'] == "1.0"
    assert values['finelap_requests_total{endpoint="/clips",outcome="invalid"}'] == "1.0"
    assert values['finelap_requests_total{endpoint="/clips/{clip_id}",outcome="invalid"}'] == "1.0"
    assert values['finelap_model_info{checkpoint="fake",device="cpu",dtype="float32"}'] == "1.0"
    for stage in ("decode", "resample", "queue", "infer", "index"):
        assert float(values[f'finelap_stage_duration_seconds_count{{stage="{stage}"}}']) > 0, stage
    for lane in ("audio", "text"):
        assert float(values[f'finelap_batch_size_count{{lane="{lane}"}}']) > 0


async def test_api_keys(make_app: Make, open_client: Connect) -> None:
    app = make_app(api_keys="alpha, beta")
    async with app.router.lifespan_context(app), open_client(app) as client:
        for path in ("/", "/health/live", "/health/ready"):
            assert (await client.get(path)).status_code == 200
        for headers in (
            {},
            {"X-API-Key": "gamma"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer alph"},
            {"Authorization": "Basic alpha"},
            {"X-API-Key": "schlüssel".encode()},
        ):
            refused = await client.get("/info", headers=headers)
            assert is_problem(refused, 401) and refused.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/clips", "/openapi.json", "/docs", "/nowhere"):
            assert (await client.get(path)).status_code == 401, path
        for headers in ({"X-API-Key": "beta"}, {"Authorization": "Bearer alpha"}, {"Authorization": "bearer beta"}):
            assert (await client.get("/info", headers=headers)).status_code == 200


async def test_a_wrong_key_is_rejected_everywhere(make_app: Make, open_client: Connect) -> None:
    app = make_app(api_keys="alpha")
    routes = [route for router in main._ROUTERS for route in router.routes]
    calls = {
        (method, route.path) for route in (*routes, *app.routes) for method in getattr(route, "methods", None) or ()
    }
    calls |= {("GET", f"{route.path}/x") for route in app.routes if isinstance(route, Mount)}
    assert {("POST", "/detect"), ("DELETE", "/clips/{clip_id}"), ("GET", "/openapi.json"), ("GET", "/docs")} <= calls
    assert {("GET", "/docs/files/x"), ("GET", "/web/x"), ("POST", "/v1/embeddings")} <= calls
    open_to_all = {"/", "/health/live", "/health/ready", "/web/x"}
    async with app.router.lifespan_context(app), open_client(app) as client:
        for method, path in sorted(calls):
            for headers in ({}, {"Authorization": "Bearer beta"}, {"X-API-Key": "alphaa"}):
                for way in (method, "HEAD", "OPTIONS"):
                    status = (await client.request(way, path, headers=headers)).status_code
                    assert (status == 401) == (path not in open_to_all), (way, path, status)
        for path in (
            "http://test//clips",
            "/clips/",
            "/health/live/../../clips",
            "/web/../clips",
            "/web//../info",
            "/docs/",
        ):
            assert (await client.get(path)).status_code in (401, 404), path


async def test_body_size_limit(make_app: Make, open_client: Connect, sounds: SimpleNamespace) -> None:
    app = make_app(max_upload_mb=0.1)
    big = sounds.wav(400, 10)
    async with app.router.lifespan_context(app), open_client(app) as client:
        declared = await client.post("/clips", files={"files": ("a.wav", big)})
        assert is_problem(declared, 413) and "0.1 MB" in declared.json()["detail"]

        async def chunks() -> Any:  # no Content-Length
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
            for _ in range(10):
                yield big[:30_000]
            yield b"\r\n--x--\r\n"

        streamed = await client.post(
            "/clips", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert is_problem(streamed, 413)
        assert (await client.post("/clips", files={"files": ("a.wav", sounds.wav(400, 2))})).status_code == 201


async def test_duration_limit(make_app: Make, open_client: Connect, sounds: SimpleNamespace) -> None:
    app = make_app(max_duration_s=5)
    async with app.router.lifespan_context(app), open_client(app) as client:
        response = await client.post("/embed", files={"files": ("lang.wav", sounds.wav(400, 6))})
        assert is_problem(response, 413) and "lang.wav" in response.json()["detail"]


async def test_invalid_input_is_explained_and_the_next_request_works(
    client: httpx.AsyncClient, sounds: SimpleNamespace
) -> None:
    flac = sounds.encode(sounds.tone(440, 3, 44_100), "FLAC", 44_100)
    for name, data, status, word in (
        ("empty.wav", b"", 422, "empty"),
        ("letter.wav", b"Dear all,\n" * 50, 415, "not an audio file"),
        ("half.flac", flac[: len(flac) // 2], 422, "truncated"),
        ("tick.wav", sounds.encode(sounds.tone(440, 0.01)), 422, "minimum is 0.05 s"),
    ):
        for path, field, extra in (
            ("/clips", "files", {}),
            ("/embed", "files", {}),
            ("/search", "file", {}),
            ("/detect", "file", {"phrases": "dog"}),
            ("/classify", "file", {"labels": "dog"}),
        ):
            response = await client.post(path, files={field: (name, data)}, data=extra)
            assert is_problem(response, status), (path, name)
            assert name in response.json()["detail"] and word in response.json()["detail"], response.text
        good = await client.post("/detect", files={"file": ("a.wav", sounds.wav())}, data={"phrases": "tone 400"})
        assert good.status_code == 200 and good.json()["phrases"][0]["events"]


async def test_a_full_queue_gives_429_with_retry_after(
    make_app: Make, open_client: Connect, sounds: SimpleNamespace, fake_model: Any
) -> None:
    app = make_app(max_batch_windows=1, max_queue_windows=2)
    async with app.router.lifespan_context(app), open_client(app) as client:
        gate = threading.Event()
        fake_model.before = lambda: gate.wait(60)
        file = {"files": ("a.wav", sounds.wav(400, 30))}
        calls = [asyncio.create_task(client.post("/embed", files=file)) for _ in range(12)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)  # only a rejection can complete
        gate.set()
        answers = await asyncio.gather(*calls)
        refused = [r for r in answers if r.status_code == 429]
        assert refused and len(refused) < 12 and {r.status_code for r in answers} == {200, 429}
        assert all(is_problem(r, 429) and int(r.headers["retry-after"]) >= 1 for r in refused)
        assert (await client.post("/embed", files={"files": ("a.wav", sounds.wav())})).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert f'finelap_rejected_total{{reason="queue-full"}} {len(refused)}.0' in metrics


async def test_health_checks_respond_while_the_model_is_busy(
    client: httpx.AsyncClient, sounds: SimpleNamespace, fake_model: Any
) -> None:
    gate, computing = threading.Event(), threading.Event()
    fake_model.before = lambda: (computing.set(), gate.wait(60))
    work = asyncio.create_task(client.post("/embed", files={"files": ("a.wav", sounds.wav())}))
    await until_set(computing)
    assert (await client.get("/health/live")).status_code == 200
    assert not work.done(), "the answer did not wait for the model"
    gate.set()
    assert (await work).status_code == 200


async def test_ready_requires_a_working_model_and_library(
    make_app: Make, open_client: Connect, fake_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        fake_model.fail_on = "a sound"
        failed = await client.get("/health/ready")
        assert is_problem(failed, 503) and "breaks the model" in failed.json()["detail"]
        assert (await client.get("/health/live")).status_code == 200
        fake_model.fail_on = None
        assert (await client.get("/health/ready")).status_code == 200
        monkeypatch.setattr(app.state.service.library, "check", lambda: 1 / 0)
        assert is_problem(await client.get("/health/ready"), 503)


async def test_request_timeout(make_app: Make, open_client: Connect, fake_model: Any, sounds: SimpleNamespace) -> None:
    app = make_app(request_timeout_s=0.5)
    async with app.router.lifespan_context(app), open_client(app) as client:
        gate = threading.Event()
        fake_model.before = lambda: gate.wait(60)
        response = await client.post("/embed", json={"texts": ["rain"]})
        assert is_problem(response, 503) and "0.5 s" in response.json()["detail"] and response.headers["retry-after"]
        gate.set()
        async with asyncio.timeout(60):  # half a second can be too short on a busy machine
            while (await client.post("/embed", json={"texts": ["rain"]})).status_code != 200:
                pass


async def call_and_leave(app: FastAPI, body: dict[str, Any], leave: asyncio.Event) -> list[dict[str, Any]]:
    """POST /embed over bare ASGI from a client that disconnects when `leave` is set; the messages it received."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"99")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/embed",
        "raw_path": b"/embed", "root_path": "", "scheme": "http", "query_string": b"", "headers": headers,
        "client": ("test", 1), "server": ("test", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def until_set(event: threading.Event) -> None:
    async with asyncio.timeout(60):
        while not event.is_set():
            await asyncio.sleep(0.001)


async def test_work_of_disconnected_clients_is_cancelled(make_app: Make, fake_model: Any) -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        gate, computing = threading.Event(), threading.Event()
        fake_model.before = lambda: (computing.set(), gate.wait(60))
        leave, stay = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(call_and_leave(app, {"texts": ["first"]}, stay))
        await until_set(computing)
        gone = asyncio.create_task(call_and_leave(app, {"texts": ["gone"]}, leave))
        lane = app.state.service.engine.text_lane
        async with asyncio.timeout(60):
            while lane.depth < 1:
                await asyncio.sleep(0.001)
            leave.set()
            assert await gone == []
        assert lane.depth == 0
        gate.set()
        assert (await first)[0]["status"] == 200
        assert ["gone"] not in fake_model.text_batches


async def test_shutdown_rejects_new_requests_and_finishes_running_ones(
    make_app: Make, open_client: Connect, fake_model: Any, sounds: SimpleNamespace
) -> None:
    app = make_app()
    async with open_client(app) as client:
        async with app.router.lifespan_context(app):
            gate, computing = threading.Event(), threading.Event()
            fake_model.before = lambda: (computing.set(), gate.wait(60))
            running = asyncio.create_task(client.post("/clips", files={"files": ("a.wav", sounds.wav())}))
            await until_set(computing)

            async def while_closing() -> None:
                await asyncio.sleep(0.05)
                assert is_problem(await client.get("/info"), 503)
                assert is_problem(await client.get("/health/ready"), 503)
                assert (await client.get("/health/live")).status_code == 200
                gate.set()

            late = asyncio.create_task(while_closing())
        await late
        assert (await running).status_code == 201


async def test_live_while_loading_and_ready_afterwards(
    make_settings: Callable[..., Settings], open_client: Connect, fake_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def load_model(settings: Settings) -> Any:
        gate.wait(60)
        return fake_model

    monkeypatch.setattr(main, "load_model", load_model)
    app = build_app(make_settings())
    async with app.router.lifespan_context(app), open_client(app) as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        for path in ("/health/ready", "/info", "/search?q=rain"):
            waiting = await client.get(path)
            assert is_problem(waiting, 503) and "is loading" in waiting.json()["detail"]
            assert waiting.headers["retry-after"]
        gate.set()
        await asyncio.wait_for(app.state.loading, 120)
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get("/info")).json()["model"]["name"] == "fake"


@pytest.mark.parametrize("what", ["model", "index", "library"])
async def test_a_service_that_fails_to_start_reports_the_reason_and_stops(
    make_settings: Callable[..., Settings],
    open_client: Connect,
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    def load_model(settings: Settings) -> Any:
        if what == "model":
            raise FileNotFoundError("there is no checkpoint here")
        return fake_model

    monkeypatch.setattr(main, "load_model", load_model)
    settings = make_settings(index_url="milvus://127.0.0.1:1" if what == "index" else "faiss://")
    lock = SqliteLibrary.open(settings.data_dir, dim=16, checkpoint="x") if what == "library" else None
    stopped: list[bool] = []
    app = build_app(settings, stop=lambda: stopped.append(True))
    async with app.router.lifespan_context(app), open_client(app) as client:
        await asyncio.wait_for(app.state.loading, 120)
        word = {"model": "no checkpoint here", "index": "milvus://127.0.0.1:1", "library": "already open"}[what]
        assert stopped == [True] and word in str(app.state.failure) and word in caplog.text
        failed = await client.get("/health/ready")
        assert is_problem(failed, 503) and word in failed.json()["detail"]
        assert (await client.get("/health/live")).status_code == 200
    if lock is not None:
        lock.close()


async def test_two_apps_in_one_process_have_separate_metrics(
    make_app: Make, open_client: Connect, fake_model: Any, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    one = make_app()
    catalog = SqliteLibrary.open(tmp_path / "other", dim=fake_model.dim, checkpoint="other")
    two = main.create_app(make_settings(), Engine(fake_model), catalog)
    async with one.router.lifespan_context(one), two.router.lifespan_context(two):
        async with open_client(one) as client:
            await client.get("/info")
        async with open_client(two) as client:
            text = (await client.get("/metrics")).text
    assert 'endpoint="/info"' not in text


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FINELAP_PORT=9999\nFINELAP_API_KEYS=a, b,\n", encoding="utf-8")
    monkeypatch.setenv("FINELAP_MAX_PHRASES", "7")
    settings = Settings()
    assert (settings.port, settings.api_keys, settings.max_phrases) == (9999, ("a", "b"), 7)
    assert settings.max_upload_bytes == 512_000_000 and settings.checkpoint == "checkpoints/finelap-small"
    monkeypatch.setenv("FINELAP_PORT", "many")
    with pytest.raises(ValueError, match="port"):
        Settings()


@pytest.mark.parametrize("kind", ["json", "text"])
def test_log_lines_have_the_request_id(
    make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging(make_settings(log_format=kind))
        token = main.errors.request_id.set("abc-1")
        logging.getLogger("app.access").info("GET %s", "/ü", extra={"fields": {"status": 200}})
        main.errors.request_id.reset(token)
        line = capsys.readouterr().err.strip()
    finally:
        root.handlers, root.level = before, level
    if kind == "json":
        record = json.loads(line)
        assert record["request_id"] == "abc-1" and record["message"] == "GET /ü" and record["status"] == 200
    else:
        assert "[abc-1] GET /ü" in line


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_every_request_is_logged_with_its_id(
    make_app: Make,
    make_settings: Callable[..., Settings],
    open_client: Connect,
    capsys: pytest.CaptureFixture[str],
    fake_model: Any,
    kind: str,
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    fake_model.fail_on = "secret text"
    app = make_app(log_format=kind)
    try:
        configure_logging(make_settings(log_format=kind))
        async with app.router.lifespan_context(app), open_client(app) as client:
            ids = {}
            for number, (method, path, body) in enumerate(
                [
                    ("GET", "/search?q=rain", None),
                    ("GET", "/nowhere%0Aat all", None),
                    ("PUT", "/clips", None),
                    ("POST", "/embed", {"texts": ["secret text"]}),
                    ("POST", "/embed", {"texts": []}),
                    ("GET", "/search?q=%ff", None),
                ]
            ):
                response = await client.request(method, path, json=body, headers={"X-Request-ID": f"call-{number}"})
                assert response.headers["x-request-id"] == f"call-{number}"
                ids[f"call-{number}"] = response.status_code
            named = (await client.get("/info")).headers["x-request-id"]
            ids[named] = 200
            log_in_thread = functools.partial(logging.getLogger("app.test").warning, "from a thread")
            main.errors.request_id.set("call-thread")
            await app.state.service.read(log_in_thread)
        lines = capsys.readouterr().err.splitlines()
    finally:
        root.handlers, root.level = before, level
    if kind == "json":
        records = [json.loads(line) for line in lines]  # one JSON object per line, tracebacks included
        seen = {r["request_id"]: r["status"] for r in records if r["logger"] == "app.access"}
        assert [r["request_id"] for r in records if "exception" in r] == ["call-3"]
        assert [r["request_id"] for r in records if r["message"] == "from a thread"] == ["call-thread"]
    else:
        parts = [re.search(r"INFO app\.access \[(\S+)\] \S+ \S+ (\d+) ", line) for line in lines]
        seen = {part[1]: int(part[2]) for part in parts if part}
        assert any("ERROR app.errors [call-3] unexpected error" in line for line in lines)
        assert any("[call-thread] from a thread" in line for line in lines)
    assert seen == ids


def test_malformed_http_gets_a_problem(make_app: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = uvicorn.Server(uvicorn.Config(make_app(), port=0, http=HttpProtocol, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for request in (
            b"nonsense\r\n\r\n",
            b"GET /search?q=%b HTTP/1.1\r\nHost: test\r\n\r\n" % (b"x" * 200_000),
            b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: many\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(request)
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            problem = json.loads(body)
            assert head.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in head
            assert problem["status"] == 400 and problem["type"] == "urn:finelap:problem:malformed"
            assert f"x-request-id: {problem['request_id']}".encode() in head.lower()
            assert str(len(body)).encode() in head
        assert httpx.get(f"http://127.0.0.1:{port}/info", timeout=10).status_code == 200
        assert "unparsable request" in caplog.text
    finally:
        server.should_exit = True
        thread.join(30)


async def test_recovery_of_the_library_is_logged(
    make_settings: Callable[..., Settings], fake_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings()
    SqliteLibrary.open(settings.data_dir, dim=fake_model.dim, checkpoint=fake_model.stamp).close()
    (settings.data_dir / "audio" / ".incoming" / "left over").write_bytes(b"half an upload")
    main._open_library(settings, fake_model.dim, fake_model.stamp).close()
    assert "removed 1 audio file of interrupted uploads" in caplog.text
