"""Computes linear layers with oneDNN on a CPU, from weights that are in its order, where that is faster.

In float32 that is on AMD's processors with AVX-512, where PyTorch's choice, MKL, is slow; in bfloat16 it is with AMX,
where PyTorch uses oneDNN, too, but orders the weights anew at every call. The results are the same but for rounding
(`python -m benchmarks.model.optimizations --only layers`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.cpu.bfloat16 import AMD, CPUINFO, processor

if TYPE_CHECKING:
    from model.finelap import FineLAP

_KEEP = (nn.TransformerEncoderLayer, nn.MultiheadAttention)  # their fast paths read the weights themselves


def use_onednn(model: FineLAP, *, faster: bool | None = None) -> FineLAP:
    """Packs the linear layers of a model that runs in float32 or bfloat16 on a CPU, in place, if that is `faster`.

    None: if it is on this processor. A packed model cannot be trained, converted or saved.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return model
    if onednn_is_faster(model.dtype) if faster is None else faster:
        pack_linears(model.eval())
        if model.dtype == torch.float32:
            model.log_mel.transform = PackedLinear(model.log_mel.spectrum)
    return model


class PackedLinear(nn.Module):
    """A linear layer with its weight (O, I) in oneDNN's order: (…, I) → (…, O), in the weight's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        rows = [1] if weight.dtype == torch.bfloat16 else []  # for which to order; measured, docs/development/log.md
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), *rows)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def onednn_is_faster(dtype: torch.dtype, cpuinfo: Path = CPUINFO) -> bool:
    """Whether packed layers are faster on this processor."""
    vendor, flags = processor(cpuinfo)
    faster = "amx_bf16" in flags if dtype == torch.bfloat16 else vendor == AMD and "avx512f" in flags
    return faster and torch.backends.mkldnn.is_available()


def pack_linears(module: nn.Module) -> None:
    """Replaces linear layers by packed ones, in place."""
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            setattr(module, name, PackedLinear(part.weight, part.bias))
        elif not isinstance(part, _KEEP):
            pack_linears(part)
