"""bfloat16 on a CPU: where it is faster, whether the processor really has it, and whether embeddings stay the same.

A processor may announce instructions that its virtual machine does not let it use, and the first product then ends the
process. So a process of its own tries first: this file run as a script, which is why it imports nothing of ours.
"""

from __future__ import annotations

import copy
import functools
import logging
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

ALIKE = 0.999  # the least cosine between an embedding in float32 and in bfloat16

_CPUINFO = Path("/proc/cpuinfo")
_PATIENCE = 60.0  # seconds that the trial may take; most of them go into importing torch
_TOLERANCE = 0.02  # relative; rounding to 8 bits of mantissa gives about 0.004


def bfloat16_is_fast(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor announces bfloat16 products that are worth it.

    Those are AMX tiles, and AVX-512 BF16 on AMD. On Intel's processors AVX-512 BF16 without AMX was slower than
    float32 (docs/log.md).
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        return False
    said = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    flags, vendor = said.get("flags", []), said.get("vendor_id", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == ["AuthenticAMD"])


@functools.cache
def bfloat16_is_sound() -> bool:
    """Whether this processor's bfloat16 is fast and gives right results: tried in another process, once."""
    return bfloat16_is_fast() and trial_passes([sys.executable, "-P", __file__])


def trial_passes(command: Sequence[str], patience: float = _PATIENCE) -> bool:
    """Whether a command ends with 0 within `patience` seconds; a crash, or no such program, is no."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=patience,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


def agree(ours: Sequence[Tensor], reference: Sequence[Tensor], least: float = ALIKE) -> bool:
    """Whether unit embeddings (…, D), pair by pair, have a mean cosine of at least `least`; NaN never has."""
    return all(bool((a * b).sum(-1).mean() >= least) for a, b in zip(ours, reference, strict=True))


def use_bfloat16(model: FineLAP, sound: Callable[[], bool] = bfloat16_is_sound) -> FineLAP:
    """A float32 model on the CPU, in bfloat16 where that is faster and changes nothing that matters.

    Only encoders that say `likes_bfloat16`, on processors that are `sound`, and only if clips, frames and texts agree
    with those in float32; the model as it is otherwise.
    """
    if not (model.audio_encoder.likes_bfloat16 and sound()):
        return model
    # a copy, so that float32 is still there, fixed tables included; a tokenizer has no dtype
    rounded = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer}).cast(torch.bfloat16)
    if agree(_probe(rounded), _probe(model)):
        return rounded
    log.warning("%s changes in bfloat16 on this processor; it runs in float32", model.name)
    return model


def _probe(model: FineLAP) -> list[Tensor]:
    """Clip, frames and text embeddings of two made-up sounds and a text."""
    from model.windows import window_samples

    seconds = np.arange(window_samples(model.config.windows) // 2) / 16_000
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(seconds))
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    encoded = model.encode_windows([sound.astype(np.float32) for sound in (noise, sweep)])
    texts = [] if model.tokenizer is None else [model.encode_text(["a dog barks"])]
    return [*(clip for clip, _ in encoded), *(frames for _, frames in encoded), *texts]


def _trial() -> int:
    """The products that encoders are made of, in bfloat16 beside float32: 0 if they are alike."""
    torch.manual_seed(0)
    tokens, weight = torch.randn(2, 96, 128), torch.randn(256, 128)
    heads = torch.randn(2, 4, 96, 32)
    picture, kernel = torch.randn(2, 16, 32, 32), torch.randn(32, 16, 3, 3)

    def products(dtype: torch.dtype) -> list[Tensor]:
        q = heads.to(dtype)
        return [
            F.linear(tokens.to(dtype), weight.to(dtype)),
            F.scaled_dot_product_attention(q, q, q),
            F.conv2d(picture.to(dtype), kernel.to(dtype)),
        ]

    with torch.no_grad():
        for exact, rounded in zip(products(torch.float32), products(torch.bfloat16), strict=True):
            error = (rounded.float() - exact).norm() / exact.norm()
            if not error <= _TOLERANCE:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(_trial())
