"""What callers see of real files: notes, tracks, names in any encoding, clips that are no duplicates."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.api.requests import file_name


def film(
    sounds: SimpleNamespace, tones: tuple[float, ...] = (400, 1600), languages: tuple[str, ...] = ("deu", "fra")
) -> bytes:
    """A Matroska file with an audio track for each tone."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        tracks = []
        for code in languages:
            track = file.add_stream("flac", rate=16_000, layout="mono")
            track.metadata["language"] = code
            tracks.append(track)
        for track, hz in zip(tracks, tones, strict=True):
            samples = (sounds.tone(hz, 2) * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            for packet in [*track.encode(frame), *track.encode(None)]:
                file.mux(packet)
    return out.getvalue()


def scores(answer: httpx.Response) -> list[float]:
    return [phrase["max_score"] for phrase in answer.json()["phrases"]]


async def detect(client: httpx.AsyncClient, file: bytes, **form: Any) -> httpx.Response:
    fields = {"phrases": ["tone 400", "tone 1600"], **form}
    return await client.post("/detect", files={"file": ("film.mkv", file)}, data=fields)


async def test_detection_in_a_chosen_track(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    data = film(sounds)
    first, second = await detect(client, data, track="0"), await detect(client, data, track="fr")
    assert scores(first)[0] > 0.9 > 0.1 > scores(first)[1]
    assert scores(second)[1] > 0.9 > 0.1 > scores(second)[0]
    assert first.json()["track"] == {"index": 0, "language": "deu", "title": None}
    assert second.json()["track"]["index"] == 1
    assert (await detect(client, data)).json()["track"]["index"] == 0
    missing = await detect(client, data, track="rus")
    assert missing.status_code == 422 and missing.json()["type"].endswith(":track-missing")
    assert "0 (deu), 1 (fra)" in missing.json()["detail"]
    assert (await detect(client, sounds.wav())).json()["track"] is None
    lines = (await detect(client, data, track="1", format="ndjson")).text.splitlines()
    assert json.loads(lines[0])["track"]["language"] == "fra" == json.loads(lines[-1])["track"]["language"]


async def test_the_track_everywhere_else(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    data = film(sounds)
    files = {"files": ("film.mkv", data)}
    embedded = [(await client.post("/embed", files=files, data={"track": t})).json()["audio"][0] for t in "01"]
    assert [one["track"]["index"] for one in embedded] == [0, 1]
    assert np.dot(embedded[0]["embedding"], embedded[1]["embedding"]) < 0.5
    form = {"labels": ["tone 400", "tone 1600"], "template": "{}", "track": "fra"}
    found = (await client.post("/classify", files={"file": ("film.mkv", data)}, data=form)).json()
    rated = {label["label"]: label["score"] for label in found["labels"]}
    assert rated["tone 1600"] > 0.9 > 0.1 > rated["tone 400"] and found["track"]["index"] == 1
    await client.post("/clips", files={"files": ("high.wav", sounds.wav(1600))})
    search = await client.post("/search", files={"file": ("film.mkv", data)}, data={"track": "1"})
    assert search.json()["hits"][0]["similarity"] > 0.9
    assert search.json()["track"] == {"index": 1, "language": "fra", "title": None} and search.json()["notes"] == []
    alone = await client.post("/search", files={"file": ("high.wav", sounds.wav(1600))})
    text = await client.get("/search", params={"q": "tone 400"})
    assert alone.json()["track"] is text.json()["track"] is None and text.json()["notes"] == []


async def test_a_clip_remembers_its_track(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    data = film(sounds)
    added = await client.post("/clips", files={"files": ("film.mkv", data)}, data={"track": "fra"})
    clip = added.json()["clips"][0]
    assert (clip["metadata"]["audio_track"], clip["metadata"]["audio_language"]) == (1, "fra")
    stored = await client.post("/detect", data={"clip_id": clip["id"], "phrases": ["tone 400", "tone 1600"]})
    assert scores(stored)[1] > 0.9 and stored.json()["track"]["index"] == 1
    peaks = (await client.get(f"/clips/{clip['id']}/peaks?n=1")).json()["peaks"]
    assert peaks[0][1] > 0.4
    again = await client.post("/clips", files={"files": ("film.mkv", data)})
    assert again.status_code == 200 and again.json()["clips"][0]["id"] == clip["id"]
    other = await client.post("/clips", files={"files": ("film.mkv", data)}, data={"track": "0"})
    assert other.status_code == 422 and "audio track 1 (fra)" in other.json()["detail"]
    found = await client.get("/clips", params={"filter": json.dumps({"audio_language": "fra"})})
    assert len(found.json()["clips"]) == 1


async def test_channels_that_cancel_are_no_duplicates_of_silence(
    client: httpx.AsyncClient, sounds: SimpleNamespace
) -> None:
    low, high = sounds.tone(400, 3), sounds.tone(1600, 3)
    files = {
        "low.wav": np.stack([low, -low], 1),
        "high.wav": np.stack([high, -high], 1),
        "silence.wav": np.zeros((48_000, 2)),
    }
    for name, samples in files.items():
        clip = (await client.post("/clips", files={"files": (name, sounds.encode(samples))})).json()["clips"][0]
        assert clip["metadata"]["audio_notes"] == ["silent" if name == "silence.wav" else "channels-cancel"]
    assert (await client.get("/clips/duplicates")).json() == {"groups": []}
    found = (await client.get("/search", params={"q": "tone 1600"})).json()["hits"]
    assert found[0]["clip"]["filename"] == "high.wav" and found[0]["similarity"] > 0.9
    answer = (await detect(client, sounds.encode(files["low.wav"]))).json()
    assert [note["code"] for note in answer["notes"]] == ["channels-cancel"]


async def test_raven_tables_stay_below_half_the_sample_rate(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    for rate, high in ((4_000, "2000"), (8_000, "4000"), (11_025, "5512.5"), (44_100, "8000")):
        file = sounds.encode(sounds.tone(400, 2, rate), rate=rate)
        table = (await detect(client, file, threshold="0", format="raven")).text.splitlines()
        assert table[1].split("\t")[6] == high


# Names in the headers of a form


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename=\"=?utf-8?B?Y2Fmw6kud2F2?=\"; filename*=utf-8''caf%C3%A9.wav", "café.wav"),
        ('filename="=?utf-8?B?Y2Fmw6kud2F2?="', "café.wav"),
        ('filename="=?UTF-8?Q?caf=C3=A9=5F1.wav?="', "café_1.wav"),
        ('filename="=?iso-8859-1?Q?caf=E9.wav?="', "café.wav"),
        ('filename="=?utf-8?B?Y2Fm?= =?utf-8?B?w6kud2F2?="', "café.wav"),
        ("filename*=UTF-8''%E7%8B%97.wav", "狗.wav"),
        ("filename*=iso-8859-1'de'B%E4r.wav", "Bär.wav"),
        ("filename=\"fallback.wav\"; filename*=UTF-8''B%C3%A4r.wav", "Bär.wav"),
        ('filename="café.wav"', "café.wav"),
        ('filename="plain =?.wav"', "plain =?.wav"),
        ("filename*=nonsense''a.wav; filename=\"b.wav\"", "b.wav"),
        ('filename="=?utf-8?B?!!?="', None),
        ("filename*=UTF-8''a%22b.wav", "a''b.wav"),
        ("filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
        ('filename="cafe\u0301.wav"', "café.wav"),
    ],
)
async def test_file_names(
    client: httpx.AsyncClient, sounds: SimpleNamespace, disposition: str, name: str | None
) -> None:
    head = f"--X\r\nContent-Disposition: form-data; name=files; {disposition}\r\n\r\n".encode()
    body = head + sounds.wav() + b"\r\n--X--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    answer = await client.post("/clips", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert name is None or answer.json()["clips"][0]["filename"] == name


@pytest.mark.parametrize("junk", [b"", b"filename*=", b"filename*=''", b'filename="=?x?B?', b"filename*=utf-8''%ff%fe"])
def test_names_that_cannot_be_decoded_are_left_alone(junk: bytes) -> None:
    assert file_name(b"form-data; name=a; " + junk) is None


# Filters


async def test_names_and_tags_are_equal_after_nfc(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    composed, decomposed = (unicodedata.normalize(form, "garão") for form in ("NFC", "NFD"))
    for n, (tag, hz) in enumerate(((composed, 400), (decomposed, 800))):
        form = {"metadata": json.dumps({"tags": [tag], decomposed: n})}
        await client.post("/clips", files={"files": (f"{decomposed}-{n}.wav", sounds.wav(hz))}, data=form)

    async def found(**where: Any) -> int:
        return len((await client.get("/clips", params={"filter": json.dumps(where)})).json()["clips"])

    for form in (composed, decomposed):
        assert await found(tags=form) == 2 and await found(tags=["x", form]) == 2
        assert await found(filename=f"{form}-1.wav") == 1
        assert await found(**{form: 1}) == 1
    assert await found(tags="garao") == 0


async def test_times_are_compared_as_instants(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    clip = (await client.post("/clips", files={"files": ("a.wav", sounds.wav())})).json()["clips"][0]
    created = datetime.fromisoformat(clip["created"])

    async def status_and_hits(value: Any) -> tuple[int, int]:
        answer = await client.get("/clips", params={"filter": json.dumps({"created": value})})
        return answer.status_code, len(answer.json().get("clips", []))

    for hours in (-11, -5, 0, 2, 5.5, 14):
        local = created.astimezone(timezone(timedelta(hours=hours)))
        assert await status_and_hits(local.isoformat()) == (200, 1)
        assert await status_and_hits({"gte": local.isoformat(), "lte": local.isoformat()}) == (200, 1)
        assert await status_and_hits({"gt": local.isoformat()}) == (200, 0)
        second = local.replace(microsecond=0).isoformat()
        assert await status_and_hits({"gte": second}) == (200, 1)
        assert await status_and_hits({"lt": second}) == (200, 0)
    assert await status_and_hits({"gte": created.strftime("%Y-%m-%dT%H:%M:%Sz")}) == (200, 1)
    assert await status_and_hits({"gte": created.strftime("%Y-%m-%d")}) == (200, 1)
    assert await status_and_hits({"gte": created.strftime("%Y-%m-%dT%H:%M")}) == (200, 1)
    for nonsense in ("yesterday", "", "2026", "2026-13-01", "2026-01-01T25:00:00Z", "01.02.2026", 5, True, ["soon"]):
        assert (await status_and_hits({"gte": nonsense}))[0] == 422
        assert (await status_and_hits(nonsense))[0] == 422


# The path that a proxy serves the service under


async def test_servers_follow_the_prefix(client: httpx.AsyncClient) -> None:
    async def servers(**headers: str) -> list[dict[str, str]]:
        return (await client.get("/openapi.json", headers=headers)).json()["servers"]

    assert await servers() == [{"url": "./"}]
    assert await servers(**{"X-Forwarded-Prefix": "/sounds/"}) == [{"url": "/sounds"}]
    assert await servers(**{"X-Forwarded-Prefix": "/a/b, /c"}) == [{"url": "/a/b"}]
    for hostile in ("https://evil.example", "//evil.example", "/a/../b", "/<script>", "/" + "a" * 300):
        assert await servers(**{"X-Forwarded-Prefix": hostile}) == [{"url": "./"}]


async def test_a_prefix_that_the_proxy_passes_on(
    make_app: Callable[..., FastAPI], open_client: Callable[..., httpx.AsyncClient]
) -> None:
    app = make_app(root_path="/sounds", api_keys="k")
    async with app.router.lifespan_context(app), open_client(app) as client:
        key = {"Authorization": "Bearer k"}
        for path in ("/sounds/clips", "/clips"):
            assert (await client.get(path, headers=key)).json()["clips"] == []
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/sounds/health/ready")).status_code == 200
        assert (await client.get("/sounds")).status_code == 200
        assert (await client.get("/soundsclips", headers=key)).status_code == 404
        document = (await client.get("/sounds/openapi.json", headers=key)).json()
        assert document["servers"] == [{"url": "/sounds"}]


@pytest.mark.parametrize("path", ["sounds", "/a b", "/a/../b/x y", "https://x"])
def test_a_root_path_is_a_path(make_app: Callable[..., FastAPI], path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        make_app(root_path=path)
