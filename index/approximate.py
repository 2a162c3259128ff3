"""Short codes of many vectors: which rows are worth comparing exactly, found by reading a small share of the codes.

An inverted file of 4-bit product codes (FAISS IndexIVFPQFastScan): vectors are grouped by their nearest of about
2 √N centroids, and what is left after the centroid is kept as 4 bits for every dimension, D / 2 bytes a vector.
A search reads the groups nearest to the query, 1 of 12. Which of them are the best is for the caller to find out from
whole vectors: see index/vector_index.py. Why these codes and not others: docs/library.md.

Knows no lock, no database and no thread; a vector, once in, stays until all codes are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from index.rows import RowSet

FEWEST = 32  # vectors to learn codes from
SAMPLE = 32  # vectors that a centroid is learnt from, on average
PROBED = 1 / 12  # share of the groups that a search reads
_PASSES = 10  # of k-means
_ENOUGH = 4096  # vectors to learn the 16 values of a dimension from
_MANY = 256  # vectors worth more than one thread
_ADDED = 4096  # vectors encoded in one go, between two looks at whether to go on


class Stopped(Exception):
    """The building of codes was called off."""


class Codes:
    """Codes of vectors (D,) by row. Make them with `learn` and `add`; `rows` says which are in."""

    def __init__(self, index: Any, rows: RowSet, learnt_from: int) -> None:
        """index: FAISS'. learnt_from: how many vectors the library had then."""
        self._index = index
        self.rows = rows
        self.learnt_from = learnt_from

    @classmethod
    def learn(
        cls, sample: np.ndarray, total: int, go_on: Callable[[], bool] = lambda: True, gpu: bool = False
    ) -> Codes:
        """Empty codes for a library of `total` vectors, of which `sample` (N, D) is a fair share; N ≥ FEWEST.

        gpu: group on a GPU if FAISS has one. Raises Stopped when `go_on` says no; it is asked every few seconds.
        """
        faiss = _faiss()
        sample = np.ascontiguousarray(sample, dtype=np.float32)
        if len(sample) < FEWEST:
            raise ValueError(f"codes are learnt from at least {FEWEST} vectors, not {len(sample)}")
        dim = sample.shape[1]
        groups = groups_for(total, len(sample))
        centroids = None
        for _ in range(_PASSES):  # one at a time: a pass takes seconds, all of them could not be called off
            if not go_on():
                raise Stopped
            pass_ = faiss.Kmeans(
                dim, groups, niter=1, spherical=True, seed=0, min_points_per_centroid=1, gpu=gpu and has_gpu()
            )
            pass_.train(sample, init_centroids=centroids)
            centroids = pass_.centroids
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(centroids)
        index = faiss.IndexIVFPQFastScan(quantizer, dim, groups, dim, 4, faiss.METRIC_INNER_PRODUCT)
        index.by_residual = True
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = 8, 1
        if not go_on():
            raise Stopped
        index.train(np.ascontiguousarray(sample[:: max(1, len(sample) // _ENOUGH)]))
        return cls(index, RowSet(), total)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Rows (N,) int64 with vectors (N, D); rows that are in already stay as they are."""
        if len(rows) < _MANY:
            _faiss().omp_set_num_threads(1)  # as in `candidates`
        new = ~self.rows.has(rows)
        rows, vectors = rows[new], vectors[new]
        for first in range(0, len(rows), _ADDED):
            part = slice(first, first + _ADDED)
            self._index.add_with_ids(
                np.ascontiguousarray(vectors[part], dtype=np.float32), np.ascontiguousarray(rows[part], dtype=np.int64)
            )
            self.rows.add(rows[part])

    def candidates(self, vector: np.ndarray, count: int, allowed: RowSet) -> tuple[np.ndarray, np.ndarray]:
        """About `count` of the `allowed` among which the best for `vector` (D,) are.

        Rows (≤ count,) int64 and what their codes make of their inner products (≤ count,) float32, best first: off by
        a few hundredths, all of one answer by about the same.

        The fewer of the codes are allowed, the more groups are read; all of them when that many are not found else.
        """
        faiss = _faiss()
        faiss.omp_set_num_threads(1)  # of this thread: see FaissIndex.search
        groups = int(self._index.nlist)
        share = len(allowed) / max(1, len(self))
        probe = min(groups, max(8, round(groups * PROBED / max(share, 1e-9))))
        query = np.ascontiguousarray(vector, dtype=np.float32)[None]
        bitmap = allowed.packed()
        rows, estimates = np.empty(0, np.int64), np.empty(0, np.float32)
        while len(bitmap):
            parameters = faiss.SearchParametersIVF(nprobe=probe, sel=faiss.IDSelectorBitmap(bitmap))
            [estimates], [rows] = self._index.search(query, count, params=parameters)
            if (rows >= 0).sum() >= min(count, len(allowed)) or probe == groups:
                break
            probe = groups
        return rows[rows >= 0], estimates[rows >= 0]

    def save(self, path: Path) -> None:
        """Writes FAISS' file; which rows are in is not part of it."""
        faiss = _faiss()
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, rows: np.ndarray, learnt_from: int) -> Codes:
        """What `save` wrote, of codes that have `rows` (N,). Raises ValueError if it is something else."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path.name} is no index that FAISS can read: {error}") from error
        if not isinstance(index, faiss.IndexIVFPQFastScan) or index.ntotal != len(rows):
            raise ValueError(f"{path.name} has other codes than its manifest says")
        return cls(index, RowSet(rows), learnt_from)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._index.d)


def _faiss() -> Any:
    import faiss  # here: importing it takes a while, and most commands never search

    return faiss


def groups_for(total: int, sample: int) -> int:
    """How many groups: the power of two below 2.8 √total, so 2048 for a million; at most a quarter of the sample."""
    wanted = min(2.8 * total**0.5, sample / 4)
    return max(1, 1 << int(np.log2(max(1.0, wanted))))


def sample_size(total: int) -> int:
    """How many vectors to give to `learn`."""
    return min(total, max(4096, SAMPLE * groups_for(total, total)))


def has_gpu() -> bool:
    """Whether this FAISS was built with GPU support and sees one."""
    faiss = _faiss()
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def best(
    vector: np.ndarray, count: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Exact: of all rows (N,) and vectors (N, D) in the batches the `count` with the largest inner product.

    Rows (≤ count,) int64 and similarities (≤ count,) float32, best first, equals in row order.
    """
    rows, similarities = np.empty(0, np.int64), np.empty(0, np.float32)
    for more, vectors in batches:
        rows = np.concatenate([rows, more])
        similarities = np.concatenate([similarities, vectors @ vector])
        order = np.lexsort((rows, -similarities))[:count]
        rows, similarities = rows[order], similarities[order]
    return rows, similarities
