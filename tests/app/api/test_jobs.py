"""The API of jobs: what is refused, the tables and summaries, and the clients and the command over it."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.cli.main import main
from app.client import AsyncClient, Client, NotFound
from tests.support.waiting import wait_until

SECONDS = (1.6, 61.6, 1.92, 2.24)
NAMES = ("20240131_054500.WAV", "SM4_20240131_065930.wav", "犬, “loud”.wav", "=cmd.wav")


@pytest.fixture
async def filled(client: httpx.AsyncClient, sounds: SimpleNamespace) -> httpx.AsyncClient:
    """Clips of 400 Hz: two that tell their start, and two others; the last one has metadata."""
    for number, name in enumerate(NAMES):
        form = {"metadata": json.dumps({"site": "south" if number == 3 else "north"})}
        files = {"files": (name, sounds.wav(400, SECONDS[number]))}
        assert (await client.post("/clips", data=form, files=files)).status_code == 201
    return client


async def run(client: httpx.AsyncClient, **request: Any) -> dict[str, Any]:
    job = (await client.post("/jobs", json={"phrases": ["tone 400", "tone 800"]} | request)).json()
    while job["state"] in ("queued", "running"):
        job = (await client.get(f"/jobs/{job['id']}")).json()
    assert job["state"] == "done", job
    return job


async def events(client: httpx.AsyncClient, job: dict[str, Any], kind: str) -> httpx.Response:
    response = await client.get(f"/jobs/{job['id']}/events", params={"format": kind})
    assert response.status_code == 200
    return response


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"phrases": []}, "phrases"),
        ({"phrases": ["x"] * 101}, "limit of 100"),
        ({"phrases": [" "]}, "empty"),
        ({"phrases": ["x", "y"], "threshold": [0.1, 0.2, 0.3]}, "3 values for 2"),
        ({"phrases": ["x"], "threshold": 1.5}, "threshold"),
        ({"phrases": ["x"], "threshold": True}, "threshold"),
        ({"phrases": ["x"], "low_threshold": 0.9}, "low_threshold"),
        ({"phrases": ["x"], "kind": "embed"}, "kind"),
        ({"phrases": ["x"], "filter": {"site": []}}, "site"),
        ({"phrases": ["x"], "filter": ["site"]}, "filter"),
        ({"phrases": ["x"], "thresold": 0.5}, "thresold"),
        ({"phrases": ["x"], "method": "guess"}, "method"),
        ({"phrases": ["x"], "median_filter": 61}, "median_filter"),
        ({}, "phrases"),
    ],
)
async def test_invalid_requests(client: httpx.AsyncClient, request_: dict[str, Any], says: str) -> None:
    response = await client.post("/jobs", json=request_)
    assert response.status_code == 422 and says in response.json()["detail"], response.text
    assert (await client.get("/jobs")).json() == {"jobs": []}


async def test_other_refusals(filled: httpx.AsyncClient) -> None:
    job = await run(filled)
    for method, path in (
        ("GET", "/jobs/x"),
        ("DELETE", "/jobs/ü"),
        ("GET", "/jobs/x/events"),
        ("GET", "/jobs/x/summary"),
    ):
        response = await filled.request(method, path)
        assert response.status_code == 404 and response.json()["type"].endswith("job-not-found")
    for path in ("events?format=json", "summary?by=day", "summary?by=clip&format=png", "events?limit=1"):
        assert (await filled.get(f"/jobs/{job['id']}/{path}")).status_code == 422
    assert (await filled.post("/jobs", content=b"{")).status_code == 400
    assert (await filled.put("/jobs")).status_code == 405


async def test_too_many_jobs(make_app: Callable[..., FastAPI], open_client: Callable[..., httpx.AsyncClient]) -> None:
    app = make_app(max_jobs=1)
    async with app.router.lifespan_context(app), open_client(app) as client:
        app.state.jobs.wake = lambda: None  # nothing runs
        assert (await client.post("/jobs", json={"phrases": ["x"]})).status_code == 202
        refused = await client.post("/jobs", json={"phrases": ["x"]})
        assert refused.status_code == 429 and refused.headers["retry-after"] == "60"
        assert refused.json()["type"].endswith("too-many-jobs")


async def test_an_empty_library(client: httpx.AsyncClient) -> None:
    job = await run(client)
    assert (job["done"], job["total"], job["events"]) == (0, 0, 0)
    assert (await events(client, job, "csv")).text.count("\n") == 1
    for by in ("phrase", "clip", "hour"):
        assert (await client.get(f"/jobs/{job['id']}/summary", params={"by": by})).json()["by"] == by
    png = await client.get(f"/jobs/{job['id']}/summary?by=hour&format=png")
    assert png.content.startswith(b"\x89PNG")


async def test_tables(filled: httpx.AsyncClient) -> None:
    job = await run(filled)
    assert job["events"] == 4
    table = list(csv.DictReader(io.StringIO((await events(filled, job, "csv")).text)))
    assert [row["filename"] for row in table] == [*NAMES[:3], "'=cmd.wav"]
    assert table[0] | {"clip_id": "", "score": ""} == {
        "filename": NAMES[0], "onset": "0.000", "offset": "1.600", "event_label": "tone 400", "score": "",
        "clip_id": "", "time": "2024-01-31T05:45:00.000",
    }  # fmt: skip
    assert table[2]["time"] == ""
    raven = list(csv.DictReader(io.StringIO((await events(filled, job, "raven")).text), delimiter="\t"))
    assert [row["Begin File"] for row in raven] == list(NAMES)
    assert [row["Begin Time (s)"] for row in raven] == ["0.000", "1.600", "63.200", "65.120"]
    assert {row["File Offset (s)"] for row in raven} == {"0.000"}
    archive = zipfile.ZipFile(io.BytesIO((await events(filled, job, "audacity")).content))
    assert archive.testzip() is None
    assert archive.namelist() == ["20240131_054500.txt", "SM4_20240131_065930.txt", "犬, “loud”.txt", "=cmd.txt"]
    assert archive.read("20240131_054500.txt") == b"0.000\t1.600\ttone 400\n"
    lines = [json.loads(line) for line in (await events(filled, job, "ndjson")).text.splitlines()]
    assert [line["filename"] for line in lines] == list(NAMES) and lines[3]["time"] is None
    again = await events(filled, job, "audacity")
    assert again.headers["content-disposition"] == f'attachment; filename="events-{job["id"][:8]}.zip"'


async def test_filter_and_thresholds(filled: httpx.AsyncClient) -> None:
    job = await run(filled, filter={"site": "south"}, threshold=[0.999, 0.5], low_threshold=0.1)
    assert (job["total"], job["events"], job["threshold"]) == (1, 0, [0.999, 0.5])
    assert job["low_threshold"] == [0.1, 0.1] and job["filter"] == {"site": "south"}


async def test_summaries(filled: httpx.AsyncClient) -> None:
    job = await run(filled)

    async def summary(by: str, **options: str) -> httpx.Response:
        response = await filled.get(f"/jobs/{job['id']}/summary", params={"by": by, **options})
        assert response.status_code == 200
        return response

    phrases = (await summary("phrase")).json()["phrases"]
    assert phrases == [
        {"phrase": "tone 400", "events": 4, "duration": pytest.approx(67.36), "clips": 4},
        {"phrase": "tone 800", "events": 0, "duration": 0.0, "clips": 0},
    ]
    hours = (await summary("hour")).json()
    assert hours["undated"] == 2 and [hour["hour"] for hour in hours["hours"]] == [
        "2024-01-31T05:00", "2024-01-31T06:00", "2024-01-31T07:00",
    ]  # fmt: skip
    assert [round(hour["seconds"], 1) for hour in hours["hours"]] == [1.6, 30.0, 31.6]  # the second clip spans two
    assert [hour["events"] for hour in hours["hours"]] == [[1, 0], [1, 0], [0, 0]]
    clips = (await summary("clip")).json()["clips"]
    assert [clip["events"] for clip in clips] == [[1, 0]] * 4 and clips[0]["durations"] == [1.6, 0.0]
    assert (await summary("clip", format="csv")).text.count("\n") == 1 + 4 * 2
    assert (await summary("hour", format="csv")).text.splitlines()[1] == "2024-01-31T05:00,1.600,tone 400,1,1.600"
    assert (await summary("phrase", format="csv")).text.splitlines()[1] == "tone 400,4,67.360,4"
    assert (await summary("hour", format="png")).content.startswith(b"\x89PNG")


async def test_the_clients(run_server: Callable[..., str], sounds: SimpleNamespace, tmp_path: Path) -> None:
    with Client(address := run_server()) as client:
        client.add([("a.wav", sounds.wav(400)), ("b.wav", sounds.wav(800))], {"kind": "tone"})
        seen: list[int] = []
        job = client.start_job(["tone 400"], filter={"kind": "tone"}, threshold=0.4)
        job = client.wait_for_job(job.id, lambda now: seen.append(now.done), 0.01)
        assert job.finished and (job.state, job.total, job.events) == ("done", 2, 1) and seen[-1] == 2
        client.save_job_events(job.id, tmp_path / "events.csv")
        assert (tmp_path / "events.csv").read_bytes() == client.job_events(job.id)
        async with AsyncClient(address) as other:
            assert await other.job(job.id) == job and await other.jobs() == client.jobs() == (job,)
            assert await other.job_events(job.id, "ndjson") == client.job_events(job.id, "ndjson")
            assert await other.job_summary(job.id) == client.job_summary(job.id)
            again = await other.start_job(["tone 400"], threshold=0.4)
            assert (await other.wait_for_job(again.id, interval=0.01)).reused == 2
            await other.save_job_events(again.id, tmp_path / "again.csv")
            assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "events.csv").read_bytes()
            assert (await other.job_summary_as("csv", job.id)).startswith(b"event_label")
            assert await other.delete_job(again.id) is None
        assert client.job_summary_as("png", job.id, "hour").startswith(b"\x89PNG")
        client.delete_job(job.id)
        with pytest.raises(NotFound):
            client.job(job.id)


def test_the_command(
    run_server: Callable[..., str], sounds: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = run_server()
    with Client(address) as client:
        client.add([("a.wav", sounds.wav(400)), (NAMES[0], sounds.wav(800))])
    options = ["--server", address, "-p", "tone 400", "-p", "tone 800", "--threshold", "0.4"]
    table, summary, png = tmp_path / "events.parquet", tmp_path / "clips.csv", tmp_path / "heat.png"
    assert main(["scan", *options, "--out", str(table), "--summary", str(summary)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 clips, 0.00 hours: 2 events") and "tone 800" in out
    from pyarrow import parquet

    assert sorted(parquet.read_table(table).column("phrase").to_pylist()) == ["tone 400", "tone 800"]
    assert summary.read_text().startswith("filename,recorded,event_label")
    arguments = ["--filter", '{"filename": "a.wav"}', "--out", str(tmp_path / "e.txt"), "--summary", str(png), "--json"]
    assert main(["scan", *options, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] == 1
    assert (tmp_path / "e.txt").read_text().count("\n") == 2 and png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "-p"),
        (["-p", "x", "--out", "events.xls"], "--format"),
        (["-p", "x", "--format", "csv"], "--out"),
        (["-p", "x", "--summary", "x.txt"], ".csv"),
        (["-p", "x", "--summary", "x.png", "--by", "clip"], "hour"),
        (["-p", "x", "--threshold", "0.5", "--threshold", "0.4"], "expected 1"),
    ],
)
def test_invalid_arguments(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_ctrl_c_cancels_the_job_and_the_same_command_goes_on(
    run_server: Callable[..., str],
    fake_model: Any,
    sounds: SimpleNamespace,
    repo_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = run_server()
    with Client(address) as client:
        for number in range(30):
            client.add((f"{number}.wav", sounds.wav(400, 0.5 + number / 1000)))
        plain, go = fake_model.frame_score, threading.Event()

        def slow(frames: Any, text: Any) -> Any:
            go.wait(0.2)
            return plain(frames, text)

        fake_model.frame_score = slow
        code = "import sys; from app.cli.main import main; sys.exit(main())"
        command = ["scan", "-p", "tone 400", "--server", address]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command],
            cwd=repo_dir,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell may ignore SIGINT
        )
        wait_until(lambda: [job for job in client.jobs() if job.done >= 2])
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in said
        assert said.endswith("the job is cancelled; the same command goes on where it stopped\ninterrupted\n")
        (job,) = client.jobs()
        assert job.state == "cancelled" and 2 <= job.done < 30
        go.set()
        assert main([*command, "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert (again["state"], again["done"], again["reused"]) == ("done", 30, client.job(job.id).done)
