"""A fake model that recognises tones, and a service around it, for tests without weights."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi import FastAPI

from app.inference.engine import Engine
from app.main import create_app
from app.server.http_protocol import WEBSOCKETS, HttpProtocol
from app.settings import Settings
from index.sqlite.library import SqliteLibrary
from model.config import SAMPLE_RATE, FineLAPConfig, WindowConfig
from model.external.contract import Traits
from model.windows import frame_count, window_samples

if TYPE_CHECKING:
    from tests.support.decoders import KeptForkServer

TONES = (200, 400, 800, 1600, 3200, 6400)  # Hz
DIM = 16


class FakeModel:
    """Recognises which of TONES sounds in each frame, and the texts "tone 200", "tone 400", …

    Any other text has a random direction, and silence has one too. `fail_on` is a text or a tone at which the model
    raises. `audio_batches` and `text_batches` record every call, and `before` is called at the start of each.
    """

    def __init__(self, max_windows: int = 10_000) -> None:
        self.config = FineLAPConfig(name="fake", dim=DIM, windows=WindowConfig(buckets=(8, 16, 32)))
        self.name, self.stamp, self.dim = "fake", "fake-stamp", DIM
        self.frame_hop = self.config.windows.frame_hop
        self.device, self.dtype = "cpu", "torch.float32"
        self.temp_global, self.b_global = 0.1, -5.0
        self.traits = Traits("finelap", SAMPLE_RATE, 10.24, "native", False, None)
        self.max_windows, self.at_once = max_windows, 1
        self.audio_batches: list[int] = []
        self.text_batches: list[list[str]] = []
        self.fail_on: Any = None
        self.before: Callable[[], None] = lambda: None

    def side_by_side(self, windows: int) -> int:
        return self.at_once

    def encode_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        assert 0 < len(waveforms) <= self.max_windows
        self.before()
        self.audio_batches.append(len(waveforms))
        return [self._encode_window(w) for w in waveforms]

    def _encode_window(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = self.config.windows
        assert samples.dtype == np.float32 and 0 < len(samples) <= window_samples(windows)
        hop = int(windows.frame_hop * SAMPLE_RATE)
        needed = frame_count(len(samples), windows)
        length = next((b for b in windows.buckets if b >= needed), windows.frames)
        frames = np.zeros((length, DIM), np.float32)
        for t in range(len(frames)):
            frames[t, self._tone(samples[t * hop : (t + 1) * hop])] = 1
        clip = frames[: min(needed, length)].mean(axis=0) + 1e-6
        return clip / np.linalg.norm(clip), frames

    def _tone(self, part: np.ndarray) -> int:
        if len(part) < 64 or np.abs(part).max() < 1e-3:
            return DIM - 1
        frequency = np.abs(np.fft.rfft(part, 4096)).argmax() * SAMPLE_RATE / 4096
        tone = int(np.abs(np.log(np.array(TONES)) - np.log(max(frequency, 1.0))).argmin())
        if self.fail_on == TONES[tone]:
            raise RuntimeError("this tone breaks the model")
        return tone

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        self.before()
        self.text_batches.append(list(texts))
        if self.fail_on in texts:
            raise RuntimeError("this text breaks the model")
        return np.stack([self._encode_text(text) for text in texts])

    def _encode_text(self, text: str) -> np.ndarray:
        vector = np.zeros(DIM, np.float32)
        word, _, number = text.rpartition(" ")
        if word == "tone" and number.isdecimal() and int(number) in TONES:
            vector[TONES.index(int(number))] = 1
            return vector
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        vector[len(TONES) : -1] = np.random.default_rng(seed).standard_normal(DIM - 1 - len(TONES))
        return vector / np.linalg.norm(vector)

    def clip_score(self, clip: np.ndarray, text: np.ndarray) -> np.ndarray:
        logits = np.asarray(clip) @ np.asarray(text).T / self.temp_global + self.b_global
        return 1 / (1 + np.exp(-logits))

    def frame_score(self, frames: np.ndarray, text: np.ndarray) -> np.ndarray:
        return self.clip_score(text, frames)


def tone(hz: float, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A tone (n,) at half amplitude."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode(samples: np.ndarray, kind: str = "WAV", rate: int = SAMPLE_RATE, subtype: str | None = None) -> bytes:
    """Samples (n,) or (n, channels) as an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def wav(hz: float = 400, seconds: float = 1.0) -> bytes:
    """A WAV file with one tone."""
    return encode(tone(hz, seconds))


@pytest.fixture
def sounds() -> SimpleNamespace:
    """Generators of test sounds: `tone`, `encode`, `wav`."""
    return SimpleNamespace(tone=tone, encode=encode, wav=wav, TONES=TONES, RATE=SAMPLE_RATE)


@pytest.fixture
def fake_model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings that neither the environment nor a .env file affects."""
    return lambda **values: Settings(_env_file=None, **{"data_dir": tmp_path / "data", **values})


@pytest.fixture(scope="session")
def fork_server() -> Iterator[type[KeptForkServer]]:
    """A fork server that apps share one after the other."""
    from tests.support.decoders import KeptForkServer

    yield KeptForkServer
    KeptForkServer.end_all()


@pytest.fixture(autouse=True)
def shared_decoders(fork_server: type[KeptForkServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps have the decoders of the app before them; tests/app/decoding has its own."""
    monkeypatch.setattr("app.decoding.pool.ForkServer", fork_server)


@pytest.fixture
def make_app(fake_model: FakeModel, make_settings: Callable[..., Settings]) -> Callable[..., FastAPI]:
    """Makes an app around the fake model and a new library; takes settings."""

    def make(**values: Any) -> FastAPI:
        settings = make_settings(**values)
        engine = Engine(
            fake_model,
            max_batch_windows=settings.max_batch_windows,
            max_queue_windows=settings.max_queue_windows,
            max_wait=settings.max_wait_ms / 1000,
        )
        library = SqliteLibrary.open(settings.data_dir, dim=fake_model.dim, checkpoint=fake_model.stamp)
        library.allow_references(settings.reference_roots)
        return create_app(settings, engine, library)

    return make


@pytest.fixture
async def client(make_app: Callable[..., FastAPI]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started app with default settings."""
    app = make_app()
    async with app.router.lifespan_context(app), connect(app) as client:
        yield client


@pytest.fixture
def run_server(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., str]]:
    """Starts a server on a free port; takes settings and returns its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: Any) -> str:
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(**settings), port=0, http=HttpProtocol, **WEBSOCKETS, log_config=None, access_log=False
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)


def connect(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """A client that calls the app within this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options)


@pytest.fixture
def open_client() -> Callable[..., httpx.AsyncClient]:
    """`connect`, for tests that create their own app."""
    return connect
