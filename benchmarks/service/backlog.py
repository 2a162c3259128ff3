"""Measures latency against backlog: the curve from which the autoscaler's threshold is read.

    python -m benchmarks.service.backlog

Starts a server with finelap-small and lets 1, 2, 4, … callers detect in files of --clip seconds, each in a closed loop.
Every quarter of a second it reads finelap_queue_seconds and finelap_inflight_requests. A row has their means, the
throughput, latency, the share of the machine that the server used, and, as text searches do not wait for audio, the
latency of searches beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from typing import Any

from benchmarks import common, processes
from benchmarks.clients import Caller, Crowd, Probe
from benchmarks.common import Latency, Server, section

_WARM_UP = 5.0  # seconds
_TIMEOUT = 300.0
_INTERVAL = 0.25  # seconds between samples


class Sampler:
    """Reads gauges of a server on a thread until `stop`; `means` of what it read."""

    def __init__(self, server: Server, names: list[str]) -> None:
        self._server, self._values = server, {name: [0.0] for name in names}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Ends the thread; the mean of each gauge."""
        self._done.set()
        self._thread.join(30)
        return {name: statistics.fmean(values[1:] or values) for name, values in self._values.items()}

    def _work(self) -> None:
        while not self._done.wait(_INTERVAL):
            for name, values in self._values.items():
                values.append(self._server.metric(name))


def measure(server: Server, callers: int, clip: float, seconds: float) -> dict[str, Any]:
    """One row: `callers` of files of `clip` seconds for `seconds`."""
    crowd_callers = [Caller("files", clip, "detect", seed=i) for i in range(callers)]
    crowd = Crowd(server.address, crowd_callers, [Probe("search", 2.0)], seconds, _TIMEOUT)
    crowd.start()
    sampler = Sampler(server, ['finelap_queue_seconds{lane="audio"}', "finelap_inflight_requests"])
    spent, began = processes.cpu_seconds(server.process.pid), time.perf_counter()
    outcomes = crowd.outcomes()
    took = time.perf_counter() - began
    spent = processes.cpu_seconds(server.process.pid) - spent
    backlog, inflight = sampler.stop().values()
    done = [one for one in outcomes if one.status == 200 and not one.error]
    latency = Latency.of(one.seconds for one in done if one.kind == "files")
    return {
        "callers": callers,
        "backlog s": backlog,
        "in flight": inflight,
        "sound s/s": sum(one.audio_seconds for one in done) / took,
        "p50 s": latency.p50,
        "p95 s": latency.p95,
        "search p95 s": Latency.of(one.seconds for one in done if one.kind == "search").p95,
        "cpu": f"{100 * spent / took / common.machine()['cores']:.0f} %",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--clip", type=float, default=10.0, help="seconds of sound per file (10)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per row (20)")
    options = parser.parse_args(arguments)
    rows = []
    with Server(demo=True) as server:
        measure(server, 4, options.clip, _WARM_UP)
        for callers in options.callers:
            with section(f"{callers} callers"):
                rows.append(measure(server, callers, options.clip, options.seconds))
    machine = common.machine()
    print(f"{machine['cores']} cores of {machine['cpu']}, {machine['date']}\n")
    print(common.table(list(rows[0]), [list(row.values()) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
