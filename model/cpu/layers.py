"""Computes linear layers with oneDNN on a CPU where PyTorch's choice, MKL, is slow: on AMD's with AVX-512.

The results are the same but for rounding. Weights are brought into oneDNN's order once, not at every call, of which a
single text gains most (`python -m benchmarks.model.optimizations --only layers`).
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
    """Packs the linear layers of a model that runs in float32 on a CPU, in place, if that is `faster`.

    None: if it is on this processor. A packed model cannot be trained, converted or saved.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return model
    if onednn_is_faster() if faster is None else faster:
        pack_linears(model.eval())
        model.log_mel.transform = PackedLinear(model.log_mel.spectrum)
    return model


class PackedLinear(nn.Module):
    """A linear layer with its weight (O, I) in oneDNN's order: (…, I) float32 → (…, O)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def onednn_is_faster(cpuinfo: Path = CPUINFO) -> bool:
    """Whether oneDNN's float32 products are faster than MKL's: on AMD's processors with AVX-512."""
    vendor, flags = processor(cpuinfo)
    return vendor == AMD and "avx512f" in flags and torch.backends.mkldnn.is_available()


def pack_linears(module: nn.Module) -> None:
    """Replaces linear layers by packed ones, in place."""
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            setattr(module, name, PackedLinear(part.weight, part.bias))
        elif not isinstance(part, _KEEP):
            pack_linears(part)
