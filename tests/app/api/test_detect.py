"""POST /detect and POST /classify."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest


@pytest.fixture
def scene(sounds: SimpleNamespace) -> bytes:
    """40 s of silence with 400 Hz from 5 to 8 s and 1600 Hz from 19 to 31 s, across window boundaries."""
    samples = np.zeros(40 * sounds.RATE, np.float32)
    samples[5 * sounds.RATE : 8 * sounds.RATE] = sounds.tone(400, 3)
    samples[19 * sounds.RATE : 31 * sounds.RATE] = sounds.tone(1600, 12)
    return sounds.encode(samples)


PHRASES = ["tone 400", "tone 1600", "tone 3200"]


async def test_events_have_the_right_times(client: httpx.AsyncClient, scene: bytes) -> None:
    response = await client.post("/detect", files={"file": ("szene.wav", scene)}, data={"phrases": PHRASES})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["filename"] == "szene.wav" and answer["duration"] == 40 and answer["frame_hop"] == 0.16
    found = {p["phrase"]: p for p in answer["phrases"]}
    assert list(found) == PHRASES
    for phrase, onset, offset in (("tone 400", 5, 8), ("tone 1600", 19, 31)):
        (event,) = found[phrase]["events"]
        assert event["onset"] == pytest.approx(onset, abs=0.17) and event["offset"] == pytest.approx(offset, abs=0.17)
        assert event["score"] == pytest.approx(found[phrase]["max_score"], abs=1e-6)
    assert found["tone 3200"]["events"] == [] and found["tone 3200"]["max_score"] < 0.5
    assert found["tone 1600"]["clip_score"] > found["tone 400"]["clip_score"] > found["tone 3200"]["clip_score"]
    assert all(p["frame_scores"] is None for p in answer["phrases"])


async def test_settings_affect_the_events(client: httpx.AsyncClient, scene: bytes) -> None:
    async def events(**data: Any) -> int:
        response = await client.post("/detect", files={"file": ("a", scene)}, data={"phrases": PHRASES, **data})
        assert response.status_code == 200, response.text
        return sum(len(p["events"]) for p in response.json()["phrases"])

    assert await events() == 2
    assert await events(min_duration="5") == 1
    assert await events(threshold="0.999") == 0
    assert await events(threshold="0", max_gap="0", median_filter="0") == 3


async def test_a_threshold_per_phrase(client: httpx.AsyncClient, scene: bytes) -> None:
    async def found(**data: Any) -> list[int]:
        response = await client.post("/detect", files={"file": ("a", scene)}, data={"phrases": PHRASES, **data})
        assert response.status_code == 200, response.text
        return [len(p["events"]) for p in response.json()["phrases"]]

    assert await found(threshold=["0.999", "0.5", "0.001"]) == [0, 1, 1]
    assert await found(threshold="0.5", low_threshold=["0.4", "0.5", "0.1"]) == [1, 1, 0]
    assert await found(method="sebb") == [1, 1, 0]


async def test_frame_scores(client: httpx.AsyncClient, scene: bytes) -> None:
    data = {"phrases": PHRASES, "frames": "true"}
    answer = (await client.post("/detect", files={"file": ("a", scene)}, data=data)).json()
    scores = np.array([p["frame_scores"] for p in answer["phrases"]])
    assert scores.shape == (3, 250)
    assert scores[0, 32:49].min() > 0.9 > scores[0, 60:].max()


async def test_a_stored_clip_gives_the_same_events_as_its_file(client: httpx.AsyncClient, scene: bytes) -> None:
    added = await client.post("/clips", files={"files": ("szene.wav", scene)})
    clip_id = added.json()["clips"][0]["id"]
    data = {"phrases": PHRASES, "frames": "true"}
    by_id = (await client.post("/detect", data={**data, "clip_id": clip_id})).json()
    by_file = (await client.post("/detect", files={"file": ("szene.wav", scene)}, data=data)).json()
    for stored, fresh in zip(by_id["phrases"], by_file["phrases"], strict=True):
        assert stored["events"] == fresh["events"] or fresh["events"] == []
        np.testing.assert_allclose(stored["frame_scores"], fresh["frame_scores"], atol=0.02)
    picture = await client.post("/detect", data={"phrases": PHRASES, "clip_id": clip_id, "format": "png"})
    assert picture.status_code == 200 and picture.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wanted", "kind", "start"),
    [
        ("png", "image/png", b"\x89PNG"),
        ("csv", "text/csv; charset=utf-8", b"filename,"),
        ("audacity", "text/plain; charset=utf-8", b"4.9"),
        ("raven", "text/plain; charset=utf-8", b"Selection\t"),
        ("json", "application/json", b"{"),
    ],
)
async def test_formats(client: httpx.AsyncClient, scene: bytes, wanted: str, kind: str, start: bytes) -> None:
    data = {"phrases": PHRASES, "format": wanted}
    response = await client.post("/detect", files={"file": ("szene.wav", scene)}, data=data)
    assert response.status_code == 200 and response.headers["content-type"] == kind
    assert response.content.startswith(start)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({}, "phrases"),
        ({"phrases": ""}, "empty"),
        ({"phrases": ["dog", " "]}, "empty"),
        ({"phrases": ["dog"] * 101}, "101 phrases are more than the limit of 100"),
        ({"phrases": ["dog"] * 500}, "500 phrases"),
        ({"phrases": "x" * 1001}, "1000"),
        ({"phrases": "dog", "threshold": "1.5"}, "threshold"),
        ({"phrases": "dog", "threshold": "nan"}, "threshold"),
        ({"phrases": "dog", "threshold": "high"}, "threshold"),
        ({"phrases": "dog", "median_filter": "-1"}, "median_filter"),
        ({"phrases": "dog", "median_filter": "61"}, "median_filter"),
        ({"phrases": "dog", "max_gap": "inf"}, "max_gap"),
        ({"phrases": "dog", "min_duration": ["1", "2"]}, "repeated"),
        ({"phrases": "dog", "format": "xml"}, "format"),
        ({"phrases": ["dog", "cat"], "threshold": ["0.1", "0.2", "0.3"]}, "one per phrase"),
        ({"phrases": "dog", "low_threshold": "0.6"}, "low_threshold"),
        ({"phrases": "dog", "method": "magic"}, "method"),
        ({"phrases": "dog", "phrase": "cat"}, "phrase"),
        ({"phrases": "dog", "clip_id": "x"}, "one `file` or one `clip_id`"),
    ],
)
async def test_invalid_detections_are_rejected(
    client: httpx.AsyncClient, sounds: SimpleNamespace, data: dict[str, Any], word: str
) -> None:
    response = await client.post("/detect", files={"file": ("a.wav", sounds.wav())}, data=data)
    assert response.status_code == 422 and word in response.json()["detail"], response.text


async def test_detect_requires_a_file_or_a_clip(client: httpx.AsyncClient) -> None:
    assert (await client.post("/detect", data={"phrases": "dog"})).status_code == 422
    assert (await client.post("/detect", data={"phrases": "dog", "clip_id": "nobody"})).status_code == 404


async def test_classify(client: httpx.AsyncClient, sounds: SimpleNamespace, fake_model: Any) -> None:
    data = {"labels": ["800", "400", "1600"], "template": "tone {}"}
    response = await client.post("/classify", files={"file": ("a.wav", sounds.wav(400))}, data=data)
    labels = response.json()["labels"]
    assert labels[0]["label"] == "400" and labels[0]["score"] > 0.9 and labels[0]["probability"] > 0.9
    assert sum(label["probability"] for label in labels) == pytest.approx(1, abs=1e-4)
    await client.post("/classify", files={"file": ("a.wav", sounds.wav(400))}, data={"labels": "dog"})
    assert fake_model.text_batches[-1] == ["The sound of dog"]


@pytest.mark.parametrize(
    "data", [{}, {"labels": "a", "template": "no place"}, {"labels": "a", "template": "{} {}"}, {"labels": ["a"] * 101}]
)
async def test_invalid_classifications_are_rejected(
    client: httpx.AsyncClient, sounds: SimpleNamespace, data: dict[str, Any]
) -> None:
    response = await client.post("/classify", files={"file": ("a.wav", sounds.wav())}, data=data)
    assert response.status_code == 422
