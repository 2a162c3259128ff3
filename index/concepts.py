"""Concepts: sounds that users teach with examples. Records, errors, and the interface of the part that stores them.

A store keeps what cannot be recomputed: names, texts and examples, each example a stretch of a clip or a sound that
came as a file. What is fitted to them is a cache, stored with the fingerprint of what it was fitted to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from index.quantization import FrameCodes
from index.records import LibraryError

MAX_CONCEPTS = 1000
MAX_EXAMPLES = 2000  # of one concept
_COVERED = 0.5  # share of a positive stretch that a negative one may cover


class ConceptNotFound(LibraryError):
    """No concept has this name or id."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no concept has the name or id {key!r}")


class ConceptExists(LibraryError):
    """Another concept has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a concept named {name!r} exists already")


class ConceptUntaught(LibraryError):
    """The concept has neither a text nor a positive example."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the concept {name!r} has neither a text nor a positive example: add one")


class ExampleNotFound(LibraryError):
    """The concept has no example with this id."""

    def __init__(self, example_id: str) -> None:
        super().__init__(f"the concept has no example with the id {example_id!r}")


class ContradictoryExamples(LibraryError):
    """The same sound is to be an example of what the concept is and of what it isn't."""


class TooManyExamples(LibraryError):
    """A limit on concepts or on the examples of one is exceeded."""


@dataclass(frozen=True)
class Concept:
    """A concept. `fit` is what was stored with `save_fit`, for the fingerprint `fitted_to`.

    threshold: the score from which a sound counts, as its users chose it; None: as it is fitted.
    """

    id: str  # 32 hexadecimal digits
    name: str  # unique
    text: str | None
    created: str  # RFC 3339, UTC
    updated: str
    fitted_to: str = ""
    fit: str = ""
    threshold: float | None = None


@dataclass(frozen=True)
class ConceptExample:
    """An example of what a concept is (`label`), or isn't: a clip, a stretch of it, or a sound that came as a file.

    Exactly one of `clip_id` and `sha256` is set. `start` and `end` are seconds; without both, a positive example has
    the sound somewhere, and a negative one nowhere.
    """

    id: str
    label: bool
    clip_id: str | None
    sha256: str | None  # of a sound that came as a file
    filename: str
    start: float | None
    end: float | None
    created: str

    @property
    def recording(self) -> str:
        """What examples of one recording have in common."""
        return self.clip_id or self.sha256 or self.id


@dataclass(frozen=True)
class ExampleSound:
    """A sound that came as a file, with its embeddings as of a clip."""

    sha256: str
    duration: float  # seconds
    embedding: np.ndarray  # (D,) float32, unit length
    frames: FrameCodes
    frame_hop: float  # seconds


@dataclass(frozen=True)
class NewSound:
    """A sound to be stored, with the file it came as."""

    sound: ExampleSound
    audio: bytes


@dataclass(frozen=True)
class NewExample:
    """An example to be added: of a clip, or of a sound that comes with it."""

    label: bool
    filename: str
    clip_id: str | None = None
    start: float | None = None
    end: float | None = None
    sound: NewSound | None = None

    @property
    def sha256(self) -> str | None:
        return None if self.sound is None else self.sound.sound.sha256


@dataclass(frozen=True)
class ClipVectors:
    """A clip's vectors: its embedding (D,) and those of its segments (S, D)."""

    id: str
    vector: np.ndarray
    segments: np.ndarray


class ConceptStore(Protocol):
    """The concepts of an open library. Methods block, and raise LibraryError and its subclasses, as Library's do.

    A change is durable when its method returns. Concepts are found by name or by id (`key`); ConceptNotFound if none
    has it. Examples of clips that were deleted are left out of `examples`, and counted by `removed`.
    """

    def get(self, key: str) -> Concept:
        """Returns a concept."""

    def create(self, name: str, text: str | None, examples: Sequence[NewExample]) -> Concept:
        """Adds a concept with its first examples, all or nothing. Raises ConceptExists and what `add_examples` does."""

    def update(
        self, key: str, *, name: str | None = None, text: str | None = None, threshold: float | None = None
    ) -> Concept:
        """Renames a concept, or replaces its text or its threshold; an empty text and a threshold of 0 remove it.

        Raises ConceptExists.
        """

    def delete(self, key: str) -> None:
        """Deletes a concept with its examples and the sounds that came with them."""

    def examples(self, key: str) -> list[ConceptExample]:
        """Returns a concept's examples, oldest first."""

    def removed(self, key: str) -> int:
        """Returns the number of examples whose clip was deleted."""

    def add_examples(self, key: str, examples: Sequence[NewExample]) -> list[ConceptExample]:
        """Adds examples, all or none of them, and returns them in order; one that exists is returned as it is.

        Raises ContradictoryExamples, TooManyExamples.
        """

    def delete_example(self, key: str, example_id: str) -> None:
        """Deletes an example. Raises ExampleNotFound."""

    def sounds(self, hashes: Sequence[str]) -> dict[str, ExampleSound]:
        """Returns the stored sounds of examples, by SHA-256."""

    def audio(self, key: str, example_id: str) -> bytes:
        """Returns the file that an example came as. Raises ExampleNotFound, also for an example of a clip."""

    def save_fit(self, concept_id: str, fitted_to: str, fit: str) -> None:
        """Stores what was fitted; nothing happens if the concept was deleted."""

    def vectors(self, clip_ids: Sequence[str]) -> dict[str, ClipVectors]:
        """Returns the vectors of the existing clips, by id."""

    def sample(self, count: int) -> list[ClipVectors]:
        """Returns the vectors of at most `count` clips from all over the library, the same while it doesn't change."""

    def list(self) -> list[Concept]:
        """Returns all concepts, by name."""


def fit_fingerprint(concept: Concept, examples: Sequence[ConceptExample], fitter: str) -> str:
    """Identifies what a concept is fitted to: its text, its examples, and the checkpoint and settings (`fitter`)."""
    parts = [fitter, concept.text or "", *(f"{e.id} {int(e.label)}" for e in examples)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def select_new(existing: Sequence[ConceptExample], new: Sequence[NewExample]) -> list[ConceptExample | NewExample]:
    """For each new example the one that exists already, or itself. Raises ContradictoryExamples, TooManyExamples."""
    known: dict[tuple, ConceptExample | NewExample] = {_place(e): e for e in existing}
    added = len({_place(one) for one in new} - known.keys())
    if len(existing) + added > MAX_EXAMPLES:
        raise TooManyExamples(
            f"a concept may have {MAX_EXAMPLES} examples; it has {len(existing)} and would get {added} more"
        )
    by_recording: dict[tuple, list[ConceptExample | NewExample]] = {}
    for earlier in existing:
        by_recording.setdefault((earlier.clip_id, earlier.sha256), []).append(earlier)
    chosen: list[ConceptExample | NewExample] = []
    for one in new:
        others = by_recording.setdefault((one.clip_id, one.sha256), [])
        for other in others:
            if other.label != one.label and _contradict(*((one, other) if one.label else (other, one))):
                raise ContradictoryExamples(
                    f"{_describe(one)} is to be {_kind(one)} example, but {_describe(other)} is {_kind(other)} one"
                )
        same = known.setdefault(_place(one), one)
        if same is one:
            others.append(one)
        chosen.append(same)
    return chosen


def _place(one: ConceptExample | NewExample) -> tuple:
    return one.clip_id, one.sha256, one.start, one.end, one.label


def _contradict(positive: ConceptExample | NewExample, negative: ConceptExample | NewExample) -> bool:
    """Whether the sound cannot be in the positive example if it is nowhere in the negative one."""
    if negative.start is None or negative.end is None:
        return True
    if positive.start is None or positive.end is None:
        return False  # it may be elsewhere in the recording
    common = min(positive.end, negative.end) - max(positive.start, negative.start)
    return common > _COVERED * (positive.end - positive.start)


def _kind(one: ConceptExample | NewExample) -> str:
    return "a positive" if one.label else "a negative"


def _describe(one: ConceptExample | NewExample) -> str:
    within = "" if one.start is None else f" from {one.start:g} to {one.end:g} s"
    return f"{one.filename!r}{within}"
