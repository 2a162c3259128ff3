"""`finelap listen` on real servers: GStreamer's of RTSP, as cameras have one, and ffmpeg's of HTTP, as radios do."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from app.listen.listener import Line, ListenOptions
from app.listen.sources import Source
from tests.app.listen.test_listener import RATE, START, Service, listening
from tests.support.waiting import until

SERVER = Path(__file__).parents[2] / "support" / "rtsp_server.py"
PERIOD, ONSET, OFFSET = 6.0, 0.9, 2.1  # seconds: a tone in each period
NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


@pytest.fixture(scope="module")
def python() -> str:
    """A Python with GStreamer's RTSP server; it isn't that of the tests."""
    for program in ("/usr/bin/python3", shutil.which("python3") or ""):
        if program and subprocess.run([program, "-c", NEEDS], capture_output=True, check=False).returncode == 0:
            return program
    pytest.skip("no RTSP server: install gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base and -good, python3-gi")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "data")
    yield service
    service.end()


class Camera:
    """A server that plays tones to each client. `began`: when it began to."""

    def __init__(self, python: str, file: Path, codec: str, port: int) -> None:
        command = [python, str(SERVER), str(file), codec, str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._await("serving")

    def began(self) -> float:
        return self._await("playing")

    def _await(self, wanted: str) -> float:
        assert self.process.stdout is not None
        said, _, at = self.process.stdout.readline().partition(" ")
        assert said == wanted
        return float(at)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Radio:
    """ffmpeg as an HTTP server of MP3 for one client."""

    def __init__(self, _: str, file: Path, codec: str, port: int) -> None:
        program = shutil.which("ffmpeg")
        assert program is not None
        command = [program, "-v", "error", "-re", "-i", str(file), "-f", codec, "-progress", "pipe:1", "-listen", "1"]
        self.process = subprocess.Popen(
            [*command, f"http://127.0.0.1:{port}/sound"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def began(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, _, value = line.strip().partition("=")
            if name == "out_time_us" and value.isdigit():
                return time.time() - int(value) / 1e6
        raise AssertionError("ffmpeg has ended")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("scheme", "codec"),
    [
        ("rtsp", "opus"),
        pytest.param("rtsp", "pcmu", marks=pytest.mark.slow),
        pytest.param("http", "mp3", marks=pytest.mark.slow),
    ],
)
async def test_a_source_that_fails_and_comes_back(
    service: Service, request: pytest.FixtureRequest, tmp_path: Path, scheme: str, codec: str
) -> None:
    if scheme == "http" and shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    python = request.getfixturevalue("python") if scheme == "rtsp" else ""
    at = np.arange(int(PERIOD * RATE)) / RATE
    tone = 0.4 * np.sin(2 * np.pi * 400 * at) * ((at >= ONSET) & (at < OFFSET))
    soundfile.write(tmp_path / "tones.wav", np.tile(tone, 20).astype(np.float32), RATE)
    lines: list[tuple[float, Line]] = []
    options = ListenOptions(service.url, None, START, lambda line: lines.append((time.time(), line)))

    def told(open: bool, after: float) -> list[tuple[float, Line]]:
        return [(at, one) for at, one in lines if one["type"] == "event" and one["open"] is open and at > after]

    port = free_port()
    serve = Camera if scheme == "rtsp" else Radio
    server = serve(python, tmp_path / "tones.wav", codec, port)
    source = Source.parse(f"{scheme}://user:secret@127.0.0.1:{port}/sound")
    try:
        async with listening(source, options) as task:
            for stretch, events in enumerate((2, 1)):
                began = await asyncio.to_thread(server.began)
                await until(lambda began=began, events=events: len(told(False, began)) >= events)
                assert not task.done()
                for open, edge in ((True, ONSET), (False, OFFSET)):
                    for arrived, line in told(open, began)[:2]:
                        assert (arrived - began - edge) % PERIOD <= 3.0, line  # seconds after the edge
                        assert line["phrase"] == "tone 400" and line["source"] == f"{scheme}://127.0.0.1:{port}/sound"
                if not stretch:
                    server.kill()
                    server = serve(python, tmp_path / "tones.wav", codec, port)
    finally:
        server.kill()
    (gap,) = [line for _, line in lines if line["type"] == "gap"]  # none before the first sound
    assert gap["side"] == "source" and gap["start"] > 0 and 0 < gap["end"] - gap["start"] < 30
