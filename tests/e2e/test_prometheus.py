"""A real Prometheus, with our configuration and rules, watches a real service that has something to do.

Every metric of the contract is there and moves; every query of the dashboard and of the rules is answered.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.common import SOUNDS, Server

pytestmark = pytest.mark.slow

KEY = "watcher"
DOCKER = Path(__file__).resolve().parent.parent.parent / "docker"
MOVING = (  # counters that the load below must move
    'finelap_requests_total{endpoint="/search"}',
    'finelap_request_duration_seconds_count{endpoint="/detect"}',
    'finelap_stage_duration_seconds_count{stage="decode"}',
    'finelap_stage_duration_seconds_count{stage="resample"}',
    'finelap_stage_duration_seconds_count{stage="queue"}',
    'finelap_stage_duration_seconds_count{stage="infer"}',
    'finelap_stage_duration_seconds_count{stage="post"}',
    'finelap_stage_duration_seconds_count{stage="index"}',
    'finelap_batch_size_count{lane="audio"}',
    'finelap_batch_size_count{lane="text"}',
    "finelap_audio_seconds_total",
    'finelap_decode_failures_total{reason="not_audio"}',
    'finelap_rejected_total{reason="body-too-large"}',
    "finelap_index_search_duration_seconds_count",
    "finelap_index_clips",
    "process_cpu_seconds_total",
)
STANDING = (
    "finelap_ready",
    'finelap_queue_depth{lane="audio"}',
    'finelap_queue_depth{lane="text"}',
    'finelap_queue_seconds{lane="audio"}',
    "finelap_inflight_requests",
    "finelap_model_info",
    "finelap_disk_free_bytes",
    "finelap_disk_size_bytes",
    "process_resident_memory_bytes",
)


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: Debian has it in the package prometheus")
    return found


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Our configuration with this machine's paths, the service at an address, and a pace for a test."""
    folder = tmp_path_factory.mktemp("prometheus")

    def write(address: str) -> Path:
        config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        shutil.copy(DOCKER / "prometheus" / "rules.yml", folder)
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        ours, listen, itself = config["scrape_configs"]
        assert ours["job_name"] == "finelap" and ours.pop("dns_sd_configs")[0]["names"] == ["finelap"]
        ours["static_configs"] = [{"targets": [address]}]
        (folder / "key").write_text(KEY)
        ours["authorization"]["credentials_file"] = str(folder / "key")
        config["scrape_configs"] = [ours]
        assert (listen["job_name"], itself["job_name"]) == ("listen", "prometheus")
        path: Path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


class Prometheus:
    """A Prometheus that runs, and its answers."""

    def __init__(self, config: Path) -> None:
        self._log = config.with_name("log")
        command = [tool("prometheus"), f"--config.file={config}", "--web.listen-address=127.0.0.1:0"]
        command += [f"--storage.tsdb.path={config.with_name('data')}"]
        self.process = subprocess.Popen(command, stdout=self._log.open("w"), stderr=subprocess.STDOUT)
        self.until(self._address, bool)
        self._client = httpx.Client(base_url=f"http://{self._address()}/api/v1", timeout=60, trust_env=False)

    def _address(self) -> str:
        """Where it listens, which its log says; empty before that."""
        found = re.search(r'"Listening on" address=(\S+)', self._log.read_text())
        return found[1] if found else ""

    def ask(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """Series that answer a query, now or at a time. Fails where Prometheus takes it as wrong."""
        response = self._client.get("/query", params={"query": query} | ({} if at is None else {"time": at}))
        answer = response.json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        assert not answer.get("warnings"), (query, answer["warnings"])
        return list(answer["data"]["result"])

    def value(self, query: str, at: float | None = None) -> float:
        """The sum of what answers; NaN for nothing."""
        series = self.ask(query, at)
        return sum(float(one["value"][1]) for one in series) if series else math.nan

    def get(self, path: str) -> Any:
        return self._client.get(path).json()["data"]

    def wait(self, query: str, fits: Callable[[float], bool]) -> float:
        """Waits until the value of a query fits; when that was. A scrape that came late leaves a gap for a while."""
        return self.until(lambda: self.value(query), fits, query)

    def until(self, look: Callable[[], Any], fits: Callable[[Any], bool], what: str = "") -> float:
        """Waits until what is seen fits; when that was."""
        deadline, seen = time.monotonic() + 120, None
        while True:
            with contextlib.suppress(
                httpx.TransportError, json.JSONDecodeError
            ):  # it starts: no answer, or a plain 503
                seen = look()
                if fits(seen):
                    return time.time()
            assert time.monotonic() < deadline and self.process.poll() is None, (what, seen, self._log.read_text())
            time.sleep(0.2)


@pytest.fixture(scope="module")
def service(small_checkpoint: Path) -> Iterator[Server]:
    tool("prometheus")
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    with Server({"api_keys": f"other,{KEY}", "max_upload_mb": 2}) as server:
        yield server


@pytest.fixture(scope="module")
def watched(service: Server, configuration: Callable[[str], Path]) -> Iterator[tuple[Prometheus, float, float]]:
    """Prometheus, and two moments: before the load and after it."""
    prometheus = Prometheus(configuration(service.address.removeprefix("http://")))
    try:
        prometheus.wait("finelap_ready", lambda value: value == 1)
        before = prometheus.wait("count_over_time(finelap_ready[1m])", lambda value: value >= 3)
        work(service, prometheus)
        done = float(httpx.get(service.address + "/metrics", headers=_HEADERS, timeout=60).text.count("\n"))
        assert done > 50
        prometheus.wait("finelap_index_clips", lambda value: value == 4)
        after = prometheus.wait('finelap_rejected_total{reason="body-too-large"}', lambda value: value == 2)
        prometheus.wait("count_over_time(finelap_ready[1m])", lambda value: value >= 8)
        yield prometheus, before, after
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(30)


_HEADERS = {"X-API-Key": KEY}


def work(service: Server, prometheus: Prometheus) -> None:
    """A little of everything, and each time it is waited for that it was scraped: a rate needs scrapes that differ."""
    sounds = [path for path in sorted(SOUNDS.iterdir()) if path.suffix == ".ogg"][:4]
    with httpx.Client(base_url=service.address, headers=_HEADERS, timeout=60, trust_env=False) as client:
        for turn, sound in enumerate(sounds):
            client.post("/clips", files={"files": (sound.name, sound.read_bytes())}).raise_for_status()
            client.get("/search", params={"q": f"sound {turn}", "moments": True}).raise_for_status()
            form = {"phrases": ["rain", "dog"], "frames": "true"}
            client.post("/detect", files={"file": (sound.name, sound.read_bytes())}, data=form).raise_for_status()
            heard = 'finelap_request_duration_seconds_count{endpoint="/detect"}'
            prometheus.wait(heard, lambda value, done=turn + 1: value == done)  # type: ignore[misc]
        assert client.post("/detect", files={"file": ("a.wav", b"none")}, data={"phrases": "a"}).status_code == 415
        for done in (1, 2):
            large = client.build_request("POST", "/embed", content=bytes(3_000_000))
            assert client.send(large).status_code == 413
            refused = 'finelap_rejected_total{reason="body-too-large"}'
            prometheus.wait(refused, lambda value, done=done: value == done)  # type: ignore[misc]


def test_every_metric_is_there_and_moves(watched: tuple[Prometheus, float, float]) -> None:
    prometheus, before, after = watched
    for name in MOVING:
        first, last = (prometheus.value(f"last_over_time({name}[1m])", at) for at in (before, after + 0.5))
        assert last > (0 if math.isnan(first) else first), (name, first, last)
    for name in STANDING:
        prometheus.wait(name, lambda value: value >= 0)
    names = {name for name in prometheus.get("/label/__name__/values") if name.startswith("finelap_")}
    from tests.app.test_service import METRICS

    without_gpu = {metric for metric in METRICS if metric != "finelap_gpu_memory_bytes"}
    assert {metric for metric in without_gpu if not any(name.startswith(metric) for name in names)} == set()


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and query of each target of a dashboard, and of its annotations, with the variables put in."""
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [(note["name"], note["expr"]) for note in dashboard["annotations"]["list"]]
    return [(title, query.replace("$__rate_interval", "1m").replace("$instance", ".*")) for title, query in found]


def test_every_query_of_the_dashboard_is_answered(watched: tuple[Prometheus, float, float]) -> None:
    prometheus, _, _ = watched
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "finelap.json").read_text(encoding="utf-8"))
    asked = queries(dashboard)
    assert len(asked) > 25
    for title, query in asked:
        assert "$" not in query, query
        prometheus.ask(query)
        if title not in ("GPU memory", "Starts"):  # there is no GPU here, and nothing was started anew
            prometheus.wait(f"count(({query}) > -Inf)", lambda numbers: numbers >= 1)  # NaN is greater than nothing
    shown = " ".join(query for _, query in asked)
    for metric in (
        "requests",
        "request_duration",
        "stage_duration",
        "batch_size",
        "queue_depth",
        "gpu_memory",
        "index",
    ):
        assert f"finelap_{metric}" in shown
    (variable,) = [one for one in dashboard["templating"]["list"] if one["name"] == "instance"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
    assert prometheus.ask(f"group by ({label}) ({metric})")[0]["metric"][label]


def test_every_alert_is_asked_without_error_and_none_comes(watched: tuple[Prometheus, float, float]) -> None:
    prometheus, _, _ = watched
    prometheus.wait("count(ALERTS) or vector(0)", lambda value: value >= 0)

    def wrong() -> list[Any]:
        return [
            rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"] if rule["health"] != "ok"
        ]

    prometheus.until(wrong, lambda rules: rules == [], "the rules")
    (group,) = prometheus.get("/rules")["groups"]
    assert {rule["name"] for rule in group["rules"] if rule["state"] == "firing"} <= {
        "FinelapDiskLow",
        "FinelapDiskFull",
    }

    def targets() -> list[tuple[str, str]]:
        return [(target["health"], target["lastError"]) for target in prometheus.get("/targets")["activeTargets"]]

    prometheus.until(targets, lambda found: found == [("up", "")], "the targets")


def test_promtool_finds_nothing_wrong(configuration: Callable[[str], Path]) -> None:
    promtool = tool("promtool")
    rules = DOCKER.parent / "tests" / "docker" / "rules_test.yml"
    for arguments in (
        ["check", "config", str(configuration("127.0.0.1:1"))],
        ["check", "rules", str(DOCKER / "prometheus" / "rules.yml")],
        ["test", "rules", str(rules)],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_and_explained(repo_dir: Path) -> None:
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((repo_dir / "tests" / "docker" / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == alerts
    page = (repo_dir / "docs" / "operations" / "deployment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(Finelap\w+)` \|", page, re.MULTILINE)) == alerts
