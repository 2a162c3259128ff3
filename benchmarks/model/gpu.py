"""Measures EAT-base on a GPU: windows per second as a share of its matrix rate, and end to end from FLAC bytes.

    python -m benchmarks.model.gpu [--device cuda] [--dtype bfloat16] [--batches 16 64 128] [--runs 7] [--json FILE]

For each batch size: the encoder and both embeddings from log-mel on the device; the same replayed as a CUDA graph; and
`encode_windows`, which also copies waveforms to the device, computes the log-mel and copies embeddings back. Shares are
of the highest matrix rate in the same run; values are medians of `--runs`. End to end: FLAC files in memory, decoded by
one thread per core, through `encode_windows`; skipped if soundfile is not installed. Random weights and noise cost as
much as real data. Needs only PyTorch and NumPy; `--device cpu` runs it without a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model import sizes
from model import FineLAP

_SAMPLES = 160_000  # 10 s
_TURNS = 3  # of decoding and end to end, alternating, so that other load affects both equally
# rows, inner and outer width: tokens of 16 and 128 windows through a base transformer's layers, and a large square
_SHAPES = ((8208, 768, 3072), (65664, 768, 3072), (65664, 3072, 768), (8192, 8192, 8192))
_SMALL_SHAPES = ((2048, 768, 3072), (1024, 1024, 1024))


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU.", file=sys.stderr)
        return 2
    dtype = getattr(torch, options.dtype)
    model = sizes.build(sizes.BASE, dtype).to(device)
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "dtype": options.dtype,
        **measure(model, ceiling(device, dtype, options.runs), options.batches, options.runs),
        "from FLAC": from_flac(model, max(options.batches), options.seconds),
    }
    print(show(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def ceiling(device: torch.device, dtype: torch.dtype, runs: int) -> float:
    """Operations per second of the fastest matrix product (2 × rows × inner × outer width each)."""
    rates = []
    for rows, inner, outer in _SHAPES if device.type == "cuda" else _SMALL_SHAPES:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(outer, inner, device=device, dtype=dtype)
        rates.append(2 * rows * inner * outer / seconds(lambda x=left, w=weight: F.linear(x, w), device, runs))  # type: ignore[misc]
    return max(rates)


def seconds(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """The median seconds of `runs` calls, each until the device is idle, after two untimed ones."""
    taken = []
    with torch.no_grad():
        for again in range(runs + 2):
            _finish(device)
            began = time.perf_counter()
            work()
            _finish(device)
            if again > 1:
                taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(model: FineLAP, limit: float, batches: list[int], runs: int) -> dict[str, Any]:
    """Windows per second for each batch size and path."""
    rows, device = [], model.device
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model.forward_audio(model.mel(noise(1), model.config.windows.mel_frames))
        operations = counter.get_total_flops()
        for batch in batches:
            waveforms = noise(batch)
            mel = model.mel(waveforms, model.config.windows.mel_frames)
            ways: dict[str, Callable[[], object]] = {
                "on the device": lambda mel=mel: model.forward_audio(mel),  # type: ignore[misc]
                "from waveforms": lambda waveforms=waveforms: model.encode_windows(waveforms),  # type: ignore[misc]
            }
            if device.type == "cuda":
                ways["as a graph"] = graph(model, mel)
            for way, work in ways.items():
                rate = batch / seconds(work, device, runs)
                rows.append({"batch": batch, "way": way, "per_second": rate, "share": rate * operations / limit})
    return {"matrix_products": limit, "operations": operations, "windows": rows}


def graph(model: FineLAP, mel: Tensor) -> Callable[[], object]:
    """The forward pass, captured as a CUDA graph for this shape."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # libraries select their kernels before the capture
            model.forward_audio(mel)
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        model.forward_audio(mel)
    return captured.replay


def from_flac(model: FineLAP, batch: int, seconds: float) -> dict[str, float] | None:
    """Windows per second from FLAC bytes and of decoding alone, the best of the turns; None without soundfile."""
    try:
        import soundfile
    except ImportError:
        return None
    files = []
    for samples in noise(8):
        file = io.BytesIO()
        soundfile.write(file, samples, 16_000, format="FLAC")
        files.append(file.getvalue())

    def decode(number: int) -> np.ndarray:
        return np.asarray(soundfile.read(io.BytesIO(files[number % len(files)]), dtype="float32")[0])

    def rate(take: Callable[[list[np.ndarray]], object], pool: ThreadPoolExecutor) -> float:
        began, done = time.perf_counter(), 0
        coming = pool.map(decode, range(batch))
        while (took := time.perf_counter() - began) < seconds / _TURNS:
            waveforms, coming = list(coming), pool.map(decode, range(batch))  # decodes the next batch concurrently
            take(waveforms)
            done += batch
        return done / took

    model.encode_windows([decode(0)] * batch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        turns = [(rate(len, pool), rate(model.encode_windows, pool)) for _ in range(_TURNS)]
    return dict(zip(("decoding", "end to end"), map(max, *turns), strict=True))


def noise(count: int) -> list[np.ndarray]:
    """`count` recordings of noise, 10 s each."""
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(_SAMPLES, dtype=np.float32) for _ in range(count)]


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    products = f"matrix products {report['matrix_products'] / 1e12:.2f} TFLOP/s"
    lines = [f"EAT-base in {report['dtype']} on {report['device']}, {report['cores']} cores; {products}", ""]
    lines += ["| batch | way | windows/s | of the matrix rate |", "|---|---|---|---|"]
    for row in report["windows"]:
        lines.append(f"| {row['batch']} | {row['way']} | {row['per_second']:.1f} | {100 * row['share']:.0f} % |")
    flac = report["from FLAC"]
    rates = "not measured" if flac is None else ", ".join(f"{name} {rate:.1f}" for name, rate in flac.items())
    return "\n".join([*lines, "", f"from FLAC bytes, windows/s: {rates}"])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10, help="of decoding, and of end to end (10)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
