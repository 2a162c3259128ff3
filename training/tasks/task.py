"""What the trainer optimises: a task computes the losses of a batch and knows which parameters learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class BatchSource(Protocol):
    """An endless sequence of batches, each a pure function of its number."""

    skipped: dict[str, str]  # audio_id → why its recording cannot be used

    def stream(self, start: int) -> Iterator[Any]:
        """Yields the batches from number `start` on."""
        ...


class Task(nn.Module):
    """A model with its losses. Being a module, it is one forward pass to wrappers such as DistributedDataParallel."""

    model: nn.Module  # what checkpoints store and weight averaging covers

    def forward(self, batch: Any, seed: int | None) -> dict[str, Tensor]:
        """The scalar "loss" to minimise and the terms it is the weighted sum of; `seed` draws augmentations."""
        raise NotImplementedError

    def make_optimiser(self, fused: bool) -> torch.optim.Optimizer:
        """Freezes what does not learn, in place, and returns an optimiser over the rest."""
        raise NotImplementedError

    def set_train_mode(self) -> None:
        """Called before every step."""
        self.train()

    def clamp_parameters(self) -> None:
        """Moves parameters back into their range; called after every step."""

    def metrics(self) -> dict[str, float]:
        """Further columns of the log."""
        return {}

    def save_checkpoint(self, folder: Path) -> None:
        """Writes the model into an existing, empty folder."""
        raise NotImplementedError


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`terms`, preceded by their weighted sum under the key "loss"."""
    return {"loss": torch.stack([weights[name] * value for name, value in terms.items()]).sum(), **terms}
