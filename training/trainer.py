"""The trainer: one loop over batches, with all that makes it stop, go on and end well.

Every random draw is a function of the seed, the step and the rank, so weights, optimiser state and step are all that
a stopped run needs to go on as if it had not stopped. Knows no losses (training.tasks.dual_stream), no data
(training.data.batches), and nothing of what validation measures (training.evaluation.validation).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.config import ConfigError
from model.finelap import FineLAP
from training.checkpointing import TrainError, recover, replace_file, replace_folder
from training.data.batches import Batch
from training.evaluation.validation import Validation, better
from training.metrics_log import Logs
from training.optim import AveragedWeights, build_optimiser, cosine_with_warmup, train_mode
from training.set_up import Source, make_accelerator, make_batches, share
from training.tasks.dual_stream import DualStream
from training.train_config import FREE_TO_CHANGE, TrainConfig

STATE = "state/training.pt"  # in the work folder, as are the two checkpoint folders
LAST, BEST = "last", "best"


def train(
    config: TrainConfig,
    root: Path,
    resume: bool = True,
    model: FineLAP | None = None,
    batches: Source | None = None,
) -> Path:
    """Carries out a run, from where its work folder stands if `resume`; the folder of the best checkpoint.

    The best is by validation, or the last where there is none. Relative paths start at `root`. `model` and `batches`
    replace what the configuration describes. Raises ConfigError, TrainError, and what reading the data raises.
    """
    accelerator = make_accelerator(config)
    folder = root / config.work_dir
    if accelerator.is_main_process:
        recover(folder, (LAST, BEST))
    accelerator.wait_for_everyone()
    state = _read_state(folder, config) if resume else None
    torch.manual_seed(config.seed)
    if model is None:
        from training.init.build import build_model

        model = build_model(config.init, root)
    model.config = dataclasses.replace(model.config, name=config.name)
    micro = share(config.batch, accelerator.num_processes * config.accumulate)
    if batches is None:
        batches = make_batches(config, root, model, micro, accelerator.process_index, accelerator.num_processes)
    steps = config.steps or max(1, config.epochs * batches.epoch_steps // config.accumulate)
    validation = Validation(config.validation, root, model.config.windows) if config.validation is not None else None
    run = Run(config, folder, accelerator, model, steps, validation)
    if state is not None:
        run.load(state)
    run.go(batches)
    return folder / (BEST if validation is not None else LAST)


class Run:
    """A run in memory: the model with everything that changes as it learns."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        accelerator: Any,
        model: FineLAP,
        steps: int,
        validation: Validation | None,
    ) -> None:
        self.config, self.folder, self.steps, self.validation = config, folder, steps, validation
        self.accelerator = accelerator
        self.model = model.to(accelerator.device)
        fused = accelerator.device.type == "cuda" and config.precision != "fp16"
        optimiser = build_optimiser(model, config.optimiser, fused)
        self.average = AveragedWeights(model, config.ema) if config.ema else None
        self.forward: Callable[..., dict[str, Tensor]] = accelerator.prepare(
            DualStream(model, config.loss, config.spec_augment)
        )
        self.optimiser = accelerator.prepare(optimiser)
        self.learned = [p for p in model.parameters() if p.requires_grad]
        self.step = 0
        self.best: float | None = None
        self.sums: dict[str, Tensor] = {}  # of the losses since the last row of the log

    # The loop

    def go(self, batches: Source) -> None:
        """Steps until the end, logging, validating and saving on the way."""
        if self.step >= self.steps:
            return
        config, main = self.config, self.accelerator.is_main_process
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
        logs = Logs(self.folder, self.step, config.wandb, dataclasses.asdict(config)) if main else None
        bar = tqdm(total=self.steps, initial=self.step, desc="train", mininterval=5, disable=not main)
        stream = batches.stream(self.step * config.accumulate)
        mark, since = time.monotonic(), self.step
        while self.step < self.steps:
            self.advance(stream)
            bar.update()
            ending = self.step == self.steps
            if ending or self.step % config.log_every == 0:
                row = self.figures()
                row["clips_per_second"] = config.batch * (self.step - since) / max(time.monotonic() - mark, 1e-9)
                mark, since = time.monotonic(), self.step
                if logs is not None:
                    logs.write("log", self.step, row)
                bar.set_postfix_str(f"loss {row['loss']:.4f}", refresh=False)
            is_best = False
            if self.validation is not None and (ending or self.step % self.validation.config.every == 0):
                is_best = self.validate(logs)
            if ending or is_best or self.step % config.save_every == 0:
                self.save(is_best)
        bar.close()
        if logs is not None:
            logs.close()
        if main and batches.skipped:
            (self.folder / "skipped.json").write_text(json.dumps(batches.skipped, indent=1, ensure_ascii=False))
            print(f"{len(batches.skipped)} recordings could not be used; see {self.folder / 'skipped.json'}")

    def advance(self, stream: Iterator[Batch]) -> None:
        """One optimiser step, of `accumulate` micro-batches."""
        config, model = self.config, self.model
        rate = cosine_with_warmup(self.step, self.steps, config.optimiser.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * rate
        train_mode(model)
        weights = {"clip": config.loss.clip_weight, "frame": config.loss.frame_weight}
        for part in range(config.accumulate):
            seed = self.draw(part)
            torch.manual_seed(seed)  # dropout
            with self.accelerator.accumulate(self.forward):
                losses = self.forward(next(stream), seed)
                total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
                self.accelerator.backward(total)
                if self.accelerator.sync_gradients and config.optimiser.clip_norm:
                    norm = self.accelerator.clip_grad_norm_(self.learned, config.optimiser.clip_norm)
                    self.count("grad_norm", torch.as_tensor(norm, device=total.device))
                self.optimiser.step()
                self.optimiser.zero_grad()
            for name, value in ({"loss": total} | {f"{n}_loss": v for n, v in losses.items()}).items():
                self.count(name, value.detach() / config.accumulate)
        with torch.no_grad():
            for temp in (model.temp_global, model.temp_local):
                temp.clamp_(min=config.smallest_temp)
        if self.average is not None:
            self.average.update(model, self.step)
        self.count("steps", torch.ones((), device=total.device))
        self.step += 1

    def draw(self, part: int) -> int:
        """A seed of its own for every micro-batch of every step on every rank."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        number = ((self.step * self.config.accumulate) + part) * ranks + rank
        return (self.config.seed * 1_000_003 + number * 7_919 + 1) % 2**63

    def count(self, name: str, value: Tensor) -> None:
        """Adds to the figures of the log's next row, without waiting for the device."""
        self.sums[name] = (
            self.sums.get(name, torch.zeros((), device=value.device, dtype=torch.float64)) + value.double()
        )

    def figures(self) -> dict[str, float]:
        """Means since the last row, the learning rate and the scores' scales. A loss that is no number ends the run."""
        sums = {name: float(value) for name, value in self.sums.items()}
        steps = sums.pop("steps")
        self.sums = {}
        row = {name: value / steps for name, value in sums.items()}
        if not math.isfinite(row["loss"]):
            raise TrainError(
                f"step {self.step}: the loss is {row['loss']}; the last checkpoint is kept. A lower learning rate, "
                "clip_norm or another precision may help"
            )
        names = ("temp_global", "b_global", "temp_local", "b_local")
        scales = {name: float(getattr(self.model, name).detach()) for name in names}
        return row | {"lr": self.optimiser.param_groups[0]["lr"]} | scales

    def validate(self, logs: Logs | None) -> bool:
        """Measures on the main process; whether it is the best so far."""
        assert self.validation is not None
        is_best = False
        if self.accelerator.is_main_process:
            choose = self.validation.config.choose
            with self.saved_weights():
                self.model.eval()
                report = self.validation.report(self.model, self.config.loss)
            if choose not in report:
                raise ConfigError(f"validation: choose: the recordings give no {choose}; they give {', '.join(report)}")
            if logs is not None:
                logs.write("validation", self.step, report)
            is_best = better(report[choose], self.best, choose)
            self.best = report[choose] if is_best else self.best
        # Only the main process writes checkpoints, so that nobody else needs to know.
        self.accelerator.wait_for_everyone()
        return is_best

    def saved_weights(self) -> Any:
        """A context in which the model has the weights that checkpoints get."""
        return self.average.applied(self.model) if self.average is not None else nullcontext()

    # The work folder

    def save(self, is_best: bool) -> None:
        """The checkpoint folders and the state to go on from; what was there stays until the new is whole."""
        if self.accelerator.is_main_process:
            for name, value in self.model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise TrainError(f"step {self.step}: {name} is not finite; the last checkpoint is kept")
            what = f"of step {self.step}"
            with self.saved_weights():
                self.model.eval()
                replace_folder(self.folder / LAST, self.model.save_pretrained, what)
                if is_best:
                    replace_folder(self.folder / BEST, self.model.save_pretrained, what)
            state = self.state()
            replace_file(self.folder / STATE, lambda path: torch.save(state, path), what)
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, and the configuration it belongs to."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.values if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "sums": self.sums,
            "config": _plain(self.config),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the state of a stopped run."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.values = {n: t.to(self.model.device) for n, t in state["average"].items()}
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], state["best"]
        self.sums = {n: t.to(self.model.device) for n, t in state["sums"].items()}


def _read_state(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The stopped run's state, if there is one and it is of this configuration."""
    if not (folder / STATE).is_file():
        return None
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    now = _plain(config)
    other = sorted(k for k in now if k not in FREE_TO_CHANGE and now[k] != state["config"].get(k))
    if other:
        raise TrainError(
            f"{folder}: holds a run with another {', '.join(other)}; give this one another work_dir, or begin again"
        )
    return state


def _plain(config: TrainConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain
