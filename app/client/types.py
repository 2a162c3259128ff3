"""What the service's answers become: frozen dataclasses, embeddings and scores as NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Clip:
    """One audio item of the library. `duration` in seconds; `sample_rate` (Hz) and `channels` are the original's."""

    id: str
    filename: str
    sha256: str
    duration: float
    sample_rate: int
    channels: int
    created: str
    metadata: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class FileError:
    """A file of a request that could not be used; `status` is what it would have been answered with alone."""

    filename: str
    reason: str
    status: int


@dataclass(frozen=True)
class Added:
    """Clips of an upload, in the order of its files without those in `failed`. `new`: not all were there already."""

    clips: tuple[Clip, ...]
    failed: tuple[FileError, ...]
    new: bool


@dataclass(frozen=True)
class ClipPage:
    """Some clips, and the cursor of the next page, None on the last."""

    clips: tuple[Clip, ...]
    next_cursor: str | None


@dataclass(frozen=True, eq=False)
class Peaks:
    """A clip's waveform: lowest and highest sample (n, 2) of each of n equal stretches, full scale ±1."""

    duration: float
    peaks: np.ndarray


@dataclass(frozen=True, eq=False)
class AudioEmbedding:
    """A recording in the embedding space: `embedding` (D,), and if asked for `frames` (T, D) every `frame_hop` s."""

    filename: str
    duration: float
    embedding: np.ndarray
    frames: np.ndarray | None
    frame_hop: float | None


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of files, in order, without those in `failed`. `model` names the checkpoint."""

    model: str
    audio: tuple[AudioEmbedding, ...]
    failed: tuple[FileError, ...]


@dataclass(frozen=True)
class Moment:
    """A stretch of a clip that answers a query, in seconds."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Hit:
    """A clip that answers: `similarity` is the cosine, `score` its calibrated probability."""

    clip: Clip
    similarity: float
    score: float
    moments: tuple[Moment, ...] | None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; iterates over them. `query` is the text, or the name of the file or clip searched with."""

    query: str
    took_ms: float
    hits: tuple[Hit, ...]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True)
class MomentHit:
    """A stretch of a clip, in seconds. Of a sequence it is the whole of it, and `parts` are its sounds in order."""

    clip: Clip
    start: float
    end: float
    score: float
    parts: tuple[Moment, ...] | None


@dataclass(frozen=True)
class MomentResult:
    """Moments of the whole library, best first; iterates over them. `candidates`: clips looked at frame by frame."""

    query: str | tuple[str, ...]
    took_ms: float
    candidates: int
    hits: tuple[MomentHit, ...]

    def __iter__(self) -> Iterator[MomentHit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True)
class Label:
    """How well a label fits: `score` by itself, `probability` among the given labels."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Event:
    """A sound event, in seconds."""

    onset: float
    offset: float
    score: float


@dataclass(frozen=True, eq=False)
class PhraseEvents:
    """What was found for one phrase; `frame_scores` (T,) if asked for."""

    phrase: str
    clip_score: float
    max_score: float
    events: tuple[Event, ...]
    frame_scores: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Detection:
    """The events in one recording, phrase by phrase. Frame t covers [t, t + 1) × `frame_hop` seconds."""

    filename: str
    duration: float
    frame_hop: float
    phrases: tuple[PhraseEvents, ...]


@dataclass(frozen=True)
class DetectionStart:
    """The first word of a streamed detection: what is listened to, and for what."""

    filename: str
    frame_hop: float
    sample_rate: int
    channels: int
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class DetectionProgress:
    """How many seconds of the recording were listened to so far."""

    position: float


@dataclass(frozen=True)
class DetectionEvent:
    """An event that is certain by now."""

    phrase: str
    onset: float
    offset: float
    score: float


@dataclass(frozen=True, eq=False)
class DetectionFrames:
    """Scores (P, t) of the phrases in the frames from index `first` on."""

    first: int
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectionEnd:
    """The last word of a streamed detection: all of it, without frame scores."""

    detection: Detection


DetectionMessage = DetectionStart | DetectionProgress | DetectionEvent | DetectionFrames | DetectionEnd


@dataclass(frozen=True)
class ModelInfo:
    """The model in use. Embeddings with equal `stamp` can be compared."""

    name: str
    stamp: str
    dim: int
    frame_hop: float
    device: str
    dtype: str


@dataclass(frozen=True)
class Info:
    """About the service: version, model, clips in the library, and what a request may ask for."""

    version: str
    model: ModelInfo
    clips: int
    limits: dict[str, float] = field(hash=False)


def to_json(value: Any) -> Any:
    """An answer as plain JSON types again: dataclasses as objects, arrays and tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
