"""Convolutions computed together with what follows them, for inference on a CPU: oneDNN's own fusions.

Batch norm disappears into the weights, ReLU and the sum of a residual block into the convolution's last step, and the
weights are brought into the order that the processor wants once, not at every call. Knows no particular network;
`Fused` keeps what was made of a module's weights for as long as they stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

log = logging.getLogger(__name__)

_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative error of a fused network beside the plain one

Forward = Callable[[Tensor], Tensor]


class FusedConv:
    """A convolution and its batch norm in eval mode as one; then ReLU or a sum with ReLU, if asked for."""

    def __init__(self, conv_bn: nn.Sequential) -> None:
        parts: list[Any] = list(conv_bn)
        conv = fuse_conv_bn_eval(*parts)
        self._bias = conv.bias.detach()
        self._options = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach().to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._options)

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        """(B, C, H, W) → the convolution, after ReLU if `relu`."""
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._options, "relu" if relu else "none", [], ""
        )
        return fused

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution of `x` plus `other`, which it may overwrite."""
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, self._weight, self._bias, *self._options, "add", 1.0, "relu", [], ""
        )
        return fused


class Fused:
    """A module's fused form, made by `build` when it is first wanted and again when the weights have changed.

    The first result is compared with the module's own; where it differs, or this build of PyTorch lacks the
    operations, the module itself is used from then on. Copies and pickles of it start anew.
    """

    def __init__(self, build: Callable[[Any], Forward]) -> None:
        self._build = build
        self._made_of: tuple[Any, ...] | None = None
        self._forward: Forward | None = None

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """What `module(x)` gives, for a module in eval mode; fused where that is possible."""
        if not _possible(module, x):
            result: Tensor = module(x)
            return result
        weights = tuple((t.data_ptr(), t._version, t.dtype) for t in module.state_dict().values())
        if self._made_of != weights:
            self._made_of, self._forward = weights, self._checked(module, x)
        return (self._forward or module)(x)

    def _checked(self, module: nn.Module, x: Tensor) -> Forward | None:
        try:
            forward, plain = self._build(module), module(x)
            error = float((forward(x) - plain).float().norm() / plain.float().norm().clamp_min(1e-12))
        except (RuntimeError, AttributeError, NotImplementedError) as reason:
            log.warning("this build of PyTorch cannot fuse convolutions: %s", str(reason).split("\n", 1)[0])
            return None
        if not error <= _ALIKE[x.dtype]:
            log.warning("fused convolutions differ by %.2g here and are not used", error)
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
        and x.dtype in _ALIKE
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
