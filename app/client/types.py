"""The service's responses as frozen dataclasses; embeddings and scores are NumPy arrays.

Each type reads itself with `from_json`. Members that a newer service adds are ignored; a missing one raises KeyError,
except those that may be None.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Json = Mapping[str, Any]


class _Response:
    """Base of all types: `from_json` copies the members that have a field. Types with nested members override it."""

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Reads a JSON object. Raises KeyError for a missing member."""
        return cls(**{f.name: json[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clip(_Response):
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
class Track(_Response):
    """An audio track of a file with several, by its number from 0."""

    index: int
    language: str | None
    title: str | None


@dataclass(frozen=True)
class Note(_Response):
    """Something noticed about a file, such as channels that cancel each other."""

    code: str
    detail: str


@dataclass(frozen=True)
class FileError(_Response):
    """A file of a request that failed; `status` is the response it would have received on its own."""

    filename: str
    reason: str
    status: int

    @classmethod
    def from_json(cls, json: Json) -> Self:
        problem = json["problem"]
        return cls(json["filename"], problem.get("detail") or problem["title"], problem["status"])


@dataclass(frozen=True)
class Added(_Response):
    """The clips of an upload, in the order of its files, without those in `failed`.

    `new` is False if every clip was already in the library.
    """

    clips: tuple[Clip, ...]
    failed: tuple[FileError, ...]
    new: bool

    @classmethod
    def from_json(cls, json: Json, new: bool = True) -> Self:
        return cls(_all(Clip, json["clips"]), _all(FileError, json["errors"]), new)


@dataclass(frozen=True)
class ClipPage(_Response):
    """One page of clips. `next_cursor` requests the next page; None on the last."""

    clips: tuple[Clip, ...]
    next_cursor: str | None

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(_all(Clip, json["clips"]), json["next_cursor"])


@dataclass(frozen=True, eq=False)
class Peaks(_Response):
    """A clip's waveform: the lowest and highest sample (n, 2) of each of n equal stretches, full scale ±1."""

    duration: float
    peaks: np.ndarray

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(json["duration"], np.array(json["peaks"], np.float32).reshape(-1, 2))


@dataclass(frozen=True)
class Loudness(_Response):
    """How loud a clip is: LUFS and the largest sample in dBFS; None as GET /clips/{id}/loudness describes."""

    integrated: float | None
    peak: float | None

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(json["integrated"], json["peak"])


@dataclass(frozen=True, eq=False)
class AudioEmbedding(_Response):
    """A recording's `embedding` (D,) and, if requested, its `frames` (T, D), one every `frame_hop` seconds."""

    filename: str
    duration: float
    embedding: np.ndarray
    frames: np.ndarray | None
    frame_hop: float | None
    track: Track | None = None  # of a file with several audio tracks
    notes: tuple[Note, ...] = ()  # what decoding noticed

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Reads embeddings in base64."""
        embedding, given = _floats(json["embedding"]), json["frames"]
        frames = None if given is None else _floats(given["embeddings"]).reshape(-1, len(embedding))
        hop, track = None if given is None else given["hop"], json.get("track")
        chosen = None if track is None else Track.from_json(track)
        return cls(
            json["filename"], json["duration"], embedding, frames, hop, chosen, _all(Note, json.get("notes", []))
        )


@dataclass(frozen=True, eq=False)
class Embedded(_Response):
    """The embeddings of files, in order, without those in `failed`. `model` names the checkpoint."""

    model: str
    audio: tuple[AudioEmbedding, ...]
    failed: tuple[FileError, ...]

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(json["model"], _all(AudioEmbedding, json["audio"]), _all(FileError, json.get("errors", [])))


@dataclass(frozen=True)
class Moment(_Response):
    """A stretch of a clip that matches a query, in seconds."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Reason(_Response):
    """Why a clip is found: "name", "tags" or "metadata" with the `words` of the query there, "sound" or "moment"."""

    kind: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Hit(_Response):
    """A clip and how well it fits: `similarity` is the cosine, `score` its calibrated probability.

    `match` says whether the score reaches the checkpoint's cutoff; None if the checkpoint has none. `reasons` says why
    the clip is found; a service of an earlier release gives none.
    """

    clip: Clip
    similarity: float
    score: float
    match: bool | None
    moments: tuple[Moment, ...] | None
    reasons: tuple[Reason, ...] = ()

    @classmethod
    def from_json(cls, json: Json) -> Self:
        clip, moments = Clip.from_json(json["clip"]), _moments(json.get("moments"))
        reasons = tuple(Reason(reason["kind"], tuple(reason["words"])) for reason in json.get("reasons", ()))
        return cls(clip, json["similarity"], json["score"], json.get("match"), moments, reasons)


@dataclass(frozen=True)
class SearchResult(_Response):
    """Hits, best first; iterable. `query` is the text, or the name of the file or clip searched with.

    `matches` counts the clips of the whole library that match, up to 1,000; None if the checkpoint has no cutoff.
    `did_you_mean` is the corrected query that the service searched with instead, if it corrected one. `track` and
    `notes` are of the file searched with, as in a detection.
    """

    query: str
    took_ms: float
    matches: int | None
    did_you_mean: str | None
    hits: tuple[Hit, ...]
    track: Track | None = None
    notes: tuple[Note, ...] = ()

    @classmethod
    def from_json(cls, json: Json) -> Self:
        hits, track = _all(Hit, json["hits"]), json.get("track")
        return cls(
            json["query"],
            json["took_ms"],
            json.get("matches"),
            json.get("did_you_mean"),
            hits,
            None if track is None else Track.from_json(track),
            _all(Note, json.get("notes", [])),
        )

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True)
class MomentHit(_Response):
    """A stretch of a clip, in seconds. For a sequence it spans the whole sequence, and `parts` are its sounds."""

    clip: Clip
    start: float
    end: float
    score: float
    parts: tuple[Moment, ...] | None

    @classmethod
    def from_json(cls, json: Json) -> Self:
        clip = Clip.from_json(json["clip"])
        return cls(clip, json["start"], json["end"], json["score"], _moments(json.get("parts")))


@dataclass(frozen=True)
class MomentResult(_Response):
    """Moments of the whole library, best first; iterable. `candidates`: clips that were scored frame by frame."""

    query: str | tuple[str, ...]
    took_ms: float
    candidates: int
    hits: tuple[MomentHit, ...]

    @classmethod
    def from_json(cls, json: Json) -> Self:
        query = json["query"]
        query = query if isinstance(query, str) else tuple(query)
        return cls(query, json["took_ms"], json["candidates"], _all(MomentHit, json["hits"]))

    def __iter__(self) -> Iterator[MomentHit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True)
class Label(_Response):
    """How well a label fits: `score` on its own, `probability` among the given labels."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Event(_Response):
    """A sound event, in seconds."""

    onset: float
    offset: float
    score: float


@dataclass(frozen=True, eq=False)
class PhraseEvents(_Response):
    """The events of one phrase, and its `frame_scores` (T,) if requested."""

    phrase: str
    clip_score: float
    max_score: float
    events: tuple[Event, ...]
    frame_scores: np.ndarray | None

    @classmethod
    def from_json(cls, json: Json) -> Self:
        given = json.get("frame_scores")
        scores = None if given is None else np.array(given, np.float32)
        return cls(json["phrase"], json["clip_score"], json["max_score"], _all(Event, json["events"]), scores)


@dataclass(frozen=True, eq=False)
class Detection(_Response):
    """The events in one recording, phrase by phrase. Frame t covers [t, t + 1) × `frame_hop` seconds."""

    filename: str
    duration: float
    frame_hop: float
    phrases: tuple[PhraseEvents, ...]
    sample_rate: int  # Hz, of the original
    track: Track | None = None  # of a file with several audio tracks
    notes: tuple[Note, ...] = ()  # what decoding noticed

    @classmethod
    def from_json(cls, json: Json) -> Self:
        phrases, track = _all(PhraseEvents, json["phrases"]), json.get("track")
        return cls(
            json["filename"],
            json["duration"],
            json["frame_hop"],
            phrases,
            json["sample_rate"],
            None if track is None else Track.from_json(track),
            _all(Note, json.get("notes", [])),
        )


@dataclass(frozen=True)
class DetectionStart(_Response):
    """The first message of a streamed detection: the recording and the phrases."""

    filename: str
    frame_hop: float
    sample_rate: int
    channels: int
    phrases: tuple[str, ...]

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return super().from_json({**json, "phrases": tuple(json["phrases"])})


@dataclass(frozen=True)
class DetectionProgress(_Response):
    """How many seconds of the recording have been analysed."""

    position: float


@dataclass(frozen=True)
class DetectionEvent(_Response):
    """An event that no later audio can change."""

    phrase: str
    onset: float
    offset: float
    score: float


@dataclass(frozen=True, eq=False)
class DetectionFrames(_Response):
    """The scores (P, t) of P phrases in t frames, starting at frame `first`."""

    first: int
    scores: np.ndarray

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(json["first"], np.array(json["scores"], np.float32))


@dataclass(frozen=True, eq=False)
class DetectionEnd(_Response):
    """The last message of a streamed detection: the complete result, without frame scores."""

    detection: Detection

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(Detection.from_json(json))


DetectionMessage = DetectionStart | DetectionProgress | DetectionEvent | DetectionFrames | DetectionEnd
_MESSAGES: dict[str, type[DetectionMessage]] = {
    "start": DetectionStart,
    "progress": DetectionProgress,
    "event": DetectionEvent,
    "frames": DetectionFrames,
    "end": DetectionEnd,
}


def detection_message(json: Json) -> DetectionMessage | None:
    """Reads one line of a streamed detection; None for a kind that this client does not know."""
    kind = _MESSAGES.get(json["type"])
    return None if kind is None else kind.from_json(json)


@dataclass(frozen=True)
class LiveEvent(_Response):
    """An event of a live stream; it replaces what was told before under the same `id`. Seconds of the stream.

    open: it has begun, and `offset` and `score` are those so far. revised: it had been told as closed before, or was
    found late. retracted: it is no event after all.
    """

    id: int
    phrase: str
    onset: float
    offset: float
    score: float
    open: bool = False
    revised: bool = False
    retracted: bool = False

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return super().from_json({"open": False, "revised": False, **json, "retracted": json["type"] == "retraction"})


LiveMessage = DetectionStart | DetectionProgress | LiveEvent | DetectionFrames | DetectionEnd


def live_message(json: Json) -> LiveMessage | None:
    """Reads a message of a live stream; None for a kind that this client does not know."""
    if json["type"] in ("event", "retraction"):
        return LiveEvent.from_json(json)
    message = detection_message(json)
    assert not isinstance(message, DetectionEvent)
    return message


@dataclass(frozen=True)
class Job(_Response):
    """A detection over the library: `done` of `total` clips are scored, `reused` of them by an earlier job.

    `state`: queued, running, done, failed (see `error`) or cancelled. `seconds` is the audio of the scored clips.
    """

    id: str
    state: str
    done: int
    total: int
    events: int
    reused: int
    seconds: float
    error: str | None
    created: str
    started: str | None
    ended: str | None
    phrases: tuple[str, ...]
    filter: dict[str, Any] | None = field(hash=False)

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return super().from_json({**json, "phrases": tuple(json["phrases"])})

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class ModelInfo(_Response):
    """The model in use. Embeddings with equal `stamp` are comparable.

    `match_cutoff` is the score from which a hit is a match; None if the checkpoint has none. `frames` is "native", or
    "sliding" if they are made from overlapping windows, or None, with `frame_hop`, for a model of whole clips only.
    """

    name: str
    stamp: str
    dim: int
    frame_hop: float | None
    device: str
    dtype: str
    match_cutoff: float | None
    family: str = "finelap"
    sample_rate: int = 16_000  # Hz
    window: float = 10.24  # seconds that the model hears at once
    frames: str | None = "native"
    calibrated: bool = True
    licence: str | None = None

    @classmethod
    def from_json(cls, json: Json) -> Self:
        later = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        return super().from_json({"match_cutoff": None, **later, **json})


@dataclass(frozen=True)
class Info(_Response):
    """The service's version, model, number of clips, and limits for requests."""

    version: str
    model: ModelInfo
    clips: int
    limits: dict[str, float] = field(hash=False)

    @classmethod
    def from_json(cls, json: Json) -> Self:
        return cls(json["version"], ModelInfo.from_json(json["model"]), json["clips"], dict(json["limits"]))


def text_embeddings(json: Json) -> np.ndarray:
    """Embeddings (N, D) float32 of texts in base64."""
    return np.stack([_floats(text["embedding"]) for text in json["texts"]])


@dataclass(frozen=True)
class Quality(_Response):
    """How well a concept ranks its examples, by heads that were fitted without their recordings."""

    average_precision: float
    auroc: float
    folds: int


@dataclass(frozen=True)
class Concept(_Response):
    """A concept. `notes` say what limits it; `failed` are the files of a request that weren't accepted as examples."""

    id: str
    name: str
    text: str | None
    positives: int
    negatives: int
    removed: int
    quality: Quality | None
    threshold: float
    threshold_set: bool
    notes: tuple[str, ...]
    created: str
    updated: str
    failed: tuple[FileError, ...] = ()

    @classmethod
    def from_json(cls, json: Json) -> Self:
        own = {f.name: json[f.name] for f in dataclasses.fields(cls) if f.name != "failed"}
        quality = None if json["quality"] is None else Quality.from_json(json["quality"])
        failed = _all(FileError, json.get("errors", ()))
        return cls(**own | {"quality": quality, "notes": tuple(json["notes"]), "failed": failed})


@dataclass(frozen=True)
class ConceptExample(_Response):
    """An example of what a concept is (`label`) or isn't. `clip_id` is None if it came as a file."""

    id: str
    label: bool
    clip_id: str | None
    filename: str
    start: float | None
    end: float | None
    created: str


@dataclass(frozen=True)
class TaughtExamples(_Response):
    """Added examples and the concept that was fitted to them. `skipped`: rows of a label file about other sounds."""

    examples: tuple[ConceptExample, ...]
    concept: Concept
    failed: tuple[FileError, ...]
    skipped: int

    @classmethod
    def from_json(cls, json: Json) -> Self:
        examples, failed = _all(ConceptExample, json["examples"]), _all(FileError, json["errors"])
        return cls(examples, Concept.from_json(json["concept"]), failed, json["skipped"])


def to_json(value: Any) -> Any:
    """Converts a response to plain JSON types: dataclasses to objects, arrays and tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _all(kind: Any, items: Iterable[Json]) -> tuple[Any, ...]:
    return tuple(kind.from_json(item) for item in items)


def _moments(items: Iterable[Json] | None) -> tuple[Moment, ...] | None:
    return None if items is None else _all(Moment, items)


def _floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
