"""POST /detect as NDJSON: events arrive early, equal the JSON response, and work ends when the client disconnects."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from app.audio.spectrogram import WaveformPreview

PHRASES = ["tone 400", "tone 1600", "tone 3200"]


@pytest.fixture
def scene(sounds: SimpleNamespace) -> bytes:
    """Four minutes of silence with a tone across each window boundary, and one near the end."""
    samples = np.zeros(240 * sounds.RATE, np.float32)
    for start in range(8, 230, 9):
        samples[start * sounds.RATE : (start + 3) * sounds.RATE] = sounds.tone(400 if start % 2 else 1600, 3)
    return sounds.encode(samples)


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serves the app on a socket; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def lines_of(client: httpx.AsyncClient, file: bytes | None, **data: Any) -> list[dict[str, Any]]:
    files = {"file": ("szene.wav", file)} if file is not None else None
    response = await client.post("/detect", files=files, data={"phrases": PHRASES, "format": "ndjson", **data})
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson", response.text
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize("data", [{}, {"method": "sebb"}, {"max_gap": "30"}, {"min_duration": "2.9"}])
async def test_the_stream_equals_the_json_response(
    client: httpx.AsyncClient, scene: bytes, data: dict[str, str]
) -> None:
    lines = await lines_of(client, scene, **data)
    response = await client.post("/detect", files={"file": ("szene.wav", scene)}, data={"phrases": PHRASES, **data})
    answer = response.json()
    assert lines[0] == {
        "type": "start",
        "filename": "szene.wav",
        "frame_hop": 0.16,
        "sample_rate": 16000,
        "channels": 1,
        "track": None,
        "phrases": PHRASES,
    }
    end = lines.pop()
    assert end.pop("type") == "end"
    for phrase in answer["phrases"]:
        assert phrase.pop("frame_scores") is None
    assert end == answer
    told = [line for line in lines if line["type"] == "event"]
    assert sum(len(p["events"]) for p in answer["phrases"]) == len(told) > 0
    for phrase in answer["phrases"]:
        mine = [{k: e[k] for k in ("onset", "offset", "score")} for e in told if e["phrase"] == phrase["phrase"]]
        assert mine == phrase["events"]


async def test_frame_scores_are_streamed(client: httpx.AsyncClient, scene: bytes) -> None:
    lines = await lines_of(client, scene, frames="true")
    pieces = [line for line in lines if line["type"] == "frames"]
    assert len(pieces) > 20
    at = 0
    for piece in pieces:
        assert piece["first"] == at and len(piece["scores"]) == len(PHRASES)
        at += len(piece["scores"][0])
    data = {"phrases": PHRASES, "frames": "true"}
    answer = (await client.post("/detect", files={"file": ("a", scene)}, data=data)).json()
    streamed = np.concatenate([piece["scores"] for piece in pieces], axis=1)
    np.testing.assert_array_equal(streamed, [p["frame_scores"] for p in answer["phrases"]])


async def test_base64_scores_are_exact_and_half_as_long(client: httpx.AsyncClient, scene: bytes) -> None:
    def streamed(lines: list[dict[str, Any]]) -> list[Any]:
        return [line["scores"] for line in lines if line["type"] == "frames"]

    exact = streamed(await lines_of(client, scene, frames="true", encoding="base64"))
    rounded = streamed(await lines_of(client, scene, frames="true"))
    assert sum(map(len, exact)) < 0.8 * len(json.dumps(rounded))
    for text, numbers in zip(exact, rounded, strict=True):
        scores = np.frombuffer(base64.b64decode(text), "<f4").reshape(len(PHRASES), -1)
        np.testing.assert_array_equal(np.round(scores.astype(np.float64), 6), numbers)
    data = {"phrases": PHRASES, "frames": "true", "encoding": "base64"}
    answer = (await client.post("/detect", files={"file": ("a", scene)}, data=data)).json()
    for n, phrase in enumerate(answer["phrases"]):
        whole = np.frombuffer(base64.b64decode(phrase["frame_scores"]), "<f4")
        pieces = [np.frombuffer(base64.b64decode(text), "<f4").reshape(len(PHRASES), -1)[n] for text in exact]
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("stored", [False, True])
async def test_the_outline_is_streamed(
    make_app: Callable[..., FastAPI],
    open_client: Callable[..., httpx.AsyncClient],
    sounds: SimpleNamespace,
    stored: bool,
) -> None:
    samples = np.concatenate([sounds.tone(400, 160), np.zeros(12_345, np.float32), sounds.tone(1600, 20)])
    file: bytes | None = sounds.encode(samples, subtype="FLOAT")
    data: dict[str, Any] = {"outline": "true", "outline_step": "0.07"}
    app = make_app(max_batch_windows=1)  # the decoder is at most two windows ahead of the model
    async with app.router.lifespan_context(app), open_client(app) as client:
        if stored:
            added = await client.post("/clips", files={"files": ("szene.wav", file)})
            file, data["clip_id"] = None, added.json()["clips"][0]["id"]
        lines = await lines_of(client, file, **data)
    sketch = WaveformPreview(0.07)
    sketch.push(samples)
    sketch.finish()
    wanted = sketch.take_line()
    assert wanted is not None and lines[0]["outline"] == sketch.header()
    drawn = [line for line in lines if line["type"] == "outline"]
    for name in ("peaks", "spectrum"):
        assert b"".join(base64.b64decode(line[name]) for line in drawn) == base64.b64decode(wanted[name])
    assert [line["first"] for line in drawn] == np.cumsum([0, *(line["columns"] for line in drawn)])[:-1].tolist()
    assert lines[-1]["type"] == "end" and lines[-1]["phrases"][0]["events"]
    if not stored:
        assert len(drawn) > 3 and lines.index(drawn[0]) < 5


async def test_the_outline_is_optional_and_requires_audio(
    client: httpx.AsyncClient, scene: bytes, tmp_path: Path
) -> None:
    lines = await lines_of(client, scene)
    assert "outline" not in lines[0] and not any(line["type"] == "outline" for line in lines)
    clip = (await client.post("/clips", files={"files": ("szene.wav", scene)})).json()["clips"][0]
    for file in tmp_path.rglob(f"{clip['sha256']}*"):
        file.unlink()
    assert (await lines_of(client, None, clip_id=clip["id"]))[-1]["type"] == "end"
    data = {"phrases": PHRASES, "format": "ndjson", "clip_id": clip["id"], "outline": "true"}
    response = await client.post("/detect", data=data)
    assert response.status_code == 404 and response.headers["content-type"] == "application/problem+json"
    for step in ("0", "11", "nan"):
        response = await client.post("/detect", data={**data, "outline_step": step})
        assert response.status_code == 422 and "outline_step" in response.json()["detail"]


async def test_a_stored_clip_can_be_streamed(client: httpx.AsyncClient, scene: bytes) -> None:
    clip = (await client.post("/clips", files={"files": ("szene.wav", scene)})).json()["clips"][0]
    lines = await lines_of(client, None, clip_id=clip["id"])
    assert lines[0]["filename"] == "szene.wav" and lines[-1]["type"] == "end"
    assert sum(line["type"] == "event" for line in lines) == 25


async def test_late_errors_are_the_last_line_and_early_errors_a_status(
    client: httpx.AsyncClient, scene: bytes, sounds: SimpleNamespace
) -> None:
    lines = await lines_of(client, scene[: len(scene) // 2])
    assert lines[-1]["type"] == "error" and lines[-1]["problem"]["status"] == 422
    assert "szene.wav" in lines[-1]["problem"]["detail"] and "truncated" in lines[-1]["problem"]["detail"]
    assert any(line["type"] == "event" for line in lines)
    data = {"phrases": PHRASES, "format": "ndjson"}
    for broken, status in ((b"not a sound", 415), (b"", 422), (sounds.encode(np.zeros(0, np.float32)), 422)):
        response = await client.post("/detect", files={"file": ("a.wav", broken)}, data=data)
        assert response.status_code == status and response.headers["content-type"] == "application/problem+json"
    lines = await lines_of(client, scene)
    assert lines[-1]["type"] == "end"


async def test_events_arrive_before_the_model_has_finished(
    make_app: Callable[..., FastAPI], fake_model: Any, scene: bytes
) -> None:
    gate = threading.Event()
    app = make_app(max_batch_windows=2)
    async with serving(app) as address, httpx.AsyncClient(base_url=address, timeout=30) as client:
        heard = len(fake_model.audio_batches)
        fake_model.before = lambda: len(fake_model.audio_batches) < heard + 6 or gate.wait(60)
        data, files = {"phrases": PHRASES, "format": "ndjson"}, {"file": ("szene.wav", scene)}
        kinds = []
        async with client.stream("POST", "/detect", data=data, files=files) as response:
            async for line in response.aiter_lines():
                kinds.append(json.loads(line)["type"])
                if kinds.count("event") == 2:
                    gate.set()  # only an early event leads here
        assert kinds.count("event") == 25 and kinds[-1] == "end"


async def test_a_client_that_disconnects_cancels_the_work(
    make_app: Callable[..., FastAPI], fake_model: Any, scene: bytes
) -> None:
    app = make_app(max_batch_windows=1)
    async with serving(app) as address, httpx.AsyncClient(base_url=address, timeout=30) as client:
        busy = threading.Event()
        before = len(fake_model.audio_batches)
        fake_model.before = lambda: busy.wait(0.05)  # 20 windows per second: the whole recording takes over a second
        data, files = {"phrases": PHRASES, "format": "ndjson"}, {"file": ("szene.wav", scene)}
        async with client.stream("POST", "/detect", data=data, files=files) as response:
            async for _ in response.aiter_lines():
                break
        state = app.state.service
        async with asyncio.timeout(60):
            while state._active or state.engine.audio_lane.depth:
                await asyncio.sleep(0.01)
        done = len(fake_model.audio_batches) - before
        assert done < 25
        await asyncio.sleep(0.3)
        assert len(fake_model.audio_batches) - before <= done + 1
        assert (await client.get("/health/ready")).status_code == 200
