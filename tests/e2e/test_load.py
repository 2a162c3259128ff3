"""Many callers at a real server: everyone is answered, the short do not wait for the long, a full queue says so.

Counts and orders, no tight times: how fast it is, benchmarks/service/load.py measures.
"""

from __future__ import annotations

import concurrent.futures
import statistics
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.clients import Caller, Crowd, Outcome, Probe, run_callers
from benchmarks.common import Server, Tape, encode

pytestmark = pytest.mark.slow

SECONDS = 10.0  # of load
PATIENCE = 120.0
KINDS = ("short", "long")
CALLS = ("detect", "clips", "embed")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture(scope="module")
def mixed(server: Server) -> list[Outcome]:
    """What became of 8 callers with 5 s, 8 with 120 s through all three calls, and of probes beside them."""
    callers = [
        Caller(kind, seconds, CALLS[i % 3], seed=100 * n + i)
        for n, (kind, seconds) in enumerate(zip(KINDS, (5.0, 120.0), strict=True))
        for i in range(8)
    ]
    probes = [Probe("search", 2), Probe("search again", 2), Probe("live", 5)]
    crowd = Crowd(server.address, callers, probes, SECONDS, PATIENCE)
    crowd.start()
    return crowd.outcomes()


def of(kind: str, answers: list[Outcome]) -> list[Outcome]:
    return [answer for answer in answers if answer.kind == kind]


def test_everyone_is_answered_and_rightly(mixed: list[Outcome]) -> None:
    assert not [a for a in mixed if a.status not in (200, 201) or a.error]


def test_no_caller_starves(mixed: list[Outcome]) -> None:
    for kind in KINDS:
        answered = Counter(a.caller for a in of(kind, mixed))
        assert len(answered) == 8, (kind, answered)
        for i, call in enumerate(CALLS):  # callers of one kind and one call ask alike and get alike
            alike = [count for caller, count in answered.items() if caller % 8 % 3 == i]
            assert min(alike) >= max(alike) // 4, (kind, call, answered)


def test_a_short_file_does_not_wait_for_long_ones(mixed: list[Outcome]) -> None:
    short, long = (statistics.median(a.seconds for a in of(kind, mixed)) for kind in ("short", "long"))
    assert short < long / 2


def test_searches_and_probes_are_answered_in_between(server: Server, mixed: list[Outcome]) -> None:
    taken, batches = (
        server.metric(f'finelap_stage_duration_seconds_{what}{{stage="infer"}}') for what in ("sum", "count")
    )
    soon = max(2.0, 5 * taken / batches)  # a machine that is slow with a batch is slow with what comes in between
    long = statistics.median(a.seconds for a in of("long", mixed))
    for kind, rate in (("search", 2), ("search again", 2), ("live", 5)):
        answers = of(kind, mixed)
        assert len(answers) == pytest.approx(rate * SECONDS, abs=1)
        assert statistics.median(a.seconds for a in answers) < min(soon, long), kind


def test_results_come_in_the_order_of_the_files(server: Server) -> None:
    lengths = (12.0, 1.0, 30.0, 0.5, 4.0, 21.0, 2.0, 9.0)
    files = [encode(Tape(i).read(round(s * 16_000)), ("WAV", "FLAC")[i % 2]) for i, s in enumerate(lengths)]

    def embed(numbers: list[int]) -> list[dict[str, list[float]]]:
        form = [("files", (f"{n}.bin", files[n])) for n in numbers]
        answer = server.post("/embed", files=form)
        assert answer.status_code == 200, answer.text
        assert [item["filename"] for item in answer.json()["audio"]] == [f"{n}.bin" for n in numbers]
        return list(answer.json()["audio"])

    alone = [embed([n])[0]["embedding"] for n in range(len(files))]
    orders = [[int(n) for n in np.random.default_rng(i).permutation(len(files))] for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(len(orders)) as pool:
        for numbers, items in zip(orders, pool.map(embed, orders), strict=True):
            for n, item in zip(numbers, items, strict=True):
                assert item["duration"] == pytest.approx(lengths[n])
                assert float(np.dot(item["embedding"], alone[n])) > 0.9999, (n, numbers)


def test_a_full_queue_refuses_and_whoever_waits_is_served(start_server: Callable[..., Server]) -> None:
    small = start_server(max_queue_windows=2)
    callers = [Caller("flood", 5.0, "detect", seed=i, files=1, rounds=2) for i in range(32)]
    answers = run_callers(small.address, callers, 500, 500)
    assert Counter(a.status for a in answers).keys() == {200, 429}
    assert all(int(a.retry_after) >= 1 for a in answers if a.status == 429)
    assert not [a for a in answers if a.status == 200 and a.error]
    done = Counter(a.caller for a in answers if a.status == 200)
    assert done == {number: 2 for number in range(32)}
    assert small.get("/health/ready").status_code == 200
    assert small.metric('finelap_queue_depth{lane="audio"}') == 0
