"""Measures how long `finelap --help` takes, and `finelap serve` until it is ready.

    python -m benchmarks.service.startup [--runs 5] [--clips 10000] [--json FILE]

A start is timed from the process to the line that reports the service ready, which follows a 200 from /health/ready: a
forward pass of the bundled checkpoint and an open library, empty or with `--clips` clips of random vectors. `import
torch` alone is measured for comparison, because it is most of a start. Reports the median, minimum and maximum of
`--runs` runs after an untimed one that warms the file cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import common
from benchmarks.common import Server
from benchmarks.library import fill_library


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="finelap-") as folder:
        data = Path(folder) / "data"
        with common.section(f"a library of {options.clips} clips"):
            fill_library(data, options.clips)
        measured: dict[str, Callable[[], float]] = {
            "finelap --help": lambda: run("from app.cli.main import main; main(['--help'])"),
            "import torch": lambda: run("import torch"),
            "ready, empty library": lambda: serve({}),
            f"ready, {options.clips} clips": lambda: serve({"data_dir": data}),
        }
        rows, report = [], {}
        for name, once in measured.items():
            with common.section(name):
                seconds = sorted([once() for _ in range(options.runs + 1)][1:])
            report[name] = {"median": statistics.median(seconds), "min": seconds[0], "max": seconds[-1]}
            rows.append([name, *report[name].values()])
    print(common.table(["seconds", "median", "min", "max"], rows))
    about = {"machine": common.machine(), "code": common.revision(common.REPO), "runs": options.runs}
    common.write_json(options.json, about | report)
    return 0


def run(code: str) -> float:
    """Seconds that a new interpreter takes to run the code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=common.REPO, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def serve(settings: dict[str, object]) -> float:
    """Seconds until a new server is ready."""
    began = time.perf_counter()
    with Server(settings):
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
