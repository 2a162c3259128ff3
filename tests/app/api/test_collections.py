"""Many clips at once: POST /clips/edit, GET /clips/facets, /collections, and renaming a clip."""

from __future__ import annotations

import json
from types import SimpleNamespace

import httpx
import pytest


@pytest.fixture
async def ids(client: httpx.AsyncClient, sounds: SimpleNamespace) -> list[str]:
    """Three clips; the first two have the tag "tone"."""
    files = [("files", (f"{hz}.wav", sounds.wav(hz, 1))) for hz in (200, 800, 1600)]
    metadata = [{"tags": ["tone", "low"]}, {"tags": "tone"}, {}]
    response = await client.post("/clips", files=files, data={"metadata": json.dumps(metadata)})
    return [clip["id"] for clip in response.json()["clips"]]


async def tags(client: httpx.AsyncClient, clip_id: str) -> object:
    return (await client.get(f"/clips/{clip_id}")).json()["metadata"].get("tags")


async def test_many_clips_are_changed(client: httpx.AsyncClient, ids: list[str]) -> None:
    body = {"clip_ids": [ids[0], ids[2], "gone"], "add": {"tags": ["x"]}, "remove": {"tags": "low"}}
    assert (await client.post("/clips/edit", json=body)).json() == {"edited": 2, "missing": ["gone"]}
    assert [await tags(client, one) for one in ids] == [["tone", "x"], "tone", ["x"]]
    body = {"filter": {"tags": "tone"}, "metadata": {"place": "lab"}}
    assert (await client.post("/clips/edit", json=body)).json() == {"edited": 2, "missing": []}
    listed = (await client.get("/clips", params={"filter": '{"place": "lab"}'})).json()["clips"]
    assert {clip["id"] for clip in listed} == set(ids[:2])
    for bad in ({"add": {"tags": ["x"]}}, {"clip_ids": ids}, {"clip_ids": ids, "filter": {}, "add": {"a": 1}}):
        assert (await client.post("/clips/edit", json=bad)).status_code == 422
    assert (await client.post("/clips/edit", json={"clip_ids": ids, "add": {"tags": [{}]}})).status_code == 422


async def test_a_clip_is_renamed(client: httpx.AsyncClient, ids: list[str]) -> None:
    renamed = await client.patch(f"/clips/{ids[0]}", json={"filename": "a/../Größe.wav", "add": {"tags": ["x"]}})
    assert renamed.status_code == 200 and renamed.json()["filename"] == "Größe.wav"
    assert renamed.json()["metadata"] == {"tags": ["tone", "low", "x"]}
    audio = await client.get(f"/clips/{ids[0]}/audio")
    assert "Gr%C3%B6%C3%9Fe.wav" in audio.headers["content-disposition"]
    found = (await client.get("/search", params={"q": "größe", "mode": "lexical"})).json()["hits"]
    assert [hit["clip"]["id"] for hit in found] == [ids[0]]
    assert (await client.patch(f"/clips/{ids[0]}", json={})).status_code == 422
    assert (await client.patch("/clips/gone", json={"filename": "x.wav"})).status_code == 404


async def test_collections_are_listed_renamed_and_deleted(client: httpx.AsyncClient, ids: list[str]) -> None:
    async def listed() -> dict[str, int]:
        found = (await client.get("/collections")).json()["collections"]
        return {collection["name"]: collection["clips"] for collection in found}

    assert await listed() == {}
    for name, own in (("Favourites", ids[:1]), ("rain scene", ids[:2]), ("a/b", ids[2:])):
        await client.post("/clips/edit", json={"clip_ids": own, "add": {"collections": [name]}})
    assert list((await listed()).items()) == [("a/b", 1), ("Favourites", 1), ("rain scene", 2)]
    both = (await client.get("/clips", params={"filter": '{"collections": "rain scene"}'})).json()["clips"]
    assert {clip["id"] for clip in both} == set(ids[:2])
    renamed = await client.patch("/collections/rain scene", json={"name": "storm"})
    assert renamed.json() == {"name": "storm", "clips": 2}
    merged = await client.patch("/collections/storm", json={"name": "Favourites"})
    assert merged.status_code == 200 and await listed() == {"a/b": 1, "Favourites": 2}
    assert (await client.delete("/collections/a%2Fb")).status_code == 204
    assert (await client.delete("/collections/Favourites")).status_code == 204
    assert await listed() == {} and (await client.get("/info")).json()["clips"] == 3, "the clips stay"
    for answer in (await client.delete("/collections/storm"), await client.patch("/collections/x", json={"name": "y"})):
        assert answer.status_code == 404 and answer.json()["type"].endswith("collection-not-found")


async def test_values_are_counted(client: httpx.AsyncClient, ids: list[str]) -> None:
    params = {"key": ["tags", "channels"], "filter": '{"tags": "tone"}'}
    facets = (await client.get("/clips/facets", params=params)).json()["facets"]
    assert facets["tags"] == [{"value": "tone", "clips": 2}, {"value": "low", "clips": 1}]
    assert facets["channels"] == [{"value": 1, "clips": 2}]
    assert (await client.get("/clips/facets", params={"limit": 1})).json()["facets"]["tags"] == facets["tags"][:1]
