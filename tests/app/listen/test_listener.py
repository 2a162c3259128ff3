"""`finelap listen`: events of real streams, although the source and the service fail, each on its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import uvicorn

from app.client import Client
from app.inference.engine import Engine
from app.listen.delivery import KEPT_BY, Keeper
from app.listen.history import History, Record
from app.listen.listener import Line, Listener, ListenOptions
from app.listen.outbox import Outbox
from app.listen.sources import Chunk, Format, Source, SourceError, open_source
from app.main import create_app
from app.server.http_protocol import WEBSOCKETS, HttpProtocol
from app.settings import Settings
from index.sqlite.library import SqliteLibrary
from tests.app.conftest import FakeModel
from tests.support.waiting import until, wait_until

RATE = 16_000
START = {"phrases": ["tone 400", "tone 1600"]}


class Service:
    """A service with the fake model, which can be ended and started again at the same address."""

    def __init__(self, data: Path) -> None:
        self.data, self.port = data, 0
        self.start()

    def start(self) -> None:
        model = FakeModel()
        library = SqliteLibrary.open(self.data, dim=model.dim, checkpoint=model.stamp)
        app = create_app(Settings(_env_file=None, data_dir=self.data), Engine(model), library)  # type: ignore[call-arg]
        config = uvicorn.Config(app, port=self.port, http=HttpProtocol, **WEBSOCKETS, log_config=None)
        config.timeout_graceful_shutdown = 1
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("data"))
    yield service
    service.end()


class Radio:
    """An HTTP stream of MP3 in real time: 1.2 s of a tone every three seconds. `onsets`: when one was sent."""

    def __init__(self) -> None:
        self.onsets: list[float] = []
        self.listeners = 0
        self.on = True
        pieces = self._pieces()
        radio = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not radio.on:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "audio/mpeg")
                self.end_headers()
                radio.listeners += 1
                began = time.time()
                with contextlib.suppress(OSError):
                    for number in range(10_000):
                        if not radio.on:
                            break
                        if number % 10 == 3:
                            radio.onsets.append(began + 0.3 * number)
                        self.wfile.write(pieces[number % 10])
                        time.sleep(max(0.0, began + 0.3 * (number + 1) - time.time()))
                radio.listeners -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://user:secret@127.0.0.1:{self.server.server_port}/radio.mp3?token=1"

    @staticmethod
    def _pieces() -> list[bytes]:
        time_ = np.arange(3 * RATE) / RATE
        sound = 0.4 * np.sin(2 * np.pi * 400 * time_) * ((time_ >= 0.9) & (time_ < 2.1))
        file = io.BytesIO()
        soundfile.write(file, np.tile(sound, 1).astype(np.float32), RATE, format="MP3")
        data = file.getvalue()
        step = len(data) // 10 + 1
        return [data[at : at + step] for at in range(0, len(data), step)]

    def end(self) -> None:
        self.on = False
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def radio() -> Iterator[Radio]:
    radio = Radio()
    yield radio
    radio.end()


@contextlib.asynccontextmanager
async def listening(source: Source, options: ListenOptions) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Listener(source, options).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_stream_whose_source_and_service_fail(service: Service, radio: Radio, tmp_path: Path) -> None:
    lines: list[tuple[float, Line]] = []
    clips: list[tuple[Line, bytes]] = []
    options = ListenOptions(
        service.url,
        None,
        START,
        lambda line: lines.append((time.time(), line)),
        keep=0.5,
        store=lambda line, data: clips.append((line, data)),
    )

    def closed() -> list[tuple[float, Line]]:
        return [(at, line) for at, line in lines if line["type"] == "event" and not line["open"]]

    source = Source.parse(radio.url)
    assert "secret" not in source.name and "token" not in source.name
    async with listening(source, options) as task:
        await until(lambda: len(closed()) >= 2)
        radio.on = False  # the source ends, and comes back
        await until(lambda: not radio.listeners)
        await until(lambda: len(clips) >= 2)
        gone = time.time()
        await asyncio.sleep(1.0)
        radio.on = True
        await until(lambda: any(line["type"] == "gap" for _, line in lines))
        gap = next(line for _, line in lines if line["type"] == "gap")
        assert gap["side"] == "source" and 0.5 < gap["end"] - gap["start"] < 30 and gap["source"] == source.name
        await until(lambda: any(at > gone and line["onset"] > gap["end"] for at, line in closed()))
        before = len(closed())
        await asyncio.to_thread(service.end)  # the service ends, and comes back
        await asyncio.sleep(1.0)
        await asyncio.to_thread(service.start)
        await until(lambda: len(closed()) >= before + 3)
        assert not task.done()
    onsets = sorted(line["onset"] for _, line in closed() if not line["revised"])
    sent = [at for at in radio.onsets if at < lines[-1][0] - 6]
    assert len(onsets) >= len(sent) - 1  # a tone that was being sent when the source ended may be missing
    assert all(later - earlier > 1.2 for earlier, later in zip(onsets, onsets[1:], strict=False))  # none is told twice
    assert {line["phrase"] for _, line in closed()} == {"tone 400"}
    line, data = clips[0]
    kept, rate = soundfile.read(io.BytesIO(data))
    assert rate == RATE and len(kept) / rate == pytest.approx(1.2 + 2 * 0.5, abs=0.5)
    assert line["metadata"]["source"] == source.name and line["metadata"]["phrase"] == "tone 400"
    assert line["metadata"]["time"].endswith("Z")


async def test_files_are_read_to_their_end(service: Service, sounds: SimpleNamespace, tmp_path: Path) -> None:
    parts = [np.zeros(RATE), sounds.tone(400, 1.5), np.zeros(2 * RATE), sounds.tone(1600, 1), np.zeros(RATE)]
    path = tmp_path / "scène.flac"
    path.write_bytes(sounds.encode(np.concatenate(parts).astype(np.float32), "FLAC"))
    lines: list[Line] = []
    posted: list[Line] = []
    with Client(service.url) as client:
        keeper = Keeper(client, days=1)
        outbox = Outbox(tmp_path / "out", keeper.deliver, lambda: None)
        options = ListenOptions(service.url, None, START, lines.append, posted.append, 0.25, outbox.add)
        await Listener(Source.parse(str(path)), options).run()
        await outbox.flush()
        assert not len(outbox)
        kept = list(client.clips({"kept_by": KEPT_BY, "phrase": "tone 1600"}))
        assert [clip.duration for clip in kept] == [pytest.approx(1.5, abs=0.2)]
        assert kept[0].metadata["source"] == "scène.flac" and kept[0].metadata["onset"] == pytest.approx(4.5, abs=0.2)
        assert keeper.delete_old() == 0
        assert Keeper(client, days=-1).delete_old() >= 2
    closed = [line for line in lines if line["type"] == "event" and not line["open"]]
    assert [(line["phrase"], round(line["onset"])) for line in closed] == [("tone 400", 1), ("tone 1600", 4)]
    assert [line["id"] for line in posted] == [line["id"] for line in closed]


@pytest.mark.slow
def test_the_command_reads_standard_input(service: Service, sounds: SimpleNamespace, tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(RATE), sounds.tone(400, 1.5), np.zeros(2 * RATE)])
    command = [sys.executable, "-m", "app.cli.main", "listen", "-", "-p", "tone 400", "--server", service.url]
    done = subprocess.run(
        [*command, "--json", "--outbox", str(tmp_path)],
        input=(samples * 32767).astype("<i2").tobytes(),
        capture_output=True,
        timeout=120,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert lines[-1]["phrase"] == "tone 400" and lines[-1]["offset"] == pytest.approx(2.5, abs=0.2)
    refused = subprocess.run([*command, "--threshold", "0.1", "--threshold", "0.2"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["nothing.wav", "ftp://host/a", "http://", "https:///a"])
def test_what_is_no_source(address: str) -> None:
    with pytest.raises(SourceError, match="is not a source"):
        Source.parse(address)


async def test_a_file_without_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"this is no audio")
    with pytest.raises(SourceError, match=r"a\.wav"):
        async with open_source(Source.parse(str(path))):
            pass


def test_the_history_keeps_the_latest_sound() -> None:
    history = History(Format(1000, 2))
    for number in range(400):
        history.add(Chunk(bytes([number % 256]) * 4000, 100.0 + number + 1))
    assert (history.start, history.end, history.began) == (220.0, 400.0, 100.0)
    assert history.read(230.5, 231.5) == bytes([230]) * 2000 + bytes([231]) * 2000
    assert history.read(100.0, 221.0) == bytes([220]) * 4000
    assert history.time_at(0.5) == "1970-01-01T00:01:40.500Z"


def test_a_connection_that_replays_tells_nothing_twice() -> None:
    record = Record("a")
    message: Callable[..., Line] = lambda number, onset, offset, **more: (  # noqa: E731
        {"type": "event", "id": number, "phrase": "x", "onset": onset, "offset": offset, "score": 1.0} | more
    )
    first = record.take(1, 0.0, message(1, 10.0, 11.0))
    assert first is not None and first[0].uid == "a-1" and not first[1]
    assert record.take(2, 5.0, message(1, 5.0, 5.5, open=True)) is None
    assert record.take(2, 5.0, message(1, 5.1, 6.1)) is None
    other = record.take(2, 5.0, message(2, 9.0, 10.0))
    assert other is not None and other[0].uid == "a-2" and other[0].onset == 14.0
    longer = record.take(2, 5.0, message(1, 5.0, 8.0, revised=True))
    assert longer is not None and longer[0].uid == "a-1" and longer[1]
    assert record.take(3, 5.0, message(9, 50.0, 51.0) | {"type": "retraction"}) is None
