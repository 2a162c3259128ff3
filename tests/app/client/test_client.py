"""Both clients against the real service over a socket, and against misbehaving services."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

import app.client as api
from app.client import AsyncClient, Client, ServerError, calls, to_json
from app.client.retry import RetryPolicy


class Both:
    """Calls a method of both clients, checks that the results are equal, and returns one."""

    def __init__(self, server: str, **options: Any) -> None:
        self.server, self.options = server, options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **values: Any) -> Any:
            one, other = (
                _outcome(lambda: self._sync(name, args, values)),
                _outcome(lambda: self._async(name, args, values)),
            )
            assert _comparable(one) == _comparable(other)
            if isinstance(one, Exception):
                raise one
            return one

        return call

    def _sync(self, name: str, args: Any, values: Any) -> Any:
        with Client(self.server, **self.options) as client:
            answer = getattr(client, name)(*args, **values)
            return list(answer) if isinstance(answer, Iterator) else answer

    def _async(self, name: str, args: Any, values: Any) -> Any:
        async def ask() -> Any:
            async with AsyncClient(self.server, **self.options) as client:
                answer = getattr(client, name)(*args, **values)
                if isinstance(answer, AsyncIterator):
                    return [item async for item in answer]
                return await answer

        return asyncio.run(ask())


def _outcome(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (ServerError, ValueError, OSError) as error:
        return error


def _comparable(answer: Any) -> Any:
    """The parts of a result that are equal in repeated calls."""
    if isinstance(answer, Exception):
        return type(answer), getattr(answer, "status", None), to_json(getattr(answer, "files", ()))
    if isinstance(answer, list) and answer and isinstance(answer[0], api.DetectionStart):
        answer = [message for message in answer if not isinstance(message, api.DetectionProgress)]
    return _without_time(to_json(answer))


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_time(item) for name, item in value.items() if name not in ("took_ms", "new", "updated")}
    if isinstance(value, list):
        return [_without_time(item) for item in value]
    return value


@pytest.fixture
def both(run_server: Callable[..., str]) -> Both:
    return Both(run_server())


@pytest.fixture
def low(both: Both, sounds: SimpleNamespace) -> api.Clip:
    """A clip in the library: 200 Hz for 2 s, then 1600 Hz for 2 s."""
    samples = np.concatenate([sounds.tone(200, 2), sounds.tone(1600, 2)])
    return both.add(("low.wav", sounds.encode(samples)), {"tags": ["low"]}).clips[0]


# The two clients


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        public = {n: f for n, f in vars(kind).items() if inspect.isfunction(f) and not n.startswith("_")}
        return {
            name: [
                one.replace(annotation=str(one.annotation).replace("AsyncIterable", "Iterable")) for one in parameters
            ]
            for name, function in public.items()
            for parameters in [inspect.signature(function).parameters.values()]
        }

    assert methods(Client) == methods(AsyncClient)
    assert set(methods(Client)) >= {"add", "clips", "search", "search_moments", "detect_stream", "embed_files"}


def test_every_public_name_exists() -> None:
    assert all(hasattr(api, name) for name in api.__all__)


def test_importing_the_client_loads_no_heavy_library(repo_dir: Path) -> None:
    heavy = {
        "torch",
        "faiss",
        "fastapi",
        "starlette",
        "pydantic",
        "soundfile",
        "av",
        "transformers",
        "matplotlib",
        "tqdm",
    }
    code = f"import sys, app.client; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_dir, check=True)
    assert run.stdout == "[]\n"


# The library


def test_add_accepts_paths_bytes_and_files(both: Both, sounds: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "тон 音.wav"
    path.write_bytes(sounds.wav(200))
    with Client(both.server) as client, (tmp_path / "open.wav").open("wb+") as file:
        file.write(sounds.wav(800))  # the position is at the end
        added = client.add(
            [path, str(path), ("bytes.wav", sounds.wav(400)), ("io.wav", io.BytesIO(sounds.wav(1600))), file],
            [{"n": 1}, {"n": 2}, None, {}, {"n": 5}],
        )
    assert added.new
    assert [c.filename for c in added.clips] == ["тон 音.wav", "тон 音.wav", "bytes.wav", "io.wav", "open.wav"]
    assert added.clips[0].id == added.clips[1].id  # the same bytes
    assert [c.metadata.get("n") for c in added.clips[2:]] == [None, None, 5]
    assert not both.add(path).new


def test_a_failed_file_does_not_affect_the_others(both: Both, sounds: SimpleNamespace) -> None:
    added = both.add([("text.wav", b"text"), ("a.wav", sounds.wav(200))])
    assert [clip.filename for clip in added.clips] == ["a.wav"]
    assert [(f.filename, f.status) for f in added.failed] == [("text.wav", 415)]
    assert "decoded" in added.failed[0].reason
    with pytest.raises(api.Refused) as caught:
        both.add([("text.wav", b"text"), ("empty.wav", b"")])
    assert caught.value.status == 415
    assert [(f.filename, f.status) for f in caught.value.files] == [("text.wav", 415), ("empty.wav", 422)]


def test_clips_reads_all_pages(both: Both, sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAGE", 2)
    for n, hz in enumerate((200, 400, 800, 1600, 3200)):
        both.add((f"{hz}.wav", sounds.wav(hz)), {"odd": bool(n % 2)})
    assert [c.filename for c in both.clips()] == ["3200.wav", "1600.wav", "800.wav", "400.wav", "200.wav"]
    assert [c.filename for c in both.clips({"odd": True})] == ["1600.wav", "400.wav"]
    assert list(both.clips({"odd": "never"})) == []


def test_clip_update_and_delete(both: Both, low: api.Clip) -> None:
    assert both.clip(low.id) == low
    assert (low.filename, low.duration, low.sample_rate, low.channels) == ("low.wav", 4.0, 16_000, 1)
    assert both.update(low.id, {"tags": None, "place": "森"}).metadata == {"place": "森"}
    with Client(both.server) as client:
        client.delete(low.id)
    for call in (both.clip, both.delete, both.audio, both.peaks, both.loudness, both.similar):
        with pytest.raises(api.NotFound):
            call(low.id)
    with pytest.raises(api.NotFound):
        both.clip("../info?x=/y")


def test_audio_is_returned_unchanged(both: Both, sounds: SimpleNamespace, tmp_path: Path) -> None:
    data = sounds.encode(sounds.tone(400, 3.0), "FLAC")
    clip = both.add(("a.flac", data)).clips[0]
    assert both.audio(clip.id) == data
    both.save_audio(clip.id, tmp_path / "copy.flac")
    assert (tmp_path / "copy.flac").read_bytes() == data
    with pytest.raises(api.NotFound):
        both.save_audio("none", tmp_path / "none.flac")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".flac"] == ["copy.flac"]  # no partial file


def test_peaks(both: Both, low: api.Clip) -> None:
    waveform = both.peaks(low.id, 100)
    assert waveform.peaks.shape == (100, 2) and waveform.peaks.dtype == np.float32
    assert waveform.duration == 4.0
    np.testing.assert_allclose(waveform.peaks, np.tile([-0.5, 0.5], (100, 1)), atol=0.05)


def test_loudness(both: Both, low: api.Clip) -> None:
    loudness = both.loudness(low.id)
    assert loudness.integrated is not None and loudness.peak == pytest.approx(-6.0, abs=0.1)


# Search


def test_search_by_text_file_and_clip(both: Both, low: api.Clip, sounds: SimpleNamespace) -> None:
    high = both.add(("high.wav", sounds.wav(6400)), {"tags": ["high"]}).clips[0]
    found = both.search("tone 1600", k=1, moments=True)
    assert found.query == "tone 1600" and len(found) == 1
    hit = next(iter(found))
    assert hit.clip == low and 0 < hit.score < 1 and 0 < hit.similarity <= 1
    assert hit.moments is not None
    assert hit.moments[0].start == pytest.approx(2.0, abs=0.2)
    assert both.search("tone 1600").hits[0].moments is None

    example = ("like.wav", sounds.wav(6400, 2.0))
    assert [h.clip for h in both.search(file=example, k=1)] == [high]
    assert [h.clip for h in both.search(file=example, filter={"tags": "low"})] == [low]
    assert [h.clip for h in both.search("tone 6400", min_score=0.9)] == [high]
    assert [h.clip for h in both.similar(low.id, k=5)] == [high]


def test_a_search_sends_every_option(low: api.Clip) -> None:
    """As JSON, and with a file as a form whose examples are one JSON field each."""
    hit = api.Hit(low, 0.5, 0.5, None, None)
    moment = api.MomentHit(low, 1.0, 2.5, 0.5, None)
    stretch = {"clip_id": "b", "start": 0.5, "end": 2.0}
    with Client("http://127.0.0.1:9") as client:

        def sent(query: str | None, **options: Any) -> httpx.Request:
            call = calls.search(query, options.pop("file", None), options)
            with call.request(client._http) as request:
                request.read()
                return request

        examples = [{"clip_id": low.id}, {"clip_id": low.id, "start": 1.0, "end": 2.5}, stretch]
        body = json.loads(sent("dog", like=["a", low, hit, moment, stretch], unlike="c", mode="hybrid").content)
        assert body == {
            "query": "dog",
            "mode": "hybrid",
            "like": [{"clip_id": "a"}, {"clip_id": low.id}, *examples],
            "unlike": [{"clip_id": "c"}],
        }
        assert json.loads(sent(None, like=low).content) == {"like": [{"clip_id": low.id}]}
        form = sent("a dog", file=("a.wav", b"sound"), like=(low, stretch), without=["x", "y"], k=3).content.decode()
    fields = re.findall(r'name="(\w+)"(?:; filename="(.*?)")?.*?\r\n\r\n(.*?)\r\n', form, re.DOTALL)
    assert [(name, value) for name, _, value in fields if name not in ("like", "file")] == [
        ("query", "a dog"),
        ("without", "x"),
        ("without", "y"),
        ("k", "3"),
    ]
    assert ("file", "a.wav", "sound") in fields
    assert [json.loads(value) for name, _, value in fields if name == "like"] == [[{"clip_id": low.id}, stretch]]


def test_search_results_say_what_matches(low: api.Clip) -> None:
    reasons = [{"kind": "name", "words": ["low"]}, {"kind": "sound", "words": []}]
    hit = {"clip": to_json(low), "similarity": 0.4, "score": 0.7, "reasons": reasons}
    whole = {"query": "dog barkng", "took_ms": 1.5, "matches": 1, "did_you_mean": "dog barking"}
    moment = {"start": 0.0, "end": 1.0, "score": 0.5}
    given = [{**hit, "match": True, "moments": [moment]}, {**hit, "match": False, "moments": None}]
    with playing(lambda n, _: (200, {}, json.dumps({**whole, "hits": given}).encode())) as server:
        found = Both(server).search("dog barkng", moments=True)
    assert (found.matches, found.did_you_mean, [h.match for h in found]) == (1, "dog barking", [True, False])
    assert to_json(found) == {**whole, "hits": given, "track": None, "notes": []}


def test_a_service_without_a_cutoff_claims_nothing(low: api.Clip) -> None:
    """Whether the members are null, or missing as in an older service."""
    hit = {"clip": to_json(low), "similarity": 0.4, "score": 0.7}
    null = {"matches": None, "did_you_mean": None, "hits": [{**hit, "match": None, "moments": None}]}
    for members in (null, {"hits": [hit]}):
        body = json.dumps({"query": "dog", "took_ms": 1.5, **members}).encode()
        with playing(lambda n, _, body=body: (200, {}, body)) as server:
            found = Both(server).search("dog")
        assert found.matches is found.did_you_mean is found.hits[0].match is None
        assert found.hits[0].clip == low


def test_search_without(both: Both, low: api.Clip, sounds: SimpleNamespace) -> None:
    pure = both.add(("pure.wav", sounds.wav(1600))).clips[0]
    assert {h.clip for h in both.search("tone 1600")} == {low, pure}
    best = both.search("tone 1600", without=["tone 200"]).hits[0]
    assert best.clip == pure


def test_moments_of_the_library(both: Both, low: api.Clip) -> None:
    found = both.search_moments("tone 1600", k=3)
    assert found.query == "tone 1600" and len(found) >= 1
    assert found.hits[0].clip == low and found.hits[0].parts is None
    assert found.hits[0].start == pytest.approx(2.0, abs=0.2)
    after = both.search_moments(sequence=["tone 200", "tone 1600"], max_gap=1.0, filter={"tags": "low"})
    assert after.query == ("tone 200", "tone 1600")
    assert after.hits[0].parts is not None and len(after.hits[0].parts) == 2
    assert after.hits[0].start == pytest.approx(0.0, abs=0.2) and after.hits[0].end == pytest.approx(4.0, abs=0.2)


# Analysis


def test_classify(both: Both, low: api.Clip, sounds: SimpleNamespace) -> None:
    labels = both.classify(["800", "6400"], file=("a.wav", sounds.wav(6400)), template="tone {}")
    assert [label.label for label in labels] == ["6400", "800"]
    assert sum(label.probability for label in labels) == pytest.approx(1.0, abs=1e-4)
    assert both.classify(["tone 200", "tone 800"], clip_id=low.id, template="{}")[0].label == "tone 200"


def test_detect_file_and_clip(both: Both, low: api.Clip) -> None:
    phrases = ["tone 1600", "tone 800"]
    found = both.detect(phrases, clip_id=low.id, frames=True)
    assert (found.filename, found.duration) == ("low.wav", 4.0)
    present, absent = found.phrases
    assert (present.phrase, absent.phrase) == ("tone 1600", "tone 800")
    assert [(e.onset, e.offset) for e in present.events] == [(pytest.approx(2.0, abs=0.2), 4.0)]
    assert absent.events == ()
    assert present.frame_scores is not None and present.frame_scores.dtype == np.float32
    assert len(present.frame_scores) == round(4.0 / found.frame_hop)
    with Client(both.server) as client:
        audio = ("low.wav", client.audio(low.id))
    assert _comparable(both.detect(phrases, file=audio)) == _comparable(both.detect(phrases, clip_id=low.id))


def test_detect_options_reach_the_service(both: Both, low: api.Clip) -> None:
    phrases = ["tone 1600", "tone 200"]
    one, other = both.detect(phrases, clip_id=low.id, threshold=[1.0, 0.5]).phrases
    assert one.events == () and len(other.events) == 1
    everything = {
        "threshold": 0.6,
        "low_threshold": [0.3, 0.2],
        "median_filter": 0.0,
        "min_duration": 3.0,
        "max_gap": 0.0,
        "method": "threshold",
    }
    assert all(p.events == () for p in both.detect(phrases, clip_id=low.id, **everything).phrases)
    assert both.detect(phrases, clip_id=low.id, method="sebb").phrases[0].events
    with pytest.raises(api.Refused, match="low_threshold"):
        both.detect(phrases, clip_id=low.id, threshold=0.3, low_threshold=0.4)


def test_detect_as_files(both: Both, low: api.Clip) -> None:
    assert both.detect_as("png", ["tone 200"], clip_id=low.id).startswith(b"\x89PNG")
    assert b"low.wav" in both.detect_as("csv", ["tone 200"], clip_id=low.id)
    with pytest.raises(api.Refused):
        both.detect_as("pdf", ["tone 200"], clip_id=low.id)


def test_a_streamed_detection_ends_with_the_complete_result(both: Both, low: api.Clip) -> None:
    phrases = ["tone 1600", "tone 200"]
    messages = both.detect_stream(phrases, clip_id=low.id, frames=True)
    whole = both.detect(phrases, clip_id=low.id, frames=True)
    start, end = messages[0], messages[-1]
    assert isinstance(start, api.DetectionStart) and start.phrases == tuple(phrases) and start.sample_rate == 16_000
    assert isinstance(end, api.DetectionEnd)
    assert _comparable(end.detection) == _comparable(both.detect(phrases, clip_id=low.id))
    events = [(m.phrase, m.onset, m.offset) for m in messages if isinstance(m, api.DetectionEvent)]
    assert sorted(events) == sorted((p.phrase, e.onset, e.offset) for p in whole.phrases for e in p.events)
    frames = [message for message in messages if isinstance(message, api.DetectionFrames)]
    assert frames[0].first == 0
    joined = np.concatenate([part.scores for part in frames], axis=1)
    np.testing.assert_array_equal(
        joined, np.stack([p.frame_scores for p in whole.phrases if p.frame_scores is not None])
    )


def test_a_stream_can_be_abandoned(both: Both, low: api.Clip) -> None:
    with Client(both.server) as client:
        for message in client.detect_stream(["tone 200"], clip_id=low.id):
            assert isinstance(message, api.DetectionStart)
            break
        assert client.ready()


# Embeddings and the service itself


def test_embeddings(both: Both, fake_model: Any, sounds: SimpleNamespace, tmp_path: Path) -> None:
    texts = both.embed_texts(["tone 200", "森の音"])
    assert texts.dtype == np.float32
    np.testing.assert_array_equal(texts, fake_model.encode_text(["tone 200", "森の音"]))
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(200, 2.0))
    found = both.embed_files([path, ("bad.wav", b"text")], frames=True)
    assert found.model == "fake" and [f.filename for f in found.failed] == ["bad.wav"]
    audio = found.audio[0]
    assert audio.filename == "a.wav" and audio.duration == 2.0 and audio.frames is not None
    assert audio.embedding.shape == (fake_model.dim,) and audio.frames.shape[1] == fake_model.dim
    assert len(audio.frames) == np.ceil(2.0 / audio.frame_hop)
    assert both.embed_files(path).audio[0].frames is None


def test_info_and_readiness(both: Both, low: api.Clip, fake_model: Any) -> None:
    info = both.info()
    assert (info.clips, info.model.stamp, info.model.dim) == (1, fake_model.stamp, fake_model.dim)
    assert info.limits["max_phrases"] == 100
    assert both.ready() is True
    assert Both("http://127.0.0.1:9").ready() is False


# Errors


def test_invalid_arguments_are_rejected_before_sending() -> None:
    nowhere = Both("http://127.0.0.1:9")
    for call in (
        lambda: nowhere.search(),
        lambda: nowhere.search(mode="semantic", like=[], unlike=["a"]),
        lambda: nowhere.search_moments(),
        lambda: nowhere.detect(["a"]),
        lambda: nowhere.classify(["a"], file="a.wav", clip_id="b"),
    ):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(FileNotFoundError):
        nowhere.add("nowhere.wav")


@pytest.mark.parametrize("address", ["", "localhost:8080", "ftp://x", "http://", "http://x:y", "http://exa mple\n"])
def test_invalid_addresses_are_rejected(address: str) -> None:
    with pytest.raises(ServerError, match="not a server address"):
        Client(address)


def test_errors_carry_the_problem_details(run_server: Callable[..., str]) -> None:
    both = Both(run_server(), request_id="the-call")
    with pytest.raises(api.Refused) as caught:
        both.search("tone 200", k=0)
    error = caught.value
    assert error.status == 422 and error.problem is not None
    assert error.problem.type == "urn:finelap:problem:invalid-value"
    assert error.problem.request_id == "the-call"
    assert error.problem.detail == str(error) and "k" in str(error)
    assert error.problem.extra["errors"][0]["field"] == "k"
    assert error.files == ()  # these errors concern fields, not files


def test_api_keys(run_server: Callable[..., str]) -> None:
    server = run_server(api_keys="secret")
    with pytest.raises(api.Unauthorized, match="FINELAP_API_KEY"):
        Both(server).info()
    assert Both(server, api_key="secret").info().clips == 0


def test_unreachable_service() -> None:
    with pytest.raises(api.Unreachable, match="finelap serve"):
        Both("http://127.0.0.1:9").info()


# Services that misbehave

Answer = tuple[int, dict[str, str], bytes]
INFO = json.dumps(
    {
        "version": "0",
        "clips": 7,
        "limits": {},
        "model": dict.fromkeys(("name", "stamp", "dim", "frame_hop", "device", "dtype"), ""),
    }
).encode()


@contextmanager
def playing(answer: Callable[[int, BaseHTTPRequestHandler], Answer | None]) -> Iterator[str]:
    """A service that returns `answer(request number)`, or closes the connection if that is None."""
    count = iter(range(1 << 30))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = answer(next(count), self)
            self.close_connection = True
            if given is None:
                return
            status, headers, body = given
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may disconnect early
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_threads_share_connections_that_stay_open() -> None:
    """An ingest has 32 threads; opening a connection for each file costs both sides."""
    opened = 0
    together = threading.Barrier(32)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            nonlocal opened
            opened += 1
            super().setup()

        def do_GET(self) -> None:
            together.wait(30)
            self.send_response(200)
            self.send_header("Content-Length", str(len(INFO)))
            self.end_headers()
            self.wfile.write(INFO)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_address[1]}") as client, ThreadPoolExecutor(32) as threads:
            for _ in range(4):
                assert [info.clips for info in threads.map(lambda _: client.info(), range(32))] == [7] * 32
        server.shutdown()
    assert opened == 32


def busy_once(retry_after: Callable[[], str]) -> Callable[[int, Any], Answer]:
    return lambda n, _: (429, {"Retry-After": retry_after()}, b"{}") if n % 2 == 0 else (200, {}, INFO)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, in seconds."""
    found: list[float] = []
    wait_after = RetryPolicy.wait_after

    def watched(self: RetryPolicy, failure: ServerError) -> float:
        found.append(wait_after(self, failure))
        return found[-1]

    monkeypatch.setattr(RetryPolicy, "wait_after", watched)
    return found


def test_retries_honour_retry_after(waits: list[float]) -> None:
    with playing(busy_once(lambda: "1")) as server:
        began = time.monotonic()
        assert Both(server).info().clips == 7  # two calls, each waits a second
        assert waits == [1.0, 1.0] and time.monotonic() - began >= 2.0
    in_two = busy_once(lambda: formatdate(time.time() + 2, usegmt=True))
    with playing(in_two) as server, Client(server) as client:
        began = time.monotonic()
        assert client.info().clips == 7
        assert len(waits) == 3 and waits[2] <= 2.0 and time.monotonic() - began > 0.5


def test_patience_is_bounded(waits: list[float]) -> None:
    with playing(lambda n, _: (503, {"Retry-After": "30"}, b'{"detail": "soon"}')) as server:
        with pytest.raises(api.Busy, match="soon") as caught:
            Both(server, patience=5.0).info()
        assert caught.value.retry_after == 30.0
        assert waits == []  # 30 s exceed the patience: no wait at all
        with pytest.raises(api.Busy):
            Both(server, patience=0.0).info()


def test_reconnect_resends_the_whole_file() -> None:
    bodies = []

    def answer(n: int, request: BaseHTTPRequestHandler) -> Answer | None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        bodies.append(b"sound" * 1000 in body)
        return None if n % 2 == 0 else (201, {}, b'{"clips": [], "errors": []}')

    with playing(answer) as server:
        with pytest.raises(api.Unreachable, match="was lost"):
            Client(server).add(("a.wav", b"sound" * 1000))
        bodies.clear()
        Client(server, reconnect=5.0).add(("a.wav", b""))
        bodies.clear()
        assert Both(server, reconnect=5.0).add(("a.wav", io.BytesIO(b"sound" * 1000))).new
    assert bodies == [True] * 4  # two attempts per client


def test_stop_ends_the_wait() -> None:
    stop = threading.Event()
    with playing(lambda n, _: (503, {}, b"{}")) as server, Client(server, patience=60.0, stop=stop) as client:
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        with pytest.raises(api.Stopped):
            client.info()
        assert time.monotonic() - began < 5.0


async def test_cancellation_ends_the_wait() -> None:
    with playing(lambda n, _: (503, {}, b"{}")) as server:
        async with AsyncClient(server, patience=60.0) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.info()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"version": 1}', b""])
def test_responses_of_another_service_are_rejected(body: bytes) -> None:
    with playing(lambda n, _: (200, {}, body)) as server, pytest.raises(api.ServerFault, match="not FineLAP"):
        Both(server).info()


def test_errors_of_another_service_are_reported() -> None:
    with playing(lambda n, _: (502, {}, b"<html>bad gateway")) as server:
        with pytest.raises(api.ServerFault, match="502") as caught:
            Both(server).info()
        assert caught.value.problem is None


LINES = {
    "start": {
        "type": "start",
        "filename": "a\u2028b.wav",
        "frame_hop": 0.16,
        "sample_rate": 8,
        "channels": 1,
        "phrases": ["x"],
    },
    "news": {"type": "weather", "sun": True},
    "event": {"type": "event", "phrase": "x", "onset": 1.0, "offset": 2.0, "score": 0.5},
    "end": {
        "type": "end",
        "filename": "a.wav",
        "duration": 3.0,
        "frame_hop": 0.16,
        "sample_rate": 16_000,
        "phrases": [],
    },
    "error": {"type": "error", "problem": {"title": "Truncated", "status": 422, "detail": "a.wav: it breaks off"}},
}


def lines(*names: str) -> bytes:
    return b"".join(json.dumps(LINES[name], ensure_ascii=False).encode() + b"\n" for name in names)


def test_streams_allow_any_text_and_unknown_messages() -> None:
    with playing(lambda n, _: (200, {}, lines("start", "news", "event", "end")[:-1])) as server:
        messages = Both(server).detect_stream(["x"], clip_id="a")
    assert [type(m).__name__ for m in messages] == ["DetectionStart", "DetectionEvent", "DetectionEnd"]
    assert messages[0].filename == "a\u2028b.wav"


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (lines("start", "error"), api.Refused, "it breaks off"),
        (lines("start", "event"), api.ServerFault, "ended early"),
        (lines("start") + b"<html>\n", api.ServerFault, "not FineLAP"),
        (lines("start") + b'{"type": "event"}\n', api.ServerFault, "not FineLAP"),
    ],
)
def test_broken_streams(body: bytes, error: type[ServerError], says: str) -> None:
    with playing(lambda n, _: (200, {}, body)) as server, pytest.raises(error, match=says):
        Both(server).detect_stream(["x"], clip_id="a")
    cut = {"Content-Length": str(len(body) + 100)}
    if error is api.ServerFault:
        with playing(lambda n, _: (200, cut, lines("start"))) as server, pytest.raises(api.Unreachable):
            Both(server).detect_stream(["x"], clip_id="a")


def test_messages_arrive_while_the_service_is_still_working() -> None:
    seen = threading.Event()

    def answer(n: int, request: BaseHTTPRequestHandler) -> Answer | None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(lines("start", "event"))
        request.wfile.flush()
        assert seen.wait(30)  # the end is sent only after the event was received
        request.wfile.write(lines("end"))
        return None

    with playing(answer) as server, Client(server) as client:
        for message in client.detect_stream(["x"], clip_id="a"):
            if isinstance(message, api.DetectionEvent):
                seen.set()
        assert isinstance(message, api.DetectionEnd)


# Files


def drain(request: BaseHTTPRequestHandler) -> int:
    left = length = int(request.headers["Content-Length"])
    while left and (part := request.rfile.read(min(left, 1 << 16))):
        left -= len(part)
    return length


def test_uploads_are_streamed(tmp_path: Path) -> None:
    path, size = tmp_path / "long.wav", 200 << 20
    with path.open("wb") as file:
        file.truncate(size)
    received = []

    def answer(n: int, request: BaseHTTPRequestHandler) -> Answer:
        received.append(drain(request))
        return 201, {}, b'{"clips": [], "errors": []}'

    with playing(answer) as server:
        tracemalloc.start()
        try:
            Both(server).add(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert min(received) > size
    assert peak < 8 << 20


def test_files_that_change_during_the_upload(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    bodies = []

    def answer(n: int, request: BaseHTTPRequestHandler) -> Answer:
        bodies.append(drain(request))
        return 201, {}, b'{"clips": [], "errors": []}'

    def sent(change: Callable[[], None]) -> None:
        path.write_bytes(bytes(1 << 20))
        call = calls.add([path], None)
        with Client(server) as client, call.request(client._http) as request:
            change()
            client._http.send(request)

    with playing(answer) as server:
        sent(lambda: path.open("ab").write(bytes(1 << 20)))  # it grew: only the original size is sent
        assert 1 << 20 < bodies[0] < (1 << 20) + 1000
        with pytest.raises(OSError, match="shorter"):
            sent(lambda: path.open("wb").close())


def test_one_or_several_files() -> None:
    as_list = calls.as_list
    file = io.BytesIO()
    pairs = [("a", b""), ("b", b"")]
    assert as_list("a") == ["a"] and as_list(Path("a")) == [Path("a")] and as_list(file) == [file]
    assert as_list(("a", b"")) == [("a", b"")] and as_list(("a", file)) == [("a", file)]
    assert as_list(pairs) == pairs and as_list(["a", "b"]) == ["a", "b"] == as_list(("a", "b"))
    assert as_list((Path("a"), file)) == [Path("a"), file]


# Concepts


def test_concepts(both: Both, low: api.Clip, sounds: SimpleNamespace) -> None:
    part = {"clip_id": low.id, "start": 0.0, "end": 1.9}
    with Client(both.server) as client:
        made = client.create_concept("hum", positive=part, negative_files=[("high.wav", sounds.wav(3200))])
        assert (made.positives, made.negatives, made.quality, made.failed) == (1, 1, None, ())
        mixed = client.create_concept(
            "other", "tone 1600", positive_files=[("a.wav", b"broken"), ("b.wav", sounds.wav(1600))]
        )
        assert [one.filename for one in mixed.failed] == ["a.wav"] and mixed.positives == 1
    assert list(both.concepts()) == [both.concept("hum"), both.concept("other")]
    added = both.add_examples("hum", negative=[{"clip_id": low.id, "start": 2.1, "end": 4.0}])
    assert added.concept.negatives == 2 and added.examples[0].start == 2.1
    assert both.search("concept:hum", k=1).hits[0].score > 0.5
    text = both.export_labels("hum", "audacity", clip_id=low.id)
    assert text == "0.000\t1.900\thum\n2.100\t4.000\tnot hum\n"
    again = both.import_labels("hum", ("labels.txt", text.encode()), "audacity", clip_id=low.id)
    assert again.concept.positives == 1 and len(again.examples) == 2
    assert both.suggestions("other", 3)[0].clip.id == low.id
    assert both.update_concept("other", text=None).text is None
    with Client(both.server) as client:
        client.delete_example("hum", added.examples[0].id)
        assert len(client.examples("hum")) == 2
        client.delete_concept("hum")
    with pytest.raises(api.NotFound):
        both.concept("hum")
