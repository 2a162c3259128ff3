"""Measures the memory of the service and all its processes: idle, with a library, under load, and with a long file.

    python -m benchmarks.service.memory [--clips 10000] [--seconds 20] [--hours 1] [--json FILE]

Memory is PSS, which counts shared pages once. The baseline is a bare `import torch`; the table has the ratio to it.
Peaks are the highest of twenty readings per second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common, processes
from benchmarks.clients import Caller, Crowd
from benchmarks.common import Server
from benchmarks.library import fill_library

_IDLE_AFTER = 5.0  # seconds without requests
_CALLERS = 32


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20, help="duration of the load (20)")
    parser.add_argument("--hours", type=float, default=1, help="length of the long file (1)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = {"import torch": bare()}
    with common.section("an empty library"), Server() as server:
        found["ready, empty library"] = idle(server)
    with tempfile.TemporaryDirectory(prefix="finelap-") as folder:
        data = Path(folder) / "data"
        with common.section(f"a library of {options.clips} clips"):
            fill_library(data, options.clips)
        with common.section("load, and a long file"), Server({"data_dir": data}) as server:
            found[f"ready, {options.clips} clips"] = idle(server)
            found |= loaded(server, options.seconds)
            found |= long_file(server, Path(folder) / "long.flac", options.hours)
    bare_bytes = found["import torch"]
    rows: list[list[object]] = [[k, f"{v / 1e6:.0f}", f"{v / bare_bytes:.2f}"] for k, v in found.items()]
    print(common.table(["memory", "MB", "of import torch"], rows))
    about: dict[str, Any] = {"machine": common.machine(), "code": common.revision(common.REPO)}
    common.write_json(options.json, about | {"bytes": found})
    return 0


def bare() -> int:
    """Bytes of a process that has imported torch and multiplied two matrices."""
    code = "import torch; torch.ones(256, 256) @ torch.ones(256, 256); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=common.REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        taken = processes.memory(process.pid)
        process.communicate(b"\n")
    return taken


def idle(server: Server) -> int:
    """Bytes after some seconds without requests."""
    time.sleep(_IDLE_AFTER)
    return processes.memory(server.process.pid)


def loaded(server: Server, seconds: float) -> dict[str, int]:
    """Bytes while callers embed files of 10 s, and afterwards."""
    crowd = Crowd(server.address, [Caller("embed", 10.0, "embed", seed=2 * i) for i in range(_CALLERS)], [], seconds)
    with processes.MemoryWatch(server.process.pid) as watch:
        crowd.start()
        faults = [answer.error for answer in crowd.outcomes() if answer.error]
    if faults:
        raise RuntimeError(f"{len(faults)} requests failed: {faults[0]}")
    return {f"{_CALLERS} callers of /embed, peak": watch.peak, "after them": idle(server)}


def long_file(server: Server, path: Path, hours: float) -> dict[str, int]:
    """Peak bytes during /detect on a recording of `hours`."""
    common.write_recording(path, hours * 3600, seed=0)
    with processes.MemoryWatch(server.process.pid) as watch, path.open("rb") as file:
        answer = server.post(
            "/detect", timeout=1800, files={"file": (path.name, file)}, data={"phrases": "dog barking"}
        )
    answer.raise_for_status()
    return {f"/detect of {hours:g} h, peak": watch.peak}


if __name__ == "__main__":
    sys.exit(main())
