"""The dashboard against Grafana's own types: what its SDK does not know, Grafana would ignore."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# known to Grafana, but not to its published schema
EXTRA = {"/templating/list/*/definition", "/annotations/list/*/titleFormat"}


@pytest.fixture(scope="module")
def dashboard(repo_dir: Path) -> dict[str, Any]:
    return dict(json.loads((repo_dir / "docker/grafana/dashboards/finelap.json").read_text(encoding="utf-8")))


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Paths of what differs, with * for positions."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key, ...), f"{path}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, f"{path}/*")
    elif before != after:
        yield path


def through_the_sdk(dashboard: dict[str, Any]) -> dict[str, Any]:
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    return dict(json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(dashboard))))))


def test_every_field_is_in_grafanas_schema(dashboard: dict[str, Any]) -> None:
    assert set(lost(dashboard, through_the_sdk(dashboard))) == EXTRA
    misspelled = json.loads(json.dumps(dashboard).replace('"legendFormat"', '"legendFromat"'))
    assert "/panels/*/targets/*/legendFromat" in set(lost(misspelled, through_the_sdk(misspelled)))


def test_panels_have_a_place_of_their_own(dashboard: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"], (panel["title"], x, y)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_queries_ask_for_metrics_of_the_service(dashboard: dict[str, Any], repo_dir: Path) -> None:
    defined = (repo_dir / "app/observability/metrics.py").read_text(encoding="utf-8")
    used = set(re.findall(r"finelap_\w+", json.dumps(dashboard)))
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    assert len(plain) > 12 and all(f'"{name}"' in defined for name in plain), plain
