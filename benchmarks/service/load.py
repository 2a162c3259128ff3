"""Measures the service under load: short and long files together with searches, and overload beyond the queue.

Starts a server with finelap-small, the demo sounds in its library and default settings, and runs three phases:

A  callers with 5 s files (half of --callers), each in a closed loop
B  the same, plus as many callers with 120 s files
C  another server with a queue of --flood-queue windows, and --flood-callers callers that each need --flood-rounds
   successful responses and wait for Retry-After when they get 429

During A and B another process sends uncached text searches, repeated searches and /health/live at fixed rates; their
latency counts from when each was due. A and B alternate in --slices parts, so that other load affects both equally.
Files are WAV and FLAC recordings of demo sounds, and no two requests have the same bytes. Callers, probes and server
share this machine's cores; the report has the processor time of each. --tree measures another checkout with the same
command.
"""

from __future__ import annotations

import argparse
import collections
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, processes
from benchmarks.clients import CALLS, Caller, Crowd, Outcome, Probe, run_callers
from benchmarks.common import Latency, Server, section

SHORT, LONG = 5.0, 120.0  # seconds of audio
_TIMEOUT = 300.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    short, long = f"{SHORT:g} s files", f"{LONG:g} s files"
    half = options.callers // 2
    calls = [call.strip() for call in options.calls.split(",")]
    shorts = [Caller(short, SHORT, calls[i % len(calls)], seed=i) for i in range(half)]
    longs = [Caller(long, LONG, calls[i % len(calls)], seed=1000 + i) for i in range(options.callers - half)]
    probes = [
        Probe("search", options.search_rate),
        Probe("search again", options.search_rate),
        Probe("live", options.live_rate),
    ]
    settings = dict(pair.split("=", 1) for pair in options.set)
    report: dict[str, Any] = {
        "machine": common.machine(),
        "code": common.revision(options.tree),
        "callers": options.callers,
        "calls": calls,
        "settings": settings,
        "seconds": options.seconds,
        "phases": {},
    }
    phases = report["phases"]
    with Server(settings, demo=True, tree=options.tree) as server:
        with section("warming up"):
            run_callers(server.address, shorts[:2] + longs[:1], 5, _TIMEOUT)
        slices: dict[str, list[Slice]] = {"A": [], "B": []}
        for _ in range(options.slices):
            for name, callers in (("A", shorts), ("B", shorts + longs)):
                seconds = options.seconds / options.slices
                with section(f"phase {name}, {len(callers)} callers, {seconds:g} s"):
                    slices[name].append(measure(server, callers, probes, seconds))
        phases |= {name: summarise(taken) for name, taken in slices.items()}
    with Server(settings | {"max_queue_windows": options.flood_queue}, demo=True, tree=options.tree) as server:
        flood = [Caller(short, SHORT, "detect", i, rounds=options.flood_rounds) for i in range(options.flood_callers)]
        with section(f"phase C, {len(flood)} callers, a queue of {options.flood_queue}"):
            taken = measure(server, flood, [], _TIMEOUT)
        done = collections.Counter(answer.caller for answer in taken.outcomes if answer.status == 200)
        phases["C"] = summarise([taken])
        phases["C"]["unfinished"] = sum(done[i] < options.flood_rounds for i in range(options.flood_callers))
    p95 = {name: phases[name]["latency"][short]["p95"] for name in "AB"}
    report["ratio_p95_short_B_to_A"] = p95["B"] / p95["A"]
    print(show(report))
    common.write_json(options.json, report)
    return 0


@dataclass(frozen=True)
class Slice:
    """The outcomes of one part of a phase: `took` in seconds, `cpu` in processor seconds by group."""

    outcomes: list[Outcome]
    took: float
    cpu: dict[str, float]


def measure(server: Server, callers: list[Caller], probes: list[Probe], seconds: float) -> Slice:
    """Runs callers and probes for `seconds`, or until every caller has completed its rounds."""
    crowd = Crowd(server.address, callers, probes, seconds, _TIMEOUT)
    crowd.start()
    spent, busy = processes.cpu_seconds(server.process.pid), processes.machine_busy()
    outcomes = crowd.outcomes()
    spent, busy = processes.cpu_seconds(server.process.pid) - spent, processes.machine_busy() - busy
    others = max(0.0, busy - spent - crowd.cpu_seconds)  # processor time of all other processes
    return Slice(outcomes, crowd.took, {"server": spent, "clients": crowd.cpu_seconds, "others": others})


def summarise(slices: list[Slice]) -> dict[str, Any]:
    """Latencies of successful requests by kind, and counts of all others, over all slices of a phase."""
    outcomes, took = [answer for part in slices for answer in part.outcomes], sum(part.took for part in slices)
    cores = common.machine()["cores"]
    well = [a for a in outcomes if a.status in (200, 201) and not a.error]
    refused = [a for a in outcomes if a.status == 429]
    waits = sorted(float(a.retry_after) for a in refused if a.retry_after)
    kinds = sorted({a.kind for a in outcomes})
    statuses = {
        kind: dict(sorted(collections.Counter(str(a.status) for a in outcomes if a.kind == kind).items()))
        for kind in kinds
    }
    return {
        "took_s": took,
        "latency": {kind: asdict(Latency.of(a.seconds for a in well if a.kind == kind)) for kind in kinds},
        "statuses": statuses,
        "audio_seconds_per_second": sum(a.audio_seconds for a in well) / took,
        "refused": len(refused),
        "refused_without_retry_after": sum(not a.retry_after for a in refused),
        "retry_after": {"min": waits[0], "p50": common.percentile(waits, 0.5), "max": waits[-1]} if waits else None,
        "unanswered": sum(a.status == 0 for a in outcomes),
        "other_faults": [a.error for a in outcomes if a.error and a.status not in (0, 429)][:5],
        "cpu_share": {
            who: sum(part.cpu[who] for part in slices) / took / cores for who in slices[0].cpu
        },  # of all cores
    }


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine = report["machine"]
    lines = [f"code {report['code']}, {machine['cores']} cores of {machine['cpu']}, {machine['date']}", ""]
    rows, others = [], []
    for name, phase in report["phases"].items():
        for kind, latency in phase["latency"].items():
            statuses = " ".join(f"{n}×{s}" for s, n in phase["statuses"][kind].items())
            rows.append([name, kind, *latency.values(), statuses])
        waits = phase["retry_after"]
        share = phase["cpu_share"]
        others.append(
            [
                name,
                phase["audio_seconds_per_second"],
                phase["refused"],
                f"{waits['min']:g}–{waits['max']:g}" if waits else "–",
                phase["unanswered"],
                *(f"{100 * share[who]:.0f} %" for who in ("server", "clients", "others")),
            ]
        )
    lines.append(common.table(["phase", "requests", "n", "p50 s", "p95 s", "p99 s", "max s", "statuses"], rows))
    head = ["phase", "audio s per s", "429", "Retry-After", "unanswered", "server", "clients", "other processes"]
    lines += ["", common.table(head, others), ""]
    lines.append(f"p95 of {SHORT:g} s files, B / A: {report['ratio_p95_short_B_to_A']:.2f}")
    if "C" in report["phases"]:
        lines.append(f"callers of C with missing responses: {report['phases']['C']['unfinished']}")
    faults = [error for phase in report["phases"].values() for error in phase["other_faults"]]
    return "\n".join([*lines, *(f"error: {error}" for error in faults)])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=32, help="half with short files, half with long ones (32)")
    parser.add_argument("--seconds", type=float, default=60, help="duration of phase A and of phase B (60)")
    parser.add_argument("--slices", type=int, default=2, help="number of parts in which A and B alternate (2)")
    parser.add_argument("--calls", default="detect", help=f"calls they make in turn, from {', '.join(CALLS)} (detect)")
    parser.add_argument(
        "--search-rate", type=float, default=2, help="uncached searches per second, and as many repeated ones (2)"
    )
    parser.add_argument("--live-rate", type=float, default=5, help="/health/live requests per second (5)")
    parser.add_argument("--flood-callers", type=int, default=64)
    parser.add_argument("--flood-rounds", type=int, default=3)
    parser.add_argument("--flood-queue", type=int, default=16, help="FINELAP_MAX_QUEUE_WINDOWS of phase C (16)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a FINELAP_ setting")
    parser.add_argument("--tree", type=Path, default=common.REPO, help="checkout whose server is measured")
    parser.add_argument("--json", type=Path, help="write the report there")
    options = parser.parse_args(arguments)
    if not set(options.calls.replace(" ", "").split(",")) <= set(CALLS):
        parser.error(f"--calls accepts {', '.join(CALLS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
