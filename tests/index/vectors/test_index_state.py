"""Stateful test of the vector index: any sequence of additions, removals, builds and restarts keeps searches correct.

Background builds pause at fixed points until a rule continues them, so that a run depends on its steps alone and not on
how fast the machine is.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index.vectors.index import Limits, VectorIndex
from tests.support.stored_vectors import FakeStoredVectors

DIM = 8
LIMITS = Limits(flat_rows=60, exact_rows=10, spare=20)
SEEDS = st.integers(0, 10**6)


class SteppedIndex(VectorIndex):
    """A vector index whose background builds pause before they begin and before they swap, until `step` or `close`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._paused = threading.Event()
        self._permits = threading.Semaphore(0)

    def _pause(self) -> None:
        self._paused.set()
        while not self._closing and not self._permits.acquire(timeout=0.01):
            pass

    def _build(self, target: str) -> None:
        self._pause()
        super()._build(target)

    def _swap_in(self, *arguments: Any) -> None:
        self._pause()
        super()._swap_in(*arguments)

    @property
    def building(self) -> bool:
        return self._builder is not None

    def step(self) -> None:
        """Runs the current build to its next pause or its end."""
        builder = self._builder
        if builder is None:
            return
        self._paused.wait()
        self._paused.clear()
        self._permits.release()
        while builder.is_alive() and not self._paused.wait(0.001):
            pass


class Index(RuleBasedStateMachine):
    """The index and the stored vectors that it caches."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stored = FakeStoredVectors(DIM, page=16)
        self.next_row = 1
        assert self._open() == []

    def _open(self) -> list[str]:
        self.index = SteppedIndex(DIM, self.stored, stamp="a", folder=self.folder / "index", limits=LIMITS)
        return self.index.fill()

    @rule(count=st.sampled_from([1, 5, 70]), seed=SEEDS)
    def add(self, count: int, seed: int) -> None:
        # seeded with the row too, so that no two vectors are equal and the nearest one is unique
        vectors = np.random.default_rng([seed, self.next_row]).standard_normal((count, DIM)).astype(np.float32)
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
        if fails and len(rows):  # the database could not delete them
            self.index.add(rows, self.stored.vectors(rows)[1])
        else:
            self.stored.delete(rows)

    @rule()
    def step(self) -> None:
        self.index.step()

    @rule()
    def finish_builds(self) -> None:
        while self.index.building:
            self.index.step()

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """Without `clean` the database changes after the last snapshot, as in a crash.

        The snapshot must be used unless a build was interrupted or the limit on drift is near.
        """
        interrupted, codes = self.index.building, self.index._codes
        self.index.close()
        if not clean and len(self.stored.by_row) > 100:
            self.stored.delete(np.array(sorted(self.stored.by_row))[:5])
        gone = 0 if codes is None else len(codes) - len(self.stored.by_row)
        drifted = codes is not None and gone > 0.9 * LIMITS.drift * len(codes)
        report = self._open()
        assert report == [] or interrupted or drifted

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
        assert rows[0] == wanted  # a vector is its own nearest neighbour
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
