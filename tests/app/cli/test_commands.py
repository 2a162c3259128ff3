"""The command line, run in this process against a real HTTP server with a fake model that recognises tones."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from app.cli import local
from app.cli.main import main
from app.cli.upload import find_sources
from app.client import Client, SearchResult
from app.export.formats import FORMATS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the checksum cache inside the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server(run_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a running service, set in the environment of the commands."""
    address = run_server()
    monkeypatch.setenv("FINELAP_SERVER", address)
    return address


@pytest.fixture
def folder(tmp_path: Path, sounds: SimpleNamespace) -> Path:
    """Audio files at several depths, one broken file, and files that are not audio."""
    root = tmp_path / "sounds"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "low.wav").write_bytes(sounds.wav(200))
    (root / "deep" / "mid.FLAC").write_bytes(sounds.encode(sounds.tone(1600, 1.0), "FLAC"))
    (root / "deep" / "er" / "тон 音.wav").write_bytes(sounds.wav(6400))
    (root / "deep" / "broken.wav").write_text("this is text")
    (root / "notes.txt").write_text("not a sound")
    (root / ".hidden.wav").write_bytes(sounds.wav(800))
    return root


@pytest.fixture
def recording(tmp_path: Path, sounds: SimpleNamespace) -> Path:
    """40 s: 400 Hz from 10.08 to 14.08 s, 3200 Hz from 25.12 to 26.08 s."""
    samples = np.zeros(40 * sounds.RATE, np.float32)
    for hz, onset, offset in ((400, 10.08, 14.08), (3200, 25.12, 26.08)):
        tone = sounds.tone(hz, offset - onset)
        start = round(onset * sounds.RATE)
        samples[start : start + len(tone)] = tone
    path = tmp_path / "recording.wav"
    path.write_bytes(sounds.encode(samples))
    return path


def failure(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that a failing command prints."""
    try:
        returned = main(arguments)
    except SystemExit as stop:
        returned = stop.code
    out, err = capsys.readouterr()
    assert returned == code
    assert out == ""
    assert err.count("\n") == 1, err
    return err


# Arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["search"], "--audio"),
        (["search", "   "], "empty"),
        (["search", "dog", "--audio", "x.wav", "--similar-to", "x"], "--similar-to"),
        (["search", "--like", "x", "--similar-to", "x"], "--similar-to"),
        (["search", "dog", "--like", "@1-2"], "ID@START-END"),
        (["search", "dog", "--unlike", "x@1"], "ID@START-END"),
        (["search", "dog", "--like", "x@2-1.5"], "ends before"),
        (["search", "dog", "--mode", "both"], "hybrid"),
        (["search", "dog", "--similar-to", "x"], "--similar-to"),
        (["search", "--similar-to", "x", "--without", "y"], "combined with -k"),
        (["search", "dog", "--without", " "], "--without"),
        (["search", "dog", "--min-score", "2"], "2"),
        (["detect", "x.wav", "-p", "a", "--threshold", "0.5", "--threshold", "0.4"], "expected 1, not 2"),
        (
            ["detect", "x.wav", "-p", "a", "-p", "b", "-p", "c", "--low-threshold", "0", "--low-threshold", "0"],
            "expected 3",
        ),
        (["detect", "x.wav", "-p", "a", "--low-threshold", "0.9"], "low_threshold"),
        (["detect", "x.wav", "-p", "a", "--method", "guess"], "guess"),
        (["detect", "x.wav", "-p", "a", "--format", "xml"], "xml"),
        (["search", "dog", "-k", "0"], "'0'"),
        (["search", "dog", "--filter", "[1]"], "object"),
        (["detect", "x.wav"], "-p"),
        (["detect", "x.wav", "-p", " "], "empty"),
        (["detect", "x.wav", "-p", "dog", "--threshold", "1.5"], "0 to 1"),
        (["detect", "x.wav", "-p", "dog", "--threshold", "nan"], "nan"),
        (["detect", "x.wav", "-p", "dog", "--median-filter", "61"], "60"),
        (["detect", "x.wav", "-p", "dog", "--max-gap", "-1"], "max-gap"),
        (["ingest"], "PATH"),
        (["ingest", "x", "--metadata", "{"], "JSON"),
        (["embed", "x.wav"], "--output"),
        (["convert", "x.pt"], "--out"),
        (["train"], "--config"),
        (["serve", "--port", "70000"], "65535"),
        (["serve", "--demo", "nowhere"], "nowhere"),
    ],
)
def test_invalid_arguments_print_one_line_and_return_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINELAP_SERVER", raising=False)
    assert says in failure(arguments, 2, capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ingest", "nowhere"], "nowhere"),
        (["search", "dog", "--server", "http://127.0.0.1:9"], "finelap serve"),
        (["search", "dog", "--server", "not an address"], "not an address"),
        (["detect", "nowhere.wav", "-p", "dog", "--server", "http://127.0.0.1:9"], "nowhere.wav"),
        (["detect", "nowhere.wav", "-p", "dog"], "nowhere.wav"),
        (["embed", "nowhere.wav", "-o", "out.npz"], "nowhere.wav"),
        (["convert", "nowhere.pt", "--out", "out"], "nowhere.pt"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_failures_print_one_line_and_return_1(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINELAP_SERVER", raising=False)
    assert says in failure(arguments, 1, capsys)


def test_help_lists_commands_without_heavy_imports(repo_dir: Path) -> None:
    code = "import sys, app.cli.main\ntry: app.cli.main.main(['--help'])\n"
    code += "finally: print({'numpy', 'httpx'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_dir)
    assert run.returncode == 0
    assert run.stdout.endswith("set()\n")
    for command in ("serve", "ingest", "search", "detect", "embed", "convert", "train"):
        assert f"\n    {command} " in run.stdout


def test_unexpected_errors_propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("app.cli.remote.run_search", broken)
    with pytest.raises(ZeroDivisionError):
        main(["search", "dog"])


# Ingest


def test_ingest_adds_a_tree_and_reports_failures(server: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", str(folder), "--metadata", '{"session": 7}']) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["added", "3"]
    assert out.splitlines()[1].split() == ["already", "there", "0"]
    assert out.splitlines()[2].split() == ["failed", "1"]
    assert "broken.wav: " in out
    assert "clips/s" in out
    assert "4/4" in err

    main(["search", "tone 6400", "-k", "1", "--json"])
    clip = json.loads(capsys.readouterr().out)["hits"][0]["clip"]
    assert clip["filename"] == "тон 音.wav"
    assert clip["metadata"] == {"path": "deep/er/тон 音.wav", "session": 7}


def test_repeated_ingest_sends_nothing(
    server: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deep" / "broken.wav").unlink()
    assert main(["ingest", str(folder)]) == 0
    capsys.readouterr()
    monkeypatch.setattr("app.client.Client.add", lambda self, file, metadata: pytest.fail(f"{file} was sent again"))
    assert main(["ingest", str(folder), str(folder / "low.wav"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["added"], summary["already_there"], summary["failed"]) == (0, 3, [])


def test_copies_of_a_file_are_added_once(
    server: str, tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).write_bytes(sounds.wav(400))
    assert main(["ingest", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), str(tmp_path / "c.wav"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["added"], summary["already_there"]) == (1, 2)


def test_files_are_found_once_and_in_order(folder: Path) -> None:
    sources = find_sources([folder / "low.wav", folder], {})
    assert [s.metadata["path"] for s in sources] == [
        "low.wav",
        "deep/broken.wav",
        "deep/mid.FLAC",
        "deep/er/тон 音.wav",
    ]


def test_explicit_files_are_sent_regardless_of_suffix(folder: Path) -> None:
    assert [s.path.name for s in find_sources([folder / "notes.txt"], {})] == ["notes.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_file_names_that_are_not_utf8_are_sent(
    server: str, tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / os.fsdecode(b"t\xf6ne.wav")).write_bytes(sounds.wav(400))
    assert main(["ingest", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 1


def test_an_empty_folder_is_an_error(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no audio" in failure(["ingest", str(tmp_path)], 1, capsys)


class Flaky(BaseHTTPRequestHandler):
    """A service that is busy, then drops the connection, then accepts the file."""

    tries = 0
    said: list[float] = []

    def do_GET(self) -> None:
        if self.path == "/info":
            model = dict.fromkeys(("name", "stamp", "dim", "frame_hop", "device", "dtype"), "")
            self.answer(200, {"version": "0", "model": model, "clips": 0, "limits": {}})
        else:
            self.answer(200, {"clips": [], "next_cursor": None})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).tries += 1
        type(self).said.append(time.monotonic())
        if self.tries == 1:
            self.answer(429, {"title": "Queue full"}, {"Retry-After": "1"})
        elif self.tries == 2:
            self.close_connection = True
        elif self.tries == 3:
            self.answer(503, {"title": "Not ready"})
        else:
            self.answer(201, {"clips": [], "errors": []})

    def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def test_ingest_waits_for_a_busy_server(
    tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    Flaky.tries, Flaky.said = 0, []
    (tmp_path / "a.wav").write_bytes(sounds.wav(400))
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert main(["ingest", str(tmp_path), "--server", address, "--json"]) == 0
        server.shutdown()
    assert json.loads(capsys.readouterr().out)["added"] == 1
    assert Flaky.tries == 4
    assert Flaky.said[1] - Flaky.said[0] >= 1.0  # honours Retry-After


def test_remaining_files_fail_quickly_when_the_server_disappears(
    tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    class Gone(Flaky):
        def do_POST(self) -> None:
            sent.append(self.path)
            self.close_connection = True

    monkeypatch.setattr("app.cli.remote._INGEST_RECONNECT", 0.5)
    for i in range(40):
        (tmp_path / f"{i}.wav").write_bytes(sounds.wav(400 + i))
    with ThreadingHTTPServer(("127.0.0.1", 0), Gone) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = main(["ingest", str(tmp_path), "--server", f"http://127.0.0.1:{server.server_address[1]}", "--json"])
        server.shutdown()
    assert code == 1
    assert len(json.loads(capsys.readouterr().out)["failed"]) == 40
    assert len(sent) <= 2 * 40  # half a second allows one retry, not one per file


def test_ctrl_c_stops_an_ingest_immediately(tmp_path: Path, repo_dir: Path, sounds: SimpleNamespace) -> None:
    reached, go = threading.Event(), threading.Event()

    class Stuck(Flaky):
        def do_POST(self) -> None:
            reached.set()
            go.wait(60)

    (tmp_path / "a.wav").write_bytes(sounds.wav(400))
    with ThreadingHTTPServer(("127.0.0.1", 0), Stuck) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = "import sys; from app.cli.main import main; sys.exit(main())"
        address = f"http://127.0.0.1:{server.server_address[1]}"
        command = [sys.executable, "-c", code, "ingest", str(tmp_path), "--server", address]
        process = subprocess.Popen(
            command,
            cwd=repo_dir,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell may ignore SIGINT
        )
        assert reached.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        go.set()
        server.shutdown()
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said


def test_the_api_key_comes_from_the_environment(
    run_server: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = run_server(api_keys="secret")
    assert "FINELAP_API_KEY" in failure(["ingest", str(folder), "--server", address], 1, capsys)
    monkeypatch.setenv("FINELAP_API_KEY", "secret")
    assert main(["ingest", str(folder / "low.wav"), "--server", address]) == 0


# Search


def test_search_prints_hits_and_moments(server: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ingest", str(folder)])
    capsys.readouterr()
    assert main(["search", "tone 1600", "-k", "2", "--moments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "similarity", "duration", "file"]
    assert lines[1].endswith("mid.FLAC")
    assert "0.00 – 1.00 s" in lines[2]
    assert main(["search", "--audio", str(folder / "low.wav"), "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("low.wav")


def test_search_filters(server: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ingest", str(folder / "low.wav"), "--metadata", '{"tags": ["low"]}'])
    main(["ingest", str(folder / "deep"), "--metadata", '{"tags": ["deep"]}'])
    capsys.readouterr()
    for arguments in (["tone 1600"], ["--audio", str(folder / "deep" / "mid.FLAC")]):
        assert main(["search", *arguments, "--json", "--filter", '{"tags": "low"}']) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        assert [hit["clip"]["filename"] for hit in hits] == ["low.wav"]


def test_search_by_clip_and_with_exclusions(
    server: str, tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    both = np.concatenate([sounds.tone(200, 1.0), sounds.tone(1600, 1.0)])
    for name, samples in (("both", both), ("pure", sounds.tone(1600, 1.0)), ("other", sounds.tone(6400, 1.0))):
        (tmp_path / f"{name}.wav").write_bytes(sounds.encode(samples))
    main(["ingest", str(tmp_path)])
    capsys.readouterr()

    def hits(*arguments: str) -> list[dict[str, Any]]:
        assert main(["search", *arguments, "--json"]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["hits"]
        return found

    names = [hit["clip"]["filename"] for hit in hits("tone 1600", "--without", "tone 200", "--without", "tone 6400")]
    assert names[0] == "pure.wav"
    similar = hits(
        "--similar-to", next(h["clip"]["id"] for h in hits("tone 1600") if h["clip"]["filename"] == "pure.wav")
    )
    assert [hit["clip"]["filename"] for hit in similar] == ["both.wav", "other.wav"]
    assert [hit["clip"]["filename"] for hit in hits("tone 6400", "--min-score", "0.9")] == ["other.wav"]
    assert "no clip" in failure(["search", "--similar-to", "nothing"], 1, capsys)


def answering(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Makes every search return `answer`; collects what was asked."""
    asked: list[dict[str, Any]] = []

    def search(self: Client, query: str | None = None, **options: Any) -> SearchResult:
        asked.append({"query": query, **options})
        return SearchResult.from_json({"query": query, "took_ms": 1.0, **answer})

    monkeypatch.setattr("app.client.Client.search", search)
    return asked


CLIP = {"id": "7", "sha256": "", "duration": 2.5, "sample_rate": 16_000, "channels": 1, "created": "", "metadata": {}}
HITS = [
    {
        "clip": {**CLIP, "filename": name},
        "similarity": similarity,
        "score": score,
        "match": match,
        "moments": [{"start": 0.5, "end": 1.0, "score": 0.75}],
    }
    for name, similarity, score, match in (("dog.wav", 0.412, 0.71, True), ("wind.wav", 0.2, 0.08, False))
]


def test_search_says_what_matches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"matches": 1, "did_you_mean": "dog barking", "hits": HITS}
    answering(monkeypatch, answer)
    assert main(["search", "dog barkng", "--moments"]) == 0
    out, err = capsys.readouterr()
    assert err == "Showing results for “dog barking” instead of “dog barkng”.\n"
    assert out.splitlines() == [
        "score  match  similarity   duration  file",
        " 0.71  yes         0.412     2.50 s  dog.wav",
        "                              0.50 – 1.00 s, score 0.75",
        " 0.08  –           0.200     2.50 s  wind.wav",
        "                              0.50 – 1.00 s, score 0.75",
    ]
    assert main(["search", "dog barkng", "--json"]) == 0
    out, err = capsys.readouterr()
    hits = [{**hit, "reasons": []} for hit in HITS]
    whole = {"query": "dog barkng", "took_ms": 1.0, **answer, "hits": hits, "track": None, "notes": []}
    assert json.loads(out) == whole and err == ""


def test_search_says_that_nothing_matches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, {"matches": 0, "did_you_mean": None, "hits": HITS[1:]})
    assert main(["search", "asdfgh"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        "No close match; the nearest sounds:",
        "score  match  similarity   duration  file",
    ]
    assert err == ""


def test_search_by_text_and_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unjudged = [{key: value for key, value in hit.items() if key != "match"} for hit in HITS]
    asked = answering(monkeypatch, {"hits": unjudged})
    arguments = ["--like", "a1", "--like", "b2@0.5-12", "--unlike", "c3", "--mode", "semantic"]
    assert main(["search", "a dog", "--audio", "dog.wav", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["score", "similarity", "duration", "file"]
    assert asked == [
        {
            "query": "a dog",
            "file": Path("dog.wav"),
            "k": 10,
            "moments": False,
            "like": [{"clip_id": "a1"}, {"clip_id": "b2", "start": 0.5, "end": 12.0}],
            "unlike": [{"clip_id": "c3"}],
            "mode": "semantic",
        }
    ]
    assert main(["search", "--like", "a1"]) == 0
    assert asked[1] == {"query": None, "file": None, "k": 10, "moments": False, "like": [{"clip_id": "a1"}]}


def test_json_output_equals_the_response(
    server: str, folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["ingest", str(folder)])
    capsys.readouterr()
    main(["search", "tone 1600", "--moments", "--json"])
    printed = json.loads(capsys.readouterr().out)
    answered = httpx.post(f"{server}/search", json={"query": "tone 1600", "moments": True}, timeout=60).json()
    assert printed | {"took_ms": 0} == answered | {"took_ms": 0}
    main(["detect", str(recording), "-p", "tone 400", "--json"])
    printed = json.loads(capsys.readouterr().out)
    upload = {"file": ("recording.wav", recording.read_bytes())}
    assert printed == httpx.post(f"{server}/detect", data={"phrases": "tone 400"}, files=upload, timeout=60).json()


def test_searching_an_empty_library(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "dog"]) == 0
    assert capsys.readouterr().out == "nothing found\n"


# Detect and embed


@pytest.fixture
def offline_model(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local commands use the fake model."""
    monkeypatch.delenv("FINELAP_SERVER", raising=False)
    monkeypatch.setattr(local, "load_model", lambda settings: fake_model)


def detect(recording: Path, *arguments: str) -> int:
    return main(["detect", str(recording), "-p", "tone 400", "-p", "tone 3200", "-p", "tone 800", *arguments])


HOW = [
    ["--threshold", "0.6", "--max-gap", "0.5", "--min-duration", "0.3"],
    ["--threshold", "0.9", "--threshold", "0.5", "--threshold", "0.1", "--low-threshold", "0.05"],
    ["--method", "sebb", "--threshold", "0.4"],
    ["--median-filter", "0"],
]


@pytest.mark.parametrize(
    ("format", "how"),
    [
        *(("json", how) for how in HOW),
        *((format, HOW[1]) for format in ("csv", "audacity", "raven", "table", "ndjson")),
    ],
)
def test_detect_output_is_equal_locally_and_remotely(
    server: str,
    recording: Path,
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    format: str,
    how: list[str],
) -> None:
    monkeypatch.setattr(local, "load_model", lambda settings: fake_model)
    assert detect(recording, "--format", format, *how) == 0
    there = capsys.readouterr().out
    assert detect(recording, "--format", format, *how, "--device", "cpu") == 0  # --device implies a local run
    here = capsys.readouterr().out
    assert here == there
    assert "tone 400" in here


def test_plot_is_equal_locally_and_remotely(
    run_server: Callable[..., str], recording: Path, offline_model: None, tmp_path: Path
) -> None:
    options = ["--threshold", "0.3", "--threshold", "0.6", "--threshold", "0.9", "--plot"]
    assert detect(recording, *options, str(tmp_path / "here.png")) == 0
    assert detect(recording, *options, str(tmp_path / "there.png"), "--server", run_server()) == 0
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()


def test_detect_finds_the_sounds(recording: Path, offline_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(recording, "--json", "--threshold", "0.6", "--max-gap", "0.5", "--min-duration", "0.3") == 0
    low, high, absent = (phrase["events"] for phrase in json.loads(capsys.readouterr().out)["phrases"])
    assert [(e["onset"], e["offset"]) for e in low] == [(10.08, 14.08)]
    assert [(e["onset"], e["offset"]) for e in high] == [(25.12, 26.08)]
    assert absent == []


def test_ndjson_streams_events_before_the_end(
    recording: Path, offline_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(recording, "--format", "ndjson") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["start", "event", "event", "end"]
    assert lines[0]["sample_rate"] == 16_000 and lines[0]["phrases"] == ["tone 400", "tone 3200", "tone 800"]
    assert [(line["phrase"], line["onset"]) for line in lines[1:3]] == [("tone 400", 10.08), ("tone 3200", 25.12)]
    assert detect(recording, "--json") == 0
    assert {"type": "end"} | json.loads(capsys.readouterr().out) == lines[3]


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_truncated_recording_leaves_the_output_untouched(
    run_server: Callable[..., str],
    recording: Path,
    offline_model: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    (tmp_path / "text.wav").write_text("this is text")
    recording.write_bytes(recording.read_bytes()[:600_000])
    (tmp_path / "out.csv").write_text("kept")
    options = ["-p", "tone 400", "-o", str(tmp_path / "out.csv"), "--format", "csv"]
    options += ["--server", run_server()] if where == "there" else []
    assert "text.wav" in failure(["detect", str(tmp_path / "text.wav"), *options], 1, capsys)
    assert "recording.wav" in failure(["detect", str(recording), *options], 1, capsys)
    assert (tmp_path / "out.csv").read_text() == "kept"


def test_detect_formats(
    recording: Path, offline_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(recording) == 0
    table = capsys.readouterr().out
    assert "10.08" in table and "not found: tone 800" in table
    assert detect(recording, "--format", "csv", "-o", str(tmp_path / "events.csv")) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "events.csv").read_text(encoding="utf-8"))))
    assert [(row["filename"], row["event_label"], float(row["onset"]), float(row["offset"])) for row in rows] == [
        ("recording.wav", "tone 400", 10.08, 14.08),
        ("recording.wav", "tone 3200", 25.12, 26.08),
    ]
    assert detect(recording, "--format", "audacity") == 0
    assert capsys.readouterr().out == "10.080\t14.080\ttone 400\n25.120\t26.080\ttone 3200\n"
    assert detect(recording, "--format", "raven") == 0
    head, first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert len(head) == len(first) == len(second)
    assert dict(zip(head, first, strict=True))["Begin Time (s)"] == "10.080"


def test_formats_escape_any_phrase() -> None:
    event = {"onset": 0.0, "offset": 1.0, "score": 0.9}
    phrase = {"phrase": 'a "b",\tc\nd', "max_score": 0.9, "events": [event]}
    answer = {"filename": "ä,.wav", "duration": 1.0, "phrases": [phrase]}
    assert next(csv.DictReader(io.StringIO(FORMATS["csv"](answer))))["event_label"] == phrase["phrase"]
    assert FORMATS["audacity"](answer).rstrip("\n").split("\t")[2] == 'a "b", c d'
    assert len(FORMATS["raven"](answer).splitlines()) == 2


def test_embed_writes_arrays_and_reports_failures(
    folder: Path, offline_model: None, fake_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "embeddings"
    assert main(["embed", str(folder), "-o", str(out), "--frames"]) == 1
    assert "broken.wav" in capsys.readouterr().err
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["filenames"].tolist() == ["low.wav", "mid.FLAC", "тон 音.wav"]
        assert arrays["clips"].shape == (3, fake_model.dim)
        np.testing.assert_allclose(np.linalg.norm(arrays["clips"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(arrays["durations"], 1.0)
        low, mid, end = (
            arrays["frames"][a:b] for a, b in zip(arrays["frame_offsets"], arrays["frame_offsets"][1:], strict=False)
        )
        assert low.shape == mid.shape == end.shape == (7, fake_model.dim)
        assert (low.argmax(axis=1) == 0).all() and (mid.argmax(axis=1) == 3).all()
        assert str(arrays["stamp"]) == fake_model.stamp


def test_embed_without_readable_files_writes_nothing(
    tmp_path: Path, offline_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_text("text")
    assert main(["embed", str(tmp_path / "broken.wav"), "-o", str(tmp_path / "out.npz")]) == 1
    assert not (tmp_path / "out.npz").exists()


# Concepts


def test_concepts_are_taught_and_used(
    server: str, folder: Path, tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(["concepts", *arguments]) == code
        return capsys.readouterr().out

    main(["ingest", str(folder)])
    example = tmp_path / "an example.wav"
    example.write_bytes(sounds.wav(1600, 2))
    with Client(server) as client:
        ids = {clip.filename: clip.id for clip in client.clips()}
    capsys.readouterr()
    assert run("list") == "no concepts\n"
    taught = run("teach", "mid beep", "--positive", str(example), "--negative", ids["low.wav"])
    assert taught.splitlines()[1].endswith("mid beep") and "quality needs" in taught
    run("teach", "mid beep", "--text", "a beep", "--positive", f"{ids['mid.FLAC']}@0-0.8")
    (concept,) = json.loads(run("list", "--json"))
    assert (concept["positives"], concept["negatives"], concept["text"]) == (2, 1, "a beep")
    assert "0.35" in run("teach", "mid beep", "--threshold", "0.35")
    (concept,) = json.loads(run("list", "--json"))
    assert (concept["threshold"], concept["threshold_set"], concept["positives"]) == (0.35, True, 2)
    main(["search", "concept:mid beep", "--json"])
    assert json.loads(capsys.readouterr().out)["hits"][0]["clip"]["filename"] == "mid.FLAC"
    assert ids["low.wav"] not in run("suggest", "mid beep") and json.loads(run("suggest", "mid beep", "--json"))
    labels = tmp_path / "labels.csv"
    run("export", "mid beep", "--format", "csv", "-o", str(labels))
    exported = [row["event_label"] for row in csv.DictReader(labels.open(encoding="utf-8"))]
    assert sorted(exported) == ["mid beep", "mid beep", "not mid beep"]
    labels.write_text("0.1\t0.9\tbeep\n", encoding="utf-8")
    added = run("import", "mid beep", str(labels), "--format", "audacity", "--clip", ids["mid.FLAC"], "--label", "beep")
    assert added.startswith("1 examples")
    failure(["concepts", "teach", "mid beep"], 2, capsys)
    failure(["concepts", "teach", "x", "--positive", "no file@and-no stretch"], 2, capsys)
    assert "no concept" in failure(["concepts", "suggest", "nothing"], 1, capsys)
    run("delete", "mid beep")
    assert run("list") == "no concepts\n"


def test_collections_are_filled_shown_and_exported(
    server: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(["collections", *arguments]) == code
        return capsys.readouterr().out

    main(["ingest", str(folder)])
    with Client(server) as client:
        ids = {clip.filename: clip.id for clip in client.clips()}
    capsys.readouterr()
    assert run("list", "--json") == "{}\n"
    assert run("add", "a scene", ids["low.wav"]) == "1 clips added to a scene\n"
    run("add", "a scene", "--filter", json.dumps({"clip_id": [ids["mid.FLAC"]]}))
    run("add", "other", ids["low.wav"])
    assert json.loads(run("list", "--json")) == {"a scene": 2, "other": 1}
    assert run("list").splitlines()[1].split(maxsplit=1) == ["2", "a scene"]
    assert {clip["id"] for clip in json.loads(run("show", "a scene", "--json"))} == {ids["low.wav"], ids["mid.FLAC"]}
    assert "low.wav" in run("show", "other")
    run("rename", "other", "a scene")
    archive = tmp_path / "scene.zip"
    run("export", "a scene", "-o", str(archive))
    with zipfile.ZipFile(archive) as files:
        assert {*files.namelist()} == {"low.wav", "mid.FLAC", "sounds.csv"}
    run("remove", "a scene", ids["low.wav"])
    assert json.loads(run("list", "--json")) == {"a scene": 1}
    run("add", "a scene", ids["low.wav"], "nothing", code=1)
    for wrong in (["add", "a scene"], ["add", "a scene", "x", "--filter", "{}"]):
        failure(["collections", *wrong], 2, capsys)
    run("delete", "a scene")
    assert len(ids) == len(list(Client(server).clips()))
    for action in (["show", "a scene"], ["delete", "a scene"], ["export", "a scene", "-o", str(tmp_path / "no.zip")]):
        assert "no collection" in failure(["collections", *action], 1, capsys)
    assert not (tmp_path / "no.zip").exists()
