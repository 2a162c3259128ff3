"""Each parser of ours against the kept inputs, cuts and changes of them, and what hypothesis makes up.

`python tests/fuzz/run.py` looks further, for as long as one likes.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
CHANGED = 12  # variants of each kept input


def _targets() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("fuzz_targets", Path(__file__).with_name("targets.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.TARGETS
    return found


TARGETS = _targets()
TAKES_JSON = (
    "json_bodies", "metadata_to_keep", "filters_of_clips", "snapshot_manifests", "backup_manifests", "detection_lines",
    "answers", "cursors",
)  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def test_every_target_has_kept_inputs() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS) and len(TARGETS) >= 20
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 500_000


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    choose = random.Random(name)
    for path in sorted((CORPUS / name).iterdir()):
        kept = path.read_bytes()
        TARGETS[name](kept)
        for _ in range(CHANGED):
            changed = bytearray(kept[: choose.randrange(len(kept) + 1)] if choose.random() < 0.5 else kept)
            for _ in range(choose.randrange(4) if changed else 0):
                changed[choose.randrange(len(changed))] = choose.choice([0, 1, 0x22, 0x7F, 0x80, 0xFF, 0x5B, 0x2F])
            TARGETS[name](bytes(changed))


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_bytes(name: str) -> None:
    @QUICK
    @given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()


@pytest.mark.parametrize("name", TAKES_JSON)
def test_made_up_json(name: str) -> None:
    @QUICK
    @given(JSON)
    def holds(value: Any) -> None:
        TARGETS[name](json.dumps(value).encode())

    holds()


@pytest.mark.parametrize("name", TAKES_JSON)
def test_members_changed(name: str) -> None:
    """Whole answers, manifests and filters in which some value is another one."""
    whole = []
    for path in sorted((CORPUS / name).iterdir()):
        try:
            whole += [json.loads(line) for line in path.read_bytes().splitlines()]
        except (ValueError, RecursionError):
            continue

    @QUICK
    @given(st.sampled_from(whole), st.randoms(use_true_random=False), JSON)
    def holds(value: Any, choose: random.Random, other: Any) -> None:
        TARGETS[name](json.dumps(_with(value, choose, other)).encode())

    holds()


def _with(value: Any, choose: random.Random, other: Any) -> Any:
    """The value with some part of it replaced."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(list(value))
        return {**value, key: _with(value[key], choose, other)}
    if isinstance(value, list) and value and choose.random() < 0.9:
        at = choose.randrange(len(value))
        return [*value[:at], _with(value[at], choose, other), *value[at + 1 :]]
    return other
