"""Measures the time from the last keystroke of a query to the first results, in a real browser on a real server.

Needs Chromium and Playwright, like tests/e2e/browser. The library has --clips recordings of demo sounds. Queries are
typed letter by letter, faster than the page's debounce interval, and timed inside the page: from the input event of the
last letter to the frame that shows the new results.

    python -m benchmarks.service.page --clips 2000 --out page.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Server, Tape, encode
from model.config import SAMPLE_RATE

SHORTEST, LONGEST = 1.0, 8.0  # seconds, of a clip
AT_ONCE = 25  # clips per request
KEY = 60  # ms from letter to letter
QUERIES = """dog barking; thunder in the distance; a door slams; glass breaking; rain on a roof; metal hit; bell;
footsteps on gravel; water splash; wind howling; explosion; a small engine; birds singing; wood creaking; crowd shouts;
sword on shield; trumpet; gunshot; fire crackling; a horse; coins falling; mosquito; someone breathing; hand saw;
a plane crashing; steam; clock ticking; piano; monster growling; a lift moving; bubbles; deep rumble; whoosh; drilling;
something crunchy; rope snapping; sizzling pan; electric spark; tabla rhythm; waterfall""".replace("\n", " ").split(
    "; "
)
UNTIMED = 4
_ARGUMENTS = [
    f"--{name}"
    for name in (
        *("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
    )
]
_TIMER = """() => {
  const field = document.getElementById("query");
  const list = document.getElementById("hits");
  field.addEventListener("input", () => { window.typed = performance.now(); window.shown = null; });
  new MutationObserver(() => {
    if (window.shown === null && list.children.length) {
      window.shown = 0;
      requestAnimationFrame(() => { window.shown = performance.now(); });
    }
  }).observe(list, { childList: true });
}"""


def fill(server: Server, clips: int) -> None:
    """Adds `clips` recordings."""
    random, tape = np.random.default_rng(1), Tape(1)
    for first in range(0, clips, AT_ONCE):
        lengths = random.uniform(SHORTEST, LONGEST, min(AT_ONCE, clips - first))
        files = [
            ("files", (f"{first + i:05}.flac", encode(tape.read(round(seconds * SAMPLE_RATE)), "FLAC"), "audio/flac"))
            for i, seconds in enumerate(lengths)
        ]
        response = server.post("/clips", files=files)
        response.raise_for_status()
        print(f"\r{first + len(files)} clips", end="", flush=True)
    print()


def measure(address: str) -> list[dict[str, float]]:
    """Milliseconds per query: in total, of the request, and of the server's own work."""
    from playwright.sync_api import Response, sync_playwright

    program = os.environ.get("FINELAP_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.wait_for_selector("#hits .hit")
        page.evaluate(_TIMER)
        answers: list[Response] = []
        page.on("response", lambda response: answers.append(response) if response.url.endswith("/search") else None)
        for query in QUERIES:
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(500)  # a pause between queries
            answers.clear()
            page.fill("#query", "")
            page.wait_for_timeout(500)
            page.type("#query", query, delay=KEY)
            while not page.evaluate("window.shown"):
                time.sleep(0.02)
            answer = answers[-1]
            timing = answer.request.timing
            rows.append(
                {
                    "whole": page.evaluate("window.shown - window.typed"),
                    "request": timing["responseEnd"] - timing["requestStart"],
                    "service": answer.json()["took_ms"],
                }
            )
        browser.close()
    return rows[UNTIMED:]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--server", help="address of a running server to use instead of a new one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.server:
        rows = measure(options.server)
    else:
        with Server() as server:
            fill(server, options.clips)
            rows = measure(server.address)
    result: dict[str, Any] = {"queries": len(rows)}
    print("| ms, from the last key to the first results | median | p95 | max |\n|---|---|---|---|")
    names = {"whole": "total, including the debounce", "request": "the request", "service": "the server's own work"}
    for part, name in names.items():
        values = np.array([row[part] for row in rows])
        result[part] = [float(np.median(values)), float(np.quantile(values, 0.95)), float(values.max())]
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in result[part]) + " |")
    if options.out:
        options.out.write_text(json.dumps(result | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
