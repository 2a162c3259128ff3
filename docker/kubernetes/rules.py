"""Writes docker/prometheus/rules.yml as the PrometheusRule of components/monitoring.

    python docker/kubernetes/rules.py

Needs PyYAML. tests/docker/test_kubernetes.py compares the two.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "prometheus" / "rules.yml"
TARGET = HERE / "components" / "monitoring" / "prometheus-rule.yaml"

_HEAD = "# Written by docker/kubernetes/rules.py from docker/prometheus/rules.yml.\n"


def prometheus_rule() -> str:
    """The PrometheusRule as YAML."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "finelap", "labels": {"app.kubernetes.io/name": "finelap"}},
        "spec": {"groups": yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]},
    }
    return _HEAD + yaml.safe_dump(resource, sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
    print(f"wrote {TARGET}")
