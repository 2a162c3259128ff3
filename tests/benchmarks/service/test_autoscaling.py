"""The simulated autoscaler: Kubernetes' rules, and queues that neither lose nor invent work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.service.autoscaling import DAY, MAX, MIN, Autoscaler, Load, plot, simulate

LOAD = Load(rate=100, start=20, clip=10, threshold=100)


def constant(per_second: int, seconds: int) -> np.ndarray:
    return np.full(seconds, per_second)


def test_a_light_load_keeps_the_minimum() -> None:
    for strategy in ("cpu", "backlog", "both"):
        outcome = simulate(LOAD, strategy, constant(8, 1200))  # 80 of the 200 s/s that two replicas compute
        assert set(outcome.replicas) == {MIN}
        assert outcome.summary()["max"] < 2 and len(np.concatenate(outcome.latencies)) == 8 * 1200


@pytest.mark.parametrize("strategy", ["cpu", "backlog", "both"])
def test_a_burst_adds_replicas_and_its_end_removes_them(strategy: str) -> None:
    arrivals = np.concatenate([constant(5, 300), constant(60, 600), constant(5, 1800)])
    outcome = simulate(LOAD, strategy, arrivals)
    assert set(outcome.replicas[:300]) == {MIN} and outcome.replicas[300:900].max() >= 7 and outcome.replicas[-1] == MIN
    assert outcome.backlog[300:600].max() > 3000 and outcome.backlog[-1] == 0
    steps = np.diff(outcome.replicas)
    assert steps.min() == -1  # one at a time
    assert (np.diff(np.flatnonzero(steps < 0)) >= 60).all() and (np.diff(np.flatnonzero(steps > 0)) >= 30).all()
    before, after = outcome.replicas[:-1][steps > 0], outcome.replicas[1:][steps > 0]
    assert (after <= np.maximum(2 * before, before + 2)).all() and after.max() <= MAX


def test_the_backlog_reacts_before_the_cpu() -> None:
    """CPU use cannot exceed 100 %, so it asks for two thirds more at a time."""
    scaler = [Autoscaler(strategy, 100) for strategy in ("cpu", "backlog")]
    assert [one.decide(0, 2, 2, 1.0, 5000) for one in scaler] == [4, 4]  # at most twice as many at once
    assert [one.decide(30, 4, 4, 1.0, 5000) for one in scaler] == [7, 8]


def test_values_near_the_target_change_nothing() -> None:
    scaler = Autoscaler("both", 100)
    assert scaler.decide(0, 4, 4, 0.6 * 1.09, 400 * 1.09) == 4
    assert scaler.decide(15, 4, 4, 0.6 * 1.11, 0) == 5


def test_every_strategy_meets_the_same_day(tmp_path: Path) -> None:
    arrivals = LOAD.arrivals()
    assert len(arrivals) == DAY and (arrivals == LOAD.arrivals()).all()
    assert (arrivals != Load(100, 20, 10, 100, seed=1).arrivals()).any()
    part = np.resize(arrivals[:600], DAY)
    outcome = simulate(LOAD, "cpu", part[:600])
    outcome.replicas, outcome.backlog = np.resize(outcome.replicas, DAY), np.resize(outcome.backlog, DAY)
    outcome.latencies = outcome.latencies * (DAY // 600)
    plot([outcome], LOAD, part, tmp_path / "day.png")
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")
