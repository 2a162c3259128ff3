"""What an optimiser step is made of: parameter groups, frozen parts, the schedule, averaged weights.

Knows no data and no losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.config import ConfigError
from training.train_config import GroupConfig, OptimiserConfig


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step from 0: rising evenly over `warmup` steps, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def group_of(name: str, groups: tuple[GroupConfig, ...]) -> GroupConfig | None:
    """The first group whose prefix the parameter's name begins with."""
    return next((g for g in groups if name.startswith(g.prefix)), None)


def build_optimiser(model: nn.Module, config: OptimiserConfig, fused: bool = False) -> torch.optim.AdamW:
    """Freezes what the groups say, in place, and gives Adam over the rest; `base_lr` of its groups is unscheduled.

    Raises ConfigError for a group that fits no parameter, or where nothing is left to learn.
    """
    used: set[str] = set()
    sets: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name, config.groups)
        if group is not None:
            used.add(group.prefix)
        parameter.requires_grad_(group is None or not group.frozen)
        if parameter.requires_grad:
            rate = group.learning_rate if group is not None else None
            decay = group.weight_decay if group is not None else None
            rate = config.learning_rate if rate is None else rate
            decay = (config.weight_decay if decay is None else decay) if parameter.ndim > 1 else 0.0
            sets.setdefault((rate, decay), []).append(parameter)
    for group in config.groups:
        if group.prefix not in used:
            raise ConfigError(f"optimiser: groups: no parameter is left for the prefix {group.prefix!r}")
    if not sets:
        raise ConfigError("optimiser: groups: everything is frozen")
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), p in sets.items()],
        betas=config.betas,
        eps=config.epsilon,
        fused=fused,
    )


def train_mode(model: nn.Module) -> None:
    """Training mode, but for the modules whose parameters are all frozen: dropout off, batch statistics kept."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


class AveragedWeights:
    """An exponential moving average of all floating tensors of a model, in float32, beside the model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: t.detach().float().clone() for n, t in floating_tensors(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After the optimiser step number `step`, from 0: the decay grows to its full value over the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in floating_tensors(model):
            self.values[name].lerp_(tensor.detach().float(), 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averaged weights."""
        kept = {n: t.detach().clone() for n, t in floating_tensors(model)}
        self._write(model, self.values)
        try:
            yield
        finally:
            self._write(model, kept)

    @staticmethod
    @torch.no_grad()
    def _write(model: nn.Module, values: dict[str, Tensor]) -> None:
        for name, tensor in floating_tensors(model):
            tensor.copy_(values[name])


def floating_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors of what a checkpoint stores, parameters and statistics, that are floating."""
    return [(n, t) for n, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()]
