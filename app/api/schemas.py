"""The shapes of requests and answers over HTTP. Nothing below the routes sees them."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from model.detection import MAX_MEDIAN_FILTER

MAX_TEXT = 1000  # characters of a query, phrase or label; the model reads far fewer tokens
MAX_TEXTS = 1000  # in one call of /embed
MAX_INPUTS = 2048  # in one call of /v1/embeddings
MAX_WITHOUT = 20  # texts that a search leaves out
MAX_SEQUENCE = 10  # sounds, one after another
MAX_PEAKS = 10_000


def _one_line(text: str) -> str:
    line = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text).split())
    if not line:
        raise ValueError("the text is empty")
    return line


# What is searched for or listened for: one line, control characters and runs of spaces count as a space.
Text = Annotated[
    str,
    StringConstraints(max_length=MAX_TEXT),
    AfterValidator(_one_line),
    Field(json_schema_extra={"minLength": 1}),
]


def _in_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
Without = Annotated[
    list[Text],
    BeforeValidator(_in_list),
    Field(max_length=MAX_WITHOUT),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT_SCHEMA, "maxItems": MAX_WITHOUT}, _TEXT_SCHEMA]}),
]
Mode = Annotated[
    Literal["semantic", "hybrid", "lexical"],
    Field(description="semantic: by how it sounds; lexical: by words of name, tags and metadata; hybrid: both, fused."),
]
_WITHOUT = "What must not be heard: a text, or a list of texts."
Filter = Annotated[
    dict[str, Any],
    Field(
        description="Metadata keys, or filename, duration, sample_rate, channels, created; each with a value, a list "
        "of values of which one must match, or bounds: gt, gte, lt, lte.",
        examples=[{"tags": "animal", "duration": {"lt": 10}}],
    ),
]
K = Annotated[int, Field(ge=1, le=1000, description="How many, at most.")]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt field is an error, not a default


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Clip(BaseModel):
    """One audio item of the library. `sample_rate` in Hz and `channels` are the original's; `duration` in seconds."""

    id: str
    filename: str
    sha256: str
    duration: float
    sample_rate: int
    channels: int
    created: str
    metadata: dict[str, Any]


class FileError(BaseModel):
    """A file of a request that could not be used."""

    filename: str
    problem: dict[str, Any]


class AddedClips(BaseModel):
    """The clips of an upload, in the order of its files, and the files that failed."""

    clips: list[Clip]
    errors: list[FileError]


class ClipPage(BaseModel):
    """Clips, in the order asked for; `next_cursor` asks for the page after this one and is null on the last."""

    clips: list[Clip]
    next_cursor: str | None


class PeaksQuery(_Request):
    """What GET /clips/{id}/peaks takes."""

    n: int = Field(800, ge=1, le=MAX_PEAKS, description="Into how many equal stretches the clip is cut.")


class Peaks(BaseModel):
    """The outline of a clip's waveform: lowest and highest sample of each of `n` equal stretches, as [low, high].

    Samples are those the model hears: mono at 16 kHz, full scale ±1. A stretch is never finer than 10 ms.
    """

    id: str
    duration: float
    n: int
    peaks: list[Annotated[list[float], Field(min_length=2, max_length=2)]]


class Duplicates(BaseModel):
    """Near-duplicates: each group has the clips that are one recording, oldest first."""

    groups: list[list[Clip]]


class ClipPatch(_Request):
    """A JSON merge patch (RFC 7396) of a clip: null removes a metadata key."""

    metadata: dict[str, Any]


class EmbedTexts(_Request):
    """What POST /embed takes as JSON."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    encoding: Literal["float", "base64"] = "float"


class EmbedForm(_Request):
    """What POST /embed takes as a form, beside `files`."""

    texts: list[Text] = Field([], max_length=MAX_TEXTS)
    frames: bool = Field(False, description="Whether the frame embeddings are wanted too.")
    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32, row by row.")


class FrameEmbeddings(BaseModel):
    """Embeddings of the frames of a recording; `hop` in seconds."""

    hop: float
    embeddings: list[list[float]] | str


class AudioEmbedding(BaseModel):
    """A file in the embedding space."""

    filename: str
    duration: float
    embedding: list[float] | str
    frames: FrameEmbeddings | None


class TextEmbedding(BaseModel):
    """A text in the embedding space."""

    text: str
    embedding: list[float] | str


class Embeddings(BaseModel):
    """What POST /embed gives. `errors` names the files that failed; the others are in `audio`, in order."""

    model: str
    dim: int
    audio: list[AudioEmbedding]
    texts: list[TextEmbedding]
    errors: list[FileError]


def _refuse_tokens(value: object) -> object:
    """OpenAI's clients may send texts as numbers of another model's vocabulary, which mean nothing here."""
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, int | list) for item in items):
        raise ValueError("token arrays are not taken, as their numbers mean other words here; send the text itself")
    if not items:
        raise ValueError("the list is empty")
    if len(items) > MAX_INPUTS:
        raise ValueError(f"{len(items)} are more than the limit of {MAX_INPUTS}")
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"item {index} is not a string")
        if not item.strip():
            raise ValueError(f"item {index} is empty")
    return items


class OpenAIRequest(_Request):
    """What POST /v1/embeddings takes."""

    input: Annotated[
        list[str],
        BeforeValidator(_refuse_tokens),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1},
                        "minItems": 1,
                        "maxItems": MAX_INPUTS,
                    },
                ]
            }
        ),
    ] = Field(description="One text or a list of texts; with `modality` audio, sound files as base64 data URIs.")
    model: str | None = Field(None, description="The name of the model in use, as GET /v1/models has it.")
    modality: Literal["text", "audio"] = "text"
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32.")
    dimensions: int | None = Field(None, description="Only the model's own number of dimensions.")
    user: str | None = Field(None, description="Ignored.")


class OpenAIEmbedding(BaseModel):
    """One embedding, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """What was read: of texts the model's tokens, of audio its frames (one each `frame_hop` of GET /info)."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddings(BaseModel):
    """What POST /v1/embeddings gives: an embedding for each item of `input`, in order."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """The model in use. `created` is 0: a checkpoint does not say when it was made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "finelap"


class OpenAIModels(BaseModel):
    """The models to choose from: one."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class _SearchOptions(_Request):
    k: K = 10
    filter: Filter | None = None
    moments: bool = Field(False, description="Whether the stretches of each clip that answer are wanted.")
    min_score: Score | None = Field(None, description="Hits with a lower score are left out.")
    mode: Mode = "semantic"
    without: Without = Field([], description=_WITHOUT)


class SearchRequest(_SearchOptions):
    """What POST /search takes as JSON."""

    query: Text


class SearchForm(_SearchOptions):
    """What POST /search takes as a form, beside `file`."""


class SearchQuery(_Request):
    """What GET /search takes."""

    q: Text = Field(description="What the sound is like, in words.", examples=["dog barking"])
    k: K = 10
    filter: str | None = Field(
        None,
        description="A filter as in POST /search, as JSON.",
        examples=['{"tags": "animal"}'],
        json_schema_extra={"contentMediaType": "application/json"},
    )
    moments: bool = Field(False, description="Whether the stretches of each clip that answer are wanted.")
    min_score: Score | None = Field(None, description="Hits with a lower score are left out.")
    mode: Mode = "semantic"
    without: Without = Field([], description=_WITHOUT)


class SimilarQuery(_Request):
    """What GET /clips/{id}/similar takes."""

    k: K = 10


class MomentsRequest(_Request):
    """What POST /search/moments takes: a `query`, or a `sequence` of sounds."""

    query: Text | None = Field(None, description="What is to be heard.")
    sequence: list[Text] | None = Field(
        None,
        min_length=2,
        max_length=MAX_SEQUENCE,
        description="Instead of a query: what is to be heard, one sound after another.",
    )
    max_gap: float = Field(
        5.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Of a sequence: seconds between the end of a sound and the start of the next, at most.",
    )
    k: K = 10
    filter: Filter | None = None


class Moment(BaseModel):
    """A stretch of a clip that answers a query, in seconds."""

    start: float
    end: float
    score: float


class Hit(BaseModel):
    """A clip that answers. `similarity` is the cosine, `score` its calibrated probability."""

    clip: Clip
    similarity: float
    score: float
    moments: list[Moment] | None = None


class SearchResult(BaseModel):
    """Hits, best first. `query` is the text, or the name of the file, that was searched with."""

    query: str
    took_ms: float
    hits: list[Hit]


class LibraryMoment(BaseModel):
    """A stretch of a clip that answers, in seconds. Of a sequence: the whole of it, `parts` its sounds in order.

    The score of a sequence is that of its weakest part.
    """

    clip: Clip
    start: float
    end: float
    score: float
    parts: list[Moment] | None = None


class Moments(BaseModel):
    """The best moments of the library, best first. `candidates`: how many clips were looked at frame by frame."""

    query: str | list[str]
    took_ms: float
    candidates: int
    hits: list[LibraryMoment]


class ClassifyForm(_Request):
    """What POST /classify takes, beside `file`."""

    clip_id: str | None = None
    labels: list[Text] = Field(min_length=1)
    template: Annotated[str, StringConstraints(max_length=MAX_TEXT)] = "The sound of {}"


class Label(BaseModel):
    """How well a label fits: `score` by itself, `probability` among the given labels."""

    label: str
    score: float
    probability: float


class Classification(BaseModel):
    """Labels, best first."""

    labels: list[Label]


class DetectForm(_Request):
    """What POST /detect takes, beside `file`."""

    clip_id: str | None = Field(None, description="A clip of the library, instead of a file.")
    phrases: list[Text] = Field(min_length=1, description="What to listen for.", examples=[["dog barking", "speech"]])
    threshold: list[Score] = Field(
        [0.5],
        min_length=1,
        description="An event reaches this score; one for all phrases, or one for each.",
        examples=[[0.5]],
    )
    low_threshold: list[Score] = Field(
        [],
        description="An event lasts as long as its score stays above this one; one for all phrases, or one for each. "
        "Without it, three quarters of the threshold.",
    )
    method: Literal["threshold", "sebb"] = Field(
        "threshold", description="How scores become events; sebb: sound event bounding boxes, by change detection."
    )
    median_filter: float = Field(
        0.48, ge=0, le=MAX_MEDIAN_FILTER, description="Seconds of the sliding median over the scores; 0 turns it off."
    )
    min_duration: Seconds = Field(0.0, description="Shorter events are dropped.")
    max_gap: Seconds = Field(0.2, description="Events at most this far apart become one.")
    frames: bool = Field(False, description="Whether the score of every frame is wanted; for json and ndjson.")
    encoding: Literal["float", "base64"] = Field(
        "float", description="Of the frames' scores; base64: little-endian float32, exact, one phrase after another."
    )
    outline: bool = Field(
        False, description="ndjson: whether lines with waveform and spectrogram are wanted, for drawing."
    )
    outline_step: float = Field(
        0.1,
        ge=0.01,
        le=10,
        allow_inf_nan=False,
        description="Seconds that a column of the outline stands for, to the nearest 0.01.",
    )
    format: Literal["json", "csv", "audacity", "raven", "png", "ndjson"] = Field(
        "json", description="ndjson: a line for each event as soon as it is certain, while the recording is read."
    )


class Event(BaseModel):
    """A sound event, in seconds; `score` is its highest smoothed frame score."""

    onset: float
    offset: float
    score: float


class PhraseEvents(BaseModel):
    """What was found for one phrase. `max_score` and `frame_scores` are the model's, before smoothing."""

    phrase: str
    clip_score: float
    max_score: float
    events: list[Event]
    frame_scores: list[float] | str | None


class Detection(BaseModel):
    """What POST /detect gives. Frame t covers [t, t + 1) × `frame_hop` seconds."""

    filename: str
    duration: float
    frame_hop: float
    phrases: list[PhraseEvents]


class Health(BaseModel):
    """That the service is well."""

    status: Literal["ok"] = "ok"


class ModelInfo(BaseModel):
    """The model in use. `stamp` names its embedding space: embeddings with equal stamps can be compared."""

    name: str
    stamp: str
    dim: int
    frame_hop: float
    device: str
    dtype: str


class Limits(BaseModel):
    """What a request may ask for."""

    max_upload_mb: float
    max_duration_s: float
    min_duration_s: float
    max_phrases: int
    max_texts: int
    max_text_length: int


class Info(BaseModel):
    """About the service."""

    version: str
    model: ModelInfo
    clips: int
    limits: Limits
