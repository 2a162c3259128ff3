"""What the trainer needs before its first step: the device, the batches, and what it asks of them.

Knows no model's parts and takes no steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from model.config import ConfigError
from model.finelap import FineLAP
from training.data.batches import Batch
from training.train_config import TrainConfig


class Source(Protocol):
    """What the trainer asks of its data: training.data.batches.Batches is one."""

    skipped: dict[str, str]

    @property
    def epoch_steps(self) -> int:
        """Batches that show everything once."""
        ...

    def stream(self, start: int) -> Iterator[Batch]:
        """Batches from number `start` on, without end."""
        ...


def share(batch: int, parts: int) -> int:
    """Clips of one part. ConfigError if the batch does not divide."""
    if batch % parts:
        raise ConfigError(f"batch: {batch} does not divide into {parts} parts (ranks times accumulate)")
    return batch // parts


def make_accelerator(config: TrainConfig) -> Any:
    """An accelerate.Accelerator for this run. ConfigError for a precision that the machine does not have."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if config.precision != "fp32" and (config.cpu or not torch.cuda.is_available()):
        # bf16 is not left to the CPU: where it is emulated it gains nothing, and on some virtual machines it crashes.
        raise ConfigError(f"precision: {config.precision} needs a GPU; fp32 runs here")
    # Accelerate keeps its precision and device for the whole process, and another run may have had others.
    AcceleratorState._reset_state(reset_partial_state=not _several_ranks())
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulate,
        cpu=config.cpu,
        # Not every part has a part in every loss; a weight of 0 leaves one out.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def make_batches(config: TrainConfig, root: Path, model: FineLAP, size: int, rank: int, world: int) -> Source:
    """The batches of one rank. ConfigError where the frame loss would have nothing to learn from."""
    from training.data.batches import Batches, BatchPlan
    from training.data.phrase_bank import PhraseBank

    bank = PhraseBank.read(root / config.data.bank) if config.data.bank is not None else None
    batches = Batches(config.data, root, model.config.windows, bank, BatchPlan(size, config.seed, rank, world))
    if batches.bank is None and config.loss.frame_weight:
        raise ConfigError("loss: frame_weight is not 0, and no set says what is heard when")
    return batches
