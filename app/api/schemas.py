"""Request and response models of the HTTP API; their docstrings and descriptions appear in the OpenAPI document."""

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
    ValidationInfo,
    WithJsonSchema,
)

from app.audio.tracks import MAX_TRACK
from model.detection import MAX_MEDIAN_FILTER

MAX_TEXT = 1000  # characters of a query, phrase or label; the model reads far fewer tokens
MAX_TEXTS = 1000  # per request to /embed
MAX_INPUTS = 2048  # per request to /v1/embeddings
MAX_WITHOUT = 20  # texts that a search excludes
MAX_EXAMPLES = 20  # in `like` and in `unlike`
MAX_SEQUENCE = 10  # sounds of a sequence
MAX_PEAKS = 10_000


def _one_line(text: str) -> str:
    line = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text).split())
    if not line:
        raise ValueError("the text is empty")
    return line


# A query, phrase or label: one line; control characters and runs of whitespace become a space.
Text = Annotated[
    str,
    StringConstraints(max_length=MAX_TEXT),
    AfterValidator(_one_line),
    Field(json_schema_extra={"minLength": 1}),
]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
Without = Annotated[
    list[Text],
    BeforeValidator(_as_list),
    Field(max_length=MAX_WITHOUT),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT_SCHEMA, "maxItems": MAX_WITHOUT}, _TEXT_SCHEMA]}),
]
Mode = Annotated[
    Literal["semantic", "hybrid", "lexical"],
    Field(description="semantic: by sound; lexical: by the words of file name, tags and metadata; hybrid: by both."),
]
_WITHOUT = "Sounds to exclude: a text, or a list of texts."
Filter = Annotated[
    dict[str, Any],
    Field(
        description="Conditions on metadata keys, or on filename, duration, sample_rate, channels, created: a value, a "
        "list of values of which one must match, or bounds (gt, gte, lt, lte).",
        examples=[{"tags": "animal", "duration": {"lt": 10}}],
    ),
]
K = Annotated[int, Field(ge=1, le=1000, description="Maximum number of results.")]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


TrackChoice = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TRACK),
    Field(
        description="The audio track of a file with several: its number from 0, or a language such as `de` or `ger`."
    ),
]


Values = Annotated[
    list[Annotated[str, StringConstraints(max_length=MAX_TEXT)] | int | float | bool],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    Field(max_length=1000),
]
Lists = Annotated[dict[str, Values], Field(max_length=100)]
ClipId = Annotated[str, StringConstraints(max_length=100)]
CollectionName = Annotated[
    Text, Field(max_length=100, description="The name of a collection.", examples=["rain scene"])
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelled field is an error


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Clip(BaseModel):
    """An audio file of the library. `sample_rate` (Hz) and `channels` are the original's, `duration` is in seconds."""

    id: str
    filename: str
    sha256: str
    duration: float
    sample_rate: int
    channels: int
    created: str
    metadata: dict[str, Any]


class Track(BaseModel):
    """The audio track that was read, of a file with several; `index` counts them from 0."""

    index: int
    language: str | None
    title: str | None


class Note(BaseModel):
    """Something noticed about a file that could be used, such as channels that cancel each other."""

    code: str
    detail: str


class FileError(BaseModel):
    """A file of a request that could not be processed."""

    filename: str
    problem: dict[str, Any]


class AddedClips(BaseModel):
    """The clips of an upload, in the order of its files, and the files that failed."""

    clips: list[Clip]
    errors: list[FileError]


class ClipPage(BaseModel):
    """A page of clips in the requested order. `next_cursor` requests the next page; it is null on the last one."""

    clips: list[Clip]
    next_cursor: str | None


class PeaksQuery(_Request):
    """Query parameters of GET /clips/{id}/peaks."""

    n: int = Field(800, ge=1, le=MAX_PEAKS, description="Number of equal intervals that the clip is divided into.")


class Peaks(BaseModel):
    """Waveform peaks of a clip: the lowest and highest sample of each of `n` equal intervals, as [low, high].

    Samples are the model's input: mono at 16 kHz, full scale ±1. The resolution is at most 10 ms.
    """

    id: str
    duration: float
    n: int
    peaks: list[Annotated[list[float], Field(min_length=2, max_length=2)]]


class Loudness(BaseModel):
    """How loud a clip is.

    `integrated` is in LUFS, null for silence. `peak` is the largest sample in dBFS, null for silence and for clips over
    ten minutes, of which not all is read.
    """

    id: str
    integrated: float | None
    peak: float | None


class Duplicates(BaseModel):
    """Near-duplicates: each group holds clips of the same recording, oldest first."""

    groups: list[list[Clip]]


class _Edit(_Request):
    metadata: dict[str, Any] = Field({}, description="A JSON merge patch (RFC 7396): null removes a key.")
    add: Lists = Field({}, description="Values to add to lists in the metadata, by key.", examples=[{"tags": ["dog"]}])
    remove: Lists = Field({}, description="Values to remove from lists in the metadata, by key.")


class ClipPatch(_Edit):
    """A change of a clip: at least one of its fields."""

    filename: str | None = Field(None, min_length=1, max_length=1000, description="The new file name.")


class ClipsEdit(_Edit):
    """The same change of many clips: those in `clip_ids`, or those that pass `filter`."""

    clip_ids: list[ClipId] | None = Field(None, min_length=1, max_length=1000)
    filter: Filter | None = None


class ClipsEdited(BaseModel):
    """How many clips were changed, and which of `clip_ids` do not exist."""

    edited: int
    missing: list[str]


class FacetValue(BaseModel):
    """A value of a metadata key or field, and the number of clips that have it."""

    value: str | int | float
    clips: int


class Facets(BaseModel):
    """The most frequent values by key."""

    facets: dict[str, list[FacetValue]]


class Collection(BaseModel):
    """A collection, and the number of clips in it."""

    name: str
    clips: int


class Collections(BaseModel):
    """All collections that have a clip, by name."""

    collections: list[Collection]


class CollectionPatch(_Request):
    """A new name for a collection. If another one has it, both become one."""

    name: CollectionName


class EmbedTexts(_Request):
    """JSON body of POST /embed."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    encoding: Literal["float", "base64"] = "float"


class EmbedForm(_Request):
    """Form fields of POST /embed, besides `files`."""

    texts: list[Text] = Field([], max_length=MAX_TEXTS)
    frames: bool = Field(False, description="Also return the embeddings of every frame.")
    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32, row by row.")
    track: TrackChoice | None = None


class FrameEmbeddings(BaseModel):
    """Frame embeddings of a recording; `hop` in seconds."""

    hop: float
    embeddings: list[list[float]] | str


class AudioEmbedding(BaseModel):
    """The embedding of a file."""

    filename: str
    duration: float
    track: Track | None = None
    notes: list[Note]
    embedding: list[float] | str
    frames: FrameEmbeddings | None


class TextEmbedding(BaseModel):
    """The embedding of a text."""

    text: str
    embedding: list[float] | str


class Embeddings(BaseModel):
    """Response of POST /embed. `errors` lists the files that failed; the others are in `audio`, in order."""

    model: str
    dim: int
    audio: list[AudioEmbedding]
    texts: list[TextEmbedding]
    errors: list[FileError]


def _check_inputs(value: object) -> object:
    """Checks the list of inputs. OpenAI clients may also send token arrays, which belong to another vocabulary."""
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, int | list) for item in items):
        raise ValueError(
            "token arrays are not supported, because this model has another vocabulary; send the text itself"
        )
    if not items:
        raise ValueError("the list is empty")
    if len(items) > MAX_INPUTS:
        raise ValueError(f"{len(items)} items are more than the limit of {MAX_INPUTS}")
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"item {index} is not a string")
        if not item.strip():
            raise ValueError(f"item {index} is empty")
    return items


def _or_default(value: Any, info: ValidationInfo) -> Any:
    """The default in the place of null, which clients send for what their caller left out."""
    assert info.field_name is not None
    return OpenAIRequest.model_fields[info.field_name].default if value is None else value


class OpenAIRequest(BaseModel):
    """JSON body of POST /v1/embeddings. Fields of other services, such as `input_type`, are ignored."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[
        list[str],
        BeforeValidator(_check_inputs),
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
    ] = Field(description="A text or a list of texts; with `modality` audio, audio files as base64 data URIs.")
    model: str | None = Field(None, description="The name of the loaded model, as in GET /v1/models.")
    modality: Annotated[Literal["text", "audio"], BeforeValidator(_or_default)] = "text"
    encoding_format: Annotated[Literal["float", "base64"], BeforeValidator(_or_default)] = Field(
        "float", description="base64: little-endian float32."
    )
    dimensions: int | None = Field(None, description="Must be the model's own number of dimensions.")
    user: str | None = Field(None, description="Ignored.")
    track: TrackChoice | None = None


class OpenAIEmbedding(BaseModel):
    """One embedding, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Processed input: tokens of texts, or frames of audio (one per `frame_hop` of GET /info)."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddings(BaseModel):
    """Response of POST /v1/embeddings: one embedding for each item of `input`, in order."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """The loaded model. `created` is 0, because checkpoints have no creation time."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "finelap"


class OpenAIModels(BaseModel):
    """The available models: one."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class Example(_Request):
    """A clip of the library as an example, or a part of it, in seconds."""

    clip_id: str
    start: Seconds | None = Field(None, description="Default: the start of the clip.")
    end: Seconds | None = Field(None, description="Default: the end of the clip.")


Examples = Annotated[list[Example], Field(max_length=MAX_EXAMPLES)]


class _SearchOptions(_Request):
    k: K = 10
    filter: Filter | None = None
    moments: bool = Field(False, description="Also return the best moments of each clip.")
    min_score: Score | None = Field(None, description="Drop hits with a lower score.")
    mode: Mode = "hybrid"
    without: Without = Field([], description=_WITHOUT)
    like: Examples = Field([], description="Clips, or parts of clips, that the results should sound like.")
    unlike: Examples = Field([], description="Clips, or parts of clips, that the results should not sound like.")


class SearchRequest(_SearchOptions):
    """JSON body of POST /search: a `query`, examples in `like`, or both."""

    query: Text | None = Field(None, description="A description of the sound.")


class SearchForm(_SearchOptions):
    """Form fields of POST /search, besides `file`."""

    query: Text | None = Field(None, description="A description of the sound, in addition to the file.")
    track: TrackChoice | None = None


class SearchQuery(_Request):
    """Query parameters of GET /search."""

    q: Text = Field(description="A description of the sound.", examples=["dog barking"])
    k: K = 10
    filter: str | None = Field(
        None,
        description="A filter as in POST /search, encoded as JSON.",
        examples=['{"tags": "animal"}'],
        json_schema_extra={"contentMediaType": "application/json"},
    )
    moments: bool = Field(False, description="Also return the best moments of each clip.")
    min_score: Score | None = Field(None, description="Drop hits with a lower score.")
    mode: Mode = "hybrid"
    without: Without = Field([], description=_WITHOUT)


class SimilarQuery(_Request):
    """Query parameters of GET /clips/{id}/similar."""

    k: K = 10


class MomentsRequest(_Request):
    """JSON body of POST /search/moments: either a `query` or a `sequence` of sounds."""

    query: Text | None = Field(None, description="A description of the sound.")
    sequence: list[Text] | None = Field(
        None,
        min_length=2,
        max_length=MAX_SEQUENCE,
        description="Instead of a query: descriptions of sounds that follow one another.",
    )
    max_gap: float = Field(
        5.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Maximum seconds between the end of a sound of the sequence and the start of the next.",
    )
    k: K = 10
    filter: Filter | None = None
    min_score: Score | None = Field(None, description="Drop moments with a lower score.")


class Moment(BaseModel):
    """A matching stretch of a clip, in seconds."""

    start: float
    end: float
    score: float


class Reason(BaseModel):
    """Why a clip is found. `words` are the query's words in its file name, tags or other metadata, as it has them.

    sound: the whole clip sounds as described; moment: a part of it does, better than the whole.
    """

    kind: Literal["name", "tags", "metadata", "sound", "moment"]
    words: list[str]


class Hit(BaseModel):
    """A found clip. `similarity` is the clip's cosine similarity, `score` the calibrated probability that it matches.

    `match` is whether the score reaches the checkpoint's cutoff, null if it has none. `reasons` has at least one.
    """

    clip: Clip
    similarity: float
    score: float
    match: bool | None
    reasons: list[Reason]
    moments: list[Moment] | None = None


class SearchResult(BaseModel):
    """Hits, best first. `query` is the text of the search, or the names of the sounds.

    `matches` is the number of matching clips in the library, at most 1,000; null if the checkpoint has no cutoff.
    `did_you_mean` is the text that was searched if `query` has misspelled words, else null. `track` is the audio track
    of the uploaded file that was searched with, if it has several, and `notes` are what reading it noticed.
    """

    query: str
    took_ms: float
    matches: int | None
    did_you_mean: str | None = None
    track: Track | None = None
    notes: list[Note]
    hits: list[Hit]


class LibraryMoment(BaseModel):
    """A matching stretch of a clip, in seconds. For a sequence, `parts` are its sounds in order.

    The score of a sequence is the lowest score of its parts.
    """

    clip: Clip
    start: float
    end: float
    score: float
    parts: list[Moment] | None = None


class Moments(BaseModel):
    """The best moments of the library, best first. `candidates` is the number of clips scored frame by frame."""

    query: str | list[str]
    took_ms: float
    candidates: int
    hits: list[LibraryMoment]


class ClassifyForm(_Request):
    """Form fields of POST /classify, besides `file`."""

    clip_id: str | None = None
    labels: list[Text] = Field(min_length=1)
    template: Annotated[str, StringConstraints(max_length=MAX_TEXT)] = "The sound of {}"
    track: TrackChoice | None = None


class Label(BaseModel):
    """How well a label fits: `score` on its own, `probability` relative to the other labels."""

    label: str
    score: float
    probability: float


class Classification(BaseModel):
    """Labels, best first."""

    labels: list[Label]
    track: Track | None = None
    notes: list[Note] = []


class DetectForm(_Request):
    """Form fields of POST /detect, besides `file`."""

    clip_id: str | None = Field(None, description="A clip of the library, instead of a file.")
    track: TrackChoice | None = None
    phrases: list[Text] = Field(
        min_length=1, description="Descriptions of the sounds to detect.", examples=[["dog barking", "speech"]]
    )
    threshold: list[Score] = Field(
        [],
        description="The score that an event reaches: one value for all phrases, or one per phrase. "
        "Default: 0.5, or what was set for a concept.",
        examples=[[0.5]],
    )
    low_threshold: list[Score] = Field(
        [],
        description="An event lasts while its score stays above this value: one for all phrases, or one per phrase. "
        "Default: it follows the highest score of each event.",
    )
    method: Literal["threshold", "sebb"] = Field(
        "threshold", description="How scores become events. sebb: sound event bounding boxes, by change detection."
    )
    median_filter: float = Field(
        0.48,
        ge=0,
        le=MAX_MEDIAN_FILTER,
        description="Length in seconds of the median filter over the scores; 0 disables it.",
    )
    min_duration: Seconds = Field(0.0, description="Drop shorter events.")
    max_gap: Seconds = Field(0.2, description="Merge events that are at most this far apart.")
    frames: bool = Field(False, description="Also return the score of every frame; json and ndjson only.")
    encoding: Literal["float", "base64"] = Field(
        "float", description="Encoding of frame scores. base64: exact little-endian float32, one phrase after another."
    )
    outline: bool = Field(False, description="ndjson: also send lines with the waveform and spectrogram, for drawing.")
    outline_step: float = Field(
        0.1,
        ge=0.01,
        le=10,
        allow_inf_nan=False,
        description="Seconds per column of the outline, rounded to 0.01.",
    )
    format: Literal["json", "csv", "audacity", "raven", "png", "ndjson"] = Field(
        "json", description="ndjson: streams one line per event as soon as it is final."
    )


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Scores = Annotated[list[Score], BeforeValidator(_one_or_more)]


class LiveStart(_Request):
    """First message of WS /stream: the format of the audio that follows, and what to detect in it."""

    phrases: list[Text] = Field(min_length=1)
    sample_rate: int = Field(ge=1_000, le=768_000)  # Hz
    encoding: Literal["pcm_s16le", "pcm_f32le", "opus", "flac"]
    channels: int = Field(1, ge=1, le=32)  # interleaved; opus and flac say it themselves
    threshold: Scores | None = Field(None, min_length=1)  # None: 0.5, or what was set for a concept
    low_threshold: Scores = []
    method: Literal["threshold"] = "threshold"  # boxes need the whole recording
    median_filter: float = Field(0.48, ge=0, le=MAX_MEDIAN_FILTER)
    min_duration: Seconds = 0.0
    max_gap: Seconds = 0.2
    frames: bool = False


class Event(BaseModel):
    """A sound event, in seconds. `score` is its highest smoothed frame score."""

    onset: float
    offset: float
    score: float


class PhraseEvents(BaseModel):
    """The events of one phrase. `max_score` and `frame_scores` are the model's scores before smoothing."""

    phrase: str
    clip_score: float
    max_score: float
    events: list[Event]
    frame_scores: list[float] | str | None


class Detection(BaseModel):
    """Response of POST /detect. Frame t covers [t, t + 1) × `frame_hop` seconds."""

    filename: str
    duration: float
    frame_hop: float
    sample_rate: int
    track: Track | None
    notes: list[Note]
    phrases: list[PhraseEvents]


class Health(BaseModel):
    """The service is healthy."""

    status: Literal["ok"] = "ok"


class ModelInfo(BaseModel):
    """The loaded model. `stamp` identifies its embedding space: embeddings with equal stamps are comparable.

    `match_cutoff` is the score from which a hit matches, null if the checkpoint has none. `frames` is `native`;
    `sliding`, if they are made from overlapping windows of the model's length, `window` seconds; or null, with
    `frame_hop`, for a model of whole clips only. `licence` is what the checkpoint's README says.
    """

    name: str
    stamp: str
    dim: int
    frame_hop: float | None
    device: str
    dtype: str
    match_cutoff: float | None
    family: str
    sample_rate: int
    window: float
    frames: Literal["native", "sliding"] | None
    calibrated: bool
    licence: str | None


class Limits(BaseModel):
    """Limits on requests."""

    max_upload_mb: float
    max_duration_s: float
    min_duration_s: float
    max_phrases: int
    max_texts: int
    max_text_length: int


class Info(BaseModel):
    """Version, model and limits of the service."""

    version: str
    model: ModelInfo
    clips: int
    limits: Limits
