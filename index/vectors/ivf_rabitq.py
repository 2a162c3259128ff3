"""Short codes of many vectors: which rows are worth comparing exactly, found by reading a small share of the codes.

An inverted file of RaBitQ codes (Gao and others, 2024 and 2025; FAISS IndexIVFRaBitQ). Vectors are turned by a random
rotation, which spreads what they say over all dimensions alike, and grouped by their nearest of about 2 √N centroids.
Of what is left after the centroid two bits are kept for every dimension, and a few numbers for every vector. A search
reads the first bits of the groups that its neighbours are likely to be in, 1 code of 12, and the second bits where the
first say that it may matter. Which of them are the best is for the caller to find out from whole vectors: see
index/vectors/index.py. Why these codes and not others: docs/benchmarks.md.

Knows no lock and no database; a vector, once in, stays until all codes are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index.records import GpuMissing
from index.vectors.row_set import RowSet
from index.vectors.spare_core import SpareCore

FEWEST = 32  # vectors to learn codes from
SAMPLE = 32  # vectors that a centroid is learnt from, on average
READ = 1 / 12  # share of the codes that a search reads
_LEAST_READ = 8  # groups, however large
_REACH = 2.0  # standard deviations that a group's members are taken to come nearer to a query than their centroid
_QUERY_BITS = 4  # of each dimension of a query, against the first bits
_PASSES = 10  # of k-means
_MANY = 256  # vectors worth more than one thread
_ADDED = 4096  # vectors encoded in one go, between two looks at whether to go on
_PARTS = 4  # of a search, for two threads to share
_WORTH_SHARING = 20_000  # codes; below, a second thread costs more than it saves


class Stopped(Exception):
    """The building of codes was called off."""


class Codes:
    """Codes of vectors (D,) by row. Make them with `learn` and `add`; `rows` says which are in."""

    def __init__(self, index: Any, rows: RowSet, learnt_from: int, reach: np.ndarray) -> None:
        """index: FAISS', with the rotation before it. learnt_from: how many vectors the library had then.

        reach (groups,): see `_reach`.
        """
        faiss = _faiss()
        self._index = index
        self._held: tuple[Any, ...] = ()  # what FAISS only points to, and Python would free
        self._rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        self._groups = faiss.downcast_index(index.index)
        self._centroids = faiss.downcast_index(self._groups.quantizer)
        self._sizes = np.array([self._groups.invlists.list_size(n) for n in range(self._groups.nlist)])
        self.rows = rows
        self.learnt_from = learnt_from
        self.reach = reach

    @classmethod
    def learn(
        cls, sample: np.ndarray, total: int, go_on: Callable[[], bool] = lambda: True, gpu: bool = False
    ) -> Codes:
        """Empty codes for a library of `total` vectors, of which `sample` (N, D) is a fair share; N ≥ FEWEST.

        gpu: group on a GPU; `check_gpu` says whether there is one. Raises Stopped when `go_on` says no; it is asked
        every few seconds.
        """
        faiss = _faiss()
        if len(sample) < FEWEST:
            raise ValueError(f"codes are learnt from at least {FEWEST} vectors, not {len(sample)}")
        dim = sample.shape[1]
        rotation = faiss.RandomRotationMatrix(dim, dim)
        rotation.init(0)
        sample = rotation.apply(np.ascontiguousarray(sample, dtype=np.float32))
        groups = groups_for(total, len(sample))
        centroids: Any = None
        for _ in range(_PASSES):  # one at a time: a pass takes seconds, all of them could not be called off
            if not go_on():
                raise Stopped
            pass_ = faiss.Kmeans(dim, groups, niter=1, spherical=True, seed=0, min_points_per_centroid=1, gpu=gpu)
            pass_.train(sample, init_centroids=centroids)
            centroids = pass_.centroids
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(centroids)
        if not go_on():
            raise Stopped
        index = faiss.IndexIVFRaBitQ(quantizer, dim, groups, faiss.METRIC_INNER_PRODUCT, True, bits_for(dim))
        index.train(sample)
        _, nearest = quantizer.search(sample, 1)
        whole = faiss.IndexPreTransform(rotation, index)
        codes = cls(whole, RowSet(), total, _reach(sample, centroids, nearest[:, 0]))
        codes._held = (rotation, quantizer, index)
        return codes

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Rows (N,) int64 with vectors (N, D); rows that are in already stay as they are."""
        if len(rows) < _MANY:
            _faiss().omp_set_num_threads(1)  # of this thread: see FaissIndex.search
        new = ~self.rows.has(rows)
        rows, vectors = rows[new], vectors[new]
        for first in range(0, len(rows), _ADDED):
            part = slice(first, first + _ADDED)
            turned = self._rotation.apply(np.ascontiguousarray(vectors[part], dtype=np.float32))
            ids = np.ascontiguousarray(rows[part], dtype=np.int64)
            nearest = np.ascontiguousarray(self._centroids.search(turned, 1)[1][:, 0])
            pointer = _faiss().swig_ptr
            self._groups.add_core(len(ids), pointer(turned), pointer(ids), pointer(nearest))
            self._index.ntotal = self._groups.ntotal
            np.add.at(self._sizes, nearest, 1)
            self.rows.add(ids)

    def candidates(
        self, vector: np.ndarray, count: int, allowed: RowSet, helper: SpareCore | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """About `count` of the `allowed` among which the best for `vector` (D,) are.

        Rows (≤ count,) int64 and what their codes make of their inner products (≤ count,) float32, best first: off by
        a few thousandths, all of one answer by about the same.

        The fewer of the codes are allowed, the farther away the best are and the more groups are read, growing with the
        square root; all of them when that many are not found else.
        helper: who may do a part of it.
        """
        bitmap = allowed.packed()
        if not len(bitmap):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        query, nearness, order = self._likely(vector)
        wanted = READ * len(self) * (len(self) / max(1, len(allowed))) ** 0.5
        groups = max(_LEAST_READ, 1 + int(np.searchsorted(np.cumsum(self._sizes[order]), wanted)))
        rows, estimates = self._read(query, nearness, order[:groups], count, bitmap, helper)
        if len(rows) < min(count, len(allowed)) and groups < len(order):
            rows, estimates = self._read(query, nearness, order, count, bitmap, helper)
        return rows, estimates

    def _likely(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The query (1, D) as it is compared, each centroid's inner product with it (groups,), and the groups' numbers
        (groups,), those first in which members may come nearest to it.
        """
        faiss = _faiss()
        faiss.omp_set_num_threads(1)
        query = self._rotation.apply(np.ascontiguousarray(vector, dtype=np.float32)[None])
        nearness = np.empty(len(self._sizes), np.float32)
        # Not NumPy's product: its threads wait for each other, which takes milliseconds when the cores are busy.
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(nearness), faiss.swig_ptr(query), self._centroids.get_xb(), self.dim, len(nearness)
        )
        return query, nearness, np.argsort(-(nearness + np.linalg.norm(vector) * self.reach))

    def _read(
        self,
        query: np.ndarray,
        nearness: np.ndarray,
        groups: np.ndarray,
        count: int,
        bitmap: np.ndarray,
        helper: SpareCore | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `count` by the codes of the groups, by one thread or by two."""
        faiss = _faiss()
        pointer = faiss.swig_ptr

        def read(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            faiss.omp_set_num_threads(1)  # of this thread
            numbers, distances = np.ascontiguousarray(some), np.ascontiguousarray(nearness[some])
            rows, estimates = np.empty(count, np.int64), np.empty(count, np.float32)
            parameters = faiss.IVFRaBitQSearchParameters(
                nprobe=len(some), qb=_QUERY_BITS, sel=faiss.IDSelectorBitmap(bitmap)
            )
            self._groups.search_preassigned_c(  # the wrapper without _c takes no parameters
                1,
                pointer(query),
                count,
                pointer(numbers),
                pointer(distances),
                pointer(estimates),
                pointer(rows),
                False,
                parameters,
                None,
            )
            return rows, estimates

        shared = helper is not None and helper.helps and self._sizes[groups].sum() > _WORTH_SHARING
        parts = [partial(read, groups[n::_PARTS]) for n in range(_PARTS)] if shared else [partial(read, groups)]
        found = helper.run(parts) if helper is not None else [part() for part in parts]
        rows, estimates = (np.concatenate(x) for x in zip(*found, strict=True))
        order = np.argsort(-estimates, kind="stable")
        order = order[rows[order] >= 0][:count]
        return rows[order], estimates[order]

    def save(self, path: Path) -> None:
        """Writes FAISS' file; which rows are in, and the reach of the groups, is not part of it."""
        faiss = _faiss()
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, rows: np.ndarray, learnt_from: int, reach: np.ndarray) -> Codes:
        """What `save` wrote, of codes that have `rows` (N,). Raises ValueError if it is something else."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path.name} is no index that FAISS can read: {error}") from error
        ours = isinstance(index, faiss.IndexPreTransform) and index.chain.size() == 1
        groups = faiss.downcast_index(index.index) if ours else None
        if not isinstance(groups, faiss.IndexIVFRaBitQ) or index.ntotal != len(rows):
            raise ValueError(f"{path.name} has other codes than its manifest says")
        if reach.shape != (groups.nlist,) or not np.isfinite(reach).all():
            raise ValueError(f"{path.name} has {groups.nlist} groups, and its manifest knows {reach.shape}")
        return cls(index, RowSet(rows), learnt_from, reach)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._groups.d)


def _faiss() -> Any:
    import faiss  # here: importing it takes a while, and most commands never search

    return faiss


def _reach(sample: np.ndarray, centroids: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """How much nearer than its centroid the members of a group may come to a query of unit length: (groups,) float32.

    sample (N, D), centroids (groups, D), and of each vector the number of its centroid (N,). Wide groups reach farther
    than narrow ones, so of two that are as near the wider one is read first.
    """
    wide = np.bincount(nearest, minlength=len(centroids)).astype(np.float64)
    some = sample[:: max(1, len(sample) // 4096)]
    left = some - centroids[nearest[:: max(1, len(sample) // 4096)]]
    lengths = np.linalg.norm(some[::8], axis=1)
    typical = float((left @ (some[::8] / np.where(lengths > 0, lengths, 1)[:, None]).T).std())
    squares = np.zeros(len(centroids))
    for first in range(0, len(sample), _ADDED):
        part = slice(first, first + _ADDED)
        np.add.at(squares, nearest[part], ((sample[part] - centroids[nearest[part]]) ** 2).sum(axis=1))
    mean = squares.sum() / len(sample)
    if mean == 0:
        return np.zeros(len(centroids), np.float32)
    spread = (squares + 4 * mean) / (wide + 4)  # of few members little is known
    return np.asarray(_REACH * typical * np.sqrt(spread / mean), dtype=np.float32)


def bits_for(dim: int) -> int:
    """Bits of a code for each dimension: the error of an estimate falls with their number and with √dim."""
    return 2 if dim >= 256 else 4


def groups_for(total: int, sample: int) -> int:
    """How many groups: the power of two below 2.8 √total, so 2048 for a million; at most a quarter of the sample."""
    wanted = min(2.8 * total**0.5, sample / 4)
    return max(1, 1 << int(np.log2(max(1.0, wanted))))


def sample_size(total: int) -> int:
    """How many vectors to give to `learn`."""
    return min(total, max(4096, SAMPLE * groups_for(total, total)))


def check_gpu() -> None:
    """Raises GpuMissing unless this FAISS was built for GPUs and sees one."""
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise GpuMissing(f"FAISS {faiss.__version__} was built without GPUs: install faiss-gpu instead of faiss-cpu")
    if faiss.get_num_gpus() < 1:
        raise GpuMissing(f"FAISS {faiss.__version__} was built for GPUs and sees none")


def best(
    vector: np.ndarray, count: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Exact: of all rows (N,) and vectors (N, D) in the batches the `count` with the largest inner product.

    Rows (≤ count,) int64 and similarities (≤ count,) float32, best first, equals in row order.
    """
    rows, similarities = np.empty(0, np.int64), np.empty(0, np.float32)
    for more, vectors in batches:
        rows = np.concatenate([rows, more])
        # Not `@`: see Codes._likely. The sum of a row is the same wherever it stands, so equals stay equal.
        similarities = np.concatenate([similarities, np.einsum("nd,d->n", vectors, vector)])
        order = np.lexsort((rows, -similarities))[:count]
        rows, similarities = rows[order], similarities[order]
    return rows, similarities
