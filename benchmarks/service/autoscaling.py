"""Simulates a day of load on replicas that an autoscaler adds and removes, for several things to scale on.

    python -m benchmarks.service.autoscaling --plot docs/images/autoscaling.png

Each replica is a queue that computes `--rate` seconds of sound per second and is ready `--start` seconds after it was
asked for; benchmarks.service.backlog and benchmarks.service.startup measure both. Requests of `--clip` seconds arrive
as a Poisson process whose rate follows a day with peaks, and in five bursts. They go to a random ready replica and stay
there. The autoscaler is Kubernetes': every 15 s ceil(replicas × value / target) unless within 10 %, limits on its pace,
and the highest wish of the last five minutes before it removes a replica. The strategies:

cpu      mean utilisation of the replicas against 60 %, as the metrics server reports it, over the last 30 s
backlog  finelap_queue_seconds of all replicas, averaged over 30 s, against `--threshold` seconds per replica
both     the larger of the two

The simulation has no other delays: no image pulls, no nodes to add.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

DAY = 86_400
STRATEGIES = ("cpu", "backlog", "both")
MIN, MAX = 2, 10  # replicas
_POLL = 15  # seconds between decisions
_WINDOW = 30  # seconds over which both metrics are averaged
_CPU_TARGET = 0.6
_TOLERANCE = 0.1
_DOWN_WINDOW, _DOWN_EVERY = 300, 60  # seconds
_UP_EVERY = 30  # seconds in which replicas may double, or grow by two
_BURSTS = ((3 * 3600, 600, 4.0), (9 * 3600, 300, 3.0), (12.5 * 3600, 900, 2.0), (16 * 3600, 120, 6.0),
           (21 * 3600, 600, 4.0))  # fmt: skip  # start and length in seconds; capacity of so many replicas


@dataclass(frozen=True)
class Load:
    """What a replica can do, and what is asked. Seconds, but rate in seconds of sound per second."""

    rate: float
    start: float
    clip: float
    threshold: float
    service: float = 0.3  # seconds of a request that waits for nothing
    seed: int = 0

    def arrivals(self) -> np.ndarray:
        """Requests that arrive in each second of the day, (DAY,)."""
        at = np.arange(DAY)
        day = 0.15 + 1.6 * np.exp(-(((at / 3600 - 10.5) / 2.5) ** 2)) + 1.9 * np.exp(-(((at / 3600 - 15.5) / 2) ** 2))
        for begin, length, height in _BURSTS:
            day[int(begin) : int(begin + length)] += height
        return np.random.default_rng(self.seed).poisson(day * self.rate / self.clip)


@dataclass
class Outcome:
    """Of each second: replicas, starting ones included; seconds of sound that wait; latencies of what arrived."""

    strategy: str
    replicas: np.ndarray
    backlog: np.ndarray
    latencies: list[np.ndarray] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Latency quantiles of all requests, replica hours and changes."""
        every = np.sort(np.concatenate(self.latencies))
        return {
            "p50": float(np.quantile(every, 0.5)),
            "p95": float(np.quantile(every, 0.95)),
            "p99": float(np.quantile(every, 0.99)),
            "max": float(every[-1]),
            "over 10 s": float((every > 10).mean()),
            "replica hours": float(self.replicas.sum() / 3600),
            "changes": int((np.diff(self.replicas) != 0).sum()),
        }


class Autoscaler:
    """Kubernetes' decisions about replicas, from the wishes of one or several metrics."""

    def __init__(self, strategy: str, threshold: float) -> None:
        self._strategy, self._threshold = strategy, threshold
        self._wishes: deque[tuple[int, int]] = deque()
        self._up_at, self._down_at = -math.inf, -math.inf

    def decide(self, at: int, replicas: int, ready: int, cpu: float, backlog: float) -> int:
        """The number of replicas from now on. cpu: mean utilisation of the ready; backlog: seconds of sound of all."""
        wish = MIN
        if self._strategy in ("cpu", "both"):
            wish = max(wish, self._scaled(ready, cpu / _CPU_TARGET, replicas))
        if self._strategy in ("backlog", "both"):
            wish = max(wish, self._scaled(replicas, backlog / replicas / self._threshold, replicas))
        self._wishes.append((at, wish))
        while self._wishes[0][0] <= at - _DOWN_WINDOW:
            self._wishes.popleft()
        if wish > replicas and at - self._up_at >= _UP_EVERY:
            self._up_at = at
            return min(wish, MAX, max(2 * replicas, replicas + 2))
        highest = max(number for _, number in self._wishes)
        if highest < replicas and at - self._down_at >= _DOWN_EVERY:
            self._down_at = at
            return max(highest, MIN, replicas - 1)
        return replicas

    @staticmethod
    def _scaled(counted: int, ratio: float, replicas: int) -> int:
        return replicas if abs(ratio - 1) <= _TOLERANCE else math.ceil(counted * ratio - 1e-9)


def simulate(load: Load, strategy: str, arrivals: np.ndarray | None = None) -> Outcome:
    """A day with one strategy; every strategy meets the same requests."""
    arrivals = load.arrivals() if arrivals is None else arrivals
    random = np.random.default_rng(load.seed + 1)
    outcome = Outcome(strategy, np.zeros(len(arrivals)), np.zeros(len(arrivals)))
    autoscaler = Autoscaler(strategy, load.threshold)
    queues, starting = [0.0] * MIN, deque[int]()  # backlog of each ready replica; when the others will be ready
    cpu, backlog = deque[float](maxlen=_WINDOW), deque[float](maxlen=_WINDOW)
    for at in range(len(arrivals)):
        while starting and starting[0] <= at:
            starting.popleft()
            queues.append(0.0)
        shares = random.multinomial(arrivals[at], [1 / len(queues)] * len(queues))
        waits = []
        for i, number in enumerate(shares):
            # each request waits for those before it
            waits.append((queues[i] + load.clip * np.arange(number)) / load.rate + load.service)
            queues[i] += load.clip * number
        busy = [min(1.0, queue / load.rate) for queue in queues]
        queues = [max(0.0, queue - load.rate) for queue in queues]
        cpu.append(sum(busy) / len(busy))
        backlog.append(sum(queues))
        outcome.latencies.append(np.concatenate(waits))
        outcome.replicas[at], outcome.backlog[at] = len(queues) + len(starting), backlog[-1]
        if at % _POLL == 0:
            now = len(queues) + len(starting)
            wanted = autoscaler.decide(at, now, len(queues), sum(cpu) / len(cpu), sum(backlog) / len(backlog))
            starting.extend([at + round(load.start)] * (wanted - now))
            for _ in range(now - wanted):
                # it finishes what it has; proxies send nothing more
                _ = starting.pop() if starting else queues.pop(int(np.argmin(queues)))
    return outcome


def plot(outcomes: list[Outcome], load: Load, arrivals: np.ndarray, path: Path) -> None:
    """Load, replicas and the 95th percentile of latency over the day, one line per strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, constrained_layout=True)
    step, hours = 120, np.arange(DAY // 120) * 120 / 3600
    asked = arrivals.reshape(-1, step).mean(axis=1) * load.clip
    axes[0].fill_between(hours, asked, color="0.8", step="post")
    axes[0].set_ylabel("load, seconds of\nsound per second")
    for outcome, color in zip(outcomes, ("tab:orange", "tab:purple", "tab:blue"), strict=False):
        axes[1].step(hours, outcome.replicas.reshape(-1, step).max(axis=1), color=color, label=outcome.strategy, lw=1.2)
        groups = [np.concatenate(outcome.latencies[i : i + step]) for i in range(0, DAY, step)]
        p95 = [np.quantile(group, 0.95) if len(group) else np.nan for group in groups]
        axes[2].plot(hours, p95, color=color, label=outcome.strategy, lw=1.2)
    axes[1].set_ylabel("replicas")
    axes[1].legend(loc="upper left", ncols=3, frameon=False)
    axes[2].set(ylabel="latency p95, s", yscale="log", xlabel="hour of the day", xlim=(0, 24), xticks=range(0, 25, 3))
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=240, help="seconds of sound per second of a replica (240)")
    parser.add_argument("--start", type=float, default=15, help="seconds until a new replica is ready (15)")
    parser.add_argument("--clip", type=float, default=10, help="seconds of sound per request (10)")
    parser.add_argument("--threshold", type=float, nargs="+", default=[240], help="backlog per replica, seconds (240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="writes a picture")
    options = parser.parse_args(arguments)
    rows, outcomes = [], []
    for threshold in options.threshold:
        load = Load(options.rate, options.start, options.clip, threshold, seed=options.seed)
        arrivals = load.arrivals()
        for strategy in STRATEGIES:
            if strategy == "cpu" and rows:
                continue
            outcome = simulate(load, strategy, arrivals)
            outcomes.append(outcome)
            rows.append([strategy, threshold if strategy != "cpu" else None, *outcome.summary().values()])
    print(common.table(["strategy", "threshold s", *outcomes[0].summary()], rows))
    if options.plot:
        plot(outcomes[: len(STRATEGIES)], load, arrivals, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
