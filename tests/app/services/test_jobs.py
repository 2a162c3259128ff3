"""Jobs in a running service: the same events as /detect, behind requests, and after interruptions."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.services import jobs
from app.state import AppState
from index import NewClip, SqliteLibrary, back_up, restore
from tests.support.clips import make_clip, unit
from tests.support.job_process import fakes, make_app
from tests.support.waiting import wait_until

PHRASES = [f"tone {hz}" for hz in fakes().TONES]
FORMATS = ("csv", "parquet", "raven", "audacity", "ndjson")


def tone_clip(seed: int, frames: int = 40, **changes: Any) -> NewClip:
    """A clip with stored frames in which tones come and go; no audio belongs to it."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(rng.integers(0, len(PHRASES) + 4, frames), rng.integers(1, 12, frames))[:frames]
    vectors = np.eye(16, dtype=np.float32)[kinds] + 0.2 * rng.random((frames, 16))
    options = {"frames": unit(vectors), "duration": frames * 0.16 - 0.05, **changes}
    return make_clip(seed, **options)


def fill(folder: Path, clips: range) -> list[str]:
    with SqliteLibrary.open(folder, dim=16, checkpoint="fake-stamp") as library:
        return [clip.id for clip, _ in library.add_many([tone_clip(seed) for seed in clips])]


@asynccontextmanager
async def serve(folder: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app: FastAPI = make_app(folder, **options)
    async with app.router.lifespan_context(app), fakes().connect(app) as client:
        yield client


async def post(client: httpx.AsyncClient, **request: Any) -> dict[str, Any]:
    response = await client.post("/jobs", json={"kind": "detect", "phrases": PHRASES} | request)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/jobs/{response.json()['id']}"
    return response.json()


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def look() -> bool:
        job.update((await client.get(f"/jobs/{job_id}")).json())
        return job["state"] not in ("queued", "running")

    for _ in range(2000):
        if await look():
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(job)


async def tables(client: httpx.AsyncClient, job_id: str) -> list[bytes]:
    return [(await client.get(f"/jobs/{job_id}/events", params={"format": kind})).content for kind in FORMATS]


async def rows(client: httpx.AsyncClient, job_id: str) -> list[tuple[str, str, float, float, float]]:
    response = await client.get(f"/jobs/{job_id}/events", params={"format": "ndjson"})
    found = [json.loads(line) for line in response.text.splitlines()]
    return [(e["clip_id"], e["phrase"], e["onset"], e["offset"], e["score"]) for e in found]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": [0.3, 0.5, 0.6, 0.7, 0.9, 0.95], "low_threshold": 0.2, "median_filter": 0.3, "max_gap": 0.5},
        {"method": "sebb", "threshold": 0.4, "min_duration": 0.4},
    ],
)
async def test_the_events_are_those_of_detect(tmp_path: Path, options: dict[str, Any]) -> None:
    ids = fill(tmp_path / "data", range(6))
    async with serve(tmp_path / "data") as client:
        job = await ended(client, (await post(client, **options))["id"])
        assert (job["state"], job["done"], job["total"]) == ("done", 6, 6) and job["seconds"] == pytest.approx(6 * 6.35)
        found = await rows(client, job["id"])
        expected = []
        for clip_id in ids:
            form = {"clip_id": clip_id, "phrases": PHRASES, **options}
            detected = (await client.post("/detect", data=form)).json()
            own = [
                (clip_id, phrase["phrase"], event["onset"], event["offset"], event["score"])
                for phrase in detected["phrases"]
                for event in phrase["events"]
            ]
            expected += own
        assert sorted(found) == sorted(expected) and len(found) == job["events"] > 10


async def test_a_concept_in_a_job(tmp_path: Path) -> None:
    """As it was at the job's creation, also after a restart and after it was deleted."""
    ids = fill(tmp_path / "data", range(12))
    name = "concept:siren"
    async with serve(tmp_path / "data", pause=0.02) as client:
        examples = [{"clip_id": ids[number], "start": 0.0, "end": 1.0, "label": number < 4} for number in range(8)]
        made = await client.post("/concepts", json={"name": "siren", "text": "tone 400", "examples": examples})
        assert made.status_code == 201, made.text
        form = {"clip_id": ids[9], "phrases": [name, "tone 800"], "threshold": "0.2"}
        detected = (await client.post("/detect", data=form)).json()
        job = await post(client, phrases=[name, "tone 800"], threshold=0.2)
        assert (await client.post("/jobs", json={"phrases": ["concept:nothing"]})).status_code == 404
        assert (await client.delete("/concepts/siren")).status_code == 204
    async with serve(tmp_path / "data") as client:
        job = await ended(client, job["id"])
        assert job["state"] == "done", job["error"]
        found = sorted(row[1:] for row in await rows(client, job["id"]) if row[0] == ids[9])
        expected = [
            (phrase["phrase"], event["onset"], event["offset"], event["score"])
            for phrase in detected["phrases"]
            for event in phrase["events"]
        ]
        assert found == sorted(expected) and len({row[0] for row in found}) == 2


async def test_long_clips_in_blocks(tmp_path: Path) -> None:
    with SqliteLibrary.open(tmp_path / "data", dim=16, checkpoint="fake-stamp") as library:
        clip, _ = library.add(tone_clip(1, frames=1000))
    async with serve(tmp_path / "data") as client:
        job = await ended(client, (await post(client))["id"])
        detected = (await client.post("/detect", data={"clip_id": clip.id, "phrases": PHRASES})).json()
        assert sum(len(phrase["events"]) for phrase in detected["phrases"]) == job["events"] > 20


@pytest.mark.slow
async def test_five_kills_change_nothing(tmp_path: Path) -> None:
    """The table of a job that was killed five times has the bytes of one that nothing disturbed."""
    fill(tmp_path / "calm", range(60))
    shutil.copytree(tmp_path / "calm", tmp_path / "killed")
    async with serve(tmp_path / "calm") as client:
        calm = await ended(client, (await post(client))["id"])
        undisturbed = await tables(client, calm["id"])
    async with serve(tmp_path / "killed", pause=0.2) as client:
        job_id = (await post(client))["id"]

    def done() -> int:
        with sqlite3.connect(tmp_path / "killed" / "catalog.sqlite3") as database:
            return int(database.execute("SELECT done FROM jobs").fetchone()[0])

    script = [sys.executable, str(Path(__file__).parents[2] / "support/job_process.py")]
    with subprocess.Popen(
        [*script, str(tmp_path / "killed"), "0.02"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forks:
        assert forks.stdin is not None and forks.stdout is not None
        reached = [0]
        for _ in range(5):
            forks.stdin.write("\n")
            forks.stdin.flush()
            process = int(forks.stdout.readline())
            wait_until(lambda: done() > reached[-1])
            os.kill(process, signal.SIGKILL)
            reached.append(done())
    assert reached == sorted(set(reached)) and reached[-1] < 60  # each got on, and none to the end
    async with serve(tmp_path / "killed") as client:
        job = await ended(client, job_id)
        assert (job["state"], job["done"], job["events"]) == ("done", 60, calm["events"])
        assert await tables(client, job_id) == undisturbed


async def test_the_same_job_again_scores_only_new_clips(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(5))
    async with serve(tmp_path / "data") as client:
        first = await ended(client, (await post(client))["id"])
    fill(tmp_path / "data", range(5, 8))
    async with serve(tmp_path / "data") as client:
        model_calls: list[int] = []
        score = client._transport.app.state.service.engine._model  # type: ignore[attr-defined]
        plain, score.frame_score = score.frame_score, lambda f, t: (model_calls.append(len(f)), plain(f, t))[1]
        second = await ended(client, (await post(client))["id"])
        assert (second["reused"], second["total"], second["state"]) == (5, 8, "done") and len(model_calls) == 3
        other = await ended(client, (await post(client, threshold=0.6))["id"])
        assert other["reused"] == 0 and len(model_calls) == 11
        whole = await rows(client, second["id"])
        assert whole[: first["events"]] == await rows(client, first["id"]) and len(whole) == second["events"]
        assert (await client.delete(f"/jobs/{first['id']}")).status_code == 204
        assert await rows(client, second["id"]) == whole
        listed = (await client.get("/jobs")).json()["jobs"]
        assert [job["id"] for job in listed] == [other["id"], second["id"]]


async def test_cancelling_and_deleting(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(80))
    async with serve(tmp_path / "data", pause=0.02) as client:
        running, queued = await post(client), await post(client, threshold=0.4)
        for _ in range(500):
            if (await client.get(f"/jobs/{running['id']}")).json()["done"]:
                break
            await asyncio.sleep(0.01)
        for job in (queued, running):
            response = await client.delete(f"/jobs/{job['id']}")
            assert response.status_code == 200 and response.json()["state"] == "cancelled"
        third = await ended(client, (await post(client))["id"])
        assert third["state"] == "done" and third["reused"] > 0
        stopped = (await client.get(f"/jobs/{running['id']}")).json()
        assert stopped["state"] == "cancelled" and 0 < stopped["done"] < 80
        assert len(await rows(client, running["id"])) == stopped["events"]
        for job in (queued, running):
            assert (await client.delete(f"/jobs/{job['id']}")).status_code == 204
            assert (await client.get(f"/jobs/{job['id']}")).status_code == 404


async def test_a_job_gives_way_to_work_and_not_to_open_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open live stream, or a caller that is slow to send, leaves the model and the library idle most of the time."""
    monkeypatch.setattr(jobs, "_COURTESY_S", 0.25)
    fill(tmp_path / "data", range(20))
    async with serve(tmp_path / "data") as client:
        state: AppState = client._transport.app.state.service  # type: ignore[attr-defined]

        async def timed(threshold: float) -> float:
            began = time.monotonic()
            job = await ended(client, (await post(client, threshold=threshold))["id"])
            assert job["state"] == "done" and not job["reused"]
            return time.monotonic() - began

        async with state.request():
            with state.stream():
                assert await timed(0.4) < 20 * 0.25
        release = threading.Event()
        reading = asyncio.create_task(state.read(release.wait, 60.0))
        assert await timed(0.6) >= 19 * 0.25
        release.set()
        await reading
        assert not state.busy


async def test_clips_that_are_deleted_meanwhile(tmp_path: Path) -> None:
    ids = fill(tmp_path / "data", range(60))
    async with serve(tmp_path / "data", pause=0.02) as client:
        job = await post(client)
        for clip_id in (ids[0], ids[59]):  # scored already, perhaps, and not yet
            assert (await client.delete(f"/clips/{clip_id}")).status_code == 204
        job = await ended(client, job["id"])
        found = await rows(client, job["id"])
        assert (job["done"], job["total"]) == (60, 60) and len(found) == job["events"]
        assert not {ids[0], ids[59]} & {row[0] for row in found}
        assert (await client.delete(f"/clips/{ids[30]}")).status_code == 204
        found = [row for row in found if row[0] != ids[30]]
        assert await rows(client, job["id"]) == found
        assert (await client.get(f"/jobs/{job['id']}")).json()["events"] == len(found)


async def test_a_library_that_was_embedded_anew(tmp_path: Path) -> None:
    """An unfinished job starts over with the new checkpoint; a finished one keeps its table."""
    fill(tmp_path / "data", range(60))
    async with serve(tmp_path / "data", pause=0.02) as client:
        job_id = (await post(client))["id"]
        for _ in range(500):
            if (await client.get(f"/jobs/{job_id}")).json()["done"]:
                break
            await asyncio.sleep(0.01)
    with sqlite3.connect(tmp_path / "data" / "catalog.sqlite3") as database:  # what a takeover does
        database.execute("UPDATE library SET checkpoint = 'new-stamp'")
        assert 0 < database.execute("SELECT done FROM jobs").fetchone()[0] < 60
    async with serve(tmp_path / "data", stamp="new-stamp") as client:
        job = await ended(client, job_id)
        assert (job["state"], job["done"], job["checkpoint"], job["reused"]) == ("done", 60, "new-stamp", 0)
        assert len(await rows(client, job_id)) == job["events"] > 0


async def test_a_restored_backup_goes_on(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(20))
    async with serve(tmp_path / "data") as client:
        calm = await ended(client, (await post(client))["id"])
        back_up(tmp_path / "data", tmp_path / "backups", lambda *_: None)
        table = await tables(client, calm["id"])
    restore(tmp_path / "backups", tmp_path / "again", lambda *_: None)
    async with serve(tmp_path / "again") as client:
        assert await tables(client, calm["id"]) == table


async def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(3))
    with sqlite3.connect(tmp_path / "data" / "catalog.sqlite3") as database:
        database.execute("UPDATE frames SET codes = x'00' WHERE row = 2")
    async with serve(tmp_path / "data") as client:
        job = await ended(client, (await post(client))["id"])
        assert job["state"] == "failed" and "not frames" in job["error"]
        assert (await ended(client, (await post(client, filter={"filename": "sound 0.wav"}))["id"]))["state"] == "done"


async def test_a_milvus_library_has_no_jobs(
    make_app: Callable[..., FastAPI], open_client: Callable[..., httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        monkeypatch.setattr(app.state.service.library, "jobs", None)
        for response in (
            await client.get("/jobs"),
            await client.post("/jobs", json={"phrases": ["x"]}),
            await client.delete("/jobs/x"),
        ):
            assert response.status_code == 501 and response.json()["type"].endswith("jobs-unsupported")


def test_parquet_can_be_read(tmp_path: Path) -> None:
    from datetime import datetime

    from pyarrow import parquet

    from app.export.events import to_parquet
    from index import EVENT, Clip

    clips = [Clip(f"id{n}", f"2024013{n}_054500.WAV", "", 9.0, 48_000, 1, "", {}) for n in range(1, 3)] + [
        Clip("id3", "猫.wav", "", 9.0, 48_000, 1, "", {})
    ]
    found = np.array([(1, 1.25, 2.5, 0.75)], EVENT)
    data = b"".join(to_parquet([(clip, found) for clip in clips], ["dog", "bird, “singing”"]))
    table = parquet.read_table(io.BytesIO(data)).to_pylist()
    assert table[0] == {
        "clip_id": "id1", "filename": "20240131_054500.WAV", "phrase": "bird, “singing”",
        "onset": 1.25, "offset": 2.5, "score": 0.75, "time": datetime(2024, 1, 31, 5, 45, 1, 250_000),
    }  # fmt: skip
    assert table[2]["filename"] == "猫.wav" and table[2]["time"] is None
    assert b"".join(to_parquet([], ["dog"]))[:4] == b"PAR1"
