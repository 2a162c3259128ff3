"""Compares FineLAP with infinity serving CLAP, under the same HTTP load in the same run.

    python -m benchmarks.service.infinity --work FOLDER [--rounds 2] [--seconds 5] [--callers 16] [--json FILE]

Creates once, in FOLDER, a virtual environment with infinity_emb and its dependencies from PyPI, and a CLAP (HTS-AT,
27.5 million parameters) with random weights. Rounds then alternate between infinity and `finelap serve` with
finelap-small, one server at a time on all cores. Requests have OpenAI's shape, which both support: one 10 s clip as a
WAV in a data URI at 48 kHz, the only rate infinity accepts, or 16 uncached texts. All other settings are defaults. The
result is the ratio of the medians. The plain loop of Hugging Face transformers over CLAP is measured too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import uuid
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks import common
from benchmarks.common import Server

# infinity 0.0.77 with versions it works with; CLAP does not need torchvision
INFINITY = "infinity_emb==0.0.77"
PACKAGES = (
    "torch==2.13.0", "transformers<4.49", "optimum<2", "huggingface_hub<1", "sentence-transformers<5", "typer<0.16",
    "numpy", "soundfile", "soxr", "fastapi", "uvicorn[standard]", "orjson", "prometheus-fastapi-instrumentator",
    "rich", "aiohttp", "posthog", "hf_transfer", "diskcache",
)  # fmt: skip
_CLAP = Path(__file__).with_name("infinity_clap.py")
_RATE = 48_000  # Hz
_SECONDS = 10.0  # of a clip
_TEXTS = 16  # in a request
_START = 180.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    python, model = prepare(options.work.resolve())
    audio = clips(8)
    found: dict[str, dict[str, list[float]]] = {
        name: {"clips": [], "texts": []} for name in ("infinity", "finelap", "transformers")
    }
    for number in range(options.rounds):
        with common.section(f"round {number + 1} of {options.rounds}"):
            with infinity(python, model) as address:
                measure(f"{address}/embeddings", "clap", audio, options, found["infinity"])
            with Server(dict(pair.split("=", 1) for pair in options.set)) as server:
                measure(f"{server.address}/v1/embeddings", "finelap-small", audio, options, found["finelap"])
            command = [str(python), str(_CLAP), "loop", str(model), str(options.seconds), "8", str(options.samples)]
            said = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            for kind, rates in said.items():
                found["transformers"][kind] += rates
    medians = {name: {k: statistics.median(v) for k, v in rates.items()} for name, rates in found.items()}
    ratios = {k: medians["finelap"][k] / medians["infinity"][k] for k in ("clips", "texts")}
    report = {
        "machine": common.machine(), "code": common.revision(common.REPO), "infinity": INFINITY,
        "settings": options.set, "rounds": found, "medians": medians, "ratios": ratios,
    }  # fmt: skip
    names = {
        "infinity": f"{INFINITY}, CLAP",
        "finelap": "finelap serve, finelap-small",
        "transformers": "CLAP, plain loop",
    }
    rows = [[names[n], rates["clips"], rates["texts"]] for n, rates in medians.items()]
    print(common.table(["", "10 s clips/s", "texts/s"], rows))
    print(f"finelap / infinity: {ratios['clips']:.2f} times the clips, {ratios['texts']:.2f} times the texts")
    common.write_json(options.json, report)
    return 0


def prepare(work: Path) -> tuple[Path, Path]:
    """Infinity's interpreter and the folder of its model, created if they do not exist."""
    environment, model = work / "venv", work / "clap"
    python = environment / "bin" / "python"
    if not (work / "installed").exists():
        with common.section("infinity's environment"):
            venv.create(environment, with_pip=True)
            pip = [str(python), "-m", "pip", "install", "-q"]
            subprocess.run([*pip, "--no-deps", INFINITY], check=True)
            subprocess.run([*pip, *PACKAGES], check=True)
            (work / "installed").touch()
    if not (model / "config.json").exists():
        with common.section("the CLAP model"):
            model.mkdir(parents=True, exist_ok=True)
            subprocess.run([str(python), str(_CLAP), "make", str(model)], check=True, stdout=sys.stderr)
    return python, model


@contextlib.contextmanager
def infinity(python: Path, model: Path) -> Iterator[str]:
    """Runs infinity with the model on a free port; yields its address once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(python.with_name("infinity_emb")), "v2", "--model-id", str(model), "--served-model-name", "clap",
        "--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    environment = os.environ | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    log = model.parent / "infinity.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + _START
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"infinity did not start:\n{log.read_text()[-3000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                    break
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def clips(count: int) -> list[str]:
    """WAV recordings of demo sounds, base64-encoded."""
    tape = common.Tape(0, rate=_RATE)
    files = (common.encode(tape.read(round(_SECONDS * _RATE)), rate=_RATE) for _ in range(count))
    return [base64.b64encode(file).decode() for file in files]


def measure(url: str, model: str, audio: list[str], options: argparse.Namespace, into: dict[str, list[float]]) -> None:
    """Appends samples of a server's clips and texts per second to `into`."""
    audio_bodies = [
        json.dumps({"model": model, "modality": "audio", "input": [f"data:audio/wav;base64,{clip}"]}).encode()
        for clip in audio
    ]

    def text_body() -> bytes:
        texts = [f"a dog barks while {uuid.uuid4().hex[:6]} cars pass by in the rain" for _ in range(_TEXTS)]
        return json.dumps({"model": model, "modality": "text", "input": texts}).encode()

    numbers = iter(range(1 << 30))
    for kind, body, items in (
        ("clips", lambda: audio_bodies[next(numbers) % len(audio_bodies)], 1),
        ("texts", text_body, _TEXTS),
    ):
        asyncio.run(_saturate(url, body, options.callers, 1.0))  # warm
        for _ in range(options.samples):
            into[kind].append(items * asyncio.run(_saturate(url, body, options.callers, options.seconds)))


async def _saturate(url: str, body: Any, callers: int, seconds: float) -> float:
    """Requests per second of `callers` closed loops."""
    done = 0
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(timeout=300, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
        began = time.monotonic()

        async def one() -> None:
            nonlocal done
            while time.monotonic() - began < seconds:
                (await client.post(url, content=body(), headers=headers)).raise_for_status()
                done += 1

        await asyncio.gather(*(one() for _ in range(callers)))
        return done / (time.monotonic() - began)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the environment, 3 GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=3, help="samples of each kind per round (3)")
    parser.add_argument("--seconds", type=float, default=5, help="duration of a sample (5)")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a FINELAP_ setting")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
