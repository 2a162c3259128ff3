"""Stateful test of the library: any sequence of changes and queries equals the slow reference."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from index import ClipNotFound, NewClip, SqliteLibrary
from index.records import merge_patch
from index.vectors.exact import ExactLibrary
from tests.support.clips import nearest_hits

DIM = 6
KEYS = st.sampled_from(["tags", "n", "on", ""])
SCALARS = st.sampled_from(["a", "b", "1", "", 0, 1, 1.0, -2.5, 10**25, True, False])
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.none() | st.dictionaries(KEYS, SCALARS, max_size=2)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
FILTERS = st.none() | st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, min_size=1, max_size=3), max_size=2)
# Few directions, so that clips with equal vectors, opposite ones and ties occur.
VECTORS = st.tuples(st.sampled_from(range(DIM)), st.sampled_from([-1.0, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))


def _vector(choice: tuple[int, float, float]) -> np.ndarray:
    axis, sign, lean = choice
    vector = np.zeros(DIM, np.float32)
    vector[axis], vector[(axis + 1) % DIM] = sign, lean
    return vector / np.linalg.norm(vector)


class Library(RuleBasedStateMachine):
    """A library on disk beside the reference in memory."""

    ids = Bundle("ids")
    gone = Bundle("gone")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.exact = ExactLibrary()
        self.hashes: dict[str, str] = {}
        self.library = self._open()

    def _open(self) -> SqliteLibrary:
        return SqliteLibrary.open(self.folder, dim=DIM, checkpoint="stateful")

    def _new(self, vector: np.ndarray, metadata: dict[str, Any], audio: bytes) -> NewClip:
        sha256 = hashlib.sha256(audio).hexdigest()
        return NewClip("a.wav", sha256, 1.0, 16_000, 1, metadata, vector, vector[None], 0.16, audio)

    @rule(target=ids, items=st.lists(st.tuples(VECTORS, METADATA, st.binary(max_size=2)), min_size=1, max_size=3))
    def add(self, items: list[tuple]) -> Any:
        news = [self._new(_vector(vector), metadata, audio) for vector, metadata, audio in items]
        results = self.library.add_many(news)
        for new, (clip, created) in zip(news, results, strict=True):
            known = [clip_id for clip_id, sha256 in self.hashes.items() if sha256 == new.sha256]
            assert created == (not known)
            if created:
                self.exact.add(clip.id, new.embedding, new.metadata)
                self.hashes[clip.id] = new.sha256
            else:
                assert [clip.id] == known
        return multiple(*(clip.id for clip, _ in results))

    @rule(target=gone, clip_id=consumes(ids))
    def delete(self, clip_id: str) -> str:
        if clip_id in self.hashes:
            self.library.delete(clip_id)
            self.exact.delete(clip_id)
            del self.hashes[clip_id]
        return clip_id

    @rule(clip_id=gone)
    def what_is_gone_is_gone(self, clip_id: str) -> None:
        for ask in (self.library.get, self.library.delete, self.library.audio_path):
            with pytest.raises(ClipNotFound):
                ask(clip_id)

    @rule(clip_id=ids, changes=METADATA)
    def update(self, clip_id: str, changes: dict[str, Any]) -> None:
        if clip_id in self.hashes:
            self.exact.metadata[clip_id] = merge_patch(self.exact.metadata[clip_id], changes)
            assert self.library.update_metadata(clip_id, changes).metadata == self.exact.metadata[clip_id]

    @rule(vector=VECTORS, k=st.integers(1, 8), filter=FILTERS)
    def search(self, vector: tuple, k: int, filter: dict[str, Any] | None) -> None:
        query = _vector(vector)
        expected = self.exact.search(query, k, filter)
        hits = nearest_hits(self.library, query, k, filter)
        # Ties may come in another order, so each hit is held to its own vector, and the list to the best similarities.
        assert [hit.similarity for hit in hits] == pytest.approx([s for _, s in expected], abs=1e-5)
        assert len({hit.clip.id for hit in hits}) == len(hits)
        allowed = set(self.exact.passing(filter))
        for hit in hits:
            assert hit.clip.id in allowed
            assert hit.similarity == pytest.approx(float(self.exact.vectors[hit.clip.id] @ query), abs=1e-5)
            assert hit.clip.metadata == self.exact.metadata[hit.clip.id]
        stretches = self.library.search_segments(query, k, filter)  # each clip is one frame, its own vector
        assert [hit.similarity for hit in stretches] == pytest.approx([s for _, s in expected], abs=0.01)
        assert {hit.clip.id for hit in stretches} <= allowed

    @rule(limit=st.integers(1, 4), filter=FILTERS)
    def list_all(self, limit: int, filter: dict[str, Any] | None) -> None:
        seen: list[str] = []
        page, cursor = self.library.list(limit, None, filter)
        while True:
            assert len(page) <= limit
            seen += [clip.id for clip in page]
            if cursor is None:
                break
            page, cursor = self.library.list(limit, cursor, filter)
        assert seen == self.exact.passing(filter)

    @rule()
    def reopen(self) -> None:
        self.library.close()
        self.library = self._open()
        assert self.library.recovery_report == []

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "library"):
            return
        assert len(self.library) == len(self.exact.vectors)
        files = {path.name for path in (self.folder / "audio").rglob("*") if path.is_file()}
        assert files == set(self.hashes.values())
        for clip_id, vector in self.exact.vectors.items():
            np.testing.assert_array_equal(self.library.clip_vector(clip_id), vector)

    def teardown(self) -> None:
        if hasattr(self, "library"):
            self.library.close()
            shutil.rmtree(self.folder)


Library.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLibrary = Library.TestCase
