"""POST /embed."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest


async def test_embed_texts_and_files(client: httpx.AsyncClient, sounds: SimpleNamespace, fake_model: Any) -> None:
    response = await client.post("/embed", json={"texts": ["tone 400", "rain"]})
    answer = response.json()
    assert answer["model"] == "fake" and answer["dim"] == 16 and answer["audio"] == []
    expected = fake_model.encode_text(["tone 400", "rain"])
    np.testing.assert_allclose([t["embedding"] for t in answer["texts"]], expected, atol=1e-8)
    parts = [("files", ("a.wav", sounds.wav(400, 2))), ("files", ("b.wav", sounds.wav(800, 15)))]
    answer = (await client.post("/embed", files=parts, data={"texts": "tone 400", "frames": "true"})).json()
    assert [a["filename"] for a in answer["audio"]] == ["a.wav", "b.wav"] and answer["errors"] == []
    first = np.array(answer["audio"][0]["embedding"])
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ answer["texts"][0]["embedding"] == pytest.approx(1, abs=1e-3)
    frames = answer["audio"][1]["frames"]
    assert frames["hop"] == 0.16 and np.array(frames["embeddings"]).shape == (94, 16)


async def test_base64_has_the_same_values(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    parts = {"files": ("a.wav", sounds.wav(400, 2))}
    plain = (await client.post("/embed", files=parts, data={"frames": "true", "texts": "rain"})).json()
    packed = (
        await client.post("/embed", files=parts, data={"frames": "true", "texts": "rain", "encoding": "base64"})
    ).json()

    def unpack(text: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), dtype="<f4")

    np.testing.assert_allclose(unpack(packed["texts"][0]["embedding"]), plain["texts"][0]["embedding"], atol=1e-7)
    np.testing.assert_allclose(unpack(packed["audio"][0]["embedding"]), plain["audio"][0]["embedding"], atol=1e-7)
    frames = unpack(packed["audio"][0]["frames"]["embeddings"]).reshape(-1, 16)
    np.testing.assert_allclose(frames, plain["audio"][0]["frames"]["embeddings"], atol=1e-7)


async def test_embed_reports_a_failed_file_and_embeds_the_others(
    client: httpx.AsyncClient, sounds: SimpleNamespace
) -> None:
    parts = [("files", ("a.wav", sounds.wav())), ("files", ("notes.wav", b"dear diary"))]
    answer = (await client.post("/embed", files=parts)).json()
    assert [a["filename"] for a in answer["audio"]] == ["a.wav"]
    assert [(e["filename"], e["problem"]["status"]) for e in answer["errors"]] == [("notes.wav", 415)]
    alone = await client.post("/embed", files=parts[1:])
    assert alone.status_code == 415 and "notes.wav" in alone.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"texts": []}, {"texts": [""]}, {"texts": "rain"}, {"texts": ["a"] * 1001}])
async def test_invalid_embed_requests_are_rejected(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/embed", json=body)).status_code == 422


async def test_an_empty_form_is_rejected(client: httpx.AsyncClient) -> None:
    assert (await client.post("/embed", data={"frames": "true"})).status_code == 422
