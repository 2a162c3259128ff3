"""Concepts over HTTP: teaching, using them wherever a phrase stands, examples, labels, suggestions, and bad input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest


@pytest.fixture
async def library(client: httpx.AsyncClient, sounds: SimpleNamespace) -> dict[str, str]:
    """Names and ids of three clips of each of four tones, and of "both": silence, 800 Hz from 4 to 6 s, silence."""
    silence = np.zeros(4 * sounds.RATE, np.float32)
    files = {f"{hz}-{n}": sounds.wav(hz, 1 + n) for hz in (200, 400, 800, 1600) for n in range(3)}
    files["both"] = sounds.encode(np.concatenate([silence, sounds.tone(800, 2), silence]))
    parts = [("files", (f"{name}.wav", data)) for name, data in files.items()]
    response = await client.post("/clips", files=parts)
    assert response.status_code == 201
    return {clip["filename"].removesuffix(".wav"): clip["id"] for clip in response.json()["clips"]}


async def teach(client: httpx.AsyncClient, name: str, *examples: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = await client.post("/concepts", json={"name": name, "examples": list(examples), **more})
    assert response.status_code == 201, response.text
    return dict(response.json())


def names(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [hit["clip"]["filename"].removesuffix(".wav") for hit in response.json()["hits"]]


async def test_a_taught_sound_is_searched_for(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    concept = await teach(
        client, "beep", {"clip_id": library["800-0"]}, {"clip_id": library["both"], "start": 4, "end": 6}
    )
    assert (concept["positives"], concept["negatives"], concept["quality"]) == (2, 0, None)
    assert concept["notes"] and concept["threshold"] == 0.5
    found = await client.get("/search", params={"q": "concept:beep", "k": 4})
    assert set(names(found)) == {"800-0", "800-1", "800-2", "both"}
    scores = [hit["score"] for hit in found.json()["hits"]]
    others = (await client.get("/search", params={"q": "concept:beep", "k": 13})).json()["hits"][4:]
    assert min(scores) > 0.5 > max(hit["score"] for hit in others)
    by_id = await client.post("/search", json={"query": f"concept:{concept['id']}", "k": 4})
    assert set(names(by_id)) == set(names(found))


async def test_a_concept_of_a_text_alone_is_the_text(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    concept = await teach(client, "low", text="tone 200")
    assert concept["positives"] == 0 and concept["quality"] is None
    by_concept = await client.post("/search", json={"query": "concept:low", "mode": "semantic"})
    by_text = await client.post("/search", json={"query": "tone 200", "mode": "semantic"})
    assert by_concept.json()["hits"] == by_text.json()["hits"]


async def test_a_concept_stands_wherever_a_phrase_does(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await teach(client, "beep", {"clip_id": library["800-0"]}, {"clip_id": library["800-1"]}, text="tone 800")
    await teach(client, "low", {"clip_id": library["200-0"]})
    detected = await client.post(
        "/detect", data={"clip_id": library["both"], "phrases": ["concept:beep", "tone 200", "concept:low"]}
    )
    beep, phrase, low = detected.json()["phrases"]
    assert beep["phrase"] == "concept:beep" and phrase["events"] == low["events"] == []
    (event,) = beep["events"]
    assert event["onset"] == pytest.approx(4, abs=0.2) and event["offset"] == pytest.approx(6, abs=0.2)
    moments = (await client.post("/search/moments", json={"query": "concept:beep", "k": 1})).json()["hits"]
    assert moments[0]["score"] > 0.5
    found = await client.post("/search", json={"query": "concept:beep", "without": ["concept:low"], "k": 20})
    assert "200-1" not in names(found) and "800-2" in names(found)
    labels = await client.post(
        "/classify", data={"clip_id": library["800-2"], "labels": ["concept:low", "concept:beep"]}
    )
    assert [label["label"] for label in labels.json()["labels"]] == ["concept:beep", "concept:low"]
    lines = await client.post(
        "/detect", data={"clip_id": library["both"], "phrases": ["concept:beep"], "format": "ndjson"}
    )
    assert '"type": "event", "phrase": "concept:beep"' in lines.text


async def test_unknown_and_untaught_concepts(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    for call in (
        client.get("/search", params={"q": "concept:nothing"}),
        client.post("/detect", data={"clip_id": library["both"], "phrases": ["concept:nothing"]}),
        client.get("/concepts/nothing"),
        client.get("/concepts/nothing/suggestions"),
        client.delete("/concepts/nothing"),
    ):
        response = await call
        assert response.status_code == 404 and response.json()["type"].endswith("concept-not-found")
        assert response.headers["content-type"] == "application/problem+json"
