"""The search index that a library has: exact in memory while it is small, short codes and exact comparison when large.

Three states, and a thread that leads from one to the next while the old one serves:

- flat: all vectors in memory (index/vectors/flat.py), compared one by one.
- codes: about D / 4 bytes a vector in memory (index/vectors/ivf_rabitq.py) name candidates; their vectors are read from the
  database and compared exactly. So a similarity is always exact, and what can be missed is a clip whose code was not
  among the candidates.
- stored: nothing in memory yet, every search reads all vectors from the database: exact and slow, for as long as it
  takes to make codes after a start without a snapshot.

Which rows can be found is one set, `_there`, whatever the state; codes of rows that are gone stay until the codes are
made anew. Knows no clip, no metadata and no SQL.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.sqlite.stored import PAGE, Stored
from index.vectors import snapshot
from index.vectors.flat import FaissIndex, ReadWriteLock
from index.vectors.ivf_rabitq import FEWEST, Codes, Stopped, best, check_gpu, sample_size
from index.vectors.row_set import RowSet
from index.vectors.snapshot import Snapshot, SnapshotRefused
from index.vectors.spare_core import SpareCore, usable_cores

_log = logging.getLogger(__name__)

_FLAT_BYTES = 100_000_000  # of vectors that a core compares with a query in about 10 ms
_FIRST = 40  # candidates, beside twice the wanted ones, that are compared whatever is known of them
_LAST = 256  # rows that a swap may add while searches wait
_RETRY_S = 60.0  # after making an index failed


@dataclass(frozen=True)
class Limits:
    """When which way of searching is taken."""

    flat_rows: int  # up to so many vectors are all kept in memory
    exact_rows: int = 2000  # up to so many that pass a filter are all compared exactly
    spare: int = 300  # candidates beside twice the wanted ones
    doubt: float = 4.0  # standard deviations that a candidate's estimate is trusted to be off by at most
    drift: float = 0.2  # codes are made anew when such a share of the rows came or went since

    def __post_init__(self) -> None:
        if self.flat_rows < FEWEST:
            raise ValueError(f"flat_rows must be at least {FEWEST}, not {self.flat_rows}")

    @classmethod
    def of(cls, dim: int) -> Limits:
        """As measured (docs/benchmarks.md): flat as long as a search takes about 10 ms."""
        return cls(flat_rows=max(FEWEST, _FLAT_BYTES // (4 * dim)))


class VectorIndex:
    """Vectors (D,) by row, and the rows with the largest inner product; filled by `fill`, ended by `close`.

    `search` must run inside `reading()`, as in FaissIndex. A row that is added must be committed in `stored`, one that
    is removed must still be there, and a row's vector never changes: what is not in memory is read from there.
    """

    def __init__(
        self,
        dim: int,
        stored: Stored,
        *,
        stamp: str = "",
        folder: Path | None = None,
        limits: Limits | None = None,
        gpu: bool = False,
    ) -> None:
        """folder: where snapshots are kept, of vectors that the checkpoint `stamp` made; None keeps none.

        gpu: group vectors on a GPU; searches stay on the CPU. Raises GpuMissing when FAISS has none.
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
        self._helper = SpareCore()
        self._there = RowSet()
        self._flat: FaissIndex | None = FaissIndex(dim)
        self._codes: Codes | None = None
        self._builder: threading.Thread | None = None
        self._closing = False
        self._not_before = 0.0
        self._saved: tuple[int, int] | None = None  # rows with codes and rows to be found, at the last snapshot

    def __len__(self) -> int:
        with self._lock.read():
            return len(self._there)

    @property
    def state(self) -> str:
        """flat, codes or stored."""
        return "flat" if self._flat is not None else "codes" if self._codes is not None else "stored"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While inside, nothing is added, removed or exchanged."""
        with self._lock.read():
            yield

    def fill(self) -> list[str]:
        """Takes in what is stored, once, before anything else; a sentence about a snapshot that had to be refused."""
        with self._lock.write():
            if self._stored.count() <= self.limits.flat_rows:
                assert self._flat is not None
                for rows, vectors in self._stored.pages():
                    self._flat.add(rows, vectors)
                    self._there.add(rows)
                return []
            self._flat = None
            rows, keys = self._stored.keys()
            self._there = RowSet(rows)
            report = []
            try:
                self._codes = self._from_snapshot(rows, keys)
            except SnapshotRefused as reason:
                report = [f"the search index is made anew: {reason}"]
            self._build_if_needed()
            return report

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Rows (N,) int64 that are not there yet, with vectors (N, D) float32."""
        rows = np.asarray(rows, dtype=np.int64)
        with self._lock.write():
            if self._flat is not None:
                self._flat.add(rows, vectors)
            elif self._codes is not None:
                self._codes.add(rows, vectors)
            self._there.add(rows)
            self._build_if_needed()

    def remove(self, rows: np.ndarray) -> int:
        """Forgets rows (N,) int64; how many of them were there."""
        rows = np.asarray(rows, dtype=np.int64)
        with self._lock.write():
            if self._flat is not None:
                self._flat.remove(rows)
            removed = self._there.remove(rows)
            self._build_if_needed()
            return removed

    def search(self, vector: np.ndarray, k: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows for `vector` (D,): rows (≤ k,) int64 and similarities (≤ k,) float32, best first.

        With `only` (M,) int64, the best k among those rows, left out before ranking. Similarities are inner products
        of whole vectors. In the state codes a row can be missed, unless `only` leaves at most `limits.exact_rows`.
        Equal similarities come in row order. Call inside `reading()`.
        """
        if self._flat is not None:
            with self._flat.reading():
                return self._flat.search(vector, k, only)
        vector = np.ascontiguousarray(vector, dtype=np.float32)
        allowed = self._there
        if only is not None:
            allowed = self._there.among(only)
            only = allowed.rows()
        k = min(k, len(allowed))
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        count = self.limits.spare + 2 * k
        if only is not None and len(only) <= max(self.limits.exact_rows, count):
            return best(vector, k, self._vectors(only))
        if self._codes is None or len(allowed) <= count:
            return best(vector, k, self._all(allowed))
        return self._compared(vector, k, *self._codes.candidates(vector, count, allowed, self._helper))

    def _compared(
        self, vector: np.ndarray, k: int, rows: np.ndarray, estimates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k of the candidates by whole vectors, of which no more are read than can matter.

        How far estimates are off shows on the first; what is too far behind the best k of them is left unread.
        """
        first = _FIRST + 2 * k
        found, similarities = best(vector, len(rows), self._vectors(rows[:first]))
        if len(found) < k or len(rows) <= first:
            return found[:k], similarities[:k]
        order = np.argsort(rows[:first])
        known = order[np.searchsorted(rows[:first], found, sorter=order)]
        off = similarities - estimates[known]
        hopeful = estimates[first:] + off.mean() + self.limits.doubt * off.std() >= similarities[k - 1]
        more, their = best(vector, k, self._vectors(rows[first:][hopeful]))
        rows, similarities = np.concatenate([found, more]), np.concatenate([similarities, their])
        order = np.lexsort((rows, -similarities))[:k]
        return rows[order], similarities[order]

    def check(self) -> None:
        """Raises what a search would raise; does not read the whole library for it."""
        with self.reading():
            if self.state == "stored":
                self._stored.vectors(np.zeros(1, np.int64))
            else:
                self.search(np.zeros(self.dim, np.float32), 1)

    def close(self) -> None:
        """Stops what runs in the background and keeps a snapshot for the next start. Closing twice is fine."""
        with self._lock.write():
            self._closing = True
            builder = self._builder
        if builder is not None:
            builder.join()
        with self._lock.write():  # after the searches that still run
            codes, self._codes = self._codes, None
        self._helper.close()
        if codes is not None and self._has_drifted(codes, 0.01):
            self._save(codes)

    def wait(self) -> None:
        """Returns when nothing is made in the background any more."""
        while True:
            with self._lock.read():  # under it whoever is there has been started
                builder = self._builder
            if builder is None:
                return
            builder.join()

    # Vectors from the database

    def _vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(rows), PAGE):
            yield self._stored.vectors(rows[first : first + PAGE])

    def _all(self, allowed: RowSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of the database that may be found: not those being added or deleted at this moment."""
        for rows, vectors in self._stored.pages():
            mask = allowed.has(rows)
            yield rows[mask], vectors[mask]

    # Making an index in the background

    def _wanted(self) -> str | None:
        """The state that an index should be made for, None when what is there will do."""
        count = len(self._there)
        if self._flat is not None:
            return "codes" if count > self.limits.flat_rows else None
        if count <= self.limits.flat_rows // 2:  # half: not to and fro around the limit
            return "flat"
        if self._codes is None:
            return "codes"
        grown = len(self._codes) - self._codes.learnt_from
        gone = len(self._codes) - count
        return "codes" if max(grown, gone) > self.limits.drift * len(self._codes) else None

    def _build_if_needed(self) -> None:
        """Call with the lock for writing."""
        if self._builder is not None or self._closing or time.monotonic() < self._not_before:
            return
        if wanted := self._wanted():
            self._builder = threading.Thread(target=self._build, args=(wanted,), name="index-builder", daemon=True)
            self._builder.start()

    def _build(self, wanted: str) -> None:
        try:
            _leave_a_core()
            if wanted == "flat":
                self._make_flat()
            else:
                self._make_codes()
        except Stopped:
            pass
        except Exception:
            _log.exception("the search index could not be made anew; the old one serves on")
            self._not_before = time.monotonic() + _RETRY_S
        finally:
            with self._lock.write():
                self._builder = None
                self._build_if_needed()

    def _go_on(self) -> bool:
        return not self._closing

    def _make_codes(self) -> None:
        began = time.monotonic()
        with self._lock.read():
            rows = self._there.rows()
        total = len(rows)
        if total < FEWEST:
            return
        _log.info("making the search index of %d vectors", total)
        chosen = np.random.default_rng(0).choice(rows, sample_size(total), replace=False)
        sample = np.concatenate([vectors for _, vectors in self._vectors(np.sort(chosen))])
        codes = Codes.learn(sample, total, self._go_on, self._gpu)
        del sample
        for found, vectors in self._stored.pages():
            if not self._go_on():
                raise Stopped
            codes.add(found, vectors)
        self._save(codes)
        self._exchange(codes.rows, codes.add, None, codes)
        _log.info("made the search index of %d vectors in %.1f s", total, time.monotonic() - began)

    def _make_flat(self) -> None:
        flat, rows = FaissIndex(self.dim), RowSet()

        def add(found: np.ndarray, vectors: np.ndarray) -> None:
            flat.add(found, vectors)
            rows.add(found)

        self._exchange(rows, add, flat, None)
        if self._folder is not None:
            snapshot.remove(self._folder)
            self._saved = None

    def _exchange(
        self, rows: RowSet, add: Callable[[np.ndarray, np.ndarray], None], flat: FaissIndex | None, codes: Codes | None
    ) -> None:
        """Adds what came since to the new index, which has `rows`, and puts it in the place of the old one.

        Most of it is added while searches go on, and the last few while they wait.
        """
        before = None
        while True:
            with self._lock.read():
                missing = self._there.minus(rows)
            if len(missing) <= _LAST or (before is not None and len(missing) >= before):
                break
            before = len(missing)
            for found, vectors in self._vectors(missing):
                if not self._go_on():
                    raise Stopped
                add(found, vectors)
        with self._lock.write():
            for found, vectors in self._vectors(self._there.minus(rows)):
                add(found, vectors)
            self._there.remove(self._there.minus(rows))  # clips without a vector, which healing has reported
            # the new one comes before the old one goes: `state` is asked without the lock
            if flat is not None:
                flat.remove(rows.minus(self._there))
                self._flat, self._codes = flat, None
            else:
                self._codes, self._flat = codes, None

    # Snapshots

    def _from_snapshot(self, rows: np.ndarray, keys: np.ndarray) -> Codes | None:
        """The codes on the disk, with what came since; None when there are none. Raises SnapshotRefused.

        rows, keys: the library's, as Stored.keys has them.
        """
        if self._folder is None:
            return None
        found = snapshot.read(self._folder, self._stamp, self.dim)
        if found is None:
            return None
        _, ours, theirs = np.intersect1d(rows, found.rows, assume_unique=True, return_indices=True)
        if not np.array_equal(keys[ours], found.keys[theirs]):
            raise SnapshotRefused("it was made of another library's clips")
        missing = self._there.minus(found.codes.rows)
        gone = len(found.rows) - len(ours)
        if max(len(missing), gone) > self.limits.drift * max(len(found.rows), 1):
            raise SnapshotRefused(f"{len(missing)} clips came and {gone} went since it was made")
        for some, vectors in self._vectors(missing):
            found.codes.add(some, vectors)
        self._there.remove(self._there.minus(found.codes.rows))
        self._saved = (len(found.rows), len(found.rows) - gone)
        return found.codes

    def _has_drifted(self, codes: Codes, share: float) -> bool:
        """Whether so much came or went since the last snapshot."""
        if self._saved is None:
            return True
        coded, there = self._saved
        came, went = len(codes) - coded, len(codes) - len(self._there) - (coded - there)
        return max(came, went) > share * len(codes)

    def _save(self, codes: Codes) -> None:
        """Keeps a snapshot; that it cannot be written is no more than a slower start."""
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
        except (OSError, RuntimeError) as error:  # RuntimeError: FAISS' own
            _log.warning("no snapshot of the search index was kept: %s", error)


def _leave_a_core() -> None:
    """Making an index takes all cores but one, if there are several; the setting belongs to the calling thread."""
    import faiss

    faiss.omp_set_num_threads(max(1, usable_cores() - 1))
