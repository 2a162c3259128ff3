"""Fuses convolutions with the batch norm, ReLU and residual sum that follow, for inference on a CPU (oneDNN).

Batch norm is folded into the weights; ReLU and the residual sum are computed in the convolution's last step. The
weights are reordered for the processor once, not at every call. `Fused` caches the result while the weights are
unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative error of a fused network

Forward = Callable[[Tensor], Tensor]


class FusedConv:
    """A convolution fused with its batch norm in eval mode, and optionally with ReLU or with a sum and ReLU."""

    def __init__(self, conv_bn: nn.Sequential) -> None:
        parts: list[Any] = list(conv_bn)
        conv = fuse_conv_bn_eval(*parts)
        self._bias = conv.bias.detach()
        self._options = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach().to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._options)

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        """(B, C, H, W) → the convolution (B, C_out, H_out, W_out), followed by ReLU if `relu`."""
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._options, "relu" if relu else "none", [], ""
        )
        return fused

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution of `x` plus `other`, which may be overwritten."""
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, self._weight, self._bias, *self._options, "add", 1.0, "relu", [], ""
        )
        return fused


class Fused:
    """The fused form of a module, made by `build` on first use and again when the weights change.

    The first result is compared with the module's own. If it differs, or this build of PyTorch lacks the operations,
    the module itself is used instead. Copies and pickles do not include the fused form.
    """

    def __init__(self, build: Callable[[Any], Forward]) -> None:
        self._build = build
        self._weights: tuple[Any, ...] | None = None
        self._forward: Forward | None = None

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Computes `module(x)`, fused if the module is in eval mode and fusion is possible."""
        if not _possible(module, x):
            result: Tensor = module(x)
            return result
        weights = tuple((t.data_ptr(), t._version, t.dtype) for t in module.state_dict().values())
        if self._weights != weights:
            self._weights, self._forward = weights, self._checked(module, x)
        return (self._forward or module)(x)

    def _checked(self, module: nn.Module, x: Tensor) -> Forward | None:
        try:
            forward, plain = self._build(module), module(x)
            error = float((forward(x) - plain).float().norm() / plain.float().norm().clamp_min(1e-12))
        except (RuntimeError, AttributeError, NotImplementedError) as reason:
            log.warning(
                "convolutions are not fused: this build of PyTorch does not support it: %s",
                str(reason).split("\n", 1)[0],
            )
            return None
        if not error <= _TOLERANCE[x.dtype]:
            log.warning("convolutions are not fused: the results differ by %.2g", error)
            return None
        return forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
        return Fused(self._build)

    def __reduce__(self) -> tuple[Any, ...]:
        return Fused, (self._build,)


def _possible(module: nn.Module, x: Tensor) -> bool:
    return (
        not module.training
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in _TOLERANCE
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
