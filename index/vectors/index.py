"""Vector search for a library: exact in memory while it is small, compressed codes with exact re-ranking when large.

The index is in one of three states, and a background thread builds the next one while the current one serves:

- flat: all vectors are in memory (index/vectors/flat.py) and every search compares all of them.
- codes: codes of about D / 4 bytes a vector are in memory (index/vectors/ivf_rabitq.py) and select candidates, whose
  vectors are read and compared exactly: from a copy (index/vectors/copies.py), or until it has them from the database.
  Similarities are always exact; a clip is missed only if its code is not among the candidates.
- stored: nothing is in memory yet and every search reads all vectors from the database. Exact but slow; lasts until
  codes are built after a start without a snapshot.

`_live` holds the rows that searches may return, in every state. Codes of removed rows stay until the next build.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from index.vectors import snapshot
from index.vectors.copies import VectorCopies
from index.vectors.flat import FaissIndex, ReadWriteLock
from index.vectors.ivf_rabitq import (
    MIN_VECTORS,
    BuildCancelled,
    Codes,
    HelperThread,
    check_gpu,
    sample_size,
    top_k,
    usable_cores,
)
from index.vectors.row_set import RowSet
from index.vectors.snapshot import Snapshot, SnapshotRefused

PAGE_SIZE = 4096  # vectors read from the database at a time

_log = logging.getLogger(__name__)

_FLAT_BYTES = 100_000_000  # of vectors that one core compares with a query in about 10 ms
_FIRST_CANDIDATES = 40  # compared unconditionally, in addition to 2 k
_MAX_SWAP_ROWS = 256  # rows that a swap may add while searches wait
_RETRY_S = 60.0  # after a failed build


class StoredVectors(Protocol):
    """Committed vectors (D,) by row. A row's vector never changes and row numbers are never reused."""

    def count(self) -> int:
        """Returns the number of rows."""

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all rows (N,) int64, ascending, and for each a number (N,) uint64 that identifies its clip."""

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns those of the rows (N,) that exist: rows (M,) int64 in any order and vectors (M, D) float32."""

    def pages(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields everything in row order: rows (N,) int64 and vectors (N, D) float32."""


@dataclass(frozen=True)
class Limits:
    """Thresholds between the search strategies."""

    flat_rows: int  # up to this many vectors are all held in memory
    exact_rows: int = 2000  # up to this many rows that pass a filter are all compared exactly
    spare: int = 300  # candidates in addition to 2 k
    doubt: float = 4.0  # standard deviations by which a candidate's estimate may be off
    drift: float = 0.2  # share of rows added or removed that triggers a new build

    def __post_init__(self) -> None:
        if self.flat_rows < MIN_VECTORS:
            raise ValueError(f"flat_rows must be at least {MIN_VECTORS}, not {self.flat_rows}")

    @classmethod
    def of(cls, dim: int) -> Limits:
        """Returns the measured limits: flat as long as a search takes about 10 ms."""
        return cls(flat_rows=max(MIN_VECTORS, _FLAT_BYTES // (4 * dim)))


class VectorIndex:
    """Vectors (D,) by row with search by inner product. Call `fill` once before use, and `close`.

    Call `search` inside `reading()`, as with FaissIndex. Rows must be committed in `stored` before `add` and be
    there still when `remove` is called, because vectors that are not in memory are read from there.
    """

    def __init__(
        self,
        dim: int,
        stored: StoredVectors,
        *,
        stamp: str = "",
        folder: Path | None = None,
        limits: Limits | None = None,
        gpu: bool = False,
    ) -> None:
        """Creates an empty index.

        stamp: the checkpoint that made the vectors. folder: where snapshots and the copies of vectors are written; None
        writes none.
        gpu: cluster vectors on a GPU; searches stay on the CPU. Raises GpuMissing if FAISS has no GPU.
        """
        if gpu:
            check_gpu()
        self.dim = dim
        self.limits = limits or Limits.of(dim)
        self._stored = stored
        self._stamp = stamp
        self._folder = folder
        self._gpu = gpu
        self._lock = ReadWriteLock()
        self._helper = HelperThread()
        self._live = RowSet()
        self._flat: FaissIndex | None = FaissIndex(dim)
        self._codes: Codes | None = None
        self._copies: VectorCopies | None = None  # of the codes' vectors
        self._copied = True  # whether nothing but what `add` adds is missing there
        self._builder: threading.Thread | None = None
        self._closing = False
        self._retry_at = 0.0
        self._saved: tuple[int, int] | None = None  # coded rows and live rows at the last snapshot

    def __len__(self) -> int:
        with self._lock.read():
            return len(self._live)

    @property
    def state(self) -> str:
        """The current state: flat, codes or stored."""
        return "flat" if self._flat is not None else "codes" if self._codes is not None else "stored"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Blocks additions, removals and swaps for the block."""
        with self._lock.read():
            yield

    def fill(self) -> list[str]:
        """Loads the stored vectors. Returns a message for each finding: a snapshot refused, clips without a vector."""
        with self._lock.write():
            count = self._stored.count()
            if count <= self.limits.flat_rows:
                assert self._flat is not None
                for rows, vectors in self._stored.pages():
                    self._flat.add(rows, vectors)
                    self._live.add(rows)
                return _without_vector(count - len(self._live))
            self._flat = None
            rows, keys = self._stored.keys()
            self._live = RowSet(rows)
            report = []
            try:
                self._codes = self._from_snapshot(rows, keys)
                self._copied = self._codes is None
                report = _without_vector(len(rows) - len(self._live))
            except SnapshotRefused as reason:
                report = [f"rebuilding the search index: {reason}"]
            self._build_if_needed()
            return report

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Adds rows (N,) int64 that are not in the index yet, with vectors (N, D) float32."""
        rows = np.asarray(rows, dtype=np.int64)
        with self._lock.write():
            if self._flat is not None:
                self._flat.add(rows, vectors)
            elif self._codes is not None:
                self._codes.add(rows, vectors)
                if self._copies is not None:
                    self._copies.add(rows, vectors)
            self._live.add(rows)
            self._build_if_needed()

    def remove(self, rows: np.ndarray) -> int:
        """Removes rows (N,) int64 and returns how many of them were in the index."""
        rows = np.asarray(rows, dtype=np.int64)
        with self._lock.write():
            if self._flat is not None:
                self._flat.remove(rows)
            removed = self._live.remove(rows)
            self._build_if_needed()
            return removed

    def search(self, vector: np.ndarray, k: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best k rows for `vector` (D,): rows (≤ k,) int64 and similarities (≤ k,) float32, best first.

        `only` (M,) int64 restricts the search to those rows before ranking. Similarities are inner products of full
        vectors; equal ones are in row order. In the state codes a row can be missed, unless `only` has at most
        `limits.exact_rows` rows. Call inside `reading()`.
        """
        if self._flat is not None:
            with self._flat.reading():
                return self._flat.search(vector, k, only)
        vector = np.ascontiguousarray(vector, dtype=np.float32)
        allowed = self._live
        if only is not None:
            allowed = self._live.among(only)
            only = allowed.rows()
        k = min(k, len(allowed))
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        count = self.limits.spare + 2 * k
        if only is not None and len(only) <= max(self.limits.exact_rows, count):
            return top_k(vector, k, self._vectors(only))
        if self._codes is None or len(allowed) <= count:
            return top_k(vector, k, self._all(allowed))
        return self._rerank(vector, k, *self._codes.candidates(vector, count, allowed, self._helper))

    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> dict[int, float]:
        """Returns the similarities of the existing rows (N,) to `vector` (D,), by row; inside `reading()` or not."""
        found, similarities = top_k(vector, len(rows), self._vectors(rows))
        return dict(zip(found.tolist(), similarities.tolist(), strict=True))

    def _rerank(
        self, vector: np.ndarray, k: int, rows: np.ndarray, estimates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best k candidates by their full vectors, reading only those that can make the top k.

        The error of the estimates is measured on the first candidates; candidates whose estimate is too far below
        the k-th best similarity are not read.
        """
        first = _FIRST_CANDIDATES + 2 * k
        found, similarities = top_k(vector, len(rows), self._vectors(rows[:first]))
        if len(found) < k or len(rows) <= first:
            return found[:k], similarities[:k]
        order = np.argsort(rows[:first])
        known = order[np.searchsorted(rows[:first], found, sorter=order)]
        errors = similarities - estimates[known]
        bound = estimates[first:] + errors.mean() + self.limits.doubt * errors.std()
        more, their = top_k(vector, k, self._vectors(rows[first:][bound >= similarities[k - 1]]))
        rows, similarities = np.concatenate([found, more]), np.concatenate([similarities, their])
        order = np.lexsort((rows, -similarities))[:k]
        return rows[order], similarities[order]

    def check(self) -> None:
        """Raises what a search would raise, without reading the whole library."""
        with self.reading():
            if self.state == "stored":
                self._stored.vectors(np.zeros(1, np.int64))
            else:
                self.search(np.zeros(self.dim, np.float32), 1)

    def close(self) -> None:
        """Stops the background build and writes a snapshot for the next start. Idempotent."""
        with self._lock.write():
            self._closing = True
            builder = self._builder
        if builder is not None:
            builder.join()
        with self._lock.write():  # waits for running searches
            codes, self._codes = self._codes, None
            self._replace_copies(None)
        self._helper.close()
        if codes is not None and self._has_drifted(codes, 0.01):
            self._save(codes)

    def wait(self) -> None:
        """Blocks until no background build is running."""
        while True:
            with self._lock.read():  # a builder is registered and started under the write lock
                builder = self._builder
            if builder is None:
                return
            builder.join()

    # Whole vectors

    def _vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the vectors of rows, those that are copied first."""
        copies = self._copies
        if copies is not None:
            found, vectors = copies.read(rows)
            if len(found):
                yield found, vectors
            rows = rows[~np.isin(rows, found)] if len(found) < len(rows) else rows[:0]
        for first in range(0, len(rows), PAGE_SIZE):
            yield self._stored.vectors(rows[first : first + PAGE_SIZE])

    def _all(self, allowed: RowSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the stored rows that are in `allowed`: not those being added or deleted at this moment."""
        for rows, vectors in self._stored.pages():
            mask = allowed.has(rows)
            yield rows[mask], vectors[mask]

    # Background builds

    def _wanted_build(self) -> str | None:
        """Returns what to build: the index of a state, or the copies; None if the current ones are good enough."""
        count = len(self._live)
        if self._flat is not None:
            return "codes" if count > self.limits.flat_rows else None
        if count <= self.limits.flat_rows // 2:  # half, so that the index does not alternate around the limit
            return "flat"
        if self._codes is None:
            return "codes"
        grown = len(self._codes) - self._codes.trained_for
        gone = len(self._codes) - count
        if max(grown, gone) > self.limits.drift * len(self._codes):
            return "codes"
        return None if self._copied else "copies"

    def _build_if_needed(self) -> None:
        """Starts a build if one is needed and none runs. Call with the write lock held."""
        if self._builder is not None or self._closing or time.monotonic() < self._retry_at:
            return
        if target := self._wanted_build():
            self._builder = threading.Thread(target=self._build, args=(target,), name="index-builder", daemon=True)
            self._builder.start()

    def _build(self, target: str) -> None:
        try:
            _leave_one_core_free()
            if target == "flat":
                self._build_flat()
            elif target == "codes":
                self._build_codes()
            else:
                self._build_copies()
        except BuildCancelled:
            pass
        except Exception:
            _log.exception("building the search index failed; the current one stays in use")
            self._retry_at = time.monotonic() + _RETRY_S
        finally:
            with self._lock.write():
                self._builder = None
                self._build_if_needed()

    def _is_open(self) -> bool:
        return not self._closing

    def _build_codes(self) -> None:
        began = time.monotonic()
        with self._lock.read():
            rows = self._live.rows()
        total = len(rows)
        if total < MIN_VECTORS:
            return
        _log.info("building the search index of %d vectors", total)
        chosen = np.random.default_rng(0).choice(rows, sample_size(total), replace=False)
        sample = np.concatenate([vectors for _, vectors in self._vectors(np.sort(chosen))])
        codes = Codes.train(sample, total, self._is_open, self._gpu)
        del sample
        copies = self._new_copies()

        def add(found: np.ndarray, vectors: np.ndarray) -> None:
            codes.add(found, vectors)
            if copies is not None:
                copies.add(found, vectors)

        try:
            for found, vectors in self._stored.pages():
                if not self._is_open():
                    raise BuildCancelled
                add(found, vectors)
            self._save(codes)
            self._swap_in(codes.rows, add, None, codes, copies)
        except BaseException:
            if copies is not None:
                copies.close()
            raise
        _log.info("built the search index of %d vectors in %.1f s", total, time.monotonic() - began)

    def _build_copies(self) -> None:
        """Copies the vectors of codes that a snapshot had. Meanwhile searches use what is copied."""
        with self._lock.write():
            copies = self._new_copies()
            self._replace_copies(copies)
        if copies is not None:
            for found, vectors in self._stored.pages():
                if not self._is_open():
                    raise BuildCancelled
                copies.add(found, vectors)
        self._copied = True

    def _new_copies(self) -> VectorCopies | None:
        return None if self._folder is None else VectorCopies(self.dim, self._folder)

    def _replace_copies(self, copies: VectorCopies | None) -> None:
        """Call with the write lock held."""
        old, self._copies = self._copies, copies
        if old is not None:
            old.close()

    def _build_flat(self) -> None:
        flat, rows = FaissIndex(self.dim), RowSet()

        def add(found: np.ndarray, vectors: np.ndarray) -> None:
            flat.add(found, vectors)
            rows.add(found)

        self._swap_in(rows, add, flat, None, None)
        if self._folder is not None:
            snapshot.remove(self._folder)
            self._saved = None

    def _swap_in(
        self,
        rows: RowSet,
        add: Callable[[np.ndarray, np.ndarray], None],
        flat: FaissIndex | None,
        codes: Codes | None,
        copies: VectorCopies | None,
    ) -> None:
        """Replaces the current index by a new one that has `rows`, after adding what it lacks.

        Most rows are added while searches run; the last few are added while they wait.
        """
        before = None
        while True:
            with self._lock.read():
                missing = self._live.minus(rows)
            if len(missing) <= _MAX_SWAP_ROWS or (before is not None and len(missing) >= before):
                break
            before = len(missing)
            for found, vectors in self._vectors(missing):
                if not self._is_open():
                    raise BuildCancelled
                add(found, vectors)
        with self._lock.write():
            for found, vectors in self._vectors(self._live.minus(rows)):
                add(found, vectors)
            for finding in _without_vector(self._live.remove(self._live.minus(rows))):
                _log.warning("%s", finding)
            # Set the new index before clearing the old one: `state` is read without the lock.
            if flat is not None:
                flat.remove(rows.minus(self._live))
                self._flat, self._codes = flat, None
            else:
                self._codes, self._flat = codes, None
            self._replace_copies(copies)
            self._copied = True

    # Snapshots

    def _from_snapshot(self, rows: np.ndarray, keys: np.ndarray) -> Codes | None:
        """Loads the codes from the snapshot and adds missing rows; None without a snapshot. Raises SnapshotRefused.

        rows, keys: as returned by StoredVectors.keys.
        """
        if self._folder is None:
            return None
        found = snapshot.read(self._folder, self._stamp, self.dim)
        if found is None:
            return None
        _, ours, theirs = np.intersect1d(rows, found.rows, assume_unique=True, return_indices=True)
        if not np.array_equal(keys[ours], found.keys[theirs]):
            raise SnapshotRefused("the snapshot belongs to another library's clips")
        missing = self._live.minus(found.codes.rows)
        gone = len(found.rows) - len(ours)
        if max(len(missing), gone) > self.limits.drift * max(len(found.rows), 1):
            raise SnapshotRefused(f"{len(missing)} clips were added and {gone} deleted since the snapshot was made")
        for some, vectors in self._vectors(missing):
            found.codes.add(some, vectors)
        self._live.remove(self._live.minus(found.codes.rows))
        self._saved = (len(found.rows), len(found.rows) - gone)
        return found.codes

    def _has_drifted(self, codes: Codes, share: float) -> bool:
        """Whether more than this share of the rows was added or removed since the last snapshot."""
        if self._saved is None:
            return True
        coded, live = self._saved
        added, removed = len(codes) - coded, len(codes) - len(self._live) - (coded - live)
        return max(added, removed) > share * len(codes)

    def _save(self, codes: Codes) -> None:
        """Writes a snapshot. If that fails, only the next start is slower."""
        if self._folder is None:
            return
        all_rows, all_keys = self._stored.keys()
        rows = codes.rows.rows()
        keys = np.zeros(len(rows), np.uint64)
        _, ours, theirs = np.intersect1d(rows, all_rows, assume_unique=True, return_indices=True)
        keys[ours] = all_keys[theirs]
        try:
            snapshot.write(self._folder, Snapshot(codes, rows, keys), self._stamp)
            self._saved = (len(rows), len(ours))
        except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError
            _log.warning("could not write a snapshot of the search index: %s", error)


def _without_vector(count: int) -> list[str]:
    return [f"{count} clips have no vector, so searches do not find them"] if count else []


def _leave_one_core_free() -> None:
    """Limits FAISS to all cores but one in this thread; the OpenMP setting belongs to the calling thread."""
    import faiss

    faiss.omp_set_num_threads(max(1, usable_cores() - 1))
