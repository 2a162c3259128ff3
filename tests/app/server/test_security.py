"""Security: headers, cross-origin requests, bodies that exhaust memory, path traversal."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import logging
import re
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from app.api import requests
from app.observability.logs import configure_logging
from app.server import http_protocol as protocol

Make = Callable[..., FastAPI]
Connect = Callable[..., httpx.AsyncClient]


def problem(response: httpx.Response, status: int, slug: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert told["type"] == f"urn:finelap:problem:{slug}", told
    return str(told["detail"])


@pytest.fixture
def run_protocol(run_server: Callable[..., str]) -> Callable[[], int]:
    """Starts a server with the HTTP protocol of `finelap serve`; yields its port."""
    return lambda: int(run_server().rpartition(":")[2])


# Security headers


async def test_every_response_has_security_headers(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    added = await client.post("/clips", files={"files": ("a.wav", sounds.wav())})
    clip = added.json()["clips"][0]["id"]
    paths = ["/", "/docs", "/web/main.js", "/info", "/clips", f"/clips/{clip}/audio", "/clips/none", "/nowhere", "/%ff"]
    for path in (*paths, "/health/live", "/metrics", "/openapi.json"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["x-frame-options"] == "DENY", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'", path
        assert policy["base-uri"] == "'none'", path
        assert not {"*", "http:", "https:", "'unsafe-eval'"} & set(" ".join(policy.values()).split()), path
        assert "'unsafe-inline'" not in policy.get("script-src", ""), path
        assert "access-control-allow-origin" not in headers, path
        if path not in ("/", "/docs"):
            assert "script-src" not in policy, path


async def test_pages_run_only_what_their_policy_allows(client: httpx.AsyncClient) -> None:
    """Every script and style of a page is a file of the service or has a fresh nonce."""
    words = set()
    for path in ("/", "/docs", "/", "/docs"):
        page = await client.get(path)
        policy = page.headers["content-security-policy"]
        nonces = re.findall(r"'nonce-([\w-]{20,})'", policy)
        assert len(nonces) == 1 and nonces[0] not in words
        words |= set(nonces)
        for tag in re.findall(r"<script[^>]*>", page.text):
            assert "src=" in tag or f'nonce="{nonces[0]}"' in tag, tag
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page.text), path
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page.text), path


# Cross-origin requests


async def test_cross_origin_changes_are_rejected(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    files = {"files": ("a.wav", sounds.wav())}
    for origin in ("https://evil.example", "null", "http://test.evil.example", "http://test:81", "http://[", "file://"):
        refused = await client.post("/clips", files=files, headers={"Origin": origin})
        problem(refused, 403, "cross-origin")
        assert (await client.delete("/clips/x", headers={"Origin": origin})).status_code == 403
        preflight = await client.options(
            "/clips", headers={"Origin": origin, "Access-Control-Request-Method": "DELETE"}
        )
        assert not any(name.startswith("access-control") for name in preflight.headers)
    assert not (await client.get("/clips")).json()["clips"]
    for headers in ({"Origin": "http://test"}, {}):  # its own page, and clients other than browsers
        assert (await client.post("/clips", files=files, headers=headers)).status_code in (200, 201)


async def test_allowed_origins(make_app: Make, open_client: Connect) -> None:
    app = make_app(cors_origins=("https://friend.example",))
    async with app.router.lifespan_context(app), open_client(app) as client:
        asks = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        preflight = await client.options("/search", headers=asks | {"Access-Control-Request-Headers": "x-api-key"})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
        found = await client.post("/search", json={"query": "x"}, headers={"Origin": "https://friend.example"})
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://friend.example"
        wrong = await client.post("/search", json={}, headers={"Origin": "https://friend.example"})
        assert wrong.status_code == 422 and "access-control-allow-origin" in wrong.headers  # so that it can be read
        refused = await client.post("/search", json={"query": "x"}, headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("settings", "taken", "refused"),
    [
        # open on this machine: a registered name may have been pointed at it
        ({}, ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "box", "a.localhost"], ["evil.example", "x.y:80"]),
        ({"host": "::1"}, ["[::1]"], ["evil.example"]),
        ({"api_keys": ("k",)}, ["evil.example"], []),
        ({"host": "0.0.0.0"}, ["evil.example", "sounds.example:80"], []),
        ({"allowed_hosts": ("Sounds.example",)}, ["SOUNDS.example:443"], ["localhost", "e.sounds.example"]),
        ({"allowed_hosts": ("*",)}, ["evil.example"], []),
    ],
)  # fmt: skip
async def test_allowed_hosts(
    make_app: Make, open_client: Connect, settings: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    app = make_app(**settings)
    async with app.router.lifespan_context(app), open_client(app) as client:
        for host in taken:
            assert (await client.get("/health/live", headers={"Host": host})).status_code == 200, host
        for host in refused:
            problem(await client.get("/clips", headers={"Host": host}), 421, "misdirected")


async def test_probes_use_addresses(make_app: Make, open_client: Connect) -> None:
    """kubelet, Prometheus and the image's health check call an address, whatever names are allowed."""
    app = make_app(host="0.0.0.0", allowed_hosts=("sounds.example",))
    async with app.router.lifespan_context(app), open_client(app) as client:
        for host in ("10.1.2.3:8080", "127.0.0.1:8080", "[fd00::7]:8080"):
            for path in ("/health/live", "/health/ready", "/metrics"):
                assert (await client.get(path, headers={"Host": host})).status_code == 200, (host, path)
            problem(await client.get("/clips", headers={"Host": host}), 421, "misdirected")
        problem(await client.get("/metrics", headers={"Host": "evil.example"}), 421, "misdirected")


# Bodies that exhaust memory


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return (
        b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n' + more + b"\r\n" + value + b"\r\n"
    )


FORM = {"content-type": "multipart/form-data; boundary=b"}


async def post_form(client: httpx.AsyncClient, *parts: bytes, headers: dict[str, str] = FORM) -> httpx.Response:
    return await client.post("/embed", content=b"".join(parts) + b"--b--\r\n", headers=headers)


async def test_oversized_forms_are_rejected(client: httpx.AsyncClient) -> None:
    mega = b"x" * (requests.MAX_FIELD_BYTES - 100)
    assert problem(await post_form(client, part("texts", b"x" * (1 << 20) + b"x")), 400, "malformed")
    many = [part("nobody_knows", mega) for _ in range(17)]
    assert "in total" in problem(await post_form(client, *many), 413, "body-too-large")
    assert problem(await post_form(client, *[part("t", b"")] * (requests.MAX_FIELDS + 1)), 400, "malformed")
    files = [part(f'files"; filename="{n}.wav', b"") for n in range(requests.MAX_FILES + 1)]
    assert "1000" in problem(await post_form(client, *files), 400, "malformed")
    problem(await post_form(client, part("texts", b"a", b"X: y\r\n" * 100)), 400, "malformed")
    problem(await post_form(client, part("texts", b"a", b"X: " + b"y" * 100_000 + b"\r\n")), 400, "malformed")
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}
    pairs = b"&".join(b"a=" + b"b" * 500_000 for _ in range(40))
    problem(await client.post("/embed", content=pairs, headers=urlencoded), 413, "body-too-large")


@pytest.mark.parametrize(
    "head",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 5000,
     'multipart/form-data; boundary="', "multipart/form-data; charset=zip; boundary=b",
     "multipart/form-data; charset=unicode_escape; boundary=b", "multipart/form-data; charset=idna; boundary=b",
     "multipart/form-data; boundary=b; boundary=c", "multipart/form-data; boundary*0=b"],
)  # fmt: skip
async def test_form_part_headers_are_bounded(client: httpx.AsyncClient, head: str) -> None:
    parts = [part("texts", b"\\ud800 a"), part("frames", b"\\ud800"), part('files"; filename="\\ud800.wav', b"\\ud800")]
    answer = await post_form(client, *parts, headers={"content-type": head})
    assert answer.status_code in (400, 415, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_form_files_are_not_kept_in_memory(client: httpx.AsyncClient) -> None:
    """100 files of 300 kB: the first ones are kept in memory up to the limit, then 64 kB of each."""
    piece = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + b"\0" * 300_000 + b"\r\n"

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield piece
        yield b"--b--\r\n"

    tracemalloc.start()
    try:
        answer = await client.post("/embed", content=body(), headers=FORM)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 415 and len(answer.json()["errors"]) == 100
    assert peak < 20e6, peak


async def test_json_expansion_is_bounded(client: httpx.AsyncClient) -> None:
    """JSON expands in memory: `{},` has three bytes, an empty dict 64."""
    swelling = b'{"query": [' + b"{}," * 2_000_000 + b"{}]}"
    for path in ("/search", "/search/moments", "/embed"):
        assert "values" in problem(await client.post(path, content=swelling), 413, "body-too-large")
    long = json.dumps({"query": "x" * (requests.MAX_JSON_BYTES + 1)}).encode()
    assert "MB" in problem(await client.post("/search", content=long), 413, "body-too-large")
    deep = b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    problem(await client.post("/search", content=deep), 400, "malformed")
    number = b'{"query": "x", "k": ' + b"9" * 100_000 + b"}"
    problem(await client.post("/search", content=number), 400, "malformed")
    sound = {"input": "data:audio/wav;base64," + "A" * 70_000_000, "modality": "audio"}
    problem(await client.post("/v1/embeddings", content=json.dumps(sound)), 413, "body-too-large")


async def test_compressed_bodies_are_not_decompressed(client: httpx.AsyncClient) -> None:
    """Content-Encoding is ignored, so that a kilobyte cannot expand to a gigabyte."""
    import gzip

    packed = gzip.compress(b'{"query": "' + b" " * 10_000_000 + b'"}')
    for coding in ("gzip", "br", "deflate", "zstd"):
        answer = await client.post(
            "/search", content=packed, headers={"content-encoding": coding, "content-type": "application/json"}
        )
        problem(answer, 400, "malformed")


# Path traversal


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/x.wav", "..\\..\\x.wav", "/etc/passwd", "C:\\x.wav", "x\r\nSet-Cookie: a=b.wav",
     "x\x00.wav", "\u202egpj.wav", "x\x1b[2Jy.wav", "\u2028x.wav", "a\"; filename=\"b.wav",
     "%2e%2e%2fx.wav", "." * 300],
)  # fmt: skip
async def test_file_names_are_not_paths(
    client: httpx.AsyncClient, tmp_path: Path, sounds: SimpleNamespace, name: str
) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    quoted = name.replace('"', "%22").encode().replace(b"\r", b"%0D").replace(b"\n", b"%0A")
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + quoted + b'"\r\n\r\n' + sounds.wav()
    answer = await client.post("/clips", content=body + b"\r\n--b--\r\n", headers=FORM)
    if answer.status_code == 400:
        return
    assert answer.status_code in (200, 201), answer.text
    clip = answer.json()["clips"][0]
    assert "/" not in clip["filename"] and "\\" not in clip["filename"]
    assert not re.search("[\x00-\x1f\x7f\u2028\u202e]", clip["filename"])
    kept = await client.get(f"/clips/{clip['id']}/audio")
    assert kept.status_code == 200 and "set-cookie" not in kept.headers
    assert kept.headers["content-disposition"].startswith("inline; filename")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.name for path in new if "audio" in path.parts} == {clip["sha256"]}


async def test_metadata_is_not_evaluated(client: httpx.AsyncClient, tmp_path: Path, sounds: SimpleNamespace) -> None:
    hostile = {
        "../../x": "/etc/passwd", "__proto__": {"a": 1}, "'; DROP TABLE clips; --": "' OR 1=1 --", "url": "http://x/",
        "html": "<script>alert(1)</script>", "line": "a\r\nSet-Cookie: b", "nul": "a\u0000b", "": "",
        "\u202e": "\u202e",
    }  # fmt: skip
    answer = await client.post(
        "/clips", files={"files": ("a.wav", sounds.wav())}, data={"metadata": json.dumps(hostile)}
    )
    clip = answer.json()["clips"][0]
    assert clip["metadata"] == hostile
    for key, value in hostile.items():
        if isinstance(value, str):
            found = await client.get("/clips", params={"filter": json.dumps({key: value})})
            assert [c["id"] for c in found.json()["clips"]] == [clip["id"]], key
            other = await client.get("/clips", params={"filter": json.dumps({key: value + "'"})})
            assert other.json()["clips"] == [], key
    words = await client.get("/search", params={"q": '" OR name:* NEAR( ^ - DROP TABLE', "mode": "lexical"})
    assert words.status_code == 200


async def test_path_traversal_is_rejected(client: httpx.AsyncClient) -> None:
    for path in (
        "/web/../main.py", "/web/%2e%2e/main.py", "/web/..%2fmain.py", "/web/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/web//etc/passwd", "/docs/files/../../__init__.py", "/web/..%5cmain.py", "/clips/..%2f..%2fcatalog.sqlite3",
        "/clips/%2e%2e/audio", "/web/%00", "/web/" + "a" * 5000,
    ):  # fmt: skip
        answer = await client.get(path)
        assert answer.status_code in (400, 404), (path, answer.status_code)


# Nothing is fetched


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/a.wav", "file:///etc/passwd", "ftp://127.0.0.1:{port}/a"])
async def test_no_url_is_fetched(client: httpx.AsyncClient, sounds: SimpleNamespace, where: str) -> None:
    """URLs in every field: a local listener must not receive a connection."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = where.format(port=trap.getsockname()[1])
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n".encode()
        concat = f"ffconcat version 1.0\nfile '{url}'\n".encode()
        dash = f'<?xml version="1.0"?><MPD><BaseURL>{url}</BaseURL></MPD>'.encode()
        for body in (playlist, concat, dash, url.encode(), f"concat:{url}".encode()):
            for name in ("a.m3u8", "a.txt", "a.mpd", "a.sdp"):
                answer = await client.post("/embed", files={"files": (name, body)})
                assert answer.status_code == 415
        openai = await client.post("/v1/embeddings", json={"input": url, "modality": "audio"})
        problem(openai, 422, "invalid-value")
        about = {"url": url, "source": url}
        added = await client.post("/clips", files={"files": (url, sounds.wav())}, data={"metadata": json.dumps(about)})
        assert added.status_code in (200, 201)
        await client.get("/search", params={"q": url, "moments": True})
        with pytest.raises(BlockingIOError):
            trap.accept()


# Keys


async def test_keys_are_not_exposed(make_app: Make, open_client: Connect, capsys: pytest.CaptureFixture) -> None:
    key = "k3y-that-must-not-be-seen"
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        for form in ("text", "json"):
            app = make_app(api_keys=(key,), log_format=form)
            configure_logging(app.state.service.settings, logging.DEBUG)
            root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
            async with app.router.lifespan_context(app), open_client(app) as client:
                for given in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"X-API-Key": key + "x"}):
                    answers = [await client.get(path, headers=given) for path in ("/info", "/clips", "/metrics", "/x")]
                    answers.append(await client.post("/search", content=b"{", headers=given))
                    assert not any(key in answer.text for answer in answers)
                    assert not any(key in value for answer in answers for value in answer.headers.values())
                for path in ("/", "/docs", "/openapi.json", "/web/main.js"):
                    assert key not in (await client.get(path)).text
            app.state.service._library = None
    finally:
        logging.basicConfig(level=level, handlers=handlers, force=True)
    assert "GET /info 200" in stream.getvalue()
    assert key not in stream.getvalue() and key not in "".join(capsys.readouterr())


@pytest.mark.parametrize("form", ["text", "json"])
async def test_log_lines_cannot_be_forged(make_app: Make, open_client: Connect, form: str) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        app = make_app(log_format=form)
        configure_logging(app.state.service.settings, logging.DEBUG)
        root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
        async with app.router.lifespan_context(app), open_client(app) as client:
            for nasty in ("a\nCRITICAL forged", "a\r\nb", "a\x1b[2J", "a\u2028b", "a\u202eb", "a\x85b", "a\x7fb"):
                await client.get("/" + quote(nasty), headers={"X-Request-ID": "ok"})
                await client.get("/clips/x", headers={"X-Request-ID": nasty.encode("utf-8", "replace")})
                logging.getLogger("app.test").warning("a name from outside: %s", nasty)
    finally:
        logging.basicConfig(level=level, handlers=handlers, force=True)
    written = stream.getvalue()
    assert "forged" in written and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", written)
    lines = written.splitlines()
    assert not any(line.startswith("CRITICAL") for line in lines)
    if form == "json":
        assert any("a\u2028b" in json.loads(line)["message"] for line in lines)


# Slow and silent clients


async def test_request_head_timeout(run_protocol: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT", 0.3)
    port = run_protocol()

    async def silent(said: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer

    whole = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert await asyncio.gather(silent(b""), silent(b"GET /hea"), silent(whole[:-2])) == [b"", b"", b""]
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT", 60)  # a complete head is answered, however busy the machine is
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(whole)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    size = re.search(rb"content-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200") and size is not None
    await asyncio.wait_for(reader.readexactly(int(size[1])), 60)
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT", 0.3)
    writer.write(b"GET /")
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()


async def test_websockets_elsewhere_are_refused(run_protocol: Callable[..., Any]) -> None:
    port = run_protocol()
    ask = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    ask += b"Sec-WebSocket-Key: " + b"A" * 22 + b"==\r\n\r\n"
    for path in (b"/", b"/web/main.js", b"/clips"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + ask)
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 404") and b"urn:finelap:problem:not-found" in answer, path
        assert b"x-content-type-options: nosniff" in answer.lower()
        writer.close()


async def test_disconnect_while_sending_a_body(
    run_protocol: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A disconnect is not an error: no traceback in the log, and the next request is served."""
    caplog.set_level(logging.INFO)
    port = run_protocol()
    for kind in (b"multipart/form-data; boundary=b", b"application/json", b"application/x-www-form-urlencoded"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + kind + b"\r\nContent-Length: 5000\r\n\r\n"
        writer.write(head + b"--b\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()
    deadline = time.monotonic() + 20
    while caplog.text.count("client disconnected") < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert caplog.text.count("client disconnected: POST /embed") == 3
    assert "unexpected error" not in caplog.text and "Traceback" not in caplog.text
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 200")
    writer.close()


# Signed links


def sign(key: str, path: str, seconds: float = 60) -> str:
    """The path of a clip's audio with a signature that is valid for so long."""
    secret = hashlib.sha256(key.encode()).digest()
    signed = f"{path}{'&' if '?' in path else '?'}expires={int(time.time() + seconds)}"
    return f"{signed}&signature={hmac.new(secret, signed.encode(), hashlib.sha256).hexdigest()}"


async def test_audio_is_given_to_signed_links(
    make_app: Make, open_client: Callable[..., Any], sounds: SimpleNamespace
) -> None:
    app = make_app(api_keys=("one", "two"))
    async with app.router.lifespan_context(app), open_client(app) as client:
        key = {"Authorization": "Bearer one"}
        wav = sounds.wav()
        added = await client.post("/clips", files={"files": ("a.wav", wav)}, headers=key)
        path = f"/clips/{added.json()['clips'][0]['id']}/audio"
        for own in ("one", "two"):
            whole = await client.get(sign(own, path))
            assert whole.status_code == 200 and whole.content == wav
            part = await client.get(sign(own, f"{path}?start=0.1&end=0.3"))
            assert part.status_code == 200 and part.content[:4] == b"RIFF" and part.content != wav
            assert (await client.get(sign(own, path.replace("/audio", "/preview")))).status_code == 200
        good = sign("one", path)
        refused = {
            "another key": sign("three", path),
            "a changed stretch": sign("one", f"{path}?start=0.1").replace("start=0.1", "start=0.2"),
            "another clip": good.replace("/clips/", "/clips/x"),
            "expired": sign("one", path, -60),
            "valid for too long": sign("one", path, 90_000),
            "no signature": good.partition("&signature")[0],
            "half a signature": good[:-2],
            "not audio": sign("one", path.removesuffix("/audio")),
            "a list": sign("one", "/clips"),
            "more after it": good + "&start=0.1",
        }
        for what, link in refused.items():
            assert (await client.get(link)).status_code == 401, what
        assert (await client.delete(good)).status_code == 401
        assert (await client.head(good)).status_code == 200
