"""GET and POST /search, /search/moments and /clips/{id}/similar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.services import moments, search
from app.services.ranking import WEIGHTS
from index import NewClip
from model.config import MatchingConfig


@pytest.fixture
async def library(client: httpx.AsyncClient, sounds: SimpleNamespace) -> dict[str, str]:
    """File names and ids of one clip per tone, and of "both": silence, 800 Hz from 4 s to 6 s, silence up to 11 s."""
    silence = np.zeros(4 * sounds.RATE, np.float32)
    both = np.concatenate([silence, sounds.tone(800, 2), silence, silence[: sounds.RATE]])
    parts = [("files", (f"{hz}.wav", sounds.wav(hz, 2))) for hz in sounds.TONES]
    parts.append(("files", ("both.wav", sounds.encode(both))))
    metadata = [{"hz": hz, "tags": ["low" if hz < 1000 else "high", "tone"]} for hz in sounds.TONES] + [{"tags": "two"}]
    response = await client.post("/clips", files=parts, data={"metadata": json.dumps(metadata)})
    assert response.status_code == 201
    return {clip["filename"].removesuffix(".wav"): clip["id"] for clip in response.json()["clips"]}


def names(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [hit["clip"]["filename"] for hit in response.json()["hits"]]


async def test_text_search_finds_the_sound(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    for hz in sounds.TONES:
        response = await client.get("/search", params={"q": f"tone {hz}", "k": 3})
        assert names(response)[0] == f"{hz}.wav" and len(names(response)) == 3
    answer = response.json()
    assert answer["query"] == "tone 6400" and answer["took_ms"] >= 0
    hits = answer["hits"]
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-3) and hits[0]["moments"] is None
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
    assert answer["matches"] is answer["did_you_mean"] is hits[0]["match"] is None, "the checkpoint has no cutoff"
    by_sound = (await client.get("/search", params={"q": "tone 6400", "mode": "semantic"})).json()["hits"]
    assert by_sound[0]["score"] == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-3)
    assert by_sound[0]["score"] < hits[0]["score"], "the name has a word of the query"


async def test_get_and_post_return_the_same_hits(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    by_get = await client.get("/search", params={"q": "tone 800", "k": 2, "moments": "true", "filter": '{"hz": 800}'})
    by_post = await client.post("/search", json={"query": "tone 800", "k": 2, "moments": True, "filter": {"hz": 800}})
    assert by_get.json()["hits"] == by_post.json()["hits"] != []
    unwanted = {"without": ["tone 400", "tone 200"], "min_score": 0.001}
    by_get = await client.get("/search", params={"q": "tone 800", **unwanted})
    by_post = await client.post("/search", json={"query": "tone 800", **unwanted})
    assert by_get.json()["hits"] == by_post.json()["hits"] != []
    assert {"400.wav", "200.wav"}.isdisjoint(names(by_get))


async def test_filters(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    async def search(where: dict[str, Any]) -> list[str]:
        return names(await client.post("/search", json={"query": "tone 800", "filter": where}))

    assert set(await search({"tags": "low"})) == {"200.wav", "400.wav", "800.wav"}
    assert set(await search({"hz": [200, 6400]})) == {"200.wav", "6400.wav"}
    assert await search({"tags": "nothing"}) == []


async def test_min_score(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    response = await client.post("/search", json={"query": "tone 800", "min_score": 0.9, "mode": "semantic"})
    assert names(response) == ["800.wav", "both.wav"]


async def test_a_clip_ranks_by_its_best_moment(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    hits = (await client.get("/search", params={"q": "tone 800", "k": 3, "mode": "semantic"})).json()["hits"]
    first, second, third = hits
    assert [hit["clip"]["filename"] for hit in (first, second)] == ["800.wav", "both.wav"]
    assert second["similarity"] == pytest.approx(0.25, abs=0.01), "the whole clip is mostly silence"
    assert second["score"] == pytest.approx(first["score"], abs=1e-3) and third["score"] < 0.01


async def test_moments_locate_the_sound(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    response = await client.post("/search", json={"query": "tone 800", "moments": True, "filter": {"tags": "two"}})
    (moment,) = response.json()["hits"][0]["moments"]
    assert moment["start"] == pytest.approx(4, abs=0.17) and moment["end"] == pytest.approx(6, abs=0.17)
    assert moment["score"] > 0.9
    all_hits = (await client.get("/search", params={"q": "tone 800", "moments": "true"})).json()["hits"]
    assert all(len(hit["moments"]) >= 1 for hit in all_hits)


async def test_search_by_audio_finds_similar_clips(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    response = await client.post(
        "/search",
        files={"file": ("frage.wav", sounds.wav(1600, 5))},
        data={"k": "2", "moments": "true", "filter": '{"tags": ["high", "low"]}'},
    )
    assert names(response)[0] == "1600.wav" and response.json()["query"] == "frage.wav"
    assert response.json()["hits"][0]["moments"][0]["score"] > 0.9


async def test_similar_excludes_the_clip_itself(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    response = await client.get(f"/clips/{library['800']}/similar", params={"k": 3})
    assert names(response)[0] == "both.wav" and len(names(response)) == 3 and "800.wav" not in names(response)
    assert (await client.get(f"/clips/{library['800']}/similar", params={"k": 0})).status_code == 422


async def test_search_in_an_empty_library(client: httpx.AsyncClient) -> None:
    assert names(await client.get("/search", params={"q": "rain"})) == []


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({}, "q"),
        ({"q": ""}, "empty"),
        ({"q": " \n\t "}, "empty"),
        ({"q": "x" * 1001}, "1000"),
        ({"q": "rain", "k": 0}, "k"),
        ({"q": "rain", "k": 1001}, "k"),
        ({"q": "rain", "k": "ten"}, "k"),
        ({"q": "rain", "min_score": "NaN"}, "min_score"),
        ({"q": "rain", "min_score": 1.5}, "min_score"),
        ({"q": "rain", "without": ""}, "empty"),
        ({"q": "rain", "mode": "best"}, "mode"),
        ({"q": "rain", "momnets": "true"}, "momnets"),
    ],
)
async def test_invalid_query_parameters_are_rejected(
    client: httpx.AsyncClient, params: dict[str, Any], word: str
) -> None:
    response = await client.get("/search", params=params)
    assert response.status_code == 422 and word in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"abc", 400, "JSON"),
        (b"", 400, "JSON"),
        (b'{"query": "rain", "min_score": NaN}', 400, "NaN"),
        (b'{"query": "\\ud800"}', 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b'"rain"', 422, "object"),
        (b"[]", 422, "object"),
        (b"null", 422, "object"),
        (b"{}", 422, "query"),
        (b'{"query": ""}', 422, "empty"),
        (b'{"query": 5}', 422, "query"),
        (b'{"query": "rain", "k": 0}', 422, "k"),
        (b'{"query": "rain", "k": 1e99}', 422, "k"),
        (b'{"query": "rain", "filter": [1]}', 422, "filter"),
        (b'{"query": "rain", "filter": {"a": null}}', 422, "filter"),
        (b'{"query": "rain", "without": [""]}', 422, "without"),
        (b'{"query": "rain", "without": 5}', 422, "without"),
        (b'{"query": "rain", "qery": 1}', 422, "qery"),
    ],
)
async def test_invalid_bodies_are_rejected(client: httpx.AsyncClient, body: bytes, status: int, word: str) -> None:
    response = await client.post("/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status and word in response.json()["detail"], response.text
    assert (await client.get("/search", params={"q": "rain"})).status_code == 200


async def test_search_by_audio_requires_one_file(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    two = [("file", ("a.wav", sounds.wav())), ("file", ("b.wav", sounds.wav()))]
    assert (await client.post("/search", files=two)).status_code == 422
    assert (await client.post("/search", data={"k": "3"})).status_code == 422
    assert (await client.post("/search", files={"file": ("a.wav", b"text")})).status_code == 415
    file = {"file": ("a.wav", sounds.wav())}
    by_words = await client.post("/search", files=file, data={"mode": "lexical"})
    assert by_words.status_code == 422 and "lexical" in by_words.json()["detail"]
    assert (await client.post("/search", content=b"x", headers={"content-type": "text/plain"})).status_code == 415


async def test_queries_in_any_script_and_with_control_characters(
    client: httpx.AsyncClient, library: dict[str, str]
) -> None:
    response = await client.post("/search", json={"query": "tone\n\u0000 800"})
    assert names(response)[0] == "800.wav" and response.json()["query"] == "tone 800"
    assert (await client.get("/search", params={"q": "犬の鳴き声 🐕"})).json()["query"] == "犬の鳴き声 🐕"


async def add_mixtures(client: httpx.AsyncClient, sounds: SimpleNamespace, count: int) -> None:
    """Long clips of 800 Hz that end with 0.8 s of 1600 Hz, more similar to 800 Hz the higher their number."""
    parts = []
    for number in range(count):
        both = np.concatenate([sounds.tone(800, 10 + 0.16 * number), sounds.tone(1600, 0.8)])
        parts.append(("files", (f"mixed {number}.wav", sounds.encode(both))))
    assert (await client.post("/clips", files=parts)).status_code == 201


async def test_without_excludes_clips_with_a_short_occurrence(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    await add_mixtures(client, sounds, 3)
    every = names(await client.get("/search", params={"q": "tone 800", "k": 4}))
    assert every[0] == "800.wav" and sum(name.startswith("mixed") for name in every) == 3
    kept = names(await client.post("/search", json={"query": "tone 800", "k": 2, "without": "tone 1600"}))
    assert kept == ["800.wav", "both.wav"]
    example = await client.post(
        "/search",
        files={"file": ("a.wav", sounds.wav(800, 2))},
        data={"k": "2", "without": ["tone 1600", "tone 6400"]},
    )
    assert names(example) == kept
    by_words = names(await client.post("/search", json={"query": "tone 800", "without": ["800"]}))
    assert "800.wav" not in by_words and "both.wav" in by_words, "its name has the unwanted word"


async def test_without_searches_deeper_than_k(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_mixtures(client, sounds, 60)  # all as good as late.wav, and more than the first round checks
    late = np.concatenate([sounds.tone(800, 2), np.zeros(4 * sounds.RATE, np.float32)])
    await client.post("/clips", files={"files": ("late.wav", sounds.encode(late))})
    monkeypatch.setattr(search, "FIRST_DEPTH", 10)
    asked = {"query": "tone 800", "k": 3, "without": ["tone 1600"], "mode": "semantic"}
    assert set(names(await client.post("/search", json=asked))) == {"800.wav", "both.wav", "late.wav"}
    monkeypatch.setattr(search, "WITHOUT_CLIPS", 20)
    fewer = names(await client.post("/search", json=asked))
    assert "800.wav" in fewer and len(fewer) < 3, "not all are among the best 20"


async def test_lexical_mode_ranks_by_name_and_tags(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    clip = next(iter(library.values()))
    await client.patch(f"/clips/{clip}", json={"metadata": {"tags": ["whistling kettle"]}})
    name = (await client.get(f"/clips/{clip}")).json()["filename"]
    found = await client.post("/search", json={"query": "kettles whistle", "mode": "lexical", "moments": True})
    (hit,) = found.json()["hits"]
    assert hit["clip"]["id"] == clip and hit["moments"]
    by_sound = {"query": "kettles whistle", "mode": "semantic"}
    for hit_by_meaning in (await client.post("/search", json=by_sound)).json()["hits"]:
        if hit_by_meaning["clip"]["id"] == clip:
            assert hit_by_meaning["similarity"] == pytest.approx(hit["similarity"], abs=2e-6)
    assert (await client.get("/search", params={"q": "zebra", "mode": "lexical"})).json()["hits"] == []
    everything = names(await client.post("/search", json={"query": "kettles whistle", "mode": "hybrid"}))
    assert len(everything) == len(library) and name in everything[:2]


async def test_hybrid_mode_adds_the_evidence_of_words(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    asked = {"query": "tone 800"}
    by_sound = (await client.post("/search", json=asked | {"mode": "semantic"})).json()["hits"]
    last = by_sound[-1]["clip"]
    await client.patch(f"/clips/{last['id']}", json={"metadata": {"tags": ["tone 800"]}})
    both = (await client.post("/search", json=asked)).json()["hits"]
    lifted = next(hit for hit in both if hit["clip"]["id"] == last["id"])
    logit = np.log(lifted["score"] / (1 - lifted["score"]))
    before = np.log(by_sound[-1]["score"] / (1 - by_sound[-1]["score"]))
    assert logit - before == pytest.approx(WEIGHTS.words, abs=0.05), "it has all words of the query"
    assert len(both) == len(by_sound) and both.index(lifted) < by_sound.index(by_sound[-1])
    assert both == (await client.post("/search", json=asked | {"mode": "hybrid"})).json()["hits"]
    assert names(await client.post("/search", json=asked | {"filter": {"tags": "none"}})) == []


@pytest.fixture
def matching(fake_model: Any) -> MatchingConfig:
    """Gives the checkpoint a cutoff; use it before `client`."""
    pair = (0.1, -5.0)
    fake_model.config = replace(fake_model.config, matching=MatchingConfig(0.5, segment=pair, sound=pair))
    return fake_model.config.matching


async def test_hits_match_from_the_cutoff_on(
    matching: MatchingConfig, client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    for mode in ("semantic", "hybrid"):
        answer = (await client.get("/search", params={"q": "tone 800", "mode": mode})).json()
        assert [hit["match"] for hit in answer["hits"]] == [hit["score"] >= 0.5 for hit in answer["hits"]]
        assert {hit["clip"]["filename"] for hit in answer["hits"] if hit["match"]} == {"800.wav", "both.wav"}
        assert answer["matches"] == 2
    one = (await client.get("/search", params={"q": "tone 800", "k": 1, "min_score": 0.99})).json()
    assert len(one["hits"]) == 1 and one["matches"] == 2, "counted in the whole library, whatever k and min_score are"
    low = (await client.get("/search", params={"q": "tone 800", "filter": '{"tags": "low"}'})).json()
    assert low["matches"] == 1
    without = (await client.get("/search", params={"q": "tone 800", "without": "tone 6400"})).json()
    assert without["matches"] == 2
    similar = (await client.get(f"/clips/{library['800']}/similar")).json()
    assert similar["matches"] == 1 and similar["hits"][0]["match"] and not similar["hits"][1]["match"]
    by_file = (await client.post("/search", files={"file": ("x.wav", sounds.wav(6400, 1))})).json()
    assert by_file["matches"] == 1 and by_file["hits"][0]["clip"]["filename"] == "6400.wav"
    info = (await client.get("/info")).json()
    assert info["model"]["match_cutoff"] == 0.5


async def test_nothing_matches_a_sound_that_is_not_there(
    matching: MatchingConfig, client: httpx.AsyncClient, library: dict[str, str]
) -> None:
    clip = library["200"]
    for asked in ({"query": "rain"}, {"query": "rain", "mode": "lexical"}, {"query": "rain", "without": ["wind"]}):
        answer = (await client.post("/search", json=asked)).json()
        assert answer["matches"] == 0 and not any(hit["match"] for hit in answer["hits"])
    await client.patch(f"/clips/{clip}", json={"metadata": {"tags": ["rain"]}})
    for mode, matches in (("semantic", 0), ("hybrid", 0), ("lexical", 0)):
        answer = (await client.post("/search", json={"query": "rain", "mode": mode})).json()
        assert answer["matches"] == matches, "a tag alone is not enough for a sound that scores 0.007"


async def test_matches_are_counted_deeper_than_k(
    matching: MatchingConfig,
    client: httpx.AsyncClient,
    library: dict[str, str],
    sounds: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add_mixtures(client, sounds, 30)  # match too
    monkeypatch.setattr(search, "FIRST_DEPTH", 4)
    for asked in ({}, {"mode": "semantic"}, {"k": 1}, {"without": "tone 6400"}):
        answer = (await client.post("/search", json={"query": "tone 800"} | asked)).json()
        assert answer["matches"] == 32, asked
    alone = (await client.post("/search", json={"query": "tone 800", "without": "tone 1600", "k": 1})).json()
    assert alone["matches"] == 2
    monkeypatch.setattr(search, "MAX_MATCHES", 20)
    assert (await client.get("/search", params={"q": "tone 800"})).json()["matches"] == 20


def best(response: httpx.Response) -> list[tuple[str, float, float]]:
    assert response.status_code == 200, response.text
    return [(hit["clip"]["filename"], hit["start"], hit["end"]) for hit in response.json()["hits"]]


async def test_moments_of_the_whole_library(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    response = await client.post("/search/moments", json={"query": "tone 800", "k": 2})
    (first, second) = sorted(best(response))
    assert first == ("800.wav", 0, 2) and second[0] == "both.wav"
    assert second[1:] == (pytest.approx(4, abs=0.17), pytest.approx(6, abs=0.17))
    answer = response.json()
    assert answer["query"] == "tone 800" and answer["candidates"] == len(library)
    assert all(hit["score"] > 0.9 and hit["parts"] is None for hit in answer["hits"])
    everything = (await client.post("/search/moments", json={"query": "tone 800", "k": 100})).json()["hits"]
    assert [h["score"] for h in everything] == sorted((h["score"] for h in everything), reverse=True)
    assert {hit["clip"]["filename"] for hit in everything} >= {f"{name}.wav" for name in library}
    only = await client.post("/search/moments", json={"query": "tone 800", "filter": {"tags": "two"}})
    assert {name for name, *_ in best(only)} == {"both.wav"}


async def test_moments_of_a_sequence(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    pause = np.zeros(2 * sounds.RATE, np.float32)
    up = [sounds.tone(400, 2), pause, sounds.tone(1600, 2)]
    for name, parts in (("up.wav", up), ("down.wav", up[::-1])):
        await client.post("/clips", files={"files": (name, sounds.encode(np.concatenate(parts)))})
    asked = {"sequence": ["tone 400", "tone 1600"], "k": 1}
    response = await client.post("/search/moments", json=asked | {"max_gap": 2.4})
    (hit,) = response.json()["hits"]
    assert hit["clip"]["filename"] == "up.wav" and response.json()["query"] == asked["sequence"]
    assert hit["start"] == pytest.approx(0, abs=0.17) and hit["end"] == pytest.approx(6, abs=0.17)
    assert hit["score"] == min(part["score"] for part in hit["parts"]) > 0.9 and len(hit["parts"]) == 2
    assert hit["parts"][1]["start"] == pytest.approx(4, abs=0.17)
    too_far = (await client.post("/search/moments", json=asked | {"max_gap": 1})).json()["hits"]
    assert all(hit["score"] < 0.5 for hit in too_far)
    back = await client.post("/search/moments", json=asked | {"sequence": ["tone 1600", "tone 400"], "max_gap": 3})
    assert back.json()["hits"][0]["clip"]["filename"] == "down.wav"


async def test_moments_are_limited_to_the_candidates(
    client: httpx.AsyncClient, library: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "CANDIDATES", 2)
    one = (await client.post("/search/moments", json={"query": "tone 800", "k": 100})).json()
    assert one["candidates"] == 2 and {h["clip"]["filename"] for h in one["hits"]} == {"800.wav", "both.wav"}
    both = {"sequence": ["tone 800", "tone 6400"], "k": 100}
    assert (await client.post("/search/moments", json=both)).json()["candidates"] in (3, 4)


async def test_k_moments_are_the_best_of_more(
    client: httpx.AsyncClient, library: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips that cannot be among the best are skipped, and long ones are scored alone; the result is the same."""
    for sounds in ({"query": "tone 800"}, {"sequence": ["tone 800", "tone 6400"], "max_gap": 3}):
        whole = (await client.post("/search/moments", json=sounds | {"k": 100})).json()["hits"]
        for together, seconds in ((1, 600.0), (2, 3.0), (100, 0.0)):
            monkeypatch.setattr(moments, "_CHUNK", together)
            monkeypatch.setattr(moments, "_MAX_SECONDS", seconds)
            for k in (1, 2, 3, 100):
                hits = (await client.post("/search/moments", json=sounds | {"k": k})).json()["hits"]
                assert [best_of(hit) for hit in hits] == [best_of(hit) for hit in whole[:k]]


def best_of(hit: dict[str, Any]) -> tuple[str, float, float, float]:
    return hit["clip"]["filename"], hit["start"], hit["end"], pytest.approx(hit["score"], abs=1e-6)


async def test_a_half_second_sound_in_an_hour_is_found(
    make_app: Callable[..., FastAPI],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moments, "CANDIDATES", 2)
    app = make_app()
    tone, silence = fake_model.encode_text(["tone 800"])[0], np.eye(fake_model.dim, dtype=np.float32)[-1]
    alike = (tone + silence) / np.sqrt(2)
    hour = np.tile(silence, (22_500, 1))
    hour[12_500:12_503] = tone
    async with app.router.lifespan_context(app), open_client(app) as client:
        catalog = app.state.service.library
        for number, frames in enumerate([hour, *[np.tile(alike, (20, 1))] * 9]):
            mean = frames.mean(axis=0)
            audio = b"audio %d" % number
            catalog.add(
                NewClip(f"{number}.wav", hashlib.sha256(audio).hexdigest(), len(frames) * 0.16, 16_000, 1, {},
                        mean / np.linalg.norm(mean), frames, 0.16, audio)
            )  # fmt: skip
        answer = (await client.post("/search/moments", json={"query": "tone 800", "k": 1})).json()
        (hit,) = answer["hits"]
        assert hit["clip"]["filename"] == "0.wav" and answer["candidates"] == 2 and hit["score"] > 0.9
        assert (hit["start"], hit["end"]) == pytest.approx((2000, 2000.48), abs=0.01)
        plain = (await client.get("/search", params={"q": "tone 800", "k": 1})).json()["hits"]
        assert [h["clip"]["filename"] for h in plain] == ["0.wav"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "query"),
        ({"query": "rain", "sequence": ["rain", "wind"]}, "query"),
        ({"sequence": ["rain"]}, "sequence"),
        ({"sequence": ["rain"] * 11}, "sequence"),
        ({"sequence": ["rain", ""]}, "empty"),
        ({"query": "rain", "max_gap": -1}, "max_gap"),
        ({"query": "rain", "k": 0}, "k"),
        ({"query": "rain", "filter": {"a": None}}, "filter"),
        ({"query": "rain", "moments": True}, "moments"),
    ],
)
async def test_invalid_moment_searches_are_rejected(client: httpx.AsyncClient, body: dict[str, Any], word: str) -> None:
    response = await client.post("/search/moments", json=body)
    assert response.status_code == 422 and word in response.json()["detail"]


async def test_moments_in_an_empty_library(client: httpx.AsyncClient) -> None:
    response = await client.post("/search/moments", json={"sequence": ["rain", "wind"]})
    assert response.json()["hits"] == [] and response.json()["candidates"] == 0


async def test_misspelled_queries_are_corrected(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await client.patch(f"/clips/{library['200']}", json={"metadata": {"tags": ["whistling kettle"]}})
    for asked in ({"query": "whistlng kettel"}, {"query": "whistlng kettel", "mode": "lexical"}):
        answer = (await client.post("/search", json=asked)).json()
        assert answer["query"] == "whistlng kettel" and answer["did_you_mean"] == "whistling kettle"
    assert [hit["clip"]["id"] for hit in answer["hits"]] == [library["200"]]
    right = (await client.get("/search", params={"q": "whistling kettle", "mode": "lexical"})).json()
    assert right["did_you_mean"] is None and right["hits"] == answer["hits"]


async def test_nonsense_matches_nothing_by_its_sound(
    matching: MatchingConfig,
    client: httpx.AsyncClient,
    library: dict[str, str],
    fake_model: Any,
    sounds: SimpleNamespace,
) -> None:
    encode = fake_model.encode_text
    fake_model.encode_text = lambda texts: encode(["tone 800" if text == "asdfgh" else text for text in texts])
    answer = (await client.get("/search", params={"q": "asdfgh"})).json()
    assert answer["hits"][0]["score"] > 0.9 and not any(hit["match"] for hit in answer["hits"])
    assert answer["matches"] == 0 and answer["did_you_mean"] is None
    await client.patch(f"/clips/{library['800']}", json={"metadata": {"tags": ["asdfgh"]}})
    answer = (await client.get("/search", params={"q": "asdfgh"})).json()
    assert answer["matches"] == 2 and answer["hits"][0]["match"], "a word that a clip has is known"
    file = {"file": ("x.wav", sounds.wav(800, 1))}
    both = (await client.post("/search", files=file, data={"query": "qqqq"})).json()
    assert {hit["clip"]["filename"] for hit in both["hits"][:2]} == {"800.wav", "both.wav"}


async def test_text_and_sound_in_one_query(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    mixed = np.concatenate([sounds.tone(800, 6), sounds.tone(3200, 6)])
    await client.post("/clips", files={"files": ("mixed.wav", sounds.encode(mixed))})
    file = {"file": ("x.wav", sounds.wav(3200, 1))}
    answer = (await client.post("/search", files=file, data={"query": "tone 800", "moments": "true"})).json()
    assert answer["query"] == "tone 800"
    best, others = answer["hits"][0], answer["hits"][1:]
    assert best["clip"]["filename"] == "mixed.wav" and best["score"] > 0.99 > others[0]["score"]
    assert best["moments"][0]["end"] == pytest.approx(6, abs=0.17), "moments are those of the text"
    by_words = (await client.post("/search", files=file, data={"query": "800", "mode": "lexical"})).json()
    assert [hit["clip"]["filename"] for hit in by_words["hits"]] == ["800.wav"]


async def test_examples_replace_or_refine_a_query(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    whole = {"like": [{"clip_id": library["800"]}]}
    answer = (await client.post("/search", json=whole)).json()
    similar = (await client.get(f"/clips/{library['800']}/similar")).json()
    assert answer["hits"] == similar["hits"] and answer["query"] == similar["query"] == "800.wav"
    assert "800.wav" not in {hit["clip"]["filename"] for hit in answer["hits"]}
    part = {"like": [{"clip_id": library["both"], "start": 4.2, "end": 5.8}]}
    assert set(names(await client.post("/search", json=part | {"k": 2}))) == {"800.wav", "both.wav"}
    silence = {"like": [{"clip_id": library["both"], "end": 3.0}]}
    assert names(await client.post("/search", json=silence | {"k": 1})) == ["both.wav"]
    both = await client.post("/search", json=part | {"query": "tone 800", "k": 2, "mode": "semantic"})
    assert set(names(both)) == {"800.wav", "both.wav"} and both.json()["query"] == "tone 800"
    several = {"like": [{"clip_id": library["200"]}, {"clip_id": library["400"]}]}
    assert (await client.post("/search", json=several)).json()["query"] == "200.wav, 400.wav"


async def test_unlike_lowers_what_sounds_like_it(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    await add_mixtures(client, sounds, 2)
    asked = {"query": "tone 800", "mode": "semantic"}
    before = {h["clip"]["filename"]: h["score"] for h in (await client.post("/search", json=asked)).json()["hits"]}
    unlike = {"unlike": [{"clip_id": library["1600"]}]}
    answer = (await client.post("/search", json=asked | unlike)).json()["hits"]
    after = {hit["clip"]["filename"]: hit["score"] for hit in answer}
    assert "1600.wav" in before and "1600.wav" not in after, "a whole clip among the examples is no result"
    assert after["800.wav"] == pytest.approx(before["800.wav"], abs=0.001)
    assert before["mixed 1.wav"] > 0.9 > 0.6 > after["mixed 1.wav"]
    form = {"file": ("x.wav", sounds.wav(800, 1))}, {"unlike": json.dumps(unlike["unlike"]), "k": "2"}
    assert set(names(await client.post("/search", files=form[0], data=form[1]))) == {"800.wav", "both.wav"}


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"like": []}, 422, "like"),
        ({"unlike": [{"clip_id": "CLIP"}]}, 422, "like"),
        ({"like": [{"clip_id": "0" * 32}]}, 404, "0" * 32),
        ({"query": "rain", "unlike": [{"clip_id": "nobody"}]}, 404, "nobody"),
        ({"like": [{"clip_id": "CLIP", "start": 1, "end": 1}]}, 422, "from 1 to 1 s"),
        ({"like": [{"clip_id": "CLIP", "start": 2.5}]}, 422, "lasts 2 s"),
        ({"like": [{"clip_id": "CLIP", "end": 3}]}, 422, "lasts 2 s"),
        ({"like": [{"clip_id": "CLIP", "start": -1}]}, 422, "start"),
        ({"like": [{"clip_id": "CLIP"}] * 21}, 422, "20"),
        ({"like": [{"id": "CLIP"}]}, 422, "clip_id"),
        ({"like": [{"clip_id": "CLIP"}], "mode": "lexical"}, 422, "lexical"),
    ],
)
async def test_invalid_examples_are_rejected(
    client: httpx.AsyncClient, library: dict[str, str], body: dict[str, Any], status: int, word: str
) -> None:
    text = json.dumps(body).replace("CLIP", library["800"])
    response = await client.post("/search", content=text, headers={"content-type": "application/json"})
    assert response.status_code == status and word in response.json()["detail"], response.text


@pytest.mark.parametrize("calibrated", [False, True])
async def test_without_keeps_what_the_wanted_sound_explains_better(
    make_app: Callable[..., FastAPI], open_client: Callable[..., httpx.AsyncClient], fake_model: Any, calibrated: bool
) -> None:
    if calibrated:
        pair = (0.1, -5.0)
        fake_model.config = replace(fake_model.config, matching=MatchingConfig(0.5, segment=pair, sound=pair))
    wanted, unwanted, rest = fake_model.encode_text(["tone 800", "tone 1600", "rain"])
    alike, less, short = (0.8 * wanted + 0.6 * unwanted, 0.7 * wanted + 0.7 * unwanted, 0.6 * wanted + 0.8 * unwanted)
    clips = {"alike": [alike] * 20, "as alike": [less] * 20, "short": [rest] * 16 + [short] * 4, "clean": [wanted] * 20}
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        for name, frames in clips.items():
            clip = np.mean(frames, axis=0)
            audio = name.encode()
            app.state.service.library.add(
                NewClip(f"{name}.wav", hashlib.sha256(audio).hexdigest(), 3.2, 16_000, 1, {},
                        (clip / np.linalg.norm(clip)).astype(np.float32), np.array(frames, np.float32), 0.16, audio)
            )  # fmt: skip
        asked = {"query": "tone 800", "without": ["tone 1600"]}
        assert set(names(await client.post("/search", json=asked))) == {"clean.wav", "alike.wav", "as alike.wav"}
        back = {"query": "tone 1600", "without": ["tone 800"]}
        assert set(names(await client.post("/search", json=back))) == {"short.wav", "as alike.wav"}
        assert "alike.wav" not in names(await client.post("/search", json=asked | {"without": ["someone alike"]}))
        by_clip = {"like": [{"clip_id": next(iter(app.state.service.library.list(9)[0])).id}], "without": ["tone 1600"]}
        found = set(names(await client.post("/search", json=by_clip)))
        assert "short.wav" not in found and ("alike.wav" in found) == calibrated, "frames are compared if calibrated"


async def test_hits_say_why_they_are_found(
    matching: MatchingConfig, client: httpx.AsyncClient, library: dict[str, str]
) -> None:
    async def reasons(**asked: Any) -> dict[str, list[tuple[str, list[str]]]]:
        answer = await client.post("/search", json={"query": "tone 800", **asked})
        return {
            hit["clip"]["filename"]: [(reason["kind"], reason["words"]) for reason in hit["reasons"]]
            for hit in answer.json()["hits"]
        }

    await client.patch(f"/clips/{library['1600']}", json={"metadata": {"note": "Tones, at 800 m"}})
    found = await reasons()
    assert found["800.wav"] == [("name", ["800"]), ("tags", ["tone"]), ("sound", [])]
    assert found["both.wav"] == [("moment", [])]
    assert found["200.wav"] == [("tags", ["tone"])], "its sound is not enough for a match"
    assert found["1600.wav"] == [("tags", ["tone"]), ("metadata", ["800"])]
    by_sound = (await reasons(mode="semantic")).values()
    assert {kind for own in by_sound for kind, _ in own} == {"sound", "moment"}
    assert (await reasons(mode="lexical"))["800.wav"] == [("name", ["800"]), ("tags", ["tone"])]
    assert (await reasons(query=None, like=[{"clip_id": library["800"]}]))["both.wav"] == [("moment", [])]
    assert (await reasons(unlike=[{"clip_id": library["6400"]}]))["both.wav"] == [("moment", [])]


async def test_moments_below_a_score_are_dropped(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    asked = {"query": "tone 800", "k": 50}
    every = (await client.post("/search/moments", json=asked)).json()["hits"]
    least = every[1]["score"]
    some = (await client.post("/search/moments", json=asked | {"min_score": least})).json()["hits"]
    assert some == [hit for hit in every if hit["score"] >= least] and len(some) < len(every)
