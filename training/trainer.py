"""The training loop: optimises a task, logs, validates, saves checkpoints, and resumes exactly.

Every random draw is a function of the seed, the step and the rank. The state of a stopped run is therefore its weights,
its optimiser and its step number.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from model.config import ConfigError
from model.finelap import FineLAP
from training.checkpointing import MetricsLog, TrainError, recover, replace_file, replace_folder
from training.config import FREE_TO_CHANGE, TrainConfig
from training.evaluation.validation import Validation, better
from training.optim import AveragedWeights, cosine_with_warmup
from training.tasks.dual_stream import DualStreamTask
from training.tasks.task import BatchSource, Task

STATE = "state/training.pt"  # in the work folder, as are the two checkpoint folders
LAST, BEST = "last", "best"


class EpochSource(BatchSource, Protocol):
    """A batch source of finite data, such as training.data.batches.Batches."""

    @property
    def epoch_steps(self) -> int:
        """Batches in which every item occurs once."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """The validation of a run: `report()` every `every` steps; the metric `choose` selects `best`, if given."""

    report: Callable[[], dict[str, float]]
    every: int
    choose: str | None = None


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know about a run, independent of its task."""

    steps: int  # optimiser steps
    batch: int  # clips of a step over all ranks and micro-batches
    accumulate: int = 1  # micro-batches per step
    warmup: int = 0
    decay_from: int | None = None  # step at which the cosine decay starts; None: after the warm-up
    clip_norm: float = 0.0  # 0 disables clipping
    ema: float = 0.0
    log_every: int = 20
    save_every: int = 500
    checkpoints: bool = True  # whether to write checkpoint folders beside the state
    first_seed: int = 1  # the seed of micro-batch n is first_seed + n * seed_stride
    seed_stride: int = 1
    wandb: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # stored in the state; a resumed run must have the same
    free: tuple[str, ...] = ()  # keys of `settings` that may differ


def train(
    config: TrainConfig,
    root: Path,
    resume: bool = True,
    model: FineLAP | None = None,
    batches: EpochSource | None = None,
) -> Path:
    """Runs a `kind: train` configuration and returns the folder of the best checkpoint, or the last without validation.

    With `resume`, continues the run in the work folder. Relative paths are resolved against `root`. `model` and
    `batches` replace what the configuration describes. Raises ConfigError, TrainError, and the errors of reading the
    data.
    """
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    if model is None:
        from training.init.build import build_model

        model = build_model(config.init, root)
    model.config = dataclasses.replace(model.config, name=config.name)
    if config.drop_path:
        model.audio_encoder.set_drop_path(config.drop_path)
    size = share(config.batch, accelerator.num_processes * config.accumulate)
    if batches is None:
        batches = make_batches(config, root, model, size, accelerator)
    task = DualStreamTask(model, config.loss, config.spec_augment, config.optimiser, config.smallest_temp)
    evaluation = None
    if config.validation is not None:
        report = partial(Validation(config.validation, root, model.config.windows).report, model, config.loss)
        evaluation = Evaluation(report, config.validation.every, config.validation.choose)
    folder = root / config.work_dir
    Trainer(task, loop_config(config, batches.epoch_steps), folder, accelerator, evaluation).run(batches, resume)
    return folder / (LAST if evaluation is None else BEST)


class Trainer:
    """Runs a task in a work folder."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        accelerator: Any,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.task, self.config, self.folder, self.evaluation = task, config, folder, evaluation
        self.accelerator = accelerator
        task.to(accelerator.device)
        optimiser = task.make_optimiser(fused=accelerator.scaler is None)
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
        self.learned = [p for group in optimiser.param_groups for p in group["params"]]
        self.average = AveragedWeights(task.model, config.ema) if config.ema else None
        self.forward: Callable[..., dict[str, Tensor]] = accelerator.prepare(task)
        self.optimiser = accelerator.prepare(optimiser)
        self.step = 0
        self.best: float | None = None
        self.sums: dict[str, Tensor] = {}  # of losses since the last row of the log

    # The loop

    def run(self, batches: BatchSource, resume: bool = True) -> None:
        """Trains until the last step, from the state in the work folder if there is one and `resume` is set."""
        if self.accelerator.is_main_process:
            recover(self.folder, (LAST, BEST))
        self.accelerator.wait_for_everyone()
        if resume and (self.folder / STATE).is_file():
            self.load()
        if self.step >= self.config.steps:
            return
        main = self.accelerator.is_main_process
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(self.folder, self.step, self.config.wandb, self.config.settings) if main else None
        self._steps(batches.stream(self.step * self.config.accumulate), log)
        if log is not None:
            log.close()
        if main and batches.skipped:
            (self.folder / "skipped.json").write_text(json.dumps(batches.skipped, indent=1, ensure_ascii=False))
            print(f"{len(batches.skipped)} recordings could not be used; see {self.folder / 'skipped.json'}")

    def _steps(self, stream: Iterator[Any], log: MetricsLog | None) -> None:
        config, evaluation = self.config, self.evaluation
        name = self.folder.name
        bar = tqdm(total=config.steps, initial=self.step, desc=name, mininterval=5, disable=log is None)
        mark, since = time.monotonic(), self.step
        with bar:
            while self.step < config.steps:
                self.advance(stream)
                bar.update()
                last = self.step == config.steps
                if last or self.step % config.log_every == 0:
                    row = self.mean_losses() | self.task.metrics()
                    row["clips_per_second"] = config.batch * (self.step - since) / max(time.monotonic() - mark, 1e-9)
                    mark, since = time.monotonic(), self.step
                    if log is not None:
                        log.write("log", self.step, row)
                    bar.set_postfix_str(f"loss {row['loss']:.4f}", refresh=False)
                is_best = False
                if evaluation is not None and (last or self.step % evaluation.every == 0):
                    is_best = self.validate(evaluation, log)
                if last or is_best or self.step % config.save_every == 0:
                    self.save(is_best)

    def advance(self, stream: Iterator[Any]) -> None:
        """One optimiser step of `accumulate` micro-batches."""
        config, task = self.config, self.task
        rate = cosine_with_warmup(self.step, config.steps, config.warmup, config.decay_from)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * rate
        task.set_train_mode()
        for part in range(config.accumulate):
            seed = self.seed(part)
            torch.manual_seed(seed)  # dropout
            with self.accelerator.accumulate(self.forward):
                losses = self.forward(next(stream), seed)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients and config.clip_norm:
                    norm = self.accelerator.clip_grad_norm_(self.learned, config.clip_norm)
                    self.add("grad_norm", torch.as_tensor(norm, device=losses["loss"].device))
                self.optimiser.step()
                self.optimiser.zero_grad()
            for name, value in losses.items():
                column = name if name == "loss" else f"{name}_loss"
                self.add(column, value.detach() / config.accumulate)
        task.clamp_parameters()
        if self.average is not None:
            self.average.update(task.model, self.step)
        self.add("steps", torch.ones((), device=self.accelerator.device))
        self.step += 1

    def seed(self, part: int) -> int:
        """A distinct seed for every micro-batch of every step on every rank."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        number = (self.step * self.config.accumulate + part) * ranks + rank
        return (self.config.first_seed + number * self.config.seed_stride) % 2**63

    def add(self, name: str, value: Tensor) -> None:
        """Adds to a column of the log's next row, without waiting for the device."""
        total = self.sums.get(name, torch.zeros((), device=value.device, dtype=torch.float64))
        self.sums[name] = total + value.double()

    def mean_losses(self) -> dict[str, float]:
        """Means since the last row, and the learning rate. Raises TrainError if the loss is not finite."""
        sums = {name: float(value) for name, value in self.sums.items()}
        steps = sums.pop("steps")
        self.sums = {}
        row = {name: value / steps for name, value in sums.items()}
        if not math.isfinite(row["loss"]):
            raise TrainError(
                f"step {self.step}: the loss is {row['loss']}; the last checkpoint is kept. "
                "Try a lower learning rate, clip_norm or another precision"
            )
        return row | {"lr": self.optimiser.param_groups[0]["lr"]}

    def validate(self, evaluation: Evaluation, log: MetricsLog | None) -> bool:
        """Evaluates on the main process and returns whether the result is the best so far."""
        is_best, choose = False, evaluation.choose
        if self.accelerator.is_main_process:
            with self.saved_weights():
                self.task.eval()
                report = evaluation.report()
            if choose is not None and choose not in report:
                raise ConfigError(
                    f"validation: choose: {choose} cannot be computed from these recordings; "
                    f"available: {', '.join(report)}"
                )
            if log is not None:
                log.write("validation", self.step, report)
            if choose is not None:
                is_best = better(report[choose], self.best, choose)
                self.best = report[choose] if is_best else self.best
        # Only the main process writes checkpoints, so the other ranks don't need the result.
        self.accelerator.wait_for_everyone()
        return is_best

    def saved_weights(self) -> Any:
        """A context in which the model has the weights that checkpoints store."""
        return self.average.applied(self.task.model) if self.average is not None else nullcontext()

    # The work folder

    def save(self, is_best: bool) -> None:
        """Writes the checkpoint folders and the state; the previous ones stay until the new ones are complete."""
        if self.accelerator.is_main_process:
            for name, value in self.task.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise TrainError(f"step {self.step}: {name} is not finite; the last checkpoint is kept")
            what = f"of step {self.step}"
            with self.saved_weights():
                self.task.eval()
                for name in (LAST, BEST)[: 1 + is_best] if self.config.checkpoints else ():
                    replace_folder(self.folder / name, self.task.save_checkpoint, what)
            state = self.state()
            replace_file(self.folder / STATE, lambda path: torch.save(state, path), what)
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, and the settings it belongs to."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "best": self.best,
            "task": self.task.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.values if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "sums": self.sums,
            "config": _plain(self.config.settings),
        }

    def load(self) -> None:
        """Restores the state of a stopped run. Raises TrainError if it has other settings."""
        state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        settings = _plain(self.config.settings)
        other = sorted(k for k in settings if k not in self.config.free and settings[k] != state["config"].get(k))
        if other:
            raise TrainError(
                f"{self.folder}: holds a run with another {', '.join(other)}; use another work_dir, or --restart"
            )
        device = self.accelerator.device
        self.task.load_state_dict(state["task"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.values = {n: t.to(device) for n, t in state["average"].items()}
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], state["best"]
        self.sums = {n: t.to(device) for n, t in state["sums"].items()}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


# From a configuration to what the loop needs


def loop_config(config: TrainConfig, epoch_steps: int) -> LoopConfig:
    """The loop's part of a configuration; `epoch_steps` counts micro-batches."""
    return LoopConfig(
        steps=config.steps or max(1, config.epochs * epoch_steps // config.accumulate),
        batch=config.batch,
        accumulate=config.accumulate,
        warmup=config.optimiser.warmup,
        clip_norm=config.optimiser.clip_norm,
        ema=config.ema,
        log_every=config.log_every,
        save_every=config.save_every,
        first_seed=config.seed * 1_000_003 + 1,
        seed_stride=7_919,
        wandb=config.wandb,
        settings=dataclasses.asdict(config),
        free=FREE_TO_CHANGE,
    )


def share(batch: int, parts: int) -> int:
    """Clips of one micro-batch on one rank. Raises ConfigError if the batch does not divide."""
    if batch % parts:
        raise ConfigError(f"batch: {batch} does not divide into {parts} parts (ranks times accumulate)")
    return batch // parts


def make_accelerator(config: TrainConfig) -> Any:
    """An accelerate.Accelerator for a run. Raises ConfigError for a precision that the machine lacks."""
    if config.precision != "fp32" and (config.cpu or not torch.cuda.is_available()):
        # A CPU emulates bf16: it is no faster, and crashes on some virtual machines.
        raise ConfigError(f"precision: {config.precision} needs a GPU; use fp32 on this machine")
    return new_accelerator(config.precision, config.accumulate, config.cpu)


def new_accelerator(precision: str = "fp32", accumulate: int = 1, cpu: bool = True) -> Any:
    """An accelerate.Accelerator with these settings, whatever an earlier run in this process used."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    # Accelerate keeps precision and device in state that the whole process shares.
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulate,
        cpu=cpu,
        # A loss with weight 0 is not computed, so some parameters may get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def make_batches(config: TrainConfig, root: Path, model: FineLAP, size: int, accelerator: Any) -> EpochSource:
    """The batches of this rank, `size` clips each. Raises ConfigError if there are no labels for the frame loss."""
    from training.data.batches import Batches, BatchPlan
    from training.data.phrase_bank import PhraseBank

    bank = PhraseBank.read(root / config.data.bank) if config.data.bank is not None else None
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches = Batches(config.data, root, model.config.windows, bank, BatchPlan(size, config.seed, rank, ranks))
    if batches.bank is None and config.loss.frame_weight:
        raise ConfigError("loss: frame_weight is not 0, but no set has frame labels")
    return batches
