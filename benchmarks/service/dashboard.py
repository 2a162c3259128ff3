"""Draws every panel of the Grafana dashboard from the answers of a real Prometheus.

    python -m benchmarks.service.dashboard [--seconds 240] [--out docs/images/dashboard.png]

Starts a service with the demo sounds and Prometheus (Debian: `prometheus`), and gives the service searches, uploads,
detections, a burst that fills the queue, broken files and cancelled requests. Each panel's queries, with the variables
put in, are then asked over that time, and drawn in the panel's place with its unit, legend and stacking. Grafana's own
drawing differs in style, not in content.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.common import REPO, SOUNDS, Server, Tape, encode
from model.config import SAMPLE_RATE

DASHBOARD = REPO / "docker" / "grafana" / "dashboards" / "finelap.json"
_RATE_INTERVAL = "15s"  # with a scrape every second
_STEP = 2  # seconds
_WIDTH, _HEIGHT = 18.0, 0.34  # inches: of the picture, of a unit of a panel's height
_BEFORE = 20.0  # seconds of quiet at the start and the end


# The load


def load(address: str, seconds: float) -> None:
    """Calls of every kind for `seconds`, with a burst of detections in the middle."""
    stop = threading.Event()
    burst = threading.Event()
    threads = [threading.Thread(target=_call, args=(address, n, stop, burst), daemon=True) for n in range(14)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    burst.set()
    time.sleep(min(30.0, seconds / 6))
    burst.clear()
    time.sleep(max(0.0, seconds / 2 - min(30.0, seconds / 6)))
    stop.set()
    for thread in threads:
        thread.join(60)


def _call(address: str, number: int, stop: threading.Event, burst: threading.Event) -> None:
    """One caller; those from 4 on only join the burst."""
    choose, tape = random.Random(number), Tape(number)
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        while not stop.wait(choose.uniform(0.05, 0.6) if number < 4 else 0.2):
            if number >= 4 and not burst.is_set():
                continue
            kind = choose.choices(["search", "moments", "detect", "add", "broken", "gone"], [8, 2, 3, 3, 1, 1])[0]
            with contextlib.suppress(httpx.TransportError):
                _send(client, kind if number < 4 else "detect", tape, choose, 20.0 if number >= 4 else 5.0)


def _send(client: httpx.Client, kind: str, tape: Tape, choose: random.Random, seconds: float) -> None:
    if kind in ("search", "moments"):
        query = choose.choice(["dog barking", "rain", "an engine", "glass", "a bell"]) + f" {choose.randrange(99)}"
        client.post("/search", json={"query": query, "moments": kind == "moments"})
    elif kind == "add":
        client.post("/clips", files={"files": (f"{choose.random()}.wav", encode(tape.read(3 * SAMPLE_RATE)))})
    elif kind == "broken":
        client.post("/detect", files={"file": ("broken.wav", b"no sound")}, data={"phrases": "dog"})
    else:
        form = {"file": ("a.wav", encode(tape.read(int(seconds * SAMPLE_RATE))))}
        limit = 0.05 if kind == "gone" else 120
        client.post("/detect", files=form, data={"phrases": ["dog", "rain"]}, timeout=limit)


# Prometheus


@contextmanager
def prometheus(address: str, folder: Path) -> Iterator[str]:
    """Runs Prometheus with a scrape a second of the service; gives its API's address."""
    scrape = {"job_name": "finelap", "static_configs": [{"targets": [address.removeprefix("http://")]}]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--web.listen-address=127.0.0.1:0"]
    log = folder / "log"
    process = subprocess.Popen(
        [*command, f"--storage.tsdb.path={folder / 'tsdb'}"], stdout=log.open("w"), stderr=subprocess.STDOUT
    )
    try:
        for _ in range(300):
            if found := re.search(r'"Listening on" address=(\S+)', log.read_text()):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(log.read_text())
        yield f"http://{found[1]}/api/v1"
    finally:
        process.terminate()
        process.wait(30)


Series = tuple[str, list[datetime], list[float]]  # legend, times, values


def ask(api: str, target: dict[str, Any], began: float, ended: float) -> list[Series]:
    """The answers to a panel's query over the time, with their legends."""
    query = target["expr"].replace("$__rate_interval", _RATE_INTERVAL).replace("$instance", ".*")
    parameters = {"query": query, "start": str(began), "end": str(ended), "step": str(_STEP)}
    answer = httpx.get(f"{api}/query_range", params=parameters, timeout=60, trust_env=False).json()
    if answer["status"] != "success":
        raise RuntimeError(f"{query}: {answer}")
    found = []
    for one in answer["data"]["result"]:
        legend = re.sub(r"{{(\w+)}}", lambda m, one=one: one["metric"].get(m[1], ""), target["legendFormat"])
        points = [(datetime.fromtimestamp(float(at), UTC), float(value)) for at, value in one["values"]]
        found.append((re.sub(r"127\.0\.0\.1:\d+", "service:8080", legend), *map(list, zip(*points, strict=True))))
    return found


# The picture


def shown(value: float, unit: str | None) -> str:
    """A value with its unit, as Grafana shortens it."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        power = next((p for p in (4, 3, 2, 1) if abs(value) >= 1024**p), 0)
        return f"{value / 1024**power:.3g} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"
    ending = {"reqps": " req/s", "cps": " c/s"}.get(unit or "", "")
    return f"{value:,.0f}{ending}" if abs(value) >= 1000 else f"{value:.3g}{ending}"


def draw(dashboard: dict[str, Any], answers: dict[int, list[Series]], out: Path) -> None:
    """Draws all panels at their places."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = pyplot.figure(figsize=(_WIDTH, rows * _HEIGHT), facecolor="#f4f5f5")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y, w, h = (place[key] for key in "xywh")
        box = (x / 24 + 0.003, 1 - (y + h) / rows + 0.002, w / 24 - 0.006, h / rows - 0.004)
        if panel["type"] == "row":
            figure.text(box[0], box[1] + box[3] / 2, panel["title"], fontsize=11, weight="bold", va="center")
            continue
        figure.add_artist(pyplot.Rectangle(box[:2], box[2], box[3], facecolor="white", edgecolor="#dcdde0", zorder=-1))
        top = 0.7 / rows
        figure.text(box[0] + 0.005, box[1] + box[3] - top * 0.7, panel["title"], fontsize=9, va="center")
        if panel["type"] == "stat":
            _draw_stat(figure, box, panel, answers[panel["id"]])
        else:
            _draw_series(figure, box, panel, answers[panel["id"]], rows)
    figure.savefig(out, dpi=72)
    pyplot.close(figure)


def _draw_stat(figure: Any, box: tuple[float, ...], panel: dict[str, Any], series: list[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    value = series[0][2][-1] if series else math.nan
    names = {key: one["text"] for mapping in defaults.get("mappings", ()) for key, one in mapping["options"].items()}
    text = names.get(f"{value:g}", shown(value, defaults.get("unit")))
    colour = "#808080"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = {"green": "#2f9e44", "red": "#e03131", "orange": "#e8590c", "yellow": "#e67700"}.get(
                step["color"], step["color"]
            )
    figure.text(box[0] + box[2] / 2, box[1] + 0.42 * box[3], text, fontsize=19, color=colour, ha="center", va="center")


def _draw_series(figure: Any, box: tuple[float, ...], panel: dict[str, Any], series: list[Series], rows: int) -> None:
    from matplotlib.dates import DateFormatter
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    series = [one for one in series if any(value == value and value for value in one[2])] or series[:1]
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults.get("custom", {}), defaults.get("unit")
    below, above, left = 2.3 / rows, 1.0 / rows, 0.038
    axes = figure.add_axes((box[0] + left, box[1] + below, box[2] - left - 0.008, box[3] - below - above))
    if custom.get("stacking", {}).get("mode") == "normal" and len({tuple(times) for _, times, _ in series}) == 1:
        axes.stackplot(
            series[0][1], [values for _, _, values in series], labels=[name for name, *_ in series], alpha=0.6
        )
    else:
        for name, times, values in series:
            axes.plot(times, values, linewidth=1.2, label=name)
            axes.fill_between(times, values, alpha=custom.get("fillOpacity", 0) / 200)
    if defaults.get("min") == 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7, length=2)
    axes.grid(color="#e8e8e8")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if series:
        columns = 3 if box[2] > 0.3 else 2
        axes.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(-0.05, -0.13), ncol=columns, frameon=False)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#808080")
        axes.set_xticks([])
        axes.set_yticks([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "images" / "dashboard.png")
    args = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    if not SOUNDS.is_dir():
        parser.error(f"{SOUNDS} is missing")
    with (
        tempfile.TemporaryDirectory() as name,
        Server({"max_queue_windows": 6}, demo=True) as server,
        prometheus(server.address, Path(name)) as api,
    ):
        time.sleep(_BEFORE)
        began = time.time()
        load(server.address, args.seconds)
        ended = time.time()
        answers = {
            panel["id"]: [one for target in panel.get("targets", ()) for one in ask(api, target, began, ended)]
            for panel in dashboard["panels"]
        }
    draw(dashboard, answers, args.out)
    empty = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row" and not answers[panel["id"]]]
    print(f"{args.out}; without data: {', '.join(empty) or 'none'}")


if __name__ == "__main__":
    main()
