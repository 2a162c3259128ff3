"""Concepts in the library's SQLite database: see index.concepts. Sounds that came as files are stored with their audio,
so that one transaction adds an example and a backup of the database has everything."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

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
    NewSound,
    TooManyExamples,
    select_new,
)
from index.new_clip import check_vector
from index.quantization import FrameCodes
from index.sqlite import queries
from index.sqlite.store import Store

_CONCEPT = "id, name, text, created, updated, fitted_to, fit, threshold"  # in Concept's order
_EXAMPLE = (
    "e.id, label, clip, e.sha256, coalesce(c.filename, e.filename), start, stop, e.created"  # in ConceptExample's order
)
# examples of existing clips, or of sounds that came as files
_LIVE = "concept_examples e LEFT JOIN clips c ON c.id = e.clip WHERE e.concept = ? AND (clip IS NULL OR c.id = clip)"


class SqliteConcepts:
    """Implements index.concepts.ConceptStore. `writing` is the library's lock for changes."""

    def __init__(self, store: Store, dim: int, writing: threading.Lock) -> None:
        self._store, self._dim, self._writing = store, dim, writing

    # Changes

    def create(self, name: str, text: str | None, examples: Sequence[NewExample]) -> Concept:
        now = _now()
        concept = Concept(uuid.uuid4().hex, name, text or None, now, now)
        with self._change() as change:
            (count,) = change.execute("SELECT count(*) FROM concepts").fetchone()
            if count >= MAX_CONCEPTS:
                raise TooManyExamples(f"a library may have {MAX_CONCEPTS} concepts")
            if change.execute("SELECT 1 FROM concepts WHERE name = ?", (name,)).fetchone():
                raise ConceptExists(name)
            change.execute(
                f"INSERT INTO concepts ({_CONCEPT}) VALUES (?, ?, ?, ?, ?, '', '', NULL)",
                (concept.id, concept.name, concept.text, now, now),
            )
            self._add(change, concept.id, [], examples)
        return concept

    def update(
        self, key: str, *, name: str | None = None, text: str | None = None, threshold: float | None = None
    ) -> Concept:
        with self._change() as change:
            concept = _get(change, key)
            if name is not None and name != concept.name:
                if change.execute("SELECT 1 FROM concepts WHERE name = ?", (name,)).fetchone():
                    raise ConceptExists(name)
                change.execute("UPDATE concepts SET name = ? WHERE id = ?", (name, concept.id))
            if text is not None:
                change.execute("UPDATE concepts SET text = ? WHERE id = ?", (text or None, concept.id))
            if threshold is not None:
                change.execute("UPDATE concepts SET threshold = ? WHERE id = ?", (threshold or None, concept.id))
            _touch(change, concept.id)
            return _get(change, concept.id)

    def delete(self, key: str) -> None:
        with self._change() as change:
            change.execute("DELETE FROM concepts WHERE id = ?", (_get(change, key).id,))
            _drop_unused_sounds(change)

    def add_examples(self, key: str, examples: Sequence[NewExample]) -> list[ConceptExample]:
        with self._change() as change:
            concept = _get(change, key)
            added = self._add(change, concept.id, _examples(change, concept.id), examples)
            _touch(change, concept.id)
            return added

    def _add(
        self,
        change: sqlite3.Connection,
        concept_id: str,
        existing: list[ConceptExample],
        new: Sequence[NewExample],
    ) -> list[ConceptExample]:
        chosen = select_new(existing, new)
        added: dict[int, ConceptExample] = {}  # by the identity of the new example, which may be there twice
        for one in chosen:
            if isinstance(one, NewExample) and id(one) not in added:
                added[id(one)] = self._insert(change, concept_id, one)
        return [one if isinstance(one, ConceptExample) else added[id(one)] for one in chosen]

    def _insert(self, change: sqlite3.Connection, concept_id: str, new: NewExample) -> ConceptExample:
        if new.sound is not None:
            self._insert_sound(change, new.sound)
        one = ConceptExample(
            uuid.uuid4().hex, new.label, new.clip_id, new.sha256, new.filename, new.start, new.end, _now()
        )
        place = (one.clip_id, one.sha256, one.filename, one.start, one.end)
        change.execute(
            "INSERT INTO concept_examples (id, concept, label, clip, sha256, filename, start, stop, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (one.id, concept_id, int(one.label), *place, one.created),
        )
        return one

    def _insert_sound(self, change: sqlite3.Connection, new: NewSound) -> None:
        sound = new.sound
        vector = check_vector(sound.embedding, self._dim, "embedding")
        change.execute(
            "INSERT OR IGNORE INTO concept_sounds (sha256, audio, duration, embedding, hop, codes) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                sound.sha256,
                new.audio,
                sound.duration,
                vector.astype("<f4").tobytes(),
                sound.frame_hop,
                sound.frames.to_bytes(),
            ),
        )

    def delete_example(self, key: str, example_id: str) -> None:
        with self._change() as change:
            concept = _get(change, key)
            deleted = change.execute(
                "DELETE FROM concept_examples WHERE concept = ? AND id = ?", (concept.id, example_id)
            )
            if not deleted.rowcount:
                raise ExampleNotFound(example_id)
            _drop_unused_sounds(change)
            _touch(change, concept.id)

    def save_fit(self, concept_id: str, fitted_to: str, fit: str) -> None:
        with self._change() as change:
            change.execute("UPDATE concepts SET fitted_to = ?, fit = ? WHERE id = ?", (fitted_to, fit, concept_id))

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._store.write() as change:
            yield change

    # Reads

    def get(self, key: str) -> Concept:
        with self._store.read() as view:
            return _get(view, key)

    def examples(self, key: str) -> list[ConceptExample]:
        with self._store.read() as view:
            return _examples(view, _get(view, key).id)

    def removed(self, key: str) -> int:
        with self._store.read() as view:
            concept = _get(view, key)
            found = view.execute(
                "SELECT count(*) FROM concept_examples WHERE concept = ? AND clip NOT IN (SELECT id FROM clips)",
                (concept.id,),
            )
            return int(found.fetchone()[0])

    def sounds(self, hashes: Sequence[str]) -> dict[str, ExampleSound]:
        with self._store.read() as view:
            found = view.execute(
                "SELECT sha256, duration, embedding, codes, hop FROM concept_sounds "
                "WHERE sha256 IN (SELECT value FROM json_each(?))",
                (json.dumps(list(hashes)),),
            ).fetchall()
        return {
            sha256: ExampleSound(
                sha256,
                duration,
                np.frombuffer(embedding, dtype="<f4").astype(np.float32),
                FrameCodes.from_bytes(codes, self._dim),
                hop,
            )
            for sha256, duration, embedding, codes, hop in found
        }

    def audio(self, key: str, example_id: str) -> bytes:
        with self._store.read() as view:
            found = view.execute(
                "SELECT audio FROM concept_examples JOIN concept_sounds USING (sha256) WHERE concept = ? AND id = ?",
                (_get(view, key).id, example_id),
            ).fetchone()
        if found is None:
            raise ExampleNotFound(example_id)
        return bytes(found[0])

    def vectors(self, clip_ids: Sequence[str]) -> dict[str, ClipVectors]:
        with self._store.read() as view:
            found = queries.vectors_and_segments(view, clip_ids, longer=-1.0)
            return {
                clip_id: ClipVectors(clip_id, embedding, FrameCodes.from_bytes(codes, self._dim).decode())
                for clip_id, embedding, codes in found
                if codes is not None
            }

    def sample(self, count: int) -> list[ClipVectors]:
        """See ConceptStore. The clips nearest to evenly spaced rows, which is quick in a library of any size."""
        with self._store.read() as view:
            low, high = view.execute("SELECT min(row), max(row) FROM clips").fetchone()
            if low is None:
                return []
            places = range(low, high + 1) if high - low < count else np.linspace(low, high, count).astype(int).tolist()
            after = "SELECT id FROM clips WHERE row >= ? ORDER BY row LIMIT 1"
            ids = [view.execute(after, (place,)).fetchone()[0] for place in places]
        return list(self.vectors(list(dict.fromkeys(ids))).values())

    def list(self) -> list[Concept]:
        with self._store.read() as view:
            return [Concept(*columns) for columns in view.execute(f"SELECT {_CONCEPT} FROM concepts ORDER BY name")]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _get(connection: sqlite3.Connection, key: str) -> Concept:
    found = connection.execute(f"SELECT {_CONCEPT} FROM concepts WHERE name = ? OR id = ?", (key, key)).fetchone()
    if found is None:
        raise ConceptNotFound(key)
    return Concept(*found)


def _examples(connection: sqlite3.Connection, concept_id: str) -> list[ConceptExample]:
    found = connection.execute(f"SELECT {_EXAMPLE} FROM {_LIVE} ORDER BY number", (concept_id,))
    return [ConceptExample(columns[0], bool(columns[1]), *columns[2:]) for columns in found]


def _touch(change: sqlite3.Connection, concept_id: str) -> None:
    change.execute("UPDATE concepts SET updated = ? WHERE id = ?", (_now(), concept_id))


def _drop_unused_sounds(change: sqlite3.Connection) -> None:
    change.execute(
        "DELETE FROM concept_sounds WHERE sha256 NOT IN (SELECT sha256 FROM concept_examples WHERE sha256 IS NOT NULL)"
    )
