"""The routes below /clips: add, list, change, delete, audio files, peaks and near-duplicates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.audio.peaks import fitting_step
from tests.support.waiting import wait_until


def files(*parts: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", part) for part in parts]


async def add(client: httpx.AsyncClient, *parts: tuple[str, bytes], **metadata: Any) -> list[dict[str, Any]]:
    response = await client.post("/clips", files=files(*parts), data={"metadata": json.dumps(metadata)})
    assert response.status_code == 201, response.text
    return response.json()["clips"]


async def test_add_and_get(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    (clip,) = await add(client, ("犬の声.wav", sounds.wav(400, 1.5)), tags=["animal"], n=1)
    assert clip["filename"] == "犬の声.wav" and clip["duration"] == 1.5
    assert clip["sample_rate"] == 16_000 and clip["channels"] == 1
    assert clip["metadata"] == {"tags": ["animal"], "n": 1}
    assert (await client.get(f"/clips/{clip['id']}")).json() == clip
    page = (await client.get("/clips")).json()
    assert page == {"clips": [clip], "next_cursor": None}


async def test_adding_the_same_bytes_returns_the_existing_clip(
    client: httpx.AsyncClient, sounds: SimpleNamespace
) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav(400)))
    again = await client.post("/clips", files=files(("b.wav", sounds.wav(400))))
    assert again.status_code == 200 and again.json() == {"clips": [clip], "errors": []}
    both = await client.post("/clips", files=files(("b.wav", sounds.wav(400)), ("c.wav", sounds.wav(800))))
    assert both.status_code == 201 and [c["filename"] for c in both.json()["clips"]] == ["a.wav", "c.wav"]


async def test_the_same_file_twice_in_one_request(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    response = await client.post("/clips", files=files(*(("a.wav", sounds.wav(400)) for _ in range(5))))
    assert response.status_code == 201
    assert len({clip["id"] for clip in response.json()["clips"]}) == 1 and len(response.json()["clips"]) == 5
    assert (await client.get("/info")).json()["clips"] == 1


async def test_a_failed_file_does_not_affect_the_others(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    bad = (("notes.wav", b"dear diary"), ("leer.wav", b""))
    response = await client.post("/clips", files=files(("a.wav", sounds.wav(400)), *bad, ("b.wav", sounds.wav(800))))
    assert response.status_code == 201
    assert [clip["filename"] for clip in response.json()["clips"]] == ["a.wav", "b.wav"]
    errors = response.json()["errors"]
    assert [(e["filename"], e["problem"]["status"]) for e in errors] == [("notes.wav", 415), ("leer.wav", 422)]
    assert all(e["filename"] in e["problem"]["detail"] for e in errors)


async def test_if_all_files_fail_the_response_is_a_problem(client: httpx.AsyncClient) -> None:
    response = await client.post("/clips", files=files(("notes.wav", b"dear diary"), ("leer.wav", b"")))
    assert response.status_code == 415
    assert response.headers["content-type"] == "application/problem+json"
    assert [e["filename"] for e in response.json()["errors"]] == ["notes.wav", "leer.wav"]


async def test_metadata_per_file(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    parts = files(("a.wav", sounds.wav(400)), ("b.wav", sounds.wav(800)))
    response = await client.post("/clips", files=parts, data={"metadata": '[{"n": 1}, null]'})
    assert [clip["metadata"] for clip in response.json()["clips"]] == [{"n": 1}, {}]


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ('[{"n": 1}]', 422),
        ('"x"', 422),
        ("[1, 2]", 422),
        ("{", 400),
        ('{"n": NaN}', 400),
        ('{"n": "\\ud800"}', 400),
    ],
)
async def test_invalid_metadata_is_rejected(
    client: httpx.AsyncClient, sounds: SimpleNamespace, metadata: str, status: int
) -> None:
    parts = files(("a.wav", sounds.wav(400)), ("b.wav", sounds.wav(800)))
    response = await client.post("/clips", files=parts, data={"metadata": metadata})
    assert response.status_code == status and "metadata" in response.json()["detail"]
    assert (await client.get("/info")).json()["clips"] == 0


async def test_metadata_may_be_sent_as_a_file_part(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    parts = [*files(("a.wav", sounds.wav(400))), ("metadata", ("m.json", b'{"n": 1}', "application/json"))]
    response = await client.post("/clips", files=parts)
    assert response.json()["clips"][0]["metadata"] == {"n": 1}


async def test_pages_and_filters(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    for i, hz in enumerate(sounds.TONES[:5]):
        await add(client, (f"{hz}.wav", sounds.wav(hz)), odd=bool(i % 2))
    seen, cursor = [], None
    while True:
        page = (await client.get("/clips", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [clip["filename"] for clip in page["clips"]]
        if not (cursor := page["next_cursor"]):
            break
    assert seen == [f"{hz}.wav" for hz in reversed(sounds.TONES[:5])]
    odd = (await client.get("/clips", params={"filter": '{"odd": true}'})).json()["clips"]
    assert [clip["filename"] for clip in odd] == ["1600.wav", "400.wav"]


async def test_sort_orders_and_bounds(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    for name, seconds in (("b.wav", 2), ("a.wav", 3), ("c.wav", 1)):
        await add(client, (name, sounds.wav(400, seconds)))

    async def listed(**params: Any) -> list[str]:
        return [clip["filename"] for clip in (await client.get("/clips", params=params)).json()["clips"]]

    assert await listed() == ["c.wav", "a.wav", "b.wav"]
    assert await listed(sort="filename") == ["a.wav", "b.wav", "c.wav"]
    assert await listed(sort="-duration", filter='{"duration": {"gte": 2}}') == ["a.wav", "b.wav"]
    page = (await client.get("/clips", params={"sort": "duration", "limit": 1})).json()
    assert await listed(sort="duration", limit=1, cursor=page["next_cursor"]) == ["b.wav"]
    assert (await client.get("/clips", params={"cursor": page["next_cursor"]})).status_code == 422


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"limit": 0}, 422),
        ({"limit": 1001}, 422),
        ({"limit": "many"}, 422),
        ({"cursor": "nonsense"}, 422),
        ({"filter": "{"}, 400),
        ({"filter": "[1]"}, 422),
        ({"filter": '{"a": {"b": 1}}'}, 422),
        ({"limits": 5}, 422),
        ({"sort": "loudness"}, 422),
    ],
)
async def test_invalid_list_queries_are_rejected(
    client: httpx.AsyncClient, params: dict[str, Any], status: int
) -> None:
    response = await client.get("/clips", params=params)
    assert response.status_code == status and response.json()["detail"]


async def test_patch_merges_metadata(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav()), tags=["a"], keep={"x": 1, "y": 2})
    patch = {"metadata": {"tags": None, "new": "neu", "keep": {"x": None}}}
    changed = await client.patch(f"/clips/{clip['id']}", json=patch)
    assert changed.status_code == 200
    assert changed.json()["metadata"] == {"keep": {"y": 2}, "new": "neu"}
    assert (await client.get(f"/clips/{clip['id']}")).json() == changed.json()


@pytest.mark.parametrize("body", [{}, {"metadata": 1}, {"filename": ""}, {"filename": 1}, [1], "x"])
async def test_invalid_patches_are_rejected(client: httpx.AsyncClient, sounds: SimpleNamespace, body: Any) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav()))
    assert (await client.patch(f"/clips/{clip['id']}", json=body)).status_code == 422


async def test_delete(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav()))
    gone = await client.delete(f"/clips/{clip['id']}")
    assert gone.status_code == 204 and gone.content == b""
    for response in (
        await client.get(f"/clips/{clip['id']}"),
        await client.delete(f"/clips/{clip['id']}"),
        await client.patch(f"/clips/{clip['id']}", json={"metadata": {}}),
        await client.get(f"/clips/{clip['id']}/audio"),
        await client.get(f"/clips/{clip['id']}/peaks"),
        await client.get(f"/clips/{clip['id']}/loudness"),
        await client.get(f"/clips/{clip['id']}/similar"),
    ):
        assert response.status_code == 404 and clip["id"] in response.json()["detail"]


@pytest.mark.parametrize(("kind", "expected"), [("WAV", "audio/wav"), ("FLAC", "audio/flac"), ("OGG", "audio/ogg")])
async def test_audio_is_returned_unchanged(
    client: httpx.AsyncClient, sounds: SimpleNamespace, kind: str, expected: str
) -> None:
    data = sounds.encode(sounds.tone(400, 2), kind)
    (clip,) = await add(client, ("犬 & “dog”.bin", data))
    response = await client.get(f"/clips/{clip['id']}/audio")
    assert response.status_code == 200 and response.content == data
    assert response.headers["content-type"] == expected
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"].startswith("inline; filename*=utf-8''")


async def test_ranges(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    data = sounds.wav()
    (clip,) = await add(client, ("a.wav", data))
    url = f"/clips/{clip['id']}/audio"

    async def get(wanted: str) -> httpx.Response:
        return await client.get(url, headers={"Range": wanted})

    part = await get("bytes=10-19")
    assert part.status_code == 206 and part.content == data[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert (await get("bytes=-5")).content == data[-5:]
    assert (await get("bytes=100-")).content == data[100:]
    beyond = await get(f"bytes={len(data)}-")
    assert beyond.status_code == 416 and beyond.headers["content-type"] == "application/problem+json"
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"
    for ignored in ("lines=1-2", "bytes=9-2", "bytes=x"):
        assert (await get(ignored)).status_code == 200


async def test_adding_a_file_again_restores_its_missing_audio(
    client: httpx.AsyncClient, sounds: SimpleNamespace, tmp_path: Any
) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav()))
    (file,) = [p for p in (tmp_path / "data" / "audio").rglob("*") if p.is_file()]
    file.unlink()
    assert (await client.get(f"/clips/{clip['id']}/audio")).status_code == 404
    again = await client.post("/clips", files=files(("a.wav", sounds.wav())))
    assert again.status_code == 200
    assert (await client.get(f"/clips/{clip['id']}/audio")).content == sounds.wav()


async def test_concurrent_uploads(
    make_app: Callable[..., FastAPI],
    open_client: Callable[..., httpx.AsyncClient],
    sounds: SimpleNamespace,
    fake_model: Any,
) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        lane = app.state.service.engine.audio_lane
        fake_model.audio_batches.clear()

        def wait_for_others() -> None:
            wait_until(lambda: fake_model.audio_batches or lane.depth >= 2)

        fake_model.before = wait_for_others
        uploads = [
            client.post("/clips", files=files((f"{hz}-{n}.wav", sounds.wav(hz, 0.5 + 0.1 * n))))
            for hz in sounds.TONES
            for n in range(5)
        ]
        answers = await asyncio.gather(*uploads)
        assert {answer.status_code for answer in answers} == {201}
        assert (await client.get("/info")).json()["clips"] == 30
        assert max(fake_model.audio_batches) > 1


@pytest.mark.parametrize("body", [{"data": {"metadata": "{}"}}, {"files": [("file", ("a.wav", b"x"))]}])
async def test_a_form_without_files(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post("/clips", **body)
    assert response.status_code == 422


async def test_other_media_types_are_rejected(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    assert (await client.post("/clips", json={"files": []})).status_code == 415
    assert (await client.post("/clips", content=sounds.wav(), headers={"content-type": "audio/wav"})).status_code == 415
    assert (await client.post("/clips")).status_code == 415
    broken = await client.post("/clips", content=b"x", headers={"content-type": "multipart/form-data"})
    assert broken.status_code == 400


def slow_peaks(samples: np.ndarray, n: int) -> list[list[float]]:
    """The reference: lowest and highest sample of n intervals, each of the steps that begin in it."""
    size = fitting_step(len(samples) / 16_000)
    steps = [samples[at : at + size] for at in range(0, len(samples), size)]
    peaks = []
    for column in range(n):
        first, last = column * len(steps) // n, (column + 1) * len(steps) // n
        part = [float(x) for step in steps[first : max(last, first + 1)] for x in step]
        peaks.append([min(part), max(part)])
    return peaks


@pytest.mark.parametrize("n", [1, 7, 100, 210, 800, 10_000])
async def test_peaks(client: httpx.AsyncClient, sounds: SimpleNamespace, n: int) -> None:
    samples = sounds.tone(50, 2.095) * np.linspace(0, 1, int(2.095 * sounds.RATE), dtype=np.float32)
    (clip,) = await add(client, ("swell.wav", sounds.encode(samples, subtype="FLOAT")))
    answer = (await client.get(f"/clips/{clip['id']}/peaks", params={"n": n})).json()
    assert {key: answer[key] for key in ("id", "duration", "n")} == {"id": clip["id"], "duration": 2.095, "n": n}
    assert np.abs(np.array(answer["peaks"]) - slow_peaks(samples, n)).max() < 1e-4


async def test_loudness(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    """By the worker, once for each file; another clip's name or level does not matter."""
    answers = []
    for level in (0.5, 0.05):
        samples = level * sounds.tone(1000, 2.0) / np.abs(sounds.tone(1000, 2.0)).max()
        (clip,) = await add(client, ("tone.wav", sounds.encode(samples, subtype="FLOAT")))
        answers.append((await client.get(f"/clips/{clip['id']}/loudness")).json())
        assert answers[-1] == (await client.get(f"/clips/{clip['id']}/loudness")).json()
        assert answers[-1]["id"] == clip["id"]
    loud, quiet = answers
    assert loud["integrated"] - quiet["integrated"] == pytest.approx(20, abs=0.1)
    assert loud["peak"] == pytest.approx(-6.02, abs=0.05)


async def test_peaks_of_other_sample_rates_and_channels(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    left = sounds.tone(300, 1, 44_100)
    (clip,) = await add(client, ("a.flac", sounds.encode(np.stack([left, 0 * left], axis=1), "FLAC", 44_100)))
    peaks = np.array((await client.get(f"/clips/{clip['id']}/peaks")).json()["peaks"])
    assert peaks.shape == (800, 2) and np.abs(peaks).max() == pytest.approx(0.25, abs=0.01)  # the mean of both


@pytest.mark.parametrize("params", [{"n": 0}, {"n": 10_001}, {"n": "many"}, {"m": 5}])
async def test_invalid_peaks_queries_are_rejected(
    client: httpx.AsyncClient, sounds: SimpleNamespace, params: dict[str, Any]
) -> None:
    (clip,) = await add(client, ("a.wav", sounds.wav()))
    assert (await client.get(f"/clips/{clip['id']}/peaks", params=params)).status_code == 422


async def test_duplicates_in_other_formats_and_levels(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    rng = np.random.default_rng(3)

    def take() -> np.ndarray:
        swells = np.interp(np.arange(48_000), np.linspace(0, 48_000, 25), rng.uniform(0.1, 1, 25))
        return (sounds.tone(800, 3) * swells).astype(np.float32)

    first, other = take(), take()
    added = await add(
        client,
        ("take.wav", sounds.encode(first)),
        ("other take.wav", sounds.encode(other)),
        ("take.flac", sounds.encode(first * 0.5, "FLAC")),
        ("another sound.wav", sounds.encode(sounds.tone(400, 3))),
        ("take, trimmed.wav", sounds.encode(first[800:])),
    )
    (group,) = (await client.get("/clips/duplicates")).json()["groups"]
    assert {clip["filename"] for clip in group} == {"take.wav", "take.flac", "take, trimmed.wav"}
    assert group == sorted((clip for clip in added if clip in group), key=lambda clip: clip["created"])
    for clip in group[1:]:
        await client.delete(f"/clips/{clip['id']}")
    assert (await client.get("/clips/duplicates")).json() == {"groups": []}


async def test_an_empty_library_has_no_duplicates(client: httpx.AsyncClient) -> None:
    assert (await client.get("/clips/duplicates")).json() == {"groups": []}
