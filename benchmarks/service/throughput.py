"""Measures the service over HTTP as a share of the bare model loop on the same machine, in the same run.

    python -m benchmarks.service.throughput [--rounds 5] [--seconds 8] [--dtype float32] [--base] [--json FILE]

Rounds alternate between `finelap serve` at saturation (`--callers` closed loops that send distinct 10 s WAV and FLAC
files at 16 kHz) and its upper bound, `encode_windows` over full batches in this process, with the service's layers. The
callers share the server's cores; the table shows their processor time. Also measured: texts per second of /embed, with
32 new texts per request; sequential text searches on an idle server with a library of `--clips` synthetic clips; and
p50 and p95 latency with 1 to 32 callers. `--base` uses a model of the published size with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks import common, processes
from benchmarks.clients import Caller, Crowd
from benchmarks.common import Latency, Server
from benchmarks.model import sizes
from model.config import SAMPLE_RATE
from model.cpu.layers import use_onednn

_SECONDS = 10.0  # length of a clip
_BATCH = 16
_WARM = 1.0  # seconds until the rate of responses is steady
_TEXTS = 32  # per request
_WORDS = ("dog", "door", "bell", "engine", "bird", "crowd", "river", "hammer", "horse", "machine", "storm", "rain")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    size = sizes.BASE if options.base else sizes.SMALL
    report: dict[str, Any] = {
        "machine": common.machine(),
        "code": common.revision(common.REPO),
        "size": size,
        "dtype": options.dtype,
    }
    with tempfile.TemporaryDirectory(prefix="finelap-") as folder:
        settings: dict[str, object] = {"dtype": options.dtype}
        if options.base:
            settings["checkpoint"] = _write_base(Path(folder) / "checkpoint")
        report["ingest"] = ingest(options, settings, size)
        common.write_json(options.json, report)
        if not options.base:
            settings["data_dir"] = options.library or Path(folder) / "data"
            if not Path(str(settings["data_dir"])).exists():
                from benchmarks.library import fill_library

                with common.section(f"a library of {options.clips} clips"):
                    fill_library(Path(str(settings["data_dir"])), options.clips)
            with common.section("texts and searches"), Server(settings) as server:
                report["texts_per_second"] = texts(server, options.rounds, options.seconds / 2)
                report["search_ms"] = searches(server, 100)
                report["clips"] = options.clips
    print(show(report))
    common.write_json(options.json, report)
    return 0


def _write_base(folder: Path) -> Path:
    """Saves a model of the published size with the tokenizer of the small one."""
    with common.section("a checkpoint of the published size"):
        model = sizes.build(sizes.BASE)
        model.tokenizer = sizes.build(sizes.SMALL).tokenizer
        model.save_pretrained(folder)
    return folder


def ingest(options: argparse.Namespace, settings: dict[str, object], size: str) -> dict[str, Any]:
    """Clips per second of both calls and the loop, and latencies of /embed by the number of callers."""
    import torch

    model = use_onednn(sizes.build(size, getattr(torch, options.dtype)))
    tape = common.Tape(0)
    waveforms = [tape.read(round(_SECONDS * SAMPLE_RATE)) for _ in range(_BATCH)]
    found: dict[str, Any] = {"loop": [], "embed": [], "clips": [], "curve": []}
    with Server(settings) as server:
        served = server.get("/info").json()["model"]["name"]
        if served != model.name:
            raise RuntimeError(f"the server runs {served}, the loop {model.name}")
        saturate(server, "embed", options.callers, 2.0)
        for number in range(options.rounds):
            with common.section(f"round {number + 1} of {options.rounds}"):
                found["loop"].append(loop(model, waveforms, options.seconds))
                for call in ("embed", "clips"):
                    found[call].append(saturate(server, call, options.callers, options.seconds))
        for callers in (1, 2, 4, 8, 16, 32):
            with common.section(f"{callers} callers"):
                found["curve"].append({"callers": callers, **saturate(server, "embed", callers, options.seconds / 2)})
    rates = {call: statistics.median(part["clips_per_second"] for part in found[call]) for call in ("embed", "clips")}
    bare = statistics.median(found["loop"])
    return found | {"loop_median": bare, "medians": rates, "ratios": {call: r / bare for call, r in rates.items()}}


def loop(model: Any, waveforms: list[Any], seconds: float) -> float:
    """Clips per second of the bare model, batch after batch."""
    model.encode_windows(waveforms)
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        model.encode_windows(waveforms)
        done += len(waveforms)
    return done / took


def saturate(server: Server, call: str, callers: int, seconds: float) -> dict[str, Any]:
    """Runs `callers` closed loops; the rate counts responses while all of them are sending."""
    crowd = Crowd(server.address, [Caller(call, _SECONDS, call, seed=2 * i) for i in range(callers)], [], seconds)
    crowd.start()
    spent = processes.cpu_seconds(server.process.pid)
    outcomes = crowd.outcomes()
    spent = processes.cpu_seconds(server.process.pid) - spent
    bad = [answer for answer in outcomes if answer.error]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(outcomes)} requests failed: {bad[0].error}")
    latency = Latency.of(answer.seconds for answer in outcomes)
    first, last = crowd.began + _WARM, crowd.began + seconds  # no requests are sent after it
    steady = sum(first <= answer.ended < last for answer in outcomes)
    cores = common.machine()["cores"]
    return {
        "clips_per_second": steady / (last - first),
        "p50": latency.p50,
        "p95": latency.p95,
        "server_share": spent / crowd.took / cores,
        "callers_share": crowd.cpu_seconds / crowd.took / cores,
    }


def texts(server: Server, rounds: int, seconds: float) -> list[float]:
    """Texts per second of /embed for uncached texts, sequential requests on one connection."""
    import httpx

    rates = []
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        for _ in range(rounds):
            began, done = time.perf_counter(), 0
            while (took := time.perf_counter() - began) < seconds:
                many = [f"a {_WORDS[i % 12]} and a {uuid.uuid4().hex[:6]} far away" for i in range(_TEXTS)]
                client.post("/embed", json={"texts": many}).raise_for_status()
                done += len(many)
            rates.append(done / took)
    return rates


def searches(server: Server, count: int) -> dict[str, float]:
    """Milliseconds of sequential uncached text searches on an idle server."""
    import httpx

    taken = []
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        for i in range(count + 10):
            began = time.perf_counter()
            asked = client.get("/search", params={"q": f"a {_WORDS[i % 12]} {uuid.uuid4().hex[:6]}"})
            if i >= 10:
                taken.append(1e3 * (time.perf_counter() - began))
            asked.raise_for_status()
            time.sleep(0.05)
    latency = Latency.of(taken)
    return {"p50": latency.p50, "p95": latency.p95, "max": latency.max}


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    ingest, machine = report["ingest"], report["machine"]
    lines = [f"{report['size']} in {report['dtype']}, {machine['cores']} cores of {machine['cpu']}, {machine['date']}"]
    rows: list[list[object]] = [["bare loop", ingest["loop_median"], "1", "", ""]]
    for call, rate in ingest["medians"].items():
        server, callers = (
            f"{100 * statistics.median(part[who] for part in ingest[call]):.0f} %"
            for who in ("server_share", "callers_share")
        )
        rows.append([f"POST /{call}", rate, f"{ingest['ratios'][call]:.3f}", server, callers])
    lines += ["", common.table(["10 s clips", "clips/s", "of the loop", "server", "callers"], rows), ""]
    curve = [[part["callers"], part["clips_per_second"], part["p50"], part["p95"]] for part in ingest["curve"]]
    lines.append(common.table(["callers of /embed", "clips/s", "p50 s", "p95 s"], curve))
    if "search_ms" in report:
        ms = report["search_ms"]
        lines += ["", f"texts over /embed: {statistics.median(report['texts_per_second']):.0f} a second"]
        lines.append(f"text search, {report['clips']} clips: p50 {ms['p50']:.1f} ms, p95 {ms['p95']:.1f} ms")
    return "\n".join(lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="duration of each part of a round (8)")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--clips", type=int, default=10_000, help="size of the searched library")
    parser.add_argument("--library", type=Path, help="folder to keep that library in for later runs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--base", action="store_true", help="use a model of the published size")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
