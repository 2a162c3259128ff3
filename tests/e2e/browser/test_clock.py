"""Times of detection are those that a browser shows: late tracks with and without a picture, in MP4 and WebM."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from app.audio.decode import decode

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RATE = 48_000
# plays a file and returns the currentTime at which its loudest sound begins
_PLAY = """async (name) => {
  const media = document.createElement("video");
  media.src = name;
  const context = new AudioContext(), source = context.createMediaElementSource(media);
  const analyser = new AnalyserNode(context, { fftSize: 512 });
  source.connect(analyser);
  await new Promise((resolve, reject) => {
    media.oncanplay = resolve;
    media.onerror = () => reject(media.error.message);
  });
  await context.resume();
  await media.play();
  const levels = [], samples = new Float32Array(512);
  await new Promise((resolve) => {
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      levels.push([media.currentTime, Math.max(...samples.map(Math.abs))]);
      if (media.ended || levels.length > 3000) { clearInterval(timer); resolve(); }
    }, 5);
  });
  const loudest = Math.max(...levels.map(([, level]) => level));
  return levels.find(([, level]) => level > loudest / 2)[0];
}"""
_FILES = {
    "alone.m4a": ("-itsoffset", "1", "-i", "IN", "-c:a", "aac"),
    "alone.webm": ("-itsoffset", "1", "-i", "IN", "-c:a", "libopus"),
    "film.webm": (
        *("-f", "lavfi", "-i", "color=black:s=64x48:r=25:d=3", "-itsoffset", "1", "-i", "IN"),
        *("-map", "0:v", "-map", "1:a", "-c:v", "libvpx", "-c:a", "libopus"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with a beep at 1 s of a sound that begins at 1 s."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("ffmpeg is not installed")
    folder = tmp_path_factory.mktemp("clock")
    samples = np.random.default_rng(1).normal(0, 0.002, 2 * RATE)
    samples[RATE : RATE + RATE // 2] += 0.6 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 2) / RATE)
    soundfile.write(folder / "in.wav", samples, RATE)
    for name, options in _FILES.items():
        given = [str(folder / "in.wav") if option == "IN" else option for option in options]
        subprocess.run([program, "-v", "error", "-y", *given, str(folder / name)], check=True)
    (folder / "index.html").write_text("<!doctype html><title>clock</title>")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("name", _FILES)
def test_a_late_sound_is_where_the_browser_plays_it(browser: Browser, folder: Path, address: str, name: str) -> None:
    audio = decode((folder / name).read_bytes(), name)
    loud = np.abs(audio.samples)
    heard = float(np.argmax(loud > loud.max() / 2)) / 16_000
    page = browser.new_page()
    try:
        page.goto(f"{address}/index.html")
        shown = page.evaluate(_PLAY, name)
    finally:
        page.close()
    assert heard == pytest.approx(2.0, abs=0.05)
    assert shown == pytest.approx(heard, abs=0.25)  # the browser's timer, on a busy machine
