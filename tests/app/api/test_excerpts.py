"""Excerpts, previews and archives over HTTP: parameters, headers, names, ranges, and what fails."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import soundfile

from index.records import NewClip


async def add(client: httpx.AsyncClient, name: str, data: bytes, **metadata: Any) -> dict[str, Any]:
    parts = [("files", (name, data))]
    response = await client.post("/clips", files=parts, data={"metadata": json.dumps(metadata)})
    assert response.status_code == 201, response.text
    return response.json()["clips"][0]


def read(response: httpx.Response, dtype: str = "int32") -> tuple[np.ndarray, soundfile.SoundFile]:
    with soundfile.SoundFile(io.BytesIO(response.content)) as sound:
        return sound.read(dtype=dtype, always_2d=True), sound


@pytest.fixture
def surround(sounds: SimpleNamespace) -> bytes:
    """Two seconds of 5.1 in 24 bits at 96 kHz."""
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (192_000, 6))
    return sounds.encode(samples, "WAVEX", 96_000, "PCM_24")


async def test_an_excerpt_keeps_the_format_of_the_file(client: httpx.AsyncClient, surround: bytes) -> None:
    clip = await add(client, "大雨 rain.wav", surround)
    whole, _ = soundfile.read(io.BytesIO(surround), dtype="int32")
    response = await client.get(f"/clips/{clip['id']}/audio", params={"start": 0.5, "end": 1.25, "fade": 0})
    samples, sound = read(response)
    assert (sound.samplerate, sound.channels, sound.subtype) == (96_000, 6, "PCM_24")
    np.testing.assert_array_equal(samples, whole[48_000:120_000])
    assert response.headers["content-type"] == "audio/wav"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-disposition"].endswith("%E5%A4%A7%E9%9B%A8%20rain_0.5s-1.25s.wav")
    padded, _ = read(await client.get(f"/clips/{clip['id']}/audio", params={"start": 0.1, "end": 1.9, "pad": 0.2}))
    assert len(padded) == 192_000  # no more than there is
    np.testing.assert_array_equal(padded, whole)  # which has no edge to fade
    faded, _ = read(await client.get(f"/clips/{clip['id']}/audio", params={"start": 0.5, "end": 1.25}))
    np.testing.assert_array_equal(faded[480:-480], samples[480:-480])
    assert not faded[0].any() and not faded[-1].any()


@pytest.mark.parametrize(("format", "subtype"), [("flac", "PCM_24"), ("ogg", "VORBIS")])
async def test_other_formats(client: httpx.AsyncClient, surround: bytes, format: str, subtype: str) -> None:
    clip = await add(client, "rain.wav", surround)
    response = await client.get(f"/clips/{clip['id']}/audio?start=0.5&end=1&format={format}")
    samples, sound = read(response)
    assert response.headers["content-type"] == f"audio/{format}"
    assert sound.subtype == subtype and samples.shape == (48_000, 6)
    whole = await client.get(f"/clips/{clip['id']}/audio?format={format}")
    assert len(read(whole)[0]) == 192_000


async def test_ranges_and_heads(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    clip = await add(client, "a.aiff", sounds.encode(sounds.tone(400, 2, 44_100), "AIFF", 44_100, "PCM_24"))
    for path in (f"/clips/{clip['id']}/audio?start=0.5&end=1.5", f"/clips/{clip['id']}/preview"):
        whole = await client.get(path)
        assert whole.status_code == 200 and whole.headers["accept-ranges"] == "bytes"
        size = len(whole.content)
        part = await client.get(path, headers={"Range": "bytes=100-20000"})
        assert part.status_code == 206 and part.content == whole.content[100:20001]
        assert part.headers["content-range"] == f"bytes 100-20000/{size}"
        assert (await client.get(path, headers={"Range": "bytes=-9"})).content == whole.content[-9:]
        assert (await client.get(path, headers={"Range": f"bytes={size}-"})).status_code == 416
        assert (await client.get(path, headers={"Range": "bytes=5-2"})).content == whole.content
        head = await client.head(path)
        assert head.status_code == 200 and int(head.headers["content-length"]) == size and not head.content
    samples, sound = read(await client.get(f"/clips/{clip['id']}/preview"), "float64")
    assert (sound.samplerate, sound.channels, sound.subtype) == (44_100, 1, "PCM_16")
    np.testing.assert_allclose(samples[:, 0], sounds.tone(400, 2, 44_100), atol=2**-15)


FAULTS = [
    ("start=2", "start: 2 s is after the end of the clip, which has 1.000 s."),
    ("start=0.5&end=0.5", "end: 0.5 s is not after the start, 0.5 s."),
    ("start=-1", "start: "),
    ("start=nan", "start: "),
    ("pad=1e9", "pad: "),
    ("format=mp3", "format: "),
    ("form=wav", "form: "),
]


async def test_invalid_parameters(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    clip = await add(client, "a.wav", sounds.wav(400))
    for query, detail in FAULTS:
        response = await client.get(f"/clips/{clip['id']}/audio?{query}")
        assert response.status_code == 422 and response.json()["detail"].startswith(detail), query
    assert (await client.get("/clips/none/audio?start=0")).status_code == 404
    assert (await client.get("/clips/none/preview")).status_code == 404


async def test_formats_that_cannot_hold_a_sound(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    wide = await add(client, "a.wav", sounds.encode(np.zeros((16_000, 12)), rate=16_000))
    fast = await add(client, "b.wav", sounds.encode(sounds.tone(400, 1, 384_000), rate=384_000))
    assert (await client.get(f"/clips/{wide['id']}/audio?format=flac")).json()["detail"] == (
        "format: FLAC cannot hold 12 channels at 16000 Hz; use wav."
    )
    assert (await client.get(f"/clips/{fast['id']}/audio?format=ogg")).status_code == 422
    assert (await client.get(f"/clips/{fast['id']}/audio?format=wav")).status_code == 200


async def test_an_audio_file_that_became_damaged(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    clip = await add(client, "a.wav", sounds.wav(400))
    data: Path = client._transport.app.state.service.settings.data_dir  # type: ignore[attr-defined]
    next((data / "audio").rglob(clip["sha256"])).write_bytes(b"not audio any more")
    for path in ("audio?start=0.1", "preview"):
        response = await client.get(f"/clips/{clip['id']}/{path}")
        assert response.status_code == 415 and response.json()["detail"].startswith("a.wav: ")


NAMES = [
    ("bark.wav", {}, "bark_0.2s-0.5s.wav"),
    ("DOORWood_Creaky Slam_JD_LIB.aif", {}, "DOORWood_Creaky Slam_JD_LIB_0.2s-0.5s.wav"),
    ("take 7.wav", {"cat_id": "DOORWood"}, "DOORWood_take 7_NONE_NONE_0.2s-0.5s.wav"),
    (
        "x.wav",
        {
            "cat_id": "DOORWood",
            "user_category": "Old",
            "vendor_category": "ACME",
            "fx_name": "Slam_1/2",
            "creator": "JD",
        },
        "DOORWood-Old_ACME-Slam 1 2_JD_NONE_0.2s-0.5s.wav",
    ),
    ("x.wav", {"cat_id": "no such category"}, "x_0.2s-0.5s.wav"),
    ("x.wav", {"cat_id": ["DOORWood"], "fx_name": 7}, "x_0.2s-0.5s.wav"),
]


async def test_names_follow_ucs(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    for number, (name, metadata, expected) in enumerate(NAMES):
        clip = await add(client, name, sounds.wav(400 + number), **metadata)
        response = await client.get(f"/clips/{clip['id']}/audio?start=0.2&end=0.5")
        _, _, quoted = response.headers["content-disposition"].partition("''")
        assert unquote(quoted) == expected


async def test_an_archive_of_moments_and_clips(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    bark = await add(client, "bark.wav", sounds.wav(400, 2), tags=["dog", "loud"], description="=1+1")
    door = await add(client, "door.flac", sounds.encode(sounds.tone(800, 1), "FLAC"), cat_id="DOORWood")
    items = [
        {"clip_id": bark["id"], "start": 0.5, "end": 1.0},
        {"clip_id": bark["id"], "start": 0.5, "end": 1.0},
        {"clip_id": door["id"]},
        {"clip_id": "none"},
        {"clip_id": bark["id"], "start": 9},
    ]
    response = await client.post("/clips/download", json={"items": items, "pad": 0.1})
    assert response.status_code == 200 and response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        first, again, whole = "bark_0.4s-1.1s.wav", "bark_0.4s-1.1s (2).wav", "DOORWood_door_NONE_NONE.flac"
        assert archive.namelist() == [first, again, whole, "sounds.csv"]
        assert len(soundfile.read(io.BytesIO(archive.read(first)))[0]) == int(0.7 * 16_000)
        assert archive.read(whole) == sounds.encode(sounds.tone(800, 1), "FLAC")
        rows = list(csv.DictReader(archive.read("sounds.csv").decode("utf-8-sig").splitlines()))
    assert [row["file"] for row in rows] == [first, again, whole, "", ""]
    assert (rows[0]["start"], rows[0]["end"], rows[0]["tags"]) == ("0.400", "1.100", "dog; loud")
    assert rows[0]["description"] == "'=1+1"  # not a formula
    assert rows[2]["category"] == "DOORS" or rows[2]["cat_id"] == "DOORWood"
    assert rows[3]["problem"] == "no clip has the id 'none'" and rows[4]["problem"].startswith("start: 9 s is after")
    converted = await client.post("/clips/download", json={"items": items[2:3], "format": "ogg"})
    with zipfile.ZipFile(io.BytesIO(converted.content)) as archive:
        assert archive.namelist()[0] == "DOORWood_door_NONE_NONE.ogg"
    assert (await client.post("/clips/download", json={"items": []})).status_code == 422


def ten_hours(path: Path, rate: int) -> None:
    """A WAV file of ten hours that is a hole, but for one second after 30,000 s."""
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="RF64") as file:
        file.write(np.zeros(100, np.int16))
    size = 2 * rate * 36_000
    head = path.read_bytes()[:-200].replace((200).to_bytes(8, "little"), size.to_bytes(8, "little"))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
        file.seek(len(head) + 2 * rate * 30_000)
        file.write(np.full(rate, 1234, "<i2").tobytes())


async def test_excerpts_of_ten_hours_are_quick(client: httpx.AsyncClient) -> None:
    """A ten-hour file is not read to cut it. It takes the place of a short one, as embedding it would take minutes."""
    rate, small = 48_000, b"short"
    library = client._transport.app.state.service.library  # type: ignore[attr-defined]
    vector = np.eye(16, dtype=np.float32)[:1]
    sha256 = hashlib.sha256(small).hexdigest()
    new = NewClip("day.wav", sha256, 36_000.0, rate, 1, {}, vector[0], vector, 0.16, small)
    clip_id = library.add(new)[0].id
    ten_hours(library.audio_path(clip_id), rate)
    samples, _ = read(await client.get(f"/clips/{clip_id}/audio?start=29999.5&end=30001.5&fade=0"), "int16")
    assert (samples[rate // 2 : rate + rate // 2] == 1234).all()
    assert not samples[: rate // 2].any() and not samples[-rate // 2 :].any()
    began, count = time.perf_counter(), 60
    for n in range(count):
        start = 599.7 * n
        assert (await client.get(f"/clips/{clip_id}/audio?start={start}&end={start + 1}")).status_code == 200
    assert (time.perf_counter() - began) / count < 0.1
    preview = await client.get(
        f"/clips/{clip_id}/preview", headers={"Range": f"bytes={2 * rate * 30_000 + 44}-{2 * rate * 30_000 + 143}"}
    )
    assert preview.status_code == 206 and preview.content == np.full(50, 1234, "<i2").tobytes()
