"""Any sequence of additions, removals, rebuilds and restarts: what is found is what is there, and compared exactly."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index.vectors.index import Limits, VectorIndex
from tests.support.stored_vectors import FakeStoredVectors

DIM = 8
LIMITS = Limits(flat_rows=60, exact_rows=10, spare=20)
SEEDS = st.integers(0, 10**6)


class Index(RuleBasedStateMachine):
    """The index, and the vectors that it is a cache of. Rebuilds run beside the next steps unless one waits."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stored = FakeStoredVectors(DIM, page=16)
        self.next_row = 1
        self._open()

    def _open(self) -> None:
        self.index = VectorIndex(DIM, self.stored, stamp="a", folder=self.folder / "index", limits=LIMITS)
        assert self.index.fill() == []

    @rule(count=st.sampled_from([1, 5, 70]), seed=SEEDS)
    def add(self, count: int, seed: int) -> None:
        vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = np.arange(self.next_row, self.next_row + count)
        self.next_row += count + seed % 3
        self.stored.commit(rows, vectors)
        self.index.add(rows, vectors)

    @rule(share=st.sampled_from([0.02, 0.3, 0.8, 1.0]), seed=SEEDS, fails=st.booleans())
    def delete(self, share: float, seed: int, fails: bool) -> None:
        there = np.array(sorted(self.stored.by_row), np.int64)
        rows = np.random.default_rng(seed).permutation(there)[: round(share * len(there))]
        assert self.index.remove(rows) == len(rows)
        if fails and len(rows):  # as when the database could not
            self.index.add(rows, self.stored.vectors(rows)[1])
        else:
            self.stored.delete(rows)

    @rule()
    def wait(self) -> None:
        self.index.wait()

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """Not clean: the database goes on for a while that no snapshot knows of."""
        self.index.close()
        if not clean and len(self.stored.by_row) > 100:
            gone = np.array(sorted(self.stored.by_row))[:5]
            self.stored.delete(gone)
        self._open()

    @rule(seed=SEEDS, k=st.sampled_from([1, 5, 50]), share=st.sampled_from([None, 0.05, 0.5]))
    def search(self, seed: int, k: int, share: float | None) -> None:
        if not self.stored.by_row:
            return
        there = np.array(sorted(self.stored.by_row), np.int64)
        rng = np.random.default_rng(seed)
        only = None if share is None else rng.choice(there, max(1, round(share * len(there))), replace=False)
        among = there if only is None else only
        wanted = int(rng.choice(among))
        query = self.stored.by_row[wanted]
        with self.index.reading():
            state = self.index.state
            rows, similarities = self.index.search(query, k, only)
        assert len(set(rows.tolist())) == len(rows) == min(k, len(among))
        assert set(rows.tolist()) <= set(among.tolist())
        assert rows[0] == wanted  # what is asked for by itself is always found
        own = np.array([self.stored.by_row[row] @ query for row in rows.tolist()])
        np.testing.assert_allclose(similarities, own, atol=1e-5)
        assert (np.diff(similarities) <= 0).all()
        if state != "codes" or len(among) <= LIMITS.exact_rows:
            best = sorted(-float(self.stored.by_row[row] @ query) for row in among.tolist())[:k]
            np.testing.assert_allclose(similarities, -np.array(best), atol=1e-5)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == len(self.stored.by_row)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            shutil.rmtree(self.folder)


Index.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestIndex = Index.TestCase
