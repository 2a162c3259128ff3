"""Measures this machine's limits: the rate of matrix products and the memory bandwidth.

    python -m benchmarks.model.ceilings [--runs 7] [--json FILE]

The other benchmarks of the model compare their times with these. A rate is the best, over shapes of real networks, of
the medians of `--runs` products on all cores. bfloat16 is measured only if `model.cpu.bfloat16` allows it, because
elsewhere it may kill the process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import common
from model.cpu.bfloat16 import bfloat16_is_sound

# rows, inner and outer width: tokens of 1 and 8 windows through the layers of a base transformer, and a large square
SHAPES = ((513, 768, 3072), (4104, 768, 3072), (4104, 3072, 768), (2048, 2048, 2048))
_COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class Ceilings:
    """Matrix product operations per second by dtype, and bytes per second read plus written by a large copy."""

    matmul: dict[str, float]
    memory: float

    def of(self, dtype: str) -> float:
        """Operations per second; NaN for a dtype that was not measured."""
        return self.matmul.get(dtype, float("nan"))


def median_seconds(work: Callable[[], object], runs: int, warm: int = 2) -> float:
    """The median of `runs` calls after `warm` untimed ones."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(runs: int = 7) -> Ceilings:
    """Measures both limits."""
    dtypes = [torch.float32, *([torch.bfloat16] if bfloat16_is_sound() else [])]
    with torch.no_grad():
        rates = {str(d).removeprefix("torch."): max(_rate(shape, d, runs) for shape in SHAPES) for d in dtypes}
        source = torch.ones(_COPY_BYTES // 4)
        target = torch.empty_like(source)
        seconds = median_seconds(lambda: target.copy_(source), runs)
    return Ceilings(rates, 2 * _COPY_BYTES / seconds)


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, runs: int) -> float:
    rows, inner, outer = shape
    left, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    return 2 * rows * inner * outer / median_seconds(lambda: F.linear(left, weight), runs)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = measure(options.runs)
    rows: list[list[object]] = [[f"matrix products, {k}", f"{v / 1e9:.0f} GFLOP/s"] for k, v in found.matmul.items()]
    rows.append(["memory, read and written", f"{found.memory / 1e9:.1f} GB/s"])
    print(common.table(["ceiling", "measured"], rows))
    common.write_json(options.json, {"machine": common.machine(), **asdict(found)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
