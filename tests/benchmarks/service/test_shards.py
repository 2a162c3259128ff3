"""An ingest in shards that are killed and resumed gives the records of one run."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from benchmarks.service.shards import Run, differences, measure


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """The runs with each store that is here, compared with the same run without shards."""
    stores = ["sqlite"] + ["milvus"] * (importlib.util.find_spec("milvus_lite") is not None)
    report: dict[str, Any] = measure(180, 3, stores)["runs"]
    return report


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "milvus"])
def test_shards_killed_and_resumed_have_the_records_of_one_run(runs: dict[str, Any], store: str) -> None:
    if store not in runs:
        pytest.skip("milvus_lite is not installed")
    run = runs[store]
    assert (run["missing"], run["more"], run["different"]) == (0, 0, 0)
    assert run["vectors compared"] == 180 and run["largest difference of a value"] < 1e-5
    killed = run["clips in the library at each kill"]
    assert 30 <= killed[0] < 180 and killed == sorted(killed)  # a fast machine may be done before the last kill
    processed = [added + there for added, there, _ in run["after the kill: added, already there, failed"]]
    assert sum(processed) == 180 and min(processed) > 30


@pytest.mark.slow
def test_embedding_with_ray_killed_and_resumed_has_the_records_of_one_run() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'finelap[ray]'")
    run = measure(60, 3, ["ray"])["runs"]["ray"]
    assert (run["missing"], run["more"], run["different"]) == (0, 0, 0)
    assert run["vectors compared"] == 60 and run["largest difference of a value"] < 1e-5


def test_differences_are_reported() -> None:
    record = ("a.wav", 0.3, 16_000, 1, "{}")
    one = Run(records={"a": record, "b": record})
    other = Run(records={"b": ("a.wav", 0.4, 16_000, 1, "{}"), "c": record})
    found = differences(other, one)
    assert (found["missing"], found["more"], found["different"]) == (1, 1, 1)
