"""Concepts in Milvus: see index.concepts. A collection has a row for each concept, each example and each fit.

Every change writes rows of its own, so processes that teach one concept at the same time don't overwrite each other's
changes. An example's id follows from its content: added twice at the same time, it is one row. The audio and frames of
sounds that came as files are objects, written before their row and removed after it.

Processes check contradictions and limits only against what they can see, so two that add contradictory examples at the
same moment may both succeed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from index.concepts import (
    MAX_CONCEPTS,
    ClipVectors,
    Concept,
    ConceptExample,
    ConceptExists,
    ConceptNotFound,
    ExampleNotFound,
    ExampleSound,
    NewExample,
    TooManyExamples,
    select_new,
)
from index.milvus.client import library_errors
from index.milvus.collection import WINDOW, Collection
from index.milvus.filters import hexadecimal
from index.milvus.schema import read_vector
from index.new_clip import check_vector
from index.objects import Objects
from index.quantization import FrameCodes

if TYPE_CHECKING:
    from index.milvus.library import KeyLocks

_CONCEPT, _EXAMPLE, _FIT, _TOUCH = "concept", "example", "fit", "touched"  # kinds of rows
_FIELDS = ["id", "kind", "concept", "record"]
_VECTOR = [0.0, 1.0]  # Milvus requires a vector field
_CLIPS_AT_ONCE = 200


class MilvusConcepts:
    """Implements index.concepts.ConceptStore. `now` returns strictly increasing microseconds since 1970."""

    def __init__(
        self,
        concepts: Collection,
        clips: Collection,
        segments: Collection,
        objects: Objects,
        locks: KeyLocks,
        now: Callable[[], int],
    ) -> None:
        self._rows, self._clips, self._segments = concepts, clips, segments
        self._objects, self._locks, self._now = objects, locks, now

    # Changes

    def create(self, name: str, text: str | None, examples: Sequence[NewExample]) -> Concept:
        arrived = self._now()
        concept = Concept(uuid.uuid4().hex, name, text or None, _time(arrived), _time(arrived))
        with library_errors():
            if len(self._of_kind(_CONCEPT)) >= MAX_CONCEPTS:
                raise TooManyExamples(f"a library may have {MAX_CONCEPTS} concepts")
            if self._named(name):
                raise ConceptExists(name)
            self._add(concept.id, [], examples)
            self._write_concept(concept, arrived)
            others = [row for row in self._named(name) if row["id"] != concept.id]
            if any((json.loads(row["record"])["arrived"], row["id"]) < (arrived, concept.id) for row in others):
                self._remove(concept.id)
                raise ConceptExists(name)
        return concept

    def update(
        self, key: str, *, name: str | None = None, text: str | None = None, threshold: float | None = None
    ) -> Concept:
        with library_errors(), self._locks.hold([f"concept {key}"]):
            concept = self.get(key)
            if name is not None and name != concept.name and self._named(name):
                raise ConceptExists(name)
            now = self._now()
            changed = replace(
                concept,
                name=name or concept.name,
                text=concept.text if text is None else text or None,
                threshold=concept.threshold if threshold is None else threshold or None,
                updated=_time(now),
            )
            self._write_concept(changed, now)
            return self.get(concept.id)

    def delete(self, key: str) -> None:
        with library_errors():
            self._remove(self.get(key).id)

    def _remove(self, concept_id: str) -> None:
        rows = self._of_concept(concept_id)
        self._rows.delete([row["id"] for row in rows])
        for row in rows:
            if row["kind"] == _EXAMPLE:
                self._remove_objects(row["id"])

    def add_examples(self, key: str, examples: Sequence[NewExample]) -> list[ConceptExample]:
        with library_errors():
            concept = self.get(key)
            with self._locks.hold([f"examples {concept.id}"]):
                added = self._add(concept.id, self.examples(concept.id), examples)
                self._touch(concept.id)
            if not self._rows.query(f'id == "{concept.id}"', ["id"]):  # deleted in the meantime
                self._remove(concept.id)
                raise ConceptNotFound(key)
            return added

    def _add(self, concept_id: str, existing: list[ConceptExample], new: Sequence[NewExample]) -> list[ConceptExample]:
        result: list[ConceptExample] = []
        rows: dict[str, dict[str, Any]] = {}
        for one in select_new(existing, new):
            if isinstance(one, NewExample):
                one, row = self._example_row(concept_id, one)
                rows.setdefault(row["id"], row)
            result.append(one)
        if rows:
            self._rows.write(list(rows.values()))
        return result

    def _example_row(self, concept_id: str, new: NewExample) -> tuple[ConceptExample, dict[str, Any]]:
        """The example and its row; its objects are written."""
        arrived = self._now()
        place = json.dumps([concept_id, new.clip_id, new.sha256, new.start, new.end, new.label])
        example_id = hashlib.sha256(place.encode()).hexdigest()[:32]
        place_and_time = (new.clip_id, new.sha256, new.filename, new.start, new.end, _time(arrived))
        columns: list[Any] = [new.label, *place_and_time]
        row = {**_row(example_id, _EXAMPLE, concept_id, {"arrived": arrived, "example": columns}), "sound": ""}
        if new.sound is not None:
            sound = new.sound.sound
            self._objects.put(_audio_object(example_id), new.sound.audio)
            self._objects.put(_frames_object(example_id), sound.frames.to_bytes())
            vector = check_vector(sound.embedding, sound.frames.dim, "embedding").astype("<f4").tobytes()
            row["sha256"] = sound.sha256
            row["sound"] = json.dumps([sound.duration, sound.frame_hop, base64.b64encode(vector).decode()])
        return ConceptExample(example_id, *columns), row

    def delete_example(self, key: str, example_id: str) -> None:
        with library_errors():
            concept = self.get(key)
            self._example(concept.id, example_id)
            self._rows.delete([example_id])
            self._remove_objects(example_id)
            self._touch(concept.id)

    def _remove_objects(self, example_id: str) -> None:
        self._objects.remove(_audio_object(example_id))
        self._objects.remove(_frames_object(example_id))

    def save_fit(self, concept_id: str, fitted_to: str, fit: str) -> None:
        with library_errors():
            if self._rows.query(f'id == "{concept_id}"', ["id"]):
                self._rows.write([_row(f"{concept_id}f", _FIT, concept_id, {"fitted_to": fitted_to, "fit": fit})])

    def _touch(self, concept_id: str) -> None:
        self._rows.write([_row(f"{concept_id}t", _TOUCH, concept_id, {"updated": _time(self._now())})])

    def _write_concept(self, concept: Concept, arrived: int) -> None:
        record = {"arrived": arrived, "name": concept.name, "text": concept.text, "threshold": concept.threshold}
        times = {"created": concept.created, "updated": concept.updated}
        row = _row(concept.id, _CONCEPT, concept.id, record | times)
        self._rows.write([{**row, "name": hexadecimal(concept.name)}])

    # Reads

    def get(self, key: str) -> Concept:
        ids = [row["id"] for row in self._named(key)]
        if not ids and _is_id(key):
            ids = [key]
        for concept_id in sorted(ids):
            names = ", ".join(f'"{concept_id}{suffix}"' for suffix in ("", "f", "t"))
            rows = self._rows.query(f"id in [{names}]", _FIELDS)
            of_kind = {row["kind"]: json.loads(row["record"]) for row in rows}
            if _CONCEPT in of_kind:
                return _concept(concept_id, of_kind)
        raise ConceptNotFound(key)

    def examples(self, key: str) -> list[ConceptExample]:
        return self._examples(self.get(key).id)[0]

    def removed(self, key: str) -> int:
        return self._examples(self.get(key).id)[1]

    def _examples(self, concept_id: str) -> tuple[list[ConceptExample], int]:
        """The examples of existing clips and of files, oldest first, and how many others there are."""
        rows = [row for row in self._of_concept(concept_id) if row["kind"] == _EXAMPLE]
        records = sorted((json.loads(row["record"]) | {"id": row["id"]} for row in rows), key=lambda r: r["arrived"])
        every = [ConceptExample(record["id"], *record["example"]) for record in records]
        named = list(dict.fromkeys(one.clip_id for one in every if one.clip_id))
        existing = {
            row["id"]
            for start in range(0, len(named), _CLIPS_AT_ONCE)
            for row in self._clips.rows(named[start : start + _CLIPS_AT_ONCE], [])
        }
        live = [one for one in every if one.clip_id is None or one.clip_id in existing]
        return live, len(every) - len(live)

    def _example(self, concept_id: str, example_id: str) -> dict[str, Any]:
        rows = self._rows.query(f'id == "{example_id}"', [*_FIELDS, "sha256"]) if _is_id(example_id) else []
        if not rows or rows[0]["kind"] != _EXAMPLE or rows[0]["concept"] != concept_id:
            raise ExampleNotFound(example_id)
        return rows[0]

    def sounds(self, hashes: Sequence[str]) -> dict[str, ExampleSound]:
        quoted = ", ".join(f'"{sha256}"' for sha256 in hashes if len(sha256) == 64 and sha256.isalnum())
        rows = self._rows.query(f"sha256 in [{quoted}]", ["id", "sha256", "sound"], WINDOW) if quoted else []
        found = {}
        with library_errors():
            for row in rows:
                duration, hop, vector = json.loads(row["sound"])
                embedding = np.frombuffer(base64.b64decode(vector), "<f4").astype(np.float32)
                try:
                    codes = self._objects.local(_frames_object(row["id"])).read_bytes()
                except FileNotFoundError:  # deleted in the meantime
                    continue
                frames = FrameCodes.from_bytes(codes, len(embedding))
                found[row["sha256"]] = ExampleSound(row["sha256"], duration, embedding, frames, hop)
        return found

    def audio(self, key: str, example_id: str) -> bytes:
        with library_errors():
            self._example(self.get(key).id, example_id)
            try:
                return self._objects.local(_audio_object(example_id)).read_bytes()
            except FileNotFoundError:
                raise ExampleNotFound(example_id) from None

    def vectors(self, clip_ids: Sequence[str]) -> dict[str, ClipVectors]:
        found: dict[str, ClipVectors] = {}
        ids = list(dict.fromkeys(clip_ids))
        for start in range(0, len(ids), _CLIPS_AT_ONCE):
            rows = self._clips.rows(ids[start : start + _CLIPS_AT_ONCE], ["vector"])
            found.update(self._with_segments(rows))
        return found

    def sample(self, count: int) -> list[ClipVectors]:
        """See ConceptStore. Milvus chooses the clips."""
        rows = self._clips.query("", ["id", "vector"], min(count, WINDOW))
        parts = [rows[start : start + _CLIPS_AT_ONCE] for start in range(0, len(rows), _CLIPS_AT_ONCE)]
        return [one for part in parts for one in self._with_segments(part).values()]

    def _with_segments(self, rows: Iterable[dict[str, Any]]) -> dict[str, ClipVectors]:
        vectors = {row["id"]: read_vector(row) for row in rows}
        if not vectors:
            return {}
        quoted = ", ".join(f'"{clip_id}"' for clip_id in vectors)
        segments: dict[str, dict[str, np.ndarray]] = {}
        for row in self._segments.query(f"clip in [{quoted}]", ["id", "clip", "vector"], WINDOW):
            segments.setdefault(row["clip"], {})[row["id"]] = read_vector(row)
        return {
            clip_id: ClipVectors(clip_id, vector, np.stack([own[part] for part in sorted(own)]))
            for clip_id, vector in vectors.items()
            if (own := segments.get(clip_id))
        }

    def _named(self, name: str) -> list[dict[str, Any]]:
        return self._rows.query(f'name == "{hexadecimal(name)}"', _FIELDS, WINDOW) if name else []

    def _of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        quoted = ", ".join(f'"{kind}"' for kind in kinds)
        return self._rows.query(f"kind in [{quoted}]", _FIELDS, WINDOW)

    def _of_concept(self, concept_id: str) -> list[dict[str, Any]]:
        return self._rows.query(f'concept == "{concept_id}"', _FIELDS, WINDOW)

    def list(self) -> list[Concept]:
        parts: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._of_kind(_CONCEPT, _FIT, _TOUCH):
            parts.setdefault(row["concept"], {})[row["kind"]] = json.loads(row["record"])
        found = [_concept(key, of_kind) for key, of_kind in parts.items() if _CONCEPT in of_kind]
        return sorted(found, key=lambda concept: concept.name)


def _row(row_id: str, kind: str, concept_id: str, record: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(record, ensure_ascii=False)
    base = {"id": row_id, "kind": kind, "concept": concept_id, "record": text}
    return base | {"name": "", "sha256": "", "sound": "", "vector": _VECTOR}


def _concept(concept_id: str, records: dict[str, dict[str, Any]]) -> Concept:
    """The concept of the records of its rows, by kind."""
    own, fit = records[_CONCEPT], records.get(_FIT, {"fitted_to": "", "fit": ""})
    updated = max(own["updated"], records.get(_TOUCH, own)["updated"])
    fitted = (fit["fitted_to"], fit["fit"])
    return Concept(concept_id, own["name"], own["text"], own["created"], updated, *fitted, own.get("threshold"))


def _time(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_id(key: str) -> bool:
    return len(key) == 32 and all(c in "0123456789abcdef" for c in key)


def _audio_object(example_id: str) -> str:
    return f"example-audio/{example_id}"


def _frames_object(example_id: str) -> str:
    return f"example-frames/{example_id}"
