"""Two services on one Milvus: a change through either is visible through both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app import main
from app.main import build_app
from app.settings import Settings
from tests.support.s3 import S3


@pytest.fixture
async def replicas(
    milvus_url: Callable[[], str],
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    monkeypatch.setattr(main, "load_model", lambda _: fake_model)
    url = milvus_url()
    async with AsyncExitStack() as running:
        clients = []
        for _ in range(2):
            app = build_app(make_settings(index_url=url, data_dir=tmp_path / "shared"))
            await running.enter_async_context(app.router.lifespan_context(app))
            await asyncio.wait_for(app.state.loading, 120)
            assert app.state.failure is None
            clients.append(await running.enter_async_context(open_client(app)))
        yield clients[0], clients[1]


@pytest.mark.slow
async def test_both_replicas_see_the_changes_of_either(
    replicas: tuple[httpx.AsyncClient, httpx.AsyncClient], sounds: SimpleNamespace
) -> None:
    one, two = replicas
    beep, boop = {"files": ("beep.wav", sounds.wav(400))}, {"files": ("boop.wav", sounds.wav(3200))}
    added = await one.post("/clips", files=beep, data={"metadata": '{"take": 3}'})
    assert added.status_code == 201, added.text
    [clip] = added.json()["clips"]
    again = await two.post("/clips", files=beep)
    assert again.status_code == 200 and again.json()["clips"][0]["id"] == clip["id"]
    [other] = (await two.post("/clips", files=boop)).json()["clips"]

    for client in replicas:
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get("/info")).json()["clips"] == 2
        assert "finelap_index_clips 2.0" in (await client.get("/metrics")).text
        found = (await client.get("/search", params={"q": "tone 400"})).json()["hits"]
        assert [hit["clip"]["id"] for hit in found] == [clip["id"], other["id"]]
        words = (await client.get("/search", params={"q": "beep", "mode": "lexical"})).json()["hits"]
        assert [hit["clip"]["id"] for hit in words] == [clip["id"]]
        listed = (await client.get("/clips", params={"sort": "filename"})).json()["clips"]
        assert [item["filename"] for item in listed] == ["beep.wav", "boop.wav"]
        audio = await client.get(f"/clips/{clip['id']}/audio")
        assert audio.content == sounds.wav(400)
        heard = await client.post("/detect", data={"clip_id": clip["id"], "phrases": "tone 400"})
        assert heard.status_code == 200 and heard.json()["phrases"][0]["events"], heard.text

    await two.patch(f"/clips/{clip['id']}", json={"metadata": {"take": None, "good": True}})
    assert (await one.get(f"/clips/{clip['id']}")).json()["metadata"].get("good") is True
    assert (await one.delete(f"/clips/{other['id']}")).status_code == 204
    assert (await two.get(f"/clips/{other['id']}")).status_code == 404
    assert (await two.get("/info")).json()["clips"] == 1


@pytest.mark.slow
async def test_a_milvus_failure_is_reported_and_recovered_from(
    start_milvus: Callable[[], Any],
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    sounds: SimpleNamespace,
) -> None:
    monkeypatch.setattr(main, "load_model", lambda _: fake_model)
    server = await asyncio.to_thread(start_milvus)
    app = build_app(make_settings(index_url=f"milvus://127.0.0.1:{server.port}"))
    async with app.router.lifespan_context(app), open_client(app) as client:
        await asyncio.wait_for(app.state.loading, 120)
        added = await client.post("/clips", files={"files": ("beep.wav", sounds.wav(400))})
        [clip] = added.json()["clips"]
        await asyncio.to_thread(server.kill)
        for path in ("/clips", "/search?q=tone 400", "/info", f"/clips/{clip['id']}"):
            answer = await client.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"], answer.text
            assert answer.json()["type"] == "urn:finelap:problem:library-unavailable"
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        assert "finelap_index_clips NaN" in (await client.get("/metrics")).text
        await asyncio.to_thread(server.start)
        assert await _answers(client, "/health/ready")
        assert (await client.get("/clips")).json()["clips"] == [clip]
        found = (await client.get("/search", params={"q": "tone 400"})).json()["hits"]
        assert [hit["clip"]["id"] for hit in found] == [clip["id"]]


async def _answers(client: httpx.AsyncClient, path: str) -> bool:
    """Whether a call succeeds within a few seconds."""
    for _ in range(100):
        if (await client.get(path)).status_code == 200:
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.parametrize("url", ["redis://here", "milvus://", "milvus://here?colour=red", "", "faiss"])
def test_an_invalid_index_url_is_rejected_before_startup(make_settings: Callable[..., Settings], url: str) -> None:
    with pytest.raises(ValidationError, match="milvus://"):
        make_settings(index_url=url)
    assert make_settings(index_url="faiss:").index_url == "faiss://"


@pytest.mark.parametrize("url", ["faiss://?", "faiss://?files=", "faiss://?files=folder", "faiss://?colour=red"])
def test_an_invalid_address_of_audio_is_rejected_before_startup(
    make_settings: Callable[..., Settings], url: str
) -> None:
    with pytest.raises(ValidationError, match="files"):
        make_settings(index_url=url)
    settings = make_settings(index_url="faiss://?files=s3://bucket/a%20b")
    assert (settings.in_folder, settings.audio_url) == (True, "s3://bucket/a b")
    assert (make_settings().in_folder, make_settings().audio_url) == (True, "")
    assert not make_settings(index_url="milvus://here?files=s3://bucket").audio_url


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "milvus"])
async def test_a_bucket_that_fails_is_reported_and_recovered_from(
    request: pytest.FixtureRequest,
    store: str,
    s3: S3,
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    sounds: SimpleNamespace,
) -> None:
    monkeypatch.setattr(main, "load_model", lambda _: fake_model)
    url = f"{request.getfixturevalue('milvus_url')()}&" if store == "milvus" else "faiss://?"
    app = build_app(make_settings(index_url=f"{url}files=s3://finelap-test/library"))
    beep, boop = {"files": ("beep.wav", sounds.wav(400))}, {"files": ("boop.wav", sounds.wav(3200))}
    async with app.router.lifespan_context(app), open_client(app) as client:
        await asyncio.wait_for(app.state.loading, 120)
        [clip] = (await client.post("/clips", files=beep)).json()["clips"]
        s3.fault = lambda method, path: "503"
        for answer in (
            await client.get("/health/ready"),
            await client.post("/clips", files=boop),
            await client.get(f"/clips/{clip['id']}/audio"),
        ):
            assert answer.status_code == 503, answer.text
        hits = (await client.get("/search", params={"q": "tone 400"})).json()["hits"]
        assert [hit["clip"]["id"] for hit in hits] == [clip["id"]]  # needs no audio
        s3.fault = lambda method, path: None
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get(f"/clips/{clip['id']}/audio")).content == sounds.wav(400)
        assert (await client.post("/clips", files=boop)).status_code == 201
        assert (await client.get("/info")).json()["clips"] == 2
