"""Measures what each CPU optimization of the model is worth: every one on and off, in turns, in one run.

    python -m benchmarks.model.optimizations [--runs 15] [--only threads malloc bfloat16 layers] [--json FILE]

- threads: batches of finelap-small split across cores (model.cpu.threads), and each layer computed by all threads;
  alone, and with one other process that keeps a core busy.
- malloc: batches in a process that keeps freed memory (app.server.allocator), and in one with glibc's defaults.
- bfloat16: a batch of EAT-base in bfloat16 (model.cpu.bfloat16), and in float32. On a processor for which
  model.cpu.bfloat16 declines bfloat16, the figure shows what that decision saves.
- layers: sounds and texts by finelap-small, and sounds by EAT-base in bfloat16, with packed linear layers
  (model.cpu.layers), and with PyTorch's.

Printed are medians of wall time and processor time, and the ratio off / on: more than 1 means that it pays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import common
from benchmarks.model import sizes
from benchmarks.model.throughput import sounds
from model.cpu.bfloat16 import bfloat16_is_sound
from model.cpu.layers import use_onednn

_WINDOW = 10.0  # seconds
_KEEP = 256 << 20  # bytes of freed memory that `finelap serve` keeps


@dataclass(frozen=True)
class Cost:
    """Medians of one pass, in seconds."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One optimization in one situation."""

    optimization: str
    case: str
    off: Cost
    on: Cost

    def cells(self) -> list[object]:
        """The row of the table."""
        wall, cpu = self.off.wall / self.on.wall, self.off.cpu / self.on.cpu
        return [self.optimization, self.case, 1e3 * self.off.wall, 1e3 * self.on.wall, f"{wall:.2f}", f"{cpu:.2f}"]


def measure_once(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(off: Callable[[], object], on: Callable[[], object], runs: int) -> tuple[Cost, Cost]:
    """Medians of off and on, called in turns after two calls each that do not count."""
    taken: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for run in range(runs + 2):
        for work, times in zip((off, on), taken, strict=True):
            seconds = measure_once(work)
            if run > 1:
                times.append(seconds)
    off_cost, on_cost = (Cost(*map(statistics.median, zip(*times, strict=True))) for times in taken)
    return off_cost, on_cost


def threads(runs: int) -> Iterator[Row]:
    """finelap-small, a batch split across cores or layer by layer on all threads."""
    model = sizes.build(sizes.SMALL)
    for name, neighbours in (("alone", 0), ("one core busy", 1)):
        with _busy(neighbours):
            for batch in (4, 16):
                encode = partial(model.encode_windows, sounds(_WINDOW, batch))
                whole = partial(_patched, "model.finelap.share_out", _whole, encode)
                yield Row("threads", f"{batch} windows, {name}", *alternate(whole, encode, runs))


def malloc(runs: int) -> Iterator[Row]:
    """Processes in turns, because the setting cannot be undone; each reports the medians of its own passes."""
    for batch in (4, 16):
        taken: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
        for _ in range(3):
            for setting, results in taken.items():
                command = [sys.executable, "-m", "benchmarks.model.optimizations", "--child", setting]
                command += ["--batch", str(batch), "--runs", str(runs)]
                said = subprocess.run(command, cwd=common.REPO, capture_output=True, text=True, check=True).stdout
                results.append(json.loads(said))
        off, on = (
            Cost(*(statistics.median(r[key] for r in taken[setting]) for key in ("wall", "cpu")))
            for setting in ("off", "on")
        )
        faults = {setting: statistics.median(r["faults"] for r in results) for setting, results in taken.items()}
        case = f"{batch} windows, page faults {faults['off']:.0f} and {faults['on']:.0f}"
        yield Row("malloc", case, off, on)


def bfloat16(runs: int) -> Iterator[Row]:
    """EAT-base with random weights, four windows."""
    exact, rounded = (sizes.build(sizes.BASE, dtype) for dtype in (torch.float32, torch.bfloat16))
    waveforms = sounds(_WINDOW, 4)
    case = "EAT-base, 4 windows" + ("" if bfloat16_is_sound() else "; declined on this processor")
    yield Row(
        "bfloat16",
        case,
        *alternate(
            partial(exact.encode_windows, waveforms), partial(rounded.encode_windows, waveforms), max(3, runs // 5)
        ),
    )


def layers(runs: int) -> Iterator[Row]:
    """finelap-small, windows and texts on all cores."""
    plain, packed = sizes.build(sizes.SMALL), use_onednn(sizes.build(sizes.SMALL), faster=True)
    for seconds, batch in ((_WINDOW, 4), (_WINDOW, 16), (2.0, 16)):
        waveforms = sounds(seconds, batch)
        encode = (partial(model.encode_windows, waveforms) for model in (plain, packed))
        yield Row("layers", f"{batch} windows of {seconds:g} s", *alternate(*encode, runs))
    for count in (1, 16):
        texts = [f"a dog barks {number} times in the distance" for number in range(count)]
        encode = (partial(model.encode_text, texts) for model in (plain, packed))
        yield Row("layers", f"texts, {count} at a time", *alternate(*encode, 4 * runs))
    if bfloat16_is_sound():
        plain, packed = (sizes.build(sizes.BASE, torch.bfloat16) for _ in range(2))
        use_onednn(packed, faster=True)
        for batch in (1, 4):
            waveforms = sounds(_WINDOW, batch)
            encode = (partial(model.encode_windows, waveforms) for model in (plain, packed))
            yield Row("layers", f"EAT-base, bfloat16, {batch} windows", *alternate(*encode, runs))


OPTIMIZATIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "threads": threads,
    "malloc": malloc,
    "bfloat16": bfloat16,
    "layers": layers,
}


def _patched(target: str, value: object, work: Callable[[], Any]) -> object:
    with mock.patch(target, value):
        return work()


def _whole(function: Callable[[Sequence[Any]], Any], items: Sequence[Any], _: int) -> list[Any]:
    return [function(items)]


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keeps `count` cores busy from other processes."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _child(setting: str, batch: int, runs: int) -> None:
    """Prints the median cost of one pass and its page faults, with or without kept memory."""
    from app.server.allocator import keep_freed

    if setting == "on":
        keep_freed(_KEEP)
    model, waveforms = sizes.build(sizes.SMALL), sounds(_WINDOW, batch)
    encode = partial(model.encode_windows, waveforms)
    for _ in range(3):
        encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu = (statistics.median(values) for values in zip(*(measure_once(encode) for _ in range(runs)), strict=True))
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / runs
    print(json.dumps({"wall": wall, "cpu": cpu, "faults": faults}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=OPTIMIZATIONS, default=list(OPTIMIZATIONS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("off", "on"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        _child(options.child, options.batch, options.runs)
        return 0
    rows: list[Row] = []
    for name in options.only:
        for row in OPTIMIZATIONS[name](options.runs):
            print(*row.cells(), sep=" | ", file=sys.stderr, flush=True)
            rows.append(row)
            common.write_json(options.json, {"machine": common.machine(), "rows": [asdict(row) for row in rows]})
    head = ["optimization", "case", "off ms", "on ms", "off / on", "processor time off / on"]
    print(common.table(head, [row.cells() for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
