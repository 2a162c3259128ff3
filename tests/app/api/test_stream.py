"""WS /stream: events of live sound equal those of the recording, in time, and faults cost only their own stream."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from app.client import AsyncClient, Client, DetectionEnd, DetectionStart, LiveEvent, Refused, Unreachable
from app.inference.engine import Engine
from app.main import create_app
from app.server.http_protocol import WEBSOCKETS, HttpProtocol
from app.settings import Settings
from index.sqlite.library import SqliteLibrary
from tests.app.conftest import FakeModel
from tests.support.audio import opus_packets
from tests.support.waiting import until

PHRASES = ["tone 400", "tone 1600"]
RATE = 16_000
START = {"phrases": PHRASES, "sample_rate": RATE, "encoding": "pcm_s16le"}
Message = dict[str, Any]


class Serving:
    """A running service; `url` for HTTP, and `open` for a stream."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app, self.url = app, url

    def open(self, **options: Any) -> Any:
        return connect_socket(self.url.replace("http", "ws", 1) + "/stream", compression=None, **options)


@pytest.fixture
async def serve(make_app: Callable[..., FastAPI]) -> Any:
    """Serves apps on sockets until the end of the test."""
    running: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    async def start(**settings: Any) -> Serving:
        app = make_app(**settings)
        server = uvicorn.Server(uvicorn.Config(app, port=0, http=HttpProtocol, **WEBSOCKETS, log_config=None))
        running.append((server, asyncio.create_task(server.serve())))
        while not server.started:
            await asyncio.sleep(0.01)
        return Serving(app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")

    yield start
    for server, task in running:
        server.should_exit = True
        await task


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One service for the tests that change nothing about it, in a thread of its own."""
    model = FakeModel()
    settings = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("data"))  # type: ignore[call-arg]
    library = SqliteLibrary.open(settings.data_dir, dim=model.dim, checkpoint=model.stamp)
    app = create_app(settings, Engine(model), library)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=HttpProtocol, **WEBSOCKETS, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Serving(app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    server.should_exit = True
    thread.join(30)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def scene(sounds: SimpleNamespace, seconds: float = 24) -> np.ndarray:
    """Silence with tones of many lengths, some across the edges of windows."""
    samples = np.zeros(int(seconds * RATE), np.float32)
    for number, at in enumerate(np.arange(1.0, seconds - 4, 4.3)):
        part = sounds.tone((400, 1600)[number % 2], 0.6 + 0.5 * (number % 5))
        first = int(at * RATE)
        samples[first : first + len(part)] = part
    return samples


async def read_all(socket: ClientConnection) -> list[Message]:
    """The messages up to the end of the connection, whatever its close code."""
    messages = []
    with contextlib.suppress(ConnectionClosedError):
        async for message in socket:
            messages.append(json.loads(message))
    return messages


async def play(
    serving: Serving, samples: np.ndarray, start: Message = START, chunk: float = 0.1, speed: float | None = None
) -> list[Message]:
    """Sends samples, and returns the messages with the time of their arrival, `at`, in seconds of the stream."""
    async with serving.open() as socket:
        await socket.send(json.dumps(start))
        messages = [json.loads(await socket.recv())]
        began = time.monotonic()

        async def send() -> None:
            step = int(chunk * RATE)
            for number, at in enumerate(range(0, len(samples), step)):
                if speed is not None:
                    await asyncio.sleep(max(0.0, began + (number + 1) * chunk / speed - time.monotonic()))
                await socket.send(pcm(samples[at : at + step]))
            await socket.send(json.dumps({"type": "end"}))

        sending = asyncio.create_task(send())
        async for message in socket:
            messages.append(json.loads(message) | {"at": (time.monotonic() - began) * (speed or 1)})
        await sending
        assert socket.close_code == 1000
    return messages


def standing(messages: list[Message]) -> dict[str, list[tuple[float, float]]]:
    """Per phrase the events that stand at the end: the last message with an id counts."""
    last: dict[int, Message] = {m["id"]: m for m in messages if m["type"] in ("event", "retraction")}
    kept = [m for m in last.values() if m["type"] == "event"]
    assert not any(m["open"] for m in kept)
    return {p: sorted((m["onset"], m["offset"]) for m in kept if m["phrase"] == p) for p in PHRASES}


async def detect(
    serving: Serving, samples: np.ndarray, sounds: SimpleNamespace
) -> dict[str, list[tuple[float, float]]]:
    file = sounds.encode(np.frombuffer(pcm(samples), "<i2").astype(np.float32) / 32768, subtype="PCM_16")
    async with httpx.AsyncClient(base_url=serving.url, timeout=60) as client:
        answer = await client.post("/detect", files={"file": ("a.wav", file)}, data={"phrases": PHRASES})
    return {p["phrase"]: [(e["onset"], e["offset"]) for e in p["events"]] for p in answer.json()["phrases"]}


@pytest.mark.parametrize("chunk", [0.05, 3.0])
async def test_what_is_told_equals_detect(shared: Serving, sounds: SimpleNamespace, chunk: float) -> None:
    serving, samples = shared, scene(sounds)
    messages = await play(serving, samples, chunk=chunk)
    truth = await detect(serving, samples, sounds)
    assert sum(map(len, truth.values())) >= 4
    for phrase, events in standing(messages).items():
        np.testing.assert_allclose(events, truth[phrase], atol=0.2)
    assert messages[0] == {
        "type": "start",
        "filename": "stream",
        "frame_hop": 0.16,
        "track": None,
        "sample_rate": RATE,
        "channels": 1,
        "phrases": PHRASES,
    }
    end = messages[-1]
    assert end["type"] == "end" and end["duration"] == pytest.approx(24)
    for phrase in end["phrases"]:
        assert [(e["onset"], e["offset"]) for e in phrase["events"]] == truth[phrase["phrase"]]
        assert phrase["count"] == len(phrase["events"])


async def test_events_are_told_in_time(shared: Serving, sounds: SimpleNamespace) -> None:
    samples = scene(sounds, 9)
    messages = await play(shared, samples, speed=1.0)
    opened = {m["id"]: m for m in messages if m["type"] == "event" and m["open"]}
    closed = {m["id"]: m for m in messages if m["type"] == "event" and not m["open"]}
    assert len(opened) == 1 and opened.keys() == closed.keys()
    for number, event in closed.items():
        assert opened[number]["at"] - event["onset"] <= 1.5
        assert event["at"] - event["offset"] <= 1.5
    positions = [m["position"] for m in messages if m["type"] == "progress"]
    assert len(positions) > 5 and positions == sorted(positions)


@pytest.mark.parametrize(
    ("encoding", "rate", "channels"), [("pcm_f32le", 16_000, 1), ("pcm_s16le", 44_100, 2), ("pcm_f32le", 8_000, 1)]
)
async def test_formats_of_samples(
    shared: Serving, sounds: SimpleNamespace, encoding: str, rate: int, channels: int
) -> None:
    samples = np.concatenate([np.zeros(rate), sounds.tone(400, 1.5, rate), np.zeros(2 * rate)]).astype(np.float32)
    many = np.repeat(samples[:, None], channels, axis=1)
    data = many.astype("<f4").tobytes() if encoding == "pcm_f32le" else pcm(many)
    serving = shared
    async with serving.open() as socket:
        await socket.send(json.dumps({**START, "encoding": encoding, "sample_rate": rate, "channels": channels}))
        for at in range(0, len(data), 8_000):
            await socket.send(data[at : at + 8_000])
        await socket.send(b"")
        messages = await read_all(socket)
    assert messages[0]["sample_rate"] == rate and messages[0]["channels"] == channels
    ((onset, offset),) = standing(messages)["tone 400"]
    assert onset == pytest.approx(1.0, abs=0.2) and offset == pytest.approx(2.5, abs=0.2)
    assert messages[-1]["duration"] == pytest.approx(4.5, abs=0.01)


@pytest.mark.parametrize(
    ("encoding", "kind", "subtype", "rate"), [("opus", "OGG", "OPUS", 48_000), ("flac", "FLAC", None, 44_100)]
)
async def test_compressed_streams(
    shared: Serving, sounds: SimpleNamespace, encoding: str, kind: str, subtype: str | None, rate: int
) -> None:
    parts = [np.zeros(rate), sounds.tone(400, 1.5, rate), np.zeros(2 * rate)]
    data = sounds.encode(np.concatenate(parts).astype(np.float32), kind, rate, subtype)
    for announced in (rate, 16_000):
        async with shared.open() as socket:
            await socket.send(json.dumps({**START, "encoding": encoding, "sample_rate": announced}))
            for at in range(0, len(data), 1_111):  # cut anywhere
                await socket.send(data[at : at + 1_111])
            await socket.send(b"")
            messages = await read_all(socket)
        if encoding == "flac" and announced != rate:
            assert "44100 Hz, not 16000 Hz as announced" in messages[-1]["problem"]["detail"]
            continue
        ((onset, offset),) = standing(messages)["tone 400"]
        assert onset == pytest.approx(1.0, abs=0.2) and offset == pytest.approx(2.5, abs=0.2)
        assert messages[-1]["duration"] == pytest.approx(4.5, abs=0.05)


@pytest.mark.parametrize(("channels", "ms"), [(1, 20), (2, 60)])
async def test_single_opus_packets(shared: Serving, sounds: SimpleNamespace, channels: int, ms: float) -> None:
    rate = 48_000
    mono = np.concatenate([np.zeros(rate), sounds.tone(400, 1.5, rate), np.zeros(2 * rate)]).astype(np.float32)
    packets = opus_packets(np.stack([mono, -mono][:channels], 1), ms)
    async with shared.open() as socket:
        await socket.send(json.dumps({**START, "encoding": "opus", "sample_rate": rate}))
        for packet in packets:
            await socket.send(packet)
        messages = [json.loads(await socket.recv())]
        while messages[-1].get("open", True):  # told while the stream goes on
            messages.append(json.loads(await socket.recv()))
        await socket.send(b"")
        messages += await read_all(socket)
    ((onset, offset),) = standing(messages)["tone 400"]
    assert onset == pytest.approx(1.0, abs=0.2) and offset == pytest.approx(2.5, abs=0.2)
    assert messages[-1]["duration"] == pytest.approx(4.5, abs=0.1)


async def test_channels_that_cancel_each_other(shared: Serving, sounds: SimpleNamespace) -> None:
    """A cable with one wire turned over: the mean of both channels is silence."""
    samples = scene(sounds)
    stereo = np.stack([samples, -samples], 1)
    messages = await play(shared, stereo, {**START, "channels": 2})
    truth = await detect(shared, samples, sounds)
    assert sum(map(len, truth.values())) >= 4
    for phrase, events in standing(messages).items():
        np.testing.assert_allclose(events, truth[phrase], atol=0.2)
    assert messages[-1]["duration"] == pytest.approx(24)


async def test_lost_chunks_are_sound_that_was_not_sent(shared: Serving, sounds: SimpleNamespace) -> None:
    chunks = np.array_split(scene(sounds), 240)
    kept = np.random.default_rng(0).random(len(chunks)) >= 0.1
    arrived = np.concatenate([chunk for chunk, keep in zip(chunks, kept, strict=True) if keep])
    assert len(arrived) < 0.95 * 24 * RATE
    messages = await play(shared, arrived)
    for phrase, events in standing(messages).items():
        np.testing.assert_allclose(events, (await detect(shared, arrived, sounds))[phrase], atol=0.2)


async def test_settings_of_events(shared: Serving, sounds: SimpleNamespace) -> None:
    parts = [np.zeros(RATE), sounds.tone(400, 0.5), np.zeros(RATE), sounds.tone(400, 2), np.zeros(4 * RATE)]
    samples = np.concatenate(parts).astype(np.float32)
    serving = shared
    messages = await play(serving, samples, {**START, "min_duration": 1.0, "threshold": [0.5, 0.9], "frames": True})
    assert len(standing(messages)["tone 400"]) == 1
    assert all(m["offset"] - m["onset"] >= 1.0 for m in messages if m["type"] == "event")
    pieces = [m for m in messages if m["type"] == "frames"]
    assert pieces[0]["first"] == 0 and len(pieces[0]["scores"]) == 2
    assert [m["first"] for m in pieces[1:]] == np.cumsum([len(m["scores"][0]) for m in pieces])[:-1].tolist()
    merged = await play(serving, samples, {**START, "max_gap": 1.5, "threshold": 0.4})
    ((onset, offset),) = standing(merged)["tone 400"]
    assert onset == pytest.approx(1.0, abs=0.2) and offset == pytest.approx(4.5, abs=0.2)


@pytest.mark.parametrize(
    ("first", "status", "code", "words"),
    [
        ("no json", 400, 1007, "not valid JSON"),
        ("[1]", 400, 1007, "must be a JSON object"),
        (b"\x00\x01", 415, 1003, "must be JSON text"),
        (json.dumps({**START, "sample_rate": 12}), 422, 1007, "sample_rate"),
        (json.dumps({**START, "sample_rate": "fast"}), 422, 1007, "sample_rate"),
        (json.dumps({"phrases": PHRASES, "encoding": "pcm_s16le"}), 422, 1007, "sample_rate"),
        (json.dumps({**START, "encoding": "mp3"}), 422, 1007, "pcm_s16le"),
        (json.dumps({**START, "phrases": []}), 422, 1007, "phrases"),
        (json.dumps({**START, "phrases": ["x"] * 101}), 422, 1007, "limit of 100"),
        (json.dumps({**START, "threshold": [0.1, 0.2, 0.3]}), 422, 1007, "threshold"),
        (json.dumps({**START, "method": "sebb"}), 422, 1007, "method"),
        (json.dumps({**START, "speed": 2}), 422, 1007, "speed"),
        (json.dumps({**START, "phrases": ["x" * (1 << 20)]}), 413, 1009, "larger than the limit"),
    ],
)
async def test_a_wrong_first_message(shared: Serving, first: str | bytes, status: int, code: int, words: str) -> None:
    async with shared.open() as socket:
        await socket.send(first)
        messages = await read_all(socket)
        assert [m["type"] for m in messages] == ["error"]
        problem = messages[0]["problem"]
        assert problem["status"] == status and words in problem["detail"] and problem["request_id"]
        assert socket.close_code == code
        assert socket.response is not None and socket.response.headers["X-Request-ID"] == problem["request_id"]


@pytest.mark.parametrize(
    ("encoding", "message", "status", "words"),
    [
        ("pcm_s16le", b"\x00" * 3201, 422, "3201 bytes does not hold whole samples"),
        ("pcm_f32le", b"\x00" * 3202, 422, "whole samples"),
        ("pcm_f32le", np.array([0, np.nan], "<f4").tobytes(), 422, "not finite"),
        ("pcm_f32le", np.array([0, 1e9], "<f4").tobytes(), 422, "as large as"),
        ("pcm_s16le", "hello", 400, "not valid JSON"),
        ("pcm_s16le", '{"type": "start"}', 400, "only text message"),
        ("pcm_s16le", b"\x00" * ((1 << 20) + 2), 413, "larger than the limit"),
        ("flac", b"this is no FLAC" * 1000, 415, "no Ogg, WebM or FLAC"),
        ("opus", b"\x03", 422, "neither an Opus packet nor part of an Ogg"),
    ],
)
async def test_wrong_audio_ends_its_own_stream_only(
    shared: Serving, sounds: SimpleNamespace, encoding: str, message: str | bytes, status: int, words: str
) -> None:
    serving = shared
    async with serving.open() as other, serving.open() as socket:
        await other.send(json.dumps(START))
        await socket.send(json.dumps({**START, "encoding": encoding}))
        await socket.send(message)
        if encoding == "flac":
            await socket.send(b"")
        messages = await read_all(socket)
        assert [m["type"] for m in messages] == ["start", "error"]
        assert messages[1]["problem"]["status"] == status and words in messages[1]["problem"]["detail"]
        await other.send(pcm(scene(sounds, 8)))
        await other.send(b"")
        assert (await read_all(other))[-1]["duration"] == pytest.approx(8)
    assert serving.app.state.service.streams == 0


async def test_huge_frames_are_cut_off(shared: Serving) -> None:
    serving = shared
    async with serving.open(max_size=None) as socket:
        await socket.send(json.dumps(START))
        await socket.recv()
        with pytest.raises(ConnectionClosed):
            await socket.send(b"\x00" * (5 << 20))
            await socket.recv()
        assert socket.close_code == 1009


async def test_keys(serve: Any) -> None:
    serving = await serve(api_keys=("secret-1",))
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(InvalidStatus) as refused:
            async with serving.open(additional_headers=headers):
                pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["type"].endswith("unauthorized")
    key = base64.urlsafe_b64encode(b"secret-1").decode().rstrip("=")
    for options in (
        {"additional_headers": {"Authorization": "Bearer secret-1"}},
        {"additional_headers": {"X-API-Key": "secret-1"}},
        {"subprotocols": ["finelap", f"finelap.key.{key}"]},
    ):
        async with serving.open(**options) as socket:
            await socket.send(json.dumps(START))
            assert json.loads(await socket.recv())["type"] == "start"
            assert socket.subprotocol == ("finelap" if "subprotocols" in options else None)


async def test_origins(serve: Any) -> None:
    serving = await serve(cors_origins=("https://friend.example",))
    for origin in (serving.url, "https://friend.example"):
        async with serving.open(origin=origin):
            pass
    port = int(serving.url.rpartition(":")[2])
    elsewhere = f"ws://evil.example:{port}/stream"  # DNS rebinding: another name for this address
    for address, options, status in (
        (None, {"origin": "https://evil.example"}, 403),
        (elsewhere, {"host": "127.0.0.1", "port": port}, 421),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with connect_socket(address, **options) if address else serving.open(**options):
                pass
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["Content-Type"] == "application/problem+json"


async def test_the_number_of_streams_is_limited(serve: Any) -> None:
    serving = await serve(max_streams=2)
    async with serving.open() as first, serving.open():
        with pytest.raises(InvalidStatus) as refused:
            async with serving.open():
                pass
        assert refused.value.response.status_code == 429 and refused.value.response.headers["Retry-After"]
        assert "FINELAP_MAX_STREAMS" in json.loads(refused.value.response.body)["detail"]
        async with httpx.AsyncClient(base_url=serving.url) as client:
            metrics = (await client.get("/metrics")).text
        assert "finelap_streams 2.0" in metrics
        assert 'finelap_rejected_total{reason="too-many-streams"} 1.0' in metrics
        await first.close()
        while serving.app.state.service.streams == 2:
            await asyncio.sleep(0.01)
        async with serving.open():
            pass


async def test_a_client_that_vanishes_leaves_nothing(shared: Serving, sounds: SimpleNamespace) -> None:
    serving = shared
    async with serving.open() as socket:
        await socket.send(json.dumps(START))
        await socket.send(pcm(scene(sounds, 10)))
        await socket.recv()
        socket.transport.abort()
    state = serving.app.state.service
    async with asyncio.timeout(10):
        while state.streams or state._active or state.engine.audio_lane.depth:
            await asyncio.sleep(0.01)


async def test_a_stream_is_work_only_while_its_windows_are_computed(serve: Any, fake_model: Any) -> None:
    serving = await serve()
    state, computing = serving.app.state.service, threading.Event()
    async with serving.open() as socket:
        await socket.send(json.dumps(START))
        assert json.loads(await socket.recv())["type"] == "start"
        await until(lambda: not state.busy)
        fake_model.before = lambda: computing.wait(30)
        await socket.send(pcm(np.zeros(3 * RATE, np.float32)))
        await until(lambda: state.busy)
        computing.set()
        await until(lambda: not state.busy)
        assert state.streams == 1


async def test_a_paused_sender_goes_on(shared: Serving, sounds: SimpleNamespace) -> None:
    serving, samples = shared, scene(sounds, 12)
    async with serving.open() as socket, serving.open() as other:
        for each in (socket, other):
            await each.send(json.dumps(START))
        await socket.send(pcm(samples[: 6 * RATE]))
        await asyncio.sleep(1.0)  # meanwhile another stream is served
        await other.send(pcm(samples))
        await other.send(b"")
        assert (await read_all(other))[-1]["type"] == "end"
        await socket.send(pcm(samples[6 * RATE :]))
        await socket.send(b"")
        messages = await read_all(socket)
    truth = await detect(serving, samples, sounds)
    for phrase, events in standing(messages).items():
        np.testing.assert_allclose(events, truth[phrase], atol=0.2)


async def test_a_client_that_does_not_read_makes_itself_wait(serve: Any, fake_model: Any) -> None:
    serving = await serve()
    samples = np.zeros(RATE, np.float32)
    async with serving.open(max_queue=1) as socket:
        await socket.send(json.dumps({**START, "frames": True, "phrases": [f"x {n}" for n in range(100)]}))
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000:
                await asyncio.wait_for(socket.send(pcm(samples)), 1.0)
                sent += 1
        (live,) = [task for task in asyncio.all_tasks() if "_receive" in repr(task.get_coro())]
        assert not live.done() and serving.app.state.service.engine.audio_lane.depth <= 2
        async with httpx.AsyncClient(base_url=serving.url) as client:
            assert (await client.get("/health/ready")).status_code == 200
        socket.transport.abort()


async def test_shutdown_ends_streams(serve: Any, sounds: SimpleNamespace) -> None:
    serving, samples = await serve(), scene(sounds, 6)
    async with serving.open() as socket:
        await socket.send(json.dumps(START))
        await socket.send(pcm(samples))
        while json.loads(await socket.recv())["type"] != "event":
            pass
        began = time.monotonic()
        draining = asyncio.create_task(serving.app.state.service.drain())
        messages = await read_all(socket)
        await draining
        assert time.monotonic() - began < 3
        assert messages[-1]["type"] == "end" and messages[-1]["phrases"][0]["events"]
        assert socket.close_code == 1001
        with pytest.raises(InvalidStatus) as refused:
            async with serving.open():
                pass
        assert refused.value.response.status_code == 503


async def test_a_stream_waits_when_the_queue_is_full(serve: Any, fake_model: Any, sounds: SimpleNamespace) -> None:
    serving = await serve(max_queue_windows=2, max_batch_windows=1)
    fake_model.before = lambda: time.sleep(0.02)
    file = sounds.encode(scene(sounds, 60))

    async def load() -> None:
        async with httpx.AsyncClient(base_url=serving.url, timeout=60) as client:
            for _ in range(3):
                await client.post("/detect", files={"file": ("a.wav", file)}, data={"phrases": PHRASES})

    loads = [asyncio.create_task(load()) for _ in range(6)]
    messages = await play(serving, scene(sounds, 20), chunk=1.0)
    assert messages[-1]["type"] == "end" and messages[-1]["duration"] == pytest.approx(20)
    await asyncio.gather(*loads)


async def test_the_clients(shared: Serving, sounds: SimpleNamespace) -> None:
    samples = np.concatenate([np.zeros(RATE), sounds.tone(400, 1.5), np.zeros(2 * RATE)]).astype(np.float32)
    pieces = [pcm(part) for part in np.array_split(samples, 40)]

    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with AsyncClient(shared.url) as client:
        heard = [m async for m in client.stream(PHRASES, arriving(), sample_rate=RATE, threshold=[0.5, 0.6])]
    with Client(shared.url) as other:
        again = await asyncio.to_thread(lambda: list(other.stream(PHRASES, pieces, sample_rate=RATE)))
        for messages in (heard, again):
            events = {m.id: m for m in messages if isinstance(m, LiveEvent)}
            assert [(e.phrase, e.open, e.retracted) for e in events.values()] == [("tone 400", False, False)]
            assert isinstance(messages[0], DetectionStart) and isinstance(messages[-1], DetectionEnd)
            assert messages[-1].detection.duration == pytest.approx(4.5)
        with pytest.raises(Refused, match="sample_rate"):
            await asyncio.to_thread(lambda: list(other.stream(PHRASES, pieces, sample_rate=1)))
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(Unreachable, match="no service"):
        list(nobody.stream(PHRASES, pieces, sample_rate=RATE))


async def test_silence_and_nothing(shared: Serving) -> None:
    serving = shared
    for samples in (np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(RATE * 3, np.float32)):
        messages = await play(serving, samples)
        assert messages[-1]["type"] == "end" and messages[-1]["duration"] == pytest.approx(
            len(samples) / RATE, abs=1e-4
        )
        assert not any(m["type"] == "event" for m in messages)


async def test_a_concept_in_a_live_stream(serve: Callable[..., Any], sounds: SimpleNamespace) -> None:
    """Its events begin at the threshold that was set for it, unless the stream has one."""
    serving = await serve()
    samples = np.concatenate([np.zeros(RATE, np.float32), sounds.tone(400, 2), np.zeros(3 * RATE, np.float32)])
    concept = START | {"phrases": ["concept:beep", "tone 400"]}

    async def found(**options: Any) -> list[int]:
        end = (await play(serving, samples, concept | options))[-1]
        assert end["type"] == "end", end
        return [one["count"] for one in end["phrases"]]

    async with httpx.AsyncClient(base_url=serving.url) as client:
        made = await client.post("/concepts", json={"name": "beep", "text": "tone 400"})
        assert made.status_code == 201
        before = await found()
        assert before[0] == before[1] > 0
        assert (await client.patch("/concepts/beep", json={"threshold": 0.9999})).status_code == 200
        assert await found() == [0, before[1]]
        assert await found(threshold=0.5) == before
    async with serving.open() as socket:
        await socket.send(json.dumps(START | {"phrases": ["concept:nothing"]}))
        (refused,) = await read_all(socket)
    assert refused["type"] == "error" and refused["problem"]["status"] == 404
