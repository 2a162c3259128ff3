"""Memory and processor time of a process and its descendants, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")  # per second


def process_tree(pid: int) -> list[int]:
    """The ids of a process and its descendants."""
    found, todo = [], [pid]
    while todo:
        at = todo.pop()
        found.append(at)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{at}/task"):
                todo += map(int, Path(f"/proc/{at}/task/{task}/children").read_text().split())
    return found


def memory(pid: int) -> int:
    """Bytes of memory of a process and its descendants: PSS, which counts a shared page once."""
    total = 0
    for at in process_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{at}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a process, its descendants, and its children that have ended."""
    total = 0
    for at in process_tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{at}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15] if at == pid else fields[11:13]))
    return total / _TICK


def machine_busy() -> float:
    """Processor seconds that this machine has spent on any process since boot."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK


class MemoryWatch:
    """Samples `memory(pid)` every `every` seconds inside a `with` block; `peak` and `samples` are in bytes."""

    def __init__(self, pid: int, every: float = 0.05) -> None:
        self._pid, self._every = pid, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[int] = []

    @property
    def peak(self) -> int:
        return max(self.samples, default=0)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.samples.append(memory(self._pid))
            self._stop.wait(self._every)
