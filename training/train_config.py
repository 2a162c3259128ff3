"""The trainer's configuration: read from YAML, strict about keys and types, the paper's settings as defaults.

Knows nothing of how any of it is done. Source of the defaults: arXiv 2604.01155, section on implementation.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.config import ConfigError
from training.data.augment import SpecAugmentConfig
from training.data.sets import DataConfig
from training.init.build import InitConfig


@dataclass(frozen=True)
class LossConfig:
    """clip_weight · clip loss + frame_weight · frame loss; a weight of 0 leaves that loss uncomputed."""

    clip: Literal["sigmoid", "infonce"] = "sigmoid"
    clip_weight: float = 1.0  # the paper's alpha
    frame_weight: float = 1.0  # the paper's beta
    same_meaning: bool = False  # clips whose captions mean the same are true pairs as well; not in the paper
    chunk: int | None = None  # clips compared with all texts at a time; bounds memory for very large batches


@dataclass(frozen=True)
class GroupConfig:
    """Settings for the parameters whose name begins with `prefix`; the first group that fits a parameter has it.

    Names are the checkpoint's own, such as `audio_encoder`, `text.encoder.` or `adapter.frames`. A frozen part is in
    evaluation mode as well: its dropout is off and its batch statistics stay.
    """

    prefix: str
    learning_rate: float | None = None  # None: the optimiser's
    weight_decay: float | None = None  # None: the optimiser's
    frozen: bool = False


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam (with decoupled weight decay, if any), a linear warm-up, then a cosine to zero."""

    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # of matrices; vectors, temperatures and biases have none
    warmup: int = 1000  # optimiser steps
    clip_norm: float = 0.0  # largest norm of all gradients together; 0 does not clip
    groups: tuple[GroupConfig, ...] = ()


@dataclass(frozen=True)
class ValidationConfig:
    """What is heard and asked at intervals, to choose `best`: a manifest, or a folder of labelled sounds."""

    manifest: str | None = None
    folder: str | None = None
    only_groups: tuple[str, ...] = ()  # empty: all
    limit: int = 1000  # clips, evenly spread over the list
    batch: int = 32
    phrases: int = 20  # asked of each clip with phrases: its own, then others of the set
    every: int = 500  # optimiser steps
    choose: Literal["mAP@10", "R@1", "R@10", "frame_AP", "loss"] = "mAP@10"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `batch` counts all ranks and all micro-batches of an optimiser step."""

    init: InitConfig
    data: DataConfig
    work_dir: str
    kind: Literal["train"] = "train"
    name: str = "finelap"
    validation: ValidationConfig | None = None
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    batch: int = 1024
    accumulate: int = 1  # micro-batches per optimiser step; the clip loss compares within a micro-batch
    steps: int | None = None  # optimiser steps; None: as many as `epochs` take
    epochs: int = 10
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = 0.0  # decay of the averaged weights, which are then validated and saved; 0: none
    smallest_temp: float = 0.01
    log_every: int = 20
    save_every: int = 500
    seed: int = 0
    cpu: bool = False  # even where there is a GPU
    wandb: str | None = None  # project to log to as well; needs the wandb package

    def __post_init__(self) -> None:
        for key in ("batch", "accumulate", "epochs", "log_every", "save_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: {getattr(self, key)} is not positive")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps: {self.steps} is not positive")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema: {self.ema} is not in [0, 1)")
        if self.loss.clip_weight < 0 or self.loss.frame_weight < 0:
            raise ConfigError("loss: weights are not negative")
        if not self.loss.clip_weight and not self.loss.frame_weight:
            raise ConfigError("loss: both weights are 0, so there is nothing to learn")


# What may differ between a stopped run and the one that goes on: where, how often, on what, not what is learned.
FREE_TO_CHANGE = ("work_dir", "validation", "log_every", "save_every", "cpu", "wandb")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's keys and values. Raises ConfigError with the file's name."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected keys and values, found {type(data).__name__}")
    return data


def read_train_config(path: Path) -> TrainConfig:
    """A training run from YAML. What does not fit raises ConfigError with where it is."""
    return typing.cast(TrainConfig, from_plain(TrainConfig, read_yaml(path), path.name))


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """`value`, of plain YAML types, as what the annotation `kind` says: dataclasses and tuples of them included.

    Unknown and missing keys and values of another type raise ConfigError. Numbers such as 5e-5, which YAML takes for
    text, are numbers here where a number is expected.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        (only,) = [o for o in options if o is not type(None)]
        return from_plain(only, value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, found {len(value)}")
        return tuple(from_plain(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected keys and values, found {value!r}")
        return dict(value)
    return _scalar(kind, value, where)


def _record(kind: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected keys and values, found {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(map(str, value)) - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}")
    values = {key: from_plain(hints[key], v, f"{where}: {key}") for key, v in value.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}")
