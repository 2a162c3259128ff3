"""Measures the model alone: windows, short clips and texts per second, as a share of the machine's limits.

    python -m benchmarks.model.throughput [--runs 5] [--sizes finelap-small EAT-base] [--json FILE]

For each size, dtype and batch, reports windows per second of `encode_windows` (log-mel, encoder, both embeddings; the
median of `--runs` passes), the operations of a window as counted by PyTorch, the bytes of the weights, and the share of
the measured rate of matrix products in that dtype (benchmarks.model.ceilings). The baseline at the published size is
the published path: float32, with one encoder pass for the clip and one for the frames, here with our fused attention
and at its best batch size. The dtypes alternate, so that other load affects all of them equally. bfloat16 is skipped if
model.cpu.bfloat16 does not allow it. Linear layers are packed where the service packs them (model.cpu.layers).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.model import ceilings, sizes
from model import FineLAP
from model.config import SAMPLE_RATE
from model.cpu.bfloat16 import bfloat16_is_sound
from model.cpu.layers import use_onednn

BATCHES = {sizes.SMALL: (1, 4, 16), sizes.BASE: (1, 4, 8)}
_SHORT = 2.0  # seconds
_WHOLE = 10.0
_TEXTS = 64


def sounds(seconds: float, count: int) -> list[np.ndarray]:
    """Recordings of demo sounds, `count` of `seconds` each."""
    tape = common.Tape(0)
    return [tape.read(round(seconds * SAMPLE_RATE)) for _ in range(count)]


def two_passes(model: FineLAP, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and frame embeddings as the published code computes them, with one encoder pass each."""
    with torch.no_grad():
        mel = model.mel(waveforms, model.config.windows.mel_frames).to(model.dtype)
        clips = model.adapter.forward_clip(model.audio_encoder(mel).pooled)
        frames = model.adapter.forward_frames(model.audio_encoder(mel).frames)
        return F.normalize(clips.float(), dim=-1), F.normalize(frames.float(), dim=-1)


def in_turns(work: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The median seconds of each function, called in turns after one untimed call."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for again in range(runs + 1):
        for name, once in work.items():
            began = time.perf_counter()
            once()
            if again:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def operations(model: FineLAP) -> int:
    """The multiplications and additions of one window in matrix products and convolutions."""
    mel = model.mel(sounds(_WHOLE, 1), model.config.windows.mel_frames)
    with FlopCounterMode(display=False) as counter:
        model.forward_audio(mel)
    return int(counter.get_total_flops())


def cosines(model: FineLAP, reference: FineLAP) -> dict[str, float]:
    """The lowest and mean cosines between two models' embeddings of the demo sounds."""
    clips: list[float] = []
    frames: list[float] = []
    for waveform in sounds(_WHOLE, 16):
        (clip, track), (exact, exact_track) = (
            model.encode_windows([waveform])[0],
            reference.encode_windows([waveform])[0],
        )
        clips.append(float(clip @ exact))
        frames += (track * exact_track).sum(-1).tolist()
    return {"clip_least": min(clips), "frame_least": min(frames), "frame_mean": statistics.fmean(frames)}


def measure(size: str, limits: ceilings.Ceilings, runs: int) -> dict[str, Any]:
    """Measures everything of one size."""
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if bfloat16_is_sound() else {})
    plain = sizes.build(size)  # packed layers have no parameters, and PyTorch does not count their operations
    found: dict[str, Any] = {"operations": operations(plain), "windows": [], "cosine_to_float32": {}}
    weights = sum(p.numel() for p in plain.audio_encoder.parameters())
    found["encoder_bytes"] = {name: weights * dtype.itemsize for name, dtype in dtypes.items()}
    models = {name: use_onednn(sizes.build(size, dtype)) for name, dtype in dtypes.items()}
    exact = models["float32"]
    for batch in BATCHES[size]:
        waveforms = sounds(_WHOLE, batch)
        work: dict[str, Callable[[], object]] = {
            name: partial(model.encode_windows, waveforms) for name, model in models.items()
        }
        if size == sizes.BASE:
            work["two passes, float32"] = partial(two_passes, exact, waveforms)
        for name, seconds in in_turns(work, runs).items():
            rate, dtype = batch / seconds, name.rpartition(" ")[2]
            share = rate * found["operations"] * (2 if "two" in name else 1) / limits.of(dtype)
            found["windows"].append({"path": name, "batch": batch, "per_second": rate, "share_of_matmul": share})
    for name, model in models.items():
        if model is not exact:
            found["cosine_to_float32"][name] = cosines(model, exact)
    # without shorter buckets, short clips are padded to whole windows and there is nothing to compare
    found["short_clips"] = _short(models, runs) if exact.config.windows.buckets else {}
    if exact.tokenizer is not None:
        found["texts"] = _texts(models, runs)
    if size == sizes.BASE:
        best = {
            path: max(row["per_second"] for row in found["windows"] if row["path"] == path)
            for path in ("two passes, float32", *models)
        }
        found["ratio_to_two_passes"] = {name: best[name] / best["two passes, float32"] for name in models}
    return found


def _short(models: dict[str, FineLAP], runs: int) -> dict[str, Any]:
    short, whole = sounds(_SHORT, 16), sounds(_WHOLE, 16)
    work: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        work[f"{name} 2 s"] = partial(model.encode_windows, short)
        work[f"{name} 10 s"] = partial(model.encode_windows, whole)
    seconds = in_turns(work, runs)
    return {name: seconds[f"{name} 10 s"] / seconds[f"{name} 2 s"] for name in models}


def _texts(models: dict[str, FineLAP], runs: int) -> dict[str, Any]:
    many = [f"a dog barks in the distance while {i} cars pass by" for i in range(_TEXTS)]
    work: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        work[f"{name} many"] = partial(model.encode_text, many)
        work[f"{name} one"] = partial(model.encode_text, many[:1])
    seconds = in_turns(work, runs)
    return {
        name: {"per_second": _TEXTS / seconds[f"{name} many"], "one_ms": 1e3 * seconds[f"{name} one"]}
        for name in models
    }


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    limits = report["ceilings"]
    lines = [f"{report['machine']['cores']} cores of {report['machine']['cpu']}, {report['machine']['date']}"]
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in limits["matmul"].items())
    lines += [f"matrix products: {rates}; memory {limits['memory'] / 1e9:.1f} GB/s", ""]
    rows = []
    for size, found in report["sizes"].items():
        for row in found["windows"]:
            share = f"{100 * row['share_of_matmul']:.0f} %"
            rows.append([size, row["path"], row["batch"], row["per_second"], f"{found['operations'] / 1e9:.1f}", share])
    lines.append(common.table(["size", "path", "batch", "windows/s", "GFLOP a window", "of the matrix rate"], rows))
    for size, found in report["sizes"].items():
        lines.append("")
        for name, ratio in found.get("ratio_to_two_passes", {}).items():
            lines.append(f"{size}, {name}: {ratio:.2f} times the two passes in float32, each at its best batch")
        for name, cosine in found["cosine_to_float32"].items():
            values = ", ".join(f"{what.replace('_', ', ')} {value:.5f}" for what, value in cosine.items())
            lines.append(f"{size}, {name}: cosine to float32: {values}")
        for name, ratio in found["short_clips"].items():
            lines.append(f"{size}, {name}: {ratio:.2f} times as many 2 s clips as 10 s ones")
        for name, text in found.get("texts", {}).items():
            lines.append(f"{size}, {name}: {text['per_second']:.0f} texts/s, one in {text['one_ms']:.1f} ms")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=[sizes.SMALL, sizes.BASE], default=[sizes.SMALL, sizes.BASE])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    limits = ceilings.measure()
    report: dict[str, Any] = {
        "machine": common.machine(),
        "code": common.revision(common.REPO),
        "ceilings": {"matmul": limits.matmul, "memory": limits.memory},
        "sizes": {},
    }
    for size in options.sizes:
        with common.section(size):
            report["sizes"][size] = measure(size, limits, options.runs)
        common.write_json(options.json, report)
    print(show(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
