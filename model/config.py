"""The audio constants, and a checkpoint's config.json as dataclasses: the shape of every part of the network.

Needs no torch. Learned numbers, temperatures and biases included, are stored with the weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SAMPLE_RATE = 16_000  # Hz, of all audio the model takes
MEL_WINDOW = 400  # samples: 25 ms
MEL_HOP = 160  # samples: 10 ms

FORMAT_VERSION = 1


class ConfigError(ValueError):
    """Raised for a config.json that does not describe a FineLAP checkpoint."""


@dataclass(frozen=True)
class MelConfig:
    """The log-mel front end. Frames are normalised as `(raw log-mel - mean) / (2 * std)`."""

    num_mel_bins: int = 128
    low_freq: float = 20.0  # Hz
    mean: float = -4.268
    std: float = 4.569
    pad_value: float = 0.0  # raw log-mel of padding, before normalisation: 0 in the published model
    snip_edges: bool = True  # Kaldi: only frames wholly inside the signal; False pads the last frames with zeros

    @property
    def normalised_padding(self) -> float:
        """The normalised log-mel of padding."""
        return (self.pad_value - self.mean) / (2 * self.std)


@dataclass(frozen=True)
class WindowConfig:
    """How a recording is cut into windows for the encoder, and the timing of its frames."""

    mel_frames: int = 1024  # of MEL_HOP, in a whole window
    frames: int = 64  # embedding steps in a whole window
    frame_hop: float = 0.16  # seconds; the published weights were trained on a grid of 0.15625
    overlap_frames: int = 8  # shared by neighbouring windows of a long recording
    frame_share: float = 0.0  # weight of the frames' mean direction in a recording's clip embedding
    buckets: tuple[int, ...] = ()  # frames; shorter window lengths the encoder accepts. Empty: whole windows only

    @property
    def sample_rate(self) -> int:
        """Hz, of the samples that are cut into windows."""
        return SAMPLE_RATE

    @property
    def samples(self) -> int:
        """Samples that a whole window reads, including the last mel frame's tail."""
        return self.mel_frames * MEL_HOP + MEL_WINDOW - MEL_HOP

    @property
    def centres(self) -> bool:
        """Whether each window's mean is subtracted from it."""
        return True


@dataclass(frozen=True)
class SampleWindows(WindowConfig):
    """Windows of a model with a sample rate of its own; see model.external. Never part of a config.json."""

    rate: int = 48_000  # Hz
    length: int = 480_000  # samples of a whole window

    @property
    def sample_rate(self) -> int:
        return self.rate

    @property
    def samples(self) -> int:
        return self.length

    @property
    def centres(self) -> bool:
        return False


@dataclass(frozen=True)
class EncoderConfig:
    """The audio encoder: a kind from model.encoders.registry and the arguments of its constructor."""

    kind: str = "eat"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterConfig:
    """The audio projectors: a kind from model.adapter and the arguments of its constructor."""

    kind: str = "decoupled"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextConfig:
    """The text tower: a Hugging Face encoder (its own config in `hf_config`), pooling, and the projector after it."""

    pooling: str = "first"  # "first" token or "mean" over tokens
    max_tokens: int = 30
    projector: str = "mlp"  # "mlp", or "residual", which stays close to the tower's own space
    params: dict[str, Any] = field(default_factory=dict)
    hf_config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvidenceConfig:
    """The part of the joint space that compares classes and labels; see model.evidence. Needs the adapter `concept`."""

    rank: int = 63  # dimensions of the classes; one more gives all texts the same length
    temperature: float = 0.03  # of the softmax over a text's cosines to the classes
    text_weight: float = 1.0
    labels: int = 0  # L; 0: no label evidence
    label_rank: int = 64  # dimensions of the labels
    label_temperature: float = 0.05  # of the softmax over a text's cosines to the labels
    label_weight: float = 1.0  # of texts
    label_context: float = 0.25  # as `context`, of the labels
    audio_weight: float = 0.01  # of clips
    frame_weight: float = 2.0  # of frames, in units of `audio_weight`
    context: float = 0.0  # share of a frame's evidence that is its window's

    def __post_init__(self) -> None:
        if min(self.rank, self.label_rank) < 1 or self.labels < 0:
            raise ConfigError("evidence: want rank ≥ 1, label_rank ≥ 1 and labels ≥ 0")
        if not min(self.temperature, self.label_temperature) > 0:
            raise ConfigError("evidence: want temperatures > 0")
        if not all(0 <= context <= 1 for context in (self.context, self.label_context)):
            raise ConfigError("evidence: want 0 ≤ context ≤ 1 and 0 ≤ label_context ≤ 1")

    @property
    def dims(self) -> int:
        """The dimensions that evidence adds to the core's."""
        return self.rank + (self.label_rank if self.labels else 0) + 1


@dataclass(frozen=True)
class TemporalConfig:
    """The part that lets frames look at their neighbours; see model.adapter.TemporalAttention. Needs evidence."""

    width: int = 96  # of its hidden layers
    reach: int = 8  # frames before and after that a frame attends to
    activity_weight: float = 5.0  # of texts, in units of their core

    def __post_init__(self) -> None:
        if self.width < 1 or self.reach < 1 or not self.activity_weight > 0:
            raise ConfigError("temporal: want width ≥ 1, reach ≥ 1 and activity_weight > 0")


@dataclass(frozen=True)
class MatchingConfig:
    """How the similarities of a search become scores, and from which score a clip matches the query.

    Fitted on sounds and phrases that the model has not been trained on; see training.evaluation.calibration. A score is
    sigmoid(cosine / temp + bias), with the model's own pair for a clip and a text.
    """

    cutoff: float  # a clip with at least this score matches
    segment: tuple[float, float]  # (temp, bias) for a segment of a clip and a text
    sound: tuple[float, float]  # (temp, bias) for a clip or a segment and a sound

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < 1:
            raise ConfigError(f"matching: cutoff must lie between 0 and 1; it is {self.cutoff}")
        for name, pair in (("segment", self.segment), ("sound", self.sound)):
            if len(pair) != 2 or not pair[0] > 0:
                raise ConfigError(f"matching: {name} must be a positive temperature and a bias; it is {list(pair)}")


@dataclass(frozen=True)
class FineLAPConfig:
    """Everything needed to build a FineLAP network before its weights are loaded."""

    name: str = "finelap"
    dim: int = 1024
    mel: MelConfig = MelConfig()
    windows: WindowConfig = WindowConfig()
    audio_encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    text: TextConfig = TextConfig()
    evidence: EvidenceConfig | None = None
    temporal: TemporalConfig | None = None
    matching: MatchingConfig | None = None  # None: no claim about what matches
    format_version: int = FORMAT_VERSION

    @property
    def core_dim(self) -> int:
        """The width of what adapter and text tower give: `dim` without the dimensions of evidence and activity."""
        evidence = 0 if self.evidence is None else self.evidence.dims
        return self.dim - evidence - (self.temporal is not None)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON types, in field order, without optional parts that are absent.

        A checkpoint without label evidence has the dictionary, and so the stamp, that it had before there was any.
        """
        found = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if self.evidence is not None and not self.evidence.labels:
            found["evidence"] = {k: v for k, v in found["evidence"].items() if not k.startswith("label")}
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FineLAPConfig:
        """The inverse of `to_dict`. Raises ConfigError for unknown keys, wrong types and other format versions."""
        version = data.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"checkpoint format {version} is not supported; this version reads format {FORMAT_VERSION}"
            )
        parts = {
            "mel": MelConfig,
            "windows": WindowConfig,
            "audio_encoder": EncoderConfig,
            "adapter": AdapterConfig,
            "text": TextConfig,
            "evidence": EvidenceConfig,
            "temporal": TemporalConfig,
            "matching": MatchingConfig,
        }
        values = dict(data)
        for key, part in parts.items():
            if values.get(key) is not None:
                values[key] = _build(part, values[key], key)
        return _build(cls, values, "config.json")


def _build(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object, found {type(values).__name__}")
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{where}: missing keys {', '.join(missing)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
