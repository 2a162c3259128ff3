"""Concepts: teaching them, and the heads that are fitted to their examples.

A head is fitted when it is needed, and stored with the fingerprint of what it was fitted to. So a deleted clip, another
checkpoint, or a crash between an example and its fit need no care of their own: the fingerprint differs.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from app.errors import BodyTooLarge, Invalid
from app.export.labels import LabelRow
from app.inference.batcher import Urgency
from app.inference.engine import Engine
from app.services.audio_source import AudioFile, embed_file
from app.services.ingest import Failure, each_file
from app.state import AppState
from index import (
    Clip,
    ClipNotFound,
    Concept,
    ConceptExample,
    ConceptUntaught,
    ExampleSound,
    FrameCodes,
    Library,
    NewExample,
    NewSound,
    cut_segments,
    encode_frames,
    fit_fingerprint,
)
from model.concepts.fit import VERSION, Background, Labelled, fit_head
from model.concepts.head import Direction, Head, HeadScores, Quality, named_sounds

SAMPLE = 512  # clips of the library that stand for all other sounds
FRAMES_OF = 256  # of these clips, about
FRAMES_PER_CLIP = 8
EXAMPLE_FRAMES = 32  # of an example
NOT = "not "  # before a concept's name: the label of what it isn't
MAX_SOUND_BYTES = 32 << 20  # of an example that comes as a file
MAX_FILES_BYTES = 128 << 20  # of the examples of one request, which are in memory together
_FRAMES_SECONDS = 120.0  # frames of longer clips of the sample are not read
_SLACK = 0.1  # seconds by which a stretch may exceed its clip, because durations are rounded


@dataclass(frozen=True)
class Stretch:
    """An example of the library: a clip, or the stretch of it from `start` to `end`, in seconds."""

    clip_id: str
    start: float | None
    end: float | None
    label: bool


@dataclass(frozen=True, eq=False)
class Taught:
    """A concept with its examples and its head. removed: how many examples were deleted with their clips."""

    concept: Concept
    examples: Sequence[ConceptExample]
    head: Head | None
    removed: int

    @property
    def positives(self) -> int:
        return sum(one.label for one in self.examples)

    @property
    def threshold(self) -> float:
        """The score from which a clip counts: as users set it, or as it is fitted."""
        if self.concept.threshold is not None:
            return self.concept.threshold
        return 0.5 if self.head is None else self.head.threshold

    def require_head(self) -> Head:
        """The head. Raises ConceptUntaught without a text and a positive example."""
        if self.head is None:
            raise ConceptUntaught(self.concept.name)
        return self.head


# Teaching


async def create(
    state: AppState, name: str, text: str | None, stretches: Sequence[Stretch], files: Sequence[tuple[AudioFile, bool]]
) -> tuple[Taught, list[Failure]]:
    """A new concept with its first examples, and the files that failed.

    Raises Invalid without a text and a positive example, ConceptExists, and what `read_examples` does.
    """
    if not text and not any(one.label for one in stretches) and not any(label for _, label in files):
        raise Invalid("A concept needs a `text` or at least one positive example.")
    examples, failures = await read_examples(state, stretches, files)
    if not text and not any(one.label for one in examples):
        raise next(failure.error for failure in failures)
    concept = await state.write(state.library.concepts.create, name, text, examples)
    return await taught(state, concept.id), failures


async def add_examples(
    state: AppState, key: str, stretches: Sequence[Stretch], files: Sequence[tuple[AudioFile, bool]]
) -> tuple[list[ConceptExample], list[Failure]]:
    """Adds examples, and returns them with the files that failed. The concept is fitted anew.

    Raises ConceptNotFound, ContradictoryExamples, TooManyExamples, and what `read_examples` does.
    """
    concept = await state.read(state.library.concepts.get, key)
    examples, failures = await read_examples(state, stretches, files)
    added = await state.write(state.library.concepts.add_examples, concept.id, examples) if examples else []
    await taught(state, concept.id)
    return added, failures


async def read_examples(
    state: AppState, stretches: Sequence[Stretch], files: Sequence[tuple[AudioFile, bool]]
) -> tuple[list[NewExample], list[Failure]]:
    """The examples with what is stored of them, and the files that failed.

    Raises ClipNotFound, Invalid for stretches outside of their clips, BodyTooLarge.
    """
    if sum(file.binary.seek(0, io.SEEK_END) for file, _ in files) > MAX_FILES_BYTES:
        raise BodyTooLarge(f"The files of one request may have {MAX_FILES_BYTES >> 20} MB: send several requests.")
    clips = await state.read(state.library.clips, list({one.clip_id for one in stretches}))
    of_clips = [_within(one, clips) for one in stretches]
    labels = {file: label for file, label in files}
    outcomes = await each_file([file for file, _ in files], lambda file: _embed(state, file, labels[file]))
    of_files = [one for one in outcomes if not isinstance(one, Failure)]
    return of_clips + of_files, [one for one in outcomes if isinstance(one, Failure)]


def _within(one: Stretch, clips: dict[str, Clip]) -> NewExample:
    clip = clips.get(one.clip_id)
    if clip is None:
        raise ClipNotFound(one.clip_id)
    if one.start is None and one.end is None:
        return NewExample(one.label, clip.filename, clip.id)
    start, end = one.start or 0.0, clip.duration if one.end is None else one.end
    if not start < end or start >= clip.duration or end > clip.duration + _SLACK:
        raise Invalid(
            f"The stretch from {start:g} to {end:g} s is not within clip {clip.id}, which lasts {clip.duration:g} s."
        )
    return NewExample(one.label, clip.filename, clip.id, start, min(end, clip.duration))


async def _embed(state: AppState, file: AudioFile, label: bool) -> NewExample:
    """An example that comes as a file. One that is in the library already is an example of that clip."""
    audio = await state.compute(_read, file)
    sha256 = hashlib.sha256(audio).hexdigest()
    clip = await state.read(state.library.find, sha256)
    if clip is not None:
        return NewExample(label, clip.filename, clip.id)
    stream, frames = await embed_file(state, file)
    sound = ExampleSound(sha256, stream.duration, stream.embedding, encode_frames(frames), stream.frame_hop)
    return NewExample(label, file.filename, sound=NewSound(sound, audio))


def _read(file: AudioFile) -> bytes:
    file.binary.seek(0)
    audio = file.binary.read(MAX_SOUND_BYTES + 1)
    if len(audio) > MAX_SOUND_BYTES:
        raise BodyTooLarge(
            f"An example that comes as a file may have {MAX_SOUND_BYTES >> 20} MB. Add the recording to the library, "
            "and use the stretch with the sound."
        )
    return audio


# Heads


def warm_up() -> None:
    """Imports what a fit needs, which takes a second, so that the first concept doesn't wait for it.

    A failure, as when descriptors run out, concerns nobody yet: the first fit imports it again.
    """
    with contextlib.suppress(OSError, ImportError):
        importlib.import_module("scipy.optimize")


async def taught(state: AppState, key: str, *, urgency: Urgency = Urgency.INTERACTIVE) -> Taught:
    """A concept with its examples and its head, which is fitted if what it depends on has changed."""
    concept, examples, removed = await state.read(_load, state.library, key)
    if not concept.text and not any(one.label for one in examples):
        return Taught(concept, examples, None, removed)
    fitted_to = fit_fingerprint(concept, examples, f"{state.engine.stamp} {VERSION} {state.engine.text_scores}")
    if concept.fitted_to == fitted_to:
        return Taught(concept, examples, _head_from_json(concept.fit), removed)
    texts = None
    if concept.text:
        texts = await state.engine.embed_texts(named_sounds(concept.text), urgency=urgency)
    head = await state.compute(_fit, state.engine, state.library, examples, texts)
    await state.write(state.library.concepts.save_fit, concept.id, fitted_to, _head_to_json(head))
    return Taught(concept, examples, head, removed)


def _load(library: Library, key: str) -> tuple[Concept, list[ConceptExample], int]:
    concept = library.concepts.get(key)
    return concept, library.concepts.examples(concept.id), library.concepts.removed(concept.id)


def _fit(engine: Engine, library: Library, examples: Sequence[ConceptExample], texts: np.ndarray | None) -> Head:
    from model.cpu.threads import one_blas_thread  # imports PyTorch

    given, others = labelled(library, examples), background(library, engine.dim)
    with one_blas_thread():
        return fit_head(given, others, texts, engine.text_scores)


def background(library: Library, dim: int) -> Background:
    """The vectors of a sample of the library, with some frames of some of the clips."""
    sample = library.concepts.sample(SAMPLE)
    clips = np.stack([one.vector for one in sample]) if sample else np.empty((0, dim), np.float32)
    chosen = [one.id for one in sample[:: max(1, len(sample) // FRAMES_OF)]]
    short = [clip.id for clip in library.clips(chosen).values() if clip.duration <= _FRAMES_SECONDS]
    codes = library.frame_codes_of(short)
    nothing = np.empty((0, dim), np.float32)
    frames = [_spread(codes[one.id][0], FRAMES_PER_CLIP) if one.id in codes else nothing for one in sample]
    return Background([one.id for one in sample], clips, [one.segments for one in sample], frames)


def _spread(frames: FrameCodes, count: int) -> np.ndarray:
    """At most `count` of the frames, evenly spaced (t, D)."""
    places = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int))
    return np.concatenate([frames.decode(place, place + 1) for place in places.tolist()])


def labelled(library: Library, examples: Sequence[ConceptExample]) -> list[Labelled]:
    """The examples' vectors, without those that were deleted in the meantime."""
    whole = library.concepts.vectors([e.clip_id for e in examples if e.clip_id and e.start is None])
    sounds = library.concepts.sounds([e.sha256 for e in examples if e.sha256])
    by_clip: dict[str, list[ConceptExample]] = {}
    found = []
    for one in examples:
        if one.clip_id is not None:
            by_clip.setdefault(one.clip_id, []).append(one)
        elif one.sha256 in sounds:
            sound = sounds[one.sha256]
            segments = cut_segments(sound.frames, sound.frame_hop).decode()
            frames = _spread(sound.frames, EXAMPLE_FRAMES)
            found.append(Labelled(one.label, one.recording, sound.embedding, segments, frames))
    for clip_id, own in by_clip.items():  # one clip at a time, because frames of long ones are large
        for codes, hop in library.frame_codes_of([clip_id]).values():
            for one in own:
                if one.start is not None and one.end is not None:
                    found.append(_labelled_stretch(one, codes, hop))
                elif clip_id in whole:
                    vectors, frames = whole[clip_id], _spread(codes, EXAMPLE_FRAMES)
                    found.append(Labelled(one.label, one.recording, vectors.vector, vectors.segments, frames))
    return found


def _labelled_stretch(one: ConceptExample, codes: FrameCodes, hop: float) -> Labelled:
    assert one.start is not None and one.end is not None
    part = encode_frames(cut_frames(codes, hop, one.start, one.end))
    whole, frames = unit(part.decode().mean(axis=0)), _spread(part, EXAMPLE_FRAMES)
    return Labelled(one.label, one.recording, whole, cut_segments(part, hop).decode(), frames, located=True)


def cut_frames(frames: FrameCodes, hop: float, start: float, end: float) -> np.ndarray:
    """The frames (t, D) between two times, at least one."""
    first = min(int(start / hop), len(frames) - 1)
    return frames.decode(first, max(first + 1, math.ceil(end / hop)))


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at unit length."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)


# The stored form


def _head_to_json(head: Head) -> str:
    return json.dumps(
        {
            "vector": _to_base64(head.vector),
            "directions": [{"vector": _to_base64(d.vector), "scores": asdict(d.scores)} for d in head.directions],
            "threshold": head.threshold,
            "quality": None if head.quality is None else asdict(head.quality),
            "reason": head.reason,
        }
    )


def _head_from_json(text: str) -> Head:
    stored = json.loads(text)
    quality = stored["quality"]
    return Head(
        _from_base64(stored["vector"]),
        tuple(Direction(_from_base64(d["vector"]), HeadScores.from_json(d["scores"])) for d in stored["directions"]),
        stored["threshold"],
        None if quality is None else Quality(**quality),
        stored["reason"],
    )


def _to_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _from_base64(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


# Labels


async def as_labels(state: AppState, name: str, examples: Sequence[ConceptExample]) -> list[LabelRow]:
    """Examples as labels: negative ones have "not " before the concept's name."""
    clips = await state.read(state.library.clips, list({one.clip_id for one in examples if one.clip_id}))
    sounds = await state.read(state.library.concepts.sounds, [one.sha256 for one in examples if one.sha256])
    rows = []
    for one in examples:
        start, end = one.start, one.end
        if start is None or end is None:
            known = clips.get(one.clip_id or "") or sounds.get(one.sha256 or "")
            start, end = 0.0, known.duration if known is not None else 0.0
        rows.append(LabelRow(start, end, name if one.label else NOT + name, one.filename))
    return rows


async def from_labels(
    state: AppState, key: str, rows: Sequence[LabelRow], clip_id: str | None, label: str | None
) -> tuple[list[Stretch], int]:
    """The examples that a label file has of a concept, and the number of its other rows.

    Rows belong to the clip `clip_id`, or to the clips with their file names. Raises Invalid if the file has no row of
    the concept, or names a file that the library doesn't have or has several times; ClipNotFound.
    """
    concept = await state.read(state.library.concepts.get, key)
    names = [label] if label else [name for name in (concept.name, concept.text) if name]
    known = {name.casefold(): True for name in names} | {(NOT + name).casefold(): False for name in names}
    labels = {row.label.casefold() for row in rows}
    if labels == {""}:  # selections without labels are all of the concept
        known[""] = True
    wanted = [row for row in rows if row.label.casefold() in known]
    if not wanted:
        found = ", ".join(repr(one) for one in sorted({row.label for row in rows})[:10]) or "none"
        asked = " or ".join(map(repr, names))
        raise Invalid(f"No row has the label {asked}; the labels are {found}. Choose one with `label`.")
    if clip_id is not None:
        clip = await state.read(state.library.get, clip_id)
        if len({row.filename for row in rows}) > 1:
            wanted = [row for row in wanted if row.filename == clip.filename]
        clips = {row.filename: clip for row in wanted}
    else:
        clips = {name: await state.read(_clip_named, state.library, name) for name in {row.filename for row in wanted}}
    stretches = [Stretch(clips[row.filename].id, row.start, row.end, known[row.label.casefold()]) for row in wanted]
    return stretches, len(rows) - len(wanted)


def _clip_named(library: Library, filename: str) -> Clip:
    if not filename:
        raise Invalid("The labels don't name a recording: provide `clip_id`.")
    found, _ = library.list(2, filter={"filename": filename})
    if len(found) != 1:
        how_many = "no clip has" if not found else "several clips have"
        raise Invalid(f"{how_many} the file name {filename!r}: provide `clip_id`.")
    return found[0]
