"""Decides whether a model runs in bfloat16 on a CPU: the processor supports it, and the embeddings stay the same.

A virtual machine may advertise instructions that it does not allow, and the first product then kills the process.
A child process therefore tries them first by running this file as a script, so it must not import our modules.
With AMX, bfloat16 is 2.4 to 4 times as fast as float32 (`python -m benchmarks.model.throughput`).
"""

from __future__ import annotations

import copy
import functools
import logging
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.finelap import FineLAP

log = logging.getLogger(__name__)

MIN_COSINE = 0.999  # between an embedding in float32 and in bfloat16

AMD = "AuthenticAMD"
CPUINFO = Path("/proc/cpuinfo")
_TRIAL_LIMIT = 60  # seconds of processor time, most of them for importing torch
_TRIAL_TIMEOUT = 900.0  # seconds; on a busy machine, importing torch has taken more than a minute
_TOLERANCE = 0.02  # relative error; rounding to 8 bits of mantissa gives about 0.004


def processor(cpuinfo: Path = CPUINFO) -> tuple[str, frozenset[str]]:
    """The processor's vendor and what it advertises, as Linux names them; nothing on other systems."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return "", frozenset()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split())


def bfloat16_is_fast(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor advertises bfloat16 products that are faster than float32.

    These are AMX tiles, and AVX-512 BF16 on AMD. On Intel processors AVX-512 BF16 without AMX measured slower than
    float32 (docs/development/log.md).
    """
    vendor, flags = processor(cpuinfo)
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == AMD)


@functools.cache
def bfloat16_is_sound() -> bool:
    """Whether this processor's bfloat16 is fast and correct; tried once, in a child process."""
    return bfloat16_is_fast() and trial_passes([sys.executable, "-P", __file__])


def trial_passes(command: Sequence[str], limit: int = _TRIAL_LIMIT, timeout: float = _TRIAL_TIMEOUT) -> bool:
    """Whether a command exits with 0; False if it crashes, does not exist, or exceeds a limit.

    limit: seconds of processor time. They, and not the time that passes, tell a loop from a busy machine: two processes
    of one machine must come to the same answer. timeout: seconds, for a command that only waits.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    with process:
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit, limit))
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            log.warning("no bfloat16: trying it did not end within %d s", timeout)
            return False


def agree(ours: Sequence[Tensor], reference: Sequence[Tensor], least: float = MIN_COSINE) -> bool:
    """Whether each pair of unit embeddings (…, D) has a mean cosine of at least `least`; False for NaN."""
    return all(bool((a * b).sum(-1).mean() >= least) for a, b in zip(ours, reference, strict=True))


def use_bfloat16(model: FineLAP, sound: Callable[[], bool] = bfloat16_is_sound) -> FineLAP:
    """Returns a bfloat16 copy of a float32 CPU model if it is faster and equivalent, else the model itself.

    This requires an encoder with `likes_bfloat16`, a processor that is `sound`, and clip, frame and text embeddings
    that agree with float32.
    """
    if not (model.audio_encoder.likes_bfloat16 and sound()):
        return model
    # a copy, so that the float32 model stays intact, including fixed tables; the tokenizer is shared
    rounded = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer}).cast(torch.bfloat16)
    if agree(_probe(rounded), _probe(model)):
        return rounded
    log.warning("%s runs in float32: its embeddings differ in bfloat16 on this processor", model.name)
    return model


def _probe(model: FineLAP) -> list[Tensor]:
    """Clip, frame and text embeddings of two synthetic sounds and one text."""
    from model.config import SAMPLE_RATE
    from model.windows import window_samples

    seconds = np.arange(window_samples(model.config.windows) // 2) / SAMPLE_RATE
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(seconds))
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    encoded = model.encode_windows([sound.astype(np.float32) for sound in (noise, sweep)])
    texts = [] if model.tokenizer is None else [model.encode_text(["a dog barks"])]
    return [*(clip for clip, _ in encoded), *(frames for _, frames in encoded), *texts]


def _trial() -> int:
    """Compares the products that encoders use in bfloat16 and float32; returns 0 if they agree."""
    torch.manual_seed(0)
    tokens, weight = torch.randn(2, 96, 128), torch.randn(256, 128)
    heads = torch.randn(2, 4, 96, 32)
    image, kernel = torch.randn(2, 16, 32, 32), torch.randn(32, 16, 3, 3)

    def products(dtype: torch.dtype) -> list[Tensor]:
        q = heads.to(dtype)
        return [
            F.linear(tokens.to(dtype), weight.to(dtype)),
            F.scaled_dot_product_attention(q, q, q),
            F.conv2d(image.to(dtype), kernel.to(dtype)),
        ]

    with torch.no_grad():
        for exact, rounded in zip(products(torch.float32), products(torch.bfloat16), strict=True):
            error = (rounded.float() - exact).norm() / exact.norm()
            if not error <= _TOLERANCE:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(_trial())
