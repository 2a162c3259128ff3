"""Request and response models of the concepts' API; their docstrings appear in the OpenAPI document."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.schemas import Clip, FileError, Seconds, Text
from index import MAX_EXAMPLES

MAX_NAME = 100  # characters
MAX_SUGGESTIONS = 100

_ID = re.compile(r"[0-9a-f]{32}")


def _check_name(name: str) -> str:
    """A name that can stand in a URL and after `concept:`."""
    name = unicodedata.normalize("NFC", name)
    if len(name) > MAX_NAME:
        raise ValueError(f"a name may have {MAX_NAME} characters; this one has {len(name)}")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError("a name must not contain slashes, because it stands in URLs")
    if name.startswith("concept:"):
        raise ValueError("a name is given without the prefix `concept:`")
    if _ID.fullmatch(name):
        raise ValueError("a name must not look like an id: 32 hexadecimal digits")
    return name


Name = Annotated[Text, AfterValidator(_check_name)]
LabelFormat = Literal["raven", "audacity", "csv"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewExample(_Request):
    """A clip of the library, or a stretch of it in seconds, as an example of what a concept is or isn't."""

    clip_id: str
    start: Seconds | None = Field(None, description="Default: the start of the clip.")
    end: Seconds | None = Field(None, description="Default: the end of the clip.")
    label: bool = Field(True, description="Whether it is an example of the concept, or of what the concept is not.")


NewExamples = Annotated[list[NewExample], Field(max_length=MAX_EXAMPLES)]


class NewConcept(_Request):
    """JSON body of POST /concepts: a name, with a text, examples or both."""

    name: Name = Field(description="Used as `concept:NAME` in searches and detections.")
    text: Text | None = Field(None, description="What sounds it is of: the examples improve on it. `a or b` names two.")
    examples: NewExamples = []


class NewConceptForm(_Request):
    """Form fields of POST /concepts, besides the files `positive` and `negative`."""

    name: Name
    text: Text | None = None
    examples: NewExamples = Field([], description="Examples of the library, as JSON.")


class ConceptPatch(_Request):
    """JSON body of PATCH /concepts/{key}: what is to change. `text` null removes the text."""

    name: Name | None = None
    text: Text | None = None
    threshold: float | None = Field(
        None, gt=0, lt=1, description="The score from which the sound counts; null: as it is fitted."
    )


class AddedExamples(_Request):
    """JSON body of POST /concepts/{key}/examples."""

    examples: NewExamples = Field(min_length=1)


class ExamplesForm(_Request):
    """Form fields of POST /concepts/{key}/examples, besides the files `positive`, `negative` and `file`."""

    examples: NewExamples = Field([], description="Examples of the library, as JSON.")
    format: LabelFormat | None = Field(None, description="The format of the label file in `file`.")
    clip_id: str | None = Field(None, description="The clip that the label file describes.")
    label: Text | None = Field(
        None, description="The label of the concept in the label file. Default: the concept's name or text."
    )


class ExamplesQuery(_Request):
    """Query parameters of GET /concepts/{key}/examples."""

    format: Literal["json", "raven", "audacity", "csv"] = "json"
    clip_id: str | None = Field(None, description="Only the examples of this clip.")


class SuggestionsQuery(_Request):
    """Query parameters of GET /concepts/{key}/suggestions."""

    k: int = Field(10, ge=1, le=MAX_SUGGESTIONS, description="Maximum number of suggestions.")


class Quality(BaseModel):
    """How well the concept ranks its own examples among other clips of the library.

    Measured with heads that were fitted without the recording of the example: `folds` of them.
    """

    average_precision: float
    auroc: float
    folds: int


class Concept(BaseModel):
    """A concept. `threshold` is the score from which a clip counts.

    It is as it was set (`threshold_set`), or as it is fitted if there is a quality, otherwise 0.5. Events begin at one
    that was set, otherwise at 0.5.
    `removed` counts examples whose clip was deleted. `notes` say what limits it, such as why it has no quality.
    """

    id: str
    name: str
    text: str | None
    positives: int
    negatives: int
    removed: int
    quality: Quality | None
    threshold: float
    threshold_set: bool
    notes: list[str]
    created: str
    updated: str


class TaughtConcept(Concept):
    """A new concept, and the files that failed."""

    errors: list[FileError] = []


class Concepts(BaseModel):
    """All concepts, by name."""

    concepts: list[Concept]


class ConceptExample(BaseModel):
    """An example. `clip_id` is null if it came as a file."""

    id: str
    label: bool
    clip_id: str | None
    filename: str
    start: float | None
    end: float | None
    created: str


class ConceptExamples(BaseModel):
    """The examples of a concept, oldest first."""

    examples: list[ConceptExample]


class TaughtExamples(ConceptExamples):
    """The added examples, the concept that was fitted to them, the files that failed, and skipped rows of labels."""

    concept: Concept
    errors: list[FileError]
    skipped: int


class Suggestion(BaseModel):
    """A moment whose label would teach much, in seconds. `score` is what the concept scores it now."""

    clip: Clip
    start: float
    end: float
    score: float


class Suggestions(BaseModel):
    """Moments to label, the most useful first."""

    suggestions: list[Suggestion]
