"""Concepts over HTTP: teaching, using them wherever a phrase stands, examples, labels, suggestions, and bad input."""

from __future__ import annotations

import asyncio
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
    files["both"] = sounds.encode(np.concatenate([silence, sounds.tone(800, 2), silence, silence]))
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


async def test_a_text_names_several_kinds_of_sounds(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await teach(client, "either", text="tone 200 or tone 800")
    scores: dict[str, float] = {}
    for query in ("tone 200", "tone 800"):
        answer = await client.post("/search", json={"query": query, "mode": "semantic", "k": 13})
        for hit in answer.json()["hits"]:
            scores[hit["clip"]["id"]] = max(hit["score"], scores.get(hit["clip"]["id"], 0))
    found = await client.post("/search", json={"query": "concept:either", "k": 13})
    assert {hit["clip"]["id"]: hit["score"] for hit in found.json()["hits"]} == pytest.approx(scores, abs=0.01)
    await teach(client, "taught", {"clip_id": library["800-0"]}, text="tone 200 or tone 800")
    await client.patch("/concepts/either", json={"text": "tone 200"})
    alone = await client.post("/search", json={"query": "concept:either", "k": 3})
    assert {name.split("-")[0] for name in names(alone)} == {"200"}
    assert {
        name.split("-")[0] for name in names(await client.get("/search", params={"q": "concept:taught", "k": 7}))
    } == {
        "200",
        "800",
        "both",
    }


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


async def test_examples_come_and_go(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    await teach(client, "beep", {"clip_id": library["800-0"]})
    url = "/concepts/beep/examples"
    files = [
        ("positive", ("new.wav", sounds.wav(800, 1.7))),
        ("positive", ("known.wav", sounds.wav(800, 2))),
        ("positive", ("broken.wav", b"no audio")),
        ("negative", ("low.wav", sounds.wav(200, 1.7))),
    ]
    added = await client.post(url, files=files)
    assert added.status_code == 201, added.text
    new, known, low = added.json()["examples"]
    assert (new["filename"], new["clip_id"], new["label"]) == ("new.wav", None, True)
    assert known["clip_id"] == library["800-1"], "the library has this file"
    assert low["label"] is False
    assert [error["filename"] for error in added.json()["errors"]] == ["broken.wav"]
    assert (added.json()["concept"]["positives"], added.json()["concept"]["negatives"]) == (3, 1)
    audio = await client.get(f"{url}/{new['id']}/audio")
    assert audio.content == sounds.wav(800, 1.7) and audio.headers["content-type"].startswith("audio/")
    assert (await client.get(f"{url}/{known['id']}/audio")).status_code == 404
    again = await client.post(url, json={"examples": [{"clip_id": library["800-0"]}]})
    assert again.json()["concept"]["positives"] == 3, "the same example twice is one"
    concept = (await client.get("/concepts/beep")).json()
    assert concept["quality"]["folds"] == 3 and concept["quality"]["auroc"] > 0.8
    assert concept["quality"]["average_precision"] < 1, "clips with the sound that aren't labelled count against it"
    assert (await client.delete(f"{url}/{new['id']}")).status_code == 204
    assert (await client.delete(f"{url}/{new['id']}")).status_code == 404
    assert [one["id"] for one in (await client.get(url)).json()["examples"]][1:] == [known["id"], low["id"]]
    assert (await client.delete(f"/clips/{library['800-1']}")).status_code == 204
    concept = (await client.get("/concepts/beep")).json()
    assert (concept["positives"], concept["removed"]) == (1, 1) and "removed" in " ".join(concept["notes"])
    assert (await client.delete("/concepts/beep")).status_code == 204
    assert (await client.get("/concepts")).json() == {"concepts": []}


async def test_labels_of_other_tools(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await teach(client, "beep", text="a beep")
    url, clip_id = "/concepts/beep/examples", library["both"]
    raven = (
        "Selection\tView\tBegin Time (s)\tEnd Time (s)\tAnnotation\n1\tWaveform\t4.0\t6.0\tbeep\n"
        "1\tSpectrogram\t4.0\t6.0\tbeep\n2\tSpectrogram\t0.5\t2.0\tnot beep\n3\tSpectrogram\t8\t9\twind\n"
    )
    form = {"format": "raven", "clip_id": clip_id}
    added = await client.post(url, data=form, files={"file": ("table.txt", raven)})
    assert added.status_code == 201, added.text
    assert added.json()["skipped"] == 1
    assert [(e["start"], e["end"], e["label"]) for e in added.json()["examples"]] == [(4, 6, True), (0.5, 2, False)]
    assert (await client.get("/search", params={"q": "concept:beep", "k": 1})).json()["hits"][0]["score"] > 0.5
    exported = {f: (await client.get(url, params={"format": f})).text for f in ("raven", "audacity", "csv")}
    assert exported["audacity"] == "0.500\t2.000\tnot beep\n4.000\t6.000\tbeep\n"
    for format, text in exported.items():
        copy = await client.post("/concepts", json={"name": format, "text": "a beep"})
        assert copy.status_code == 201
        form = {"format": format, "label": "beep"} | ({} if format == "csv" else {"clip_id": clip_id})
        back = await client.post(f"/concepts/{format}/examples", data=form, files={"file": ("labels", text)})
        assert back.status_code == 201, back.text
        assert sorted((e["start"], e["end"], e["label"]) for e in back.json()["examples"]) == [
            (0.5, 2, False),
            (4, 6, True),
        ]
    for data, text in (
        ({"format": "raven"}, raven),
        ({"format": "raven", "clip_id": clip_id}, "1\t2\tx\n"),
        ({"format": "audacity", "clip_id": clip_id}, "4\t6\twind\n"),
        ({"format": "audacity", "clip_id": clip_id}, "9\t99\tbeep\n"),
        ({"format": "csv"}, "nowhere.wav,1,2,beep\n"),
        ({"clip_id": clip_id}, raven),
    ):
        refused = await client.post(url, data=data, files={"file": ("labels.txt", text)})
        assert refused.status_code == 422, (data, text, refused.text)
    assert len((await client.get(url)).json()["examples"]) == 2


async def test_suggestions_are_uncertain_and_new(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await teach(client, "beep", {"clip_id": library["800-0"]}, {"clip_id": library["200-0"], "label": False})
    found = (await client.get("/concepts/beep/suggestions", params={"k": 5})).json()["suggestions"]
    ids = [one["clip"]["id"] for one in found]
    assert len(ids) == 5 and not {library["800-0"], library["200-0"]} & set(ids)
    assert all(0 <= one["start"] < one["end"] <= one["clip"]["duration"] + 0.1 for one in found)
    tones = {one["clip"]["filename"].split("-")[0] for one in found}
    assert len(tones) >= 3, "they differ"
    labelled = [
        {"clip_id": one["clip"]["id"], "start": one["start"], "end": one["end"], "label": False} for one in found
    ]
    mistaken = [one for one, s in zip(labelled, found, strict=True) if s["clip"]["filename"].startswith("400")]
    await client.post("/concepts/beep/examples", json={"examples": mistaken})
    again = (await client.get("/concepts/beep/suggestions", params={"k": 20})).json()["suggestions"]
    assert not {(o["clip_id"], o["start"]) for o in mistaken} & {(o["clip"]["id"], o["start"]) for o in again}


async def test_what_is_refused(client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace) -> None:
    clip = library["both"]
    await teach(client, "beep", {"clip_id": clip, "start": 4, "end": 6}, {"clip_id": library["200-0"], "label": False})

    async def create(status: int, slug: str, **body: Any) -> None:
        response = await client.post("/concepts", json={"name": "other"} | body)
        assert response.status_code == status, response.text
        assert response.json()["type"].endswith(slug), response.text
        assert response.headers["content-type"] == "application/problem+json"

    await create(422, "invalid-value")
    await create(422, "invalid-value", examples=[{"clip_id": clip, "label": False}])
    await create(422, "invalid-value", name="a/b", text="x")
    await create(422, "invalid-value", name="n" * 300, text="x")
    await create(422, "invalid-value", name="0" * 32, text="x")
    await create(422, "invalid-value", name="concept:x", text="x")
    await create(409, "concept-exists", name="beep", text="x")
    await create(404, "clip-not-found", examples=[{"clip_id": "0" * 32}])
    await create(422, "invalid-value", examples=[{"clip_id": clip}] * 10_000)
    for start, end in ((6, 4), (15, 16), (4, 60), (5, 5)):
        await create(422, "invalid-value", examples=[{"clip_id": clip, "start": start, "end": end}])
    both = [{"clip_id": clip, "start": 4, "end": 6}, {"clip_id": clip, "start": 4.2, "end": 7, "label": False}]
    await create(409, "contradictory-examples", examples=both)
    assert (await client.get("/concepts/other")).status_code == 404, "nothing was kept"

    url = "/concepts/beep/examples"
    for one in ({"clip_id": clip, "label": False}, {"clip_id": library["200-0"]}):
        response = await client.post(url, json={"examples": [one]})
        assert response.status_code == 409, response.text
    many = "".join(f"{n / 1000}\t{n / 1000 + 0.5}\tbeep\n" for n in range(10_000))
    form = {"format": "audacity", "clip_id": clip}
    response = await client.post(url, data=form, files={"file": ("labels.txt", many)})
    assert response.status_code == 422 and "2000 examples" in response.json()["detail"], response.text
    assert (await client.delete(f"/clips/{library['400-0']}")).status_code == 204
    response = await client.post(url, json={"examples": [{"clip_id": library["400-0"]}]})
    assert response.status_code == 404 and response.json()["type"].endswith("clip-not-found")
    elsewhere = await client.post(url, json={"examples": [{"clip_id": clip, "start": 0, "end": 3, "label": False}]})
    assert elsewhere.status_code == 201
    for response in (
        await client.post(url, json={"examples": []}),
        await client.post(url, data={"format": "raven"}, files={}),
        await client.get("/concepts/beep/suggestions", params={"k": 0}),
        await client.patch("/concepts/beep", json={"name": "x" * 101}),
        await client.post("/search", json={"query": "concept:beep", "mode": "lexical"}),
    ):
        assert response.status_code == 422, response.text
    broken = await client.post("/concepts", data={"name": "x"}, files={"positive": ("a.wav", b"nothing")})
    assert broken.status_code == 415 and (await client.get("/concepts/x")).status_code == 404


async def test_renaming_and_changing_the_text(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    concept = await teach(client, "beep", text="tone 800")
    await teach(client, "other", text="tone 200")
    changed = await client.patch("/concepts/beep", json={"name": "Türklingel: unten", "text": "tone 200"})
    assert changed.status_code == 200 and changed.json()["id"] == concept["id"]
    assert (await client.get("/concepts/beep")).status_code == 404
    found = await client.get("/search", params={"q": "concept:Türklingel: unten", "k": 3})
    assert {name.split("-")[0] for name in names(found)} == {"200"}
    assert (await client.patch("/concepts/other", json={"name": "Türklingel: unten"})).status_code == 409
    assert (await client.patch("/concepts/other", json={"text": None})).status_code == 422
    assert len((await client.get("/concepts")).json()["concepts"]) == 2


async def test_events_begin_at_the_threshold_of_the_concept(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    await teach(client, "beep", {"clip_id": library["800-0"]}, text="tone 800")

    async def detected(**form: Any) -> list[int]:
        body = {"clip_id": library["both"], "phrases": ["concept:beep", "tone 800"]} | form
        answer = await client.post("/detect", data=body)
        assert answer.status_code == 200, answer.text
        return [len(one["events"]) for one in answer.json()["phrases"]]

    async def scanned(**body: Any) -> list[float]:
        answer = await client.post("/jobs", json={"phrases": ["concept:beep", "tone 800"]} | body)
        assert answer.status_code == 202, answer.text
        return list(answer.json()["threshold"])

    assert await detected() == [1, 1] and await scanned() == [0.5, 0.5]
    set_high = await client.patch("/concepts/beep", json={"threshold": 0.9999})
    assert set_high.status_code == 200 and set_high.json()["threshold"] == 0.9999
    assert await detected() == [0, 1] and await scanned() == [0.9999, 0.5], "other phrases keep theirs"
    assert await detected(threshold=0.5) == [1, 1] and await scanned(threshold=0.5) == [0.5, 0.5]
    streamed = await client.post(
        "/detect", data={"clip_id": library["both"], "phrases": ["concept:beep"], "format": "ndjson"}
    )
    assert '"type": "event"' not in streamed.text
    await client.post("/concepts/beep/examples", json={"examples": [{"clip_id": library["800-1"]}]})
    assert (await client.get("/concepts/beep")).json()["threshold"] == 0.9999, "a fit doesn't change it"
    conflict = await client.post(
        "/detect", data={"clip_id": library["both"], "phrases": ["concept:beep"], "low_threshold": 0.99995}
    )
    assert conflict.status_code == 422, conflict.text
    fitted = await client.patch("/concepts/beep", json={"threshold": None})
    assert fitted.json()["threshold"] == 0.5 and await detected() == [1, 1]
    for wrong in (0, 1, -0.1, 1.5, "x", [0.5]):
        assert (await client.patch("/concepts/beep", json={"threshold": wrong})).status_code == 422, wrong


async def test_a_concept_in_a_sequence(
    client: httpx.AsyncClient, library: dict[str, str], sounds: SimpleNamespace
) -> None:
    silence = np.zeros(2 * sounds.RATE, np.float32)
    both = np.concatenate([sounds.tone(800, 2), silence, sounds.tone(200, 2), silence])
    added = await client.post("/clips", files=[("files", ("800, then 200.wav", sounds.encode(both)))])
    await teach(client, "beep", {"clip_id": library["800-0"]}, {"clip_id": library["800-1"]}, text="tone 800")
    for sequence, found in ((["concept:beep", "tone 200"], True), (["tone 200", "concept:beep"], False)):
        answer = await client.post("/search/moments", json={"sequence": sequence, "max_gap": 5, "k": 5})
        hits = [hit for hit in answer.json()["hits"] if hit["score"] > 0.5]
        assert [hit["clip"]["id"] for hit in hits] == [added.json()["clips"][0]["id"]] * found, sequence


async def test_several_people_teach_one_concept_at_once(client: httpx.AsyncClient, library: dict[str, str]) -> None:
    """The head that remains is that of all examples, whichever fit was stored last."""
    examples = [{"clip_id": library[f"{hz}-{n}"], "label": hz == 800} for hz in (800, 200) for n in range(3)]
    await teach(client, "together", text="tone 800")
    await teach(client, "alone", *examples, text="tone 800")
    answers = await asyncio.gather(
        *(client.post("/concepts/together/examples", json={"examples": [one]}) for one in examples),
        *(client.get("/search", params={"q": "concept:together"}) for _ in examples),
    )
    assert {answer.status_code for answer in answers} == {200, 201}
    scores = []
    for name in ("together", "alone"):
        concept = (await client.get(f"/concepts/{name}")).json()
        assert (concept["positives"], concept["negatives"]) == (3, 3)
        hits = (await client.post("/search", json={"query": f"concept:{name}", "k": 13})).json()["hits"]
        scores.append({hit["clip"]["id"]: hit["score"] for hit in hits})
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
