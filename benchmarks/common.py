"""Shared by the benchmarks and the end-to-end tests: a server process, synthetic recordings, percentiles, tables.

The server is `finelap serve` as a user starts it, in its own process. It can run the code of another checkout, so that
the same command measures two versions.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import soxr

from model.config import SAMPLE_RATE

REPO = Path(__file__).resolve().parent.parent
SOUNDS = REPO / "demo" / "sounds"
_READY = re.compile(r"FineLAP is ready: (http://\S+)")
COMMAND = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())"]  # finelap


# A server


class Server:
    """A context manager that runs `finelap serve` on a free port with a temporary library.

    `settings` are FINELAP_* variables without the prefix; `demo` adds the demo sounds to the library; `tree` is the
    checkout whose code and checkpoint it runs; `wait` is the timeout for its start, in seconds.
    """

    def __init__(
        self, settings: dict[str, object] | None = None, *, demo: bool = False, tree: Path = REPO, wait: float = 240.0
    ) -> None:
        self.tree, self.demo, self.wait = tree.resolve(), demo, wait
        self.settings = settings or {}
        self.address = ""
        self._folder = tempfile.TemporaryDirectory(prefix="finelap-")
        self.log = Path(self._folder.name) / "log.txt"

    def __enter__(self) -> Server:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FINELAP_")}
        environment |= {"PYTHONPATH": str(self.tree), "FINELAP_DATA_DIR": str(Path(self._folder.name) / "data")}
        environment |= {f"FINELAP_{name.upper()}": str(value) for name, value in self.settings.items()}
        checkpoint = self.settings.get("checkpoint", self.tree / "checkpoints" / "finelap-small")
        command = [*COMMAND, "serve", "--port", "0", "--checkpoint", str(checkpoint)]
        if self.demo:
            command += ["--demo", str(SOUNDS)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=self._folder.name,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            encoding="utf-8",
        )
        ready: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_output, args=(ready,), daemon=True).start()
        try:
            self.address = ready.get(timeout=self.wait)
        except queue.Empty:
            self.address = ""
        if not self.address:
            log = self.log.read_text()
            self.stop()
            raise RuntimeError(f"the server did not start:\n{log}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends SIGTERM, then SIGKILL after 40 s, and removes the library."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._folder.cleanup()

    def get(self, path: str, **params: Any) -> httpx.Response:
        """GET `path`."""
        return httpx.get(self.address + path, params=params, timeout=120, trust_env=False)

    def post(self, path: str, timeout: float = 600, **content: Any) -> httpx.Response:
        """POST `path`."""
        return httpx.post(self.address + path, timeout=timeout, trust_env=False, **content)

    def delete(self, path: str) -> httpx.Response:
        """DELETE `path`."""
        return httpx.delete(self.address + path, timeout=120, trust_env=False)

    def metric(self, name: str) -> float:
        """The value of the sample `name`, including labels, in GET /metrics; 0 if it does not exist yet."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def _read_output(self, ready: queue.Queue[str]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := _READY.search(line):
                ready.put(found[1])
        ready.put("")


# Recordings


class Tape:
    """An endless recording of demo sounds; the seed determines their order, levels and pauses.

    `pause` is the mean length of the near silence between two sounds, in seconds.
    """

    def __init__(self, seed: int, *, pause: float = 0.5, rate: int = SAMPLE_RATE) -> None:
        self._random = np.random.default_rng(seed)
        self._pause, self._rate = pause, rate
        self._sounds = _demo_sounds(rate)
        self._left = np.empty(0, dtype=np.float32)

    def read(self, samples: int) -> np.ndarray:
        """The next samples (n,), float32."""
        pieces, missing = [self._left], samples - len(self._left)
        while missing > 0:
            sound = self._sounds[self._random.integers(len(self._sounds))] * self._random.uniform(0.3, 1.0)
            silence = 1e-4 * self._random.standard_normal(int(self._random.exponential(self._pause) * self._rate))
            pieces += [sound.astype(np.float32), silence.astype(np.float32)]
            missing -= len(sound) + len(silence)
        whole = np.concatenate(pieces)
        self._left = whole[samples:]
        return whole[:samples]


_cache: dict[int, list[np.ndarray]] = {}


def _demo_sounds(rate: int) -> list[np.ndarray]:
    """All demo sounds, mono at `rate` Hz, at most 4 s, at the same peak level."""
    if rate not in _cache:
        files = sorted(p for p in SOUNDS.iterdir() if p.suffix in (".ogg", ".flac", ".wav", ".mp3", ".opus"))
        _cache[rate] = [load(file, rate)[: 4 * rate] for file in files]
    return _cache[rate]


def load(path: Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a sound file as mono samples (n,) at `rate` Hz with a peak of 0.5."""
    samples, original = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), original, rate)
    return (0.5 * mono / max(1e-6, float(np.abs(mono).max()))).astype(np.float32)


def encode(samples: np.ndarray, kind: str = "WAV", rate: int = SAMPLE_RATE, tag: str = "") -> bytes:
    """Encodes samples (n,) as a file; `kind` is a libsndfile format and `tag` the title."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format=kind) as sound:
        if tag:
            sound.title = tag
        sound.write(samples)
    return file.getvalue()


def write_recording(path: Path, seconds: float, seed: int, *, pause: float = 4.0, rate: int = SAMPLE_RATE) -> Path:
    """Writes a long recording that starts with a dog bark, block by block; the suffix of `path` sets the format."""
    tape, left = Tape(seed, pause=pause, rate=rate), round(seconds * rate)
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        bark = load(next(iter(sorted(SOUNDS.glob("dog-barking-*")))), rate)[:left]
        file.write(bark)
        left -= len(bark)
        while left > 0:
            block = tape.read(min(left, 60 * rate))
            file.write(block)
            left -= len(block)
    return path


# Numbers and tables


@dataclass(frozen=True)
class Latency:
    """Quantiles of durations, in seconds; NaN if there are none."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency:
        """Nearest-rank quantiles: each is one of the durations."""
        ordered = sorted(seconds)
        p50, p95, p99 = (percentile(ordered, q) for q in (0.5, 0.95, 0.99))
        return cls(len(ordered), p50, p95, p99, ordered[-1] if ordered else math.nan)


def percentile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile `q` of ordered values; NaN if there are none."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def machine() -> dict[str, Any]:
    """The machine and date of a measurement."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def revision(tree: Path) -> str:
    """The commit of a checkout, with a + if files differ from it."""
    described = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a Markdown table, floats with three significant digits."""
    cells = [[str(c) for c in head], *[[_cell(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Writes the report to `path`, unless that is None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Prints the name of a step and its duration to stderr."""
    print(f"{name} …", end="", file=sys.stderr, flush=True)
    began = time.perf_counter()
    yield
    print(f" {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
