"""Compressed codes of many vectors: selects the rows that are worth an exact comparison by reading few of the codes.

An inverted file of RaBitQ codes (Gao et al., 2024 and 2025; FAISS IndexIVFRaBitQ). Vectors are rotated at random, so
that their information spreads evenly over the dimensions, and clustered around about 2 √N centroids. The residual of
each vector is stored with two bits a dimension and a few floats. A search reads the first bits of the clusters that
probably contain the neighbours, 1 code of 12, and the second bits where the first ones suggest a close match. The
caller ranks the candidates by their full vectors: see index/vectors/index.py. docs/development/benchmarks.md compares
these codes with others.

A vector cannot be removed from the codes; the caller rebuilds them. Not thread-safe for writes.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from index.records import GpuMissing
from index.vectors.row_set import RowSet

T = TypeVar("T")

MIN_VECTORS = 32  # to train codes on
SAMPLES_PER_CENTROID = 32  # on average
READ_SHARE = 1 / 12  # of the codes, per search
_MIN_CLUSTERS_READ = 8  # whatever their size
_RADIUS_DEVIATIONS = 2.0  # how far a cluster's members are assumed to lie from their centroid towards a query
_QUERY_BITS = 4  # of each dimension of a query, compared with the first bits
_KMEANS_PASSES = 10
_PARALLEL_VECTORS = 256  # additions below this use one thread
_CHUNK = 4096  # vectors encoded between two checks for cancellation
_PARTS = 4  # of a search, shared by two threads
_MIN_SHARED_CODES = 20_000  # below, a second thread costs more than it saves


class BuildCancelled(Exception):
    """The build of an index was cancelled."""


class Codes:
    """Codes of vectors (D,) by row. Create them with `train` and `add`; `rows` holds the coded rows."""

    def __init__(self, index: Any, rows: RowSet, trained_for: int, radii: np.ndarray) -> None:
        """Wraps a FAISS IndexPreTransform of a rotation and an IndexIVFRaBitQ.

        trained_for: size of the library at training. radii (clusters,): see `_cluster_radii`.
        """
        faiss = _faiss()
        self._index = index
        self._references: tuple[Any, ...] = ()  # FAISS holds plain pointers, which Python would free
        self._rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        self._clusters = faiss.downcast_index(index.index)
        self._centroids = faiss.downcast_index(self._clusters.quantizer)
        self._sizes = np.array([self._clusters.invlists.list_size(n) for n in range(self._clusters.nlist)])
        self.rows = rows
        self.trained_for = trained_for
        self.radii = radii

    @classmethod
    def train(
        cls, sample: np.ndarray, total: int, keep_going: Callable[[], bool] = lambda: True, gpu: bool = False
    ) -> Codes:
        """Trains empty codes for a library of `total` vectors on a random `sample` (N, D), N ≥ MIN_VECTORS.

        gpu: cluster on a GPU; see `check_gpu`. `keep_going` is called every few seconds. Raises BuildCancelled once it
        returns False, ValueError for too small a sample.
        """
        faiss = _faiss()
        if len(sample) < MIN_VECTORS:
            raise ValueError(f"codes are trained on at least {MIN_VECTORS} vectors, not {len(sample)}")
        dim = sample.shape[1]
        rotation = faiss.RandomRotationMatrix(dim, dim)
        rotation.init(0)
        sample = rotation.apply(np.ascontiguousarray(sample, dtype=np.float32))
        clusters = cluster_count(total, len(sample))
        centroids: Any = None
        for _ in range(_KMEANS_PASSES):  # one pass at a time, so that the build can be cancelled between them
            if not keep_going():
                raise BuildCancelled
            kmeans = faiss.Kmeans(dim, clusters, niter=1, spherical=True, seed=0, min_points_per_centroid=1, gpu=gpu)
            kmeans.train(sample, init_centroids=centroids)
            centroids = kmeans.centroids
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(centroids)
        if not keep_going():
            raise BuildCancelled
        index = faiss.IndexIVFRaBitQ(quantizer, dim, clusters, faiss.METRIC_INNER_PRODUCT, True, code_bits(dim))
        index.train(sample)
        _, nearest = quantizer.search(sample, 1)
        transformed = faiss.IndexPreTransform(rotation, index)
        codes = cls(transformed, RowSet(), total, _cluster_radii(sample, centroids, nearest[:, 0]))
        codes._references = (rotation, quantizer, index)
        return codes

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Adds rows (N,) int64 with vectors (N, D). Rows that are coded already keep their codes."""
        if len(rows) < _PARALLEL_VECTORS:
            _faiss().omp_set_num_threads(1)  # of this thread: see FaissIndex.search
        new = ~self.rows.has(rows)
        rows, vectors = rows[new], vectors[new]
        for first in range(0, len(rows), _CHUNK):
            part = slice(first, first + _CHUNK)
            rotated = self._rotation.apply(np.ascontiguousarray(vectors[part], dtype=np.float32))
            ids = np.ascontiguousarray(rows[part], dtype=np.int64)
            nearest = np.ascontiguousarray(self._centroids.search(rotated, 1)[1][:, 0])
            pointer = _faiss().swig_ptr
            self._clusters.add_core(len(ids), pointer(rotated), pointer(ids), pointer(nearest))
            self._index.ntotal = self._clusters.ntotal
            np.add.at(self._sizes, nearest, 1)
            self.rows.add(ids)

    def candidates(
        self, vector: np.ndarray, count: int, allowed: RowSet, helper: HelperThread | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns about `count` of the `allowed` rows that probably include the best for `vector` (D,).

        Returns rows (≤ count,) int64 and estimates of their inner products (≤ count,) float32, best first. Estimates
        are off by a few thousandths, within one call by about the same amount.

        The smaller the allowed share, the farther away the best rows are, so the number of clusters read grows with
        the square root of its inverse; all are read if fewer than `count` rows are found. `helper` shares the work.
        """
        bitmap = allowed.packed()
        if not len(bitmap):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        query, products, order = self._rank_clusters(vector)
        wanted = READ_SHARE * len(self) * (len(self) / max(1, len(allowed))) ** 0.5
        clusters = max(_MIN_CLUSTERS_READ, 1 + int(np.searchsorted(np.cumsum(self._sizes[order]), wanted)))
        rows, estimates = self._read(query, products, order[:clusters], count, bitmap, helper)
        if len(rows) < min(count, len(allowed)) and clusters < len(order):
            rows, estimates = self._read(query, products, order, count, bitmap, helper)
        return rows, estimates

    def _rank_clusters(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks the clusters by how near to the query their members may be.

        Returns the rotated query (1, D), its inner products with the centroids (clusters,), and the order (clusters,).
        """
        faiss = _faiss()
        faiss.omp_set_num_threads(1)
        query = self._rotation.apply(np.ascontiguousarray(vector, dtype=np.float32)[None])
        products = np.empty(len(self._sizes), np.float32)
        # Not NumPy's matrix product: its threads wait for each other, which takes milliseconds on busy cores.
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(products), faiss.swig_ptr(query), self._centroids.get_xb(), self.dim, len(products)
        )
        return query, products, np.argsort(-(products + np.linalg.norm(vector) * self.radii))

    def _read(
        self,
        query: np.ndarray,
        products: np.ndarray,
        clusters: np.ndarray,
        count: int,
        bitmap: np.ndarray,
        helper: HelperThread | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best `count` rows of the clusters by their codes."""
        faiss = _faiss()
        pointer = faiss.swig_ptr

        def read(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            faiss.omp_set_num_threads(1)  # of this thread
            numbers, distances = np.ascontiguousarray(some), np.ascontiguousarray(products[some])
            rows, estimates = np.empty(count, np.int64), np.empty(count, np.float32)
            parameters = faiss.IVFRaBitQSearchParameters(
                nprobe=len(some), qb=_QUERY_BITS, sel=faiss.IDSelectorBitmap(bitmap)
            )
            self._clusters.search_preassigned_c(  # the wrapper without _c takes no parameters
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

        shared = helper is not None and helper.available and self._sizes[clusters].sum() > _MIN_SHARED_CODES
        parts = [partial(read, clusters[n::_PARTS]) for n in range(_PARTS)] if shared else [partial(read, clusters)]
        found = helper.run(parts) if helper is not None else [part() for part in parts]
        rows, estimates = (np.concatenate(x) for x in zip(*found, strict=True))
        order = np.argsort(-estimates, kind="stable")
        order = order[rows[order] >= 0][:count]
        return rows[order], estimates[order]

    def save(self, path: Path) -> None:
        """Writes the FAISS index to a file, without `rows` and `radii`."""
        faiss = _faiss()
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, rows: np.ndarray, trained_for: int, radii: np.ndarray) -> Codes:
        """Reads what `save` wrote for codes with `rows` (N,). Raises ValueError if the file is something else."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read {path.name}: {error}") from error
        ours = isinstance(index, faiss.IndexPreTransform) and index.chain.size() == 1
        clusters = faiss.downcast_index(index.index) if ours else None
        if not isinstance(clusters, faiss.IndexIVFRaBitQ) or index.ntotal != len(rows):
            raise ValueError(f"{path.name} does not have the codes in its manifest")
        if radii.shape != (clusters.nlist,) or not np.isfinite(radii).all():
            raise ValueError(f"{path.name} has {clusters.nlist} clusters, but its manifest has {radii.shape}")
        return cls(index, RowSet(rows), trained_for, radii)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._clusters.d)


def _faiss() -> Any:
    import faiss  # slow to import, and most commands do not search

    return faiss


def _cluster_radii(sample: np.ndarray, centroids: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Returns how much nearer than its centroid a cluster's members may be to a unit query: (clusters,) float32.

    sample (N, D), centroids (clusters, D), nearest (N,): the cluster of each vector. Of two clusters at the same
    distance the wider one is read first.
    """
    sizes = np.bincount(nearest, minlength=len(centroids)).astype(np.float64)
    some = sample[:: max(1, len(sample) // 4096)]
    residuals = some - centroids[nearest[:: max(1, len(sample) // 4096)]]
    lengths = np.linalg.norm(some[::8], axis=1)
    typical = float((residuals @ (some[::8] / np.where(lengths > 0, lengths, 1)[:, None]).T).std())
    squares = np.zeros(len(centroids))
    for first in range(0, len(sample), _CHUNK):
        part = slice(first, first + _CHUNK)
        np.add.at(squares, nearest[part], ((sample[part] - centroids[nearest[part]]) ** 2).sum(axis=1))
    mean = squares.sum() / len(sample)
    if mean == 0:
        return np.zeros(len(centroids), np.float32)
    spread = (squares + 4 * mean) / (sizes + 4)  # small clusters are pulled towards the mean
    return np.asarray(_RADIUS_DEVIATIONS * typical * np.sqrt(spread / mean), dtype=np.float32)


def code_bits(dim: int) -> int:
    """Returns the bits of a code for each dimension; an estimate's error falls with their number and with √dim."""
    return 2 if dim >= 256 else 4


def cluster_count(total: int, sample: int) -> int:
    """Returns the power of two below 2.8 √total (2048 for a million), limited to a quarter of the sample size."""
    wanted = min(2.8 * total**0.5, sample / 4)
    return max(1, 1 << int(np.log2(max(1.0, wanted))))


def sample_size(total: int) -> int:
    """Returns the number of vectors to train on."""
    return min(total, max(4096, SAMPLES_PER_CENTROID * cluster_count(total, total)))


def check_gpu() -> None:
    """Raises GpuMissing unless this FAISS was built with GPU support and finds a GPU."""
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise GpuMissing(
            f"FAISS {faiss.__version__} was built without GPU support: install faiss-gpu instead of faiss-cpu"
        )
    if faiss.get_num_gpus() < 1:
        raise GpuMissing(f"FAISS {faiss.__version__} has GPU support but finds no GPU")


def top_k(
    vector: np.ndarray, k: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k rows with the largest inner product, over batches of rows (N,) and vectors (N, D).

    Returns rows (≤ k,) int64 and similarities (≤ k,) float32, best first, equal ones in row order.
    """
    rows, similarities = np.empty(0, np.int64), np.empty(0, np.float32)
    for more, vectors in batches:
        rows = np.concatenate([rows, more])
        # einsum instead of `@`: a row's sum does not depend on its position, so equal vectors stay equal; see also
        # Codes._rank_clusters.
        similarities = np.concatenate([similarities, np.einsum("nd,d->n", vectors, vector)])
        order = np.lexsort((rows, -similarities))[:k]
        rows, similarities = rows[order], similarities[order]
    return rows, similarities


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class HelperThread:
    """A second thread that helps one search at a time, as FAISS releases the GIL.

    With two cores a search takes little more than half the time while no other search runs. Concurrent searches each
    have a core of their own and run without the helper. The thread starts on first use and ends with `close`.
    """

    def __init__(self, cores: int | None = None) -> None:
        """cores: overrides `usable_cores`. With one core there is no thread."""
        self._pool: ThreadPoolExecutor | None = None
        if (cores or usable_cores()) > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="search-helper")
        self._free = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether there is a second thread; otherwise splitting the work is pointless."""
        return self._pool is not None

    def run(self, parts: Sequence[Callable[[], T]]) -> list[T]:
        """Runs all parts and returns their results in order. Raises what a part raises.

        Both threads take the next part when they finish one, so a helper that starts late costs at most one part.
        """
        if len(parts) < 2 or not self._free.acquire(blocking=False):
            return [part() for part in parts]
        try:
            pool = self._pool  # under the lock, because `close` clears it
            if pool is None:
                return [part() for part in parts]
            todo = deque(enumerate(parts))
            done: dict[int, T] = {}

            def work() -> None:
                while todo:
                    try:
                        number, part = todo.popleft()
                    except IndexError:  # the other thread took the last part
                        return
                    done[number] = part()

            try:
                helping = pool.submit(work)
            except RuntimeError:  # the interpreter is shutting down and starts no threads
                work()
            else:
                try:
                    work()
                finally:
                    if not helping.cancel():
                        helping.result()
            return [done[number] for number in range(len(parts))]
        finally:
            self._free.release()

    def close(self) -> None:
        """Ends the thread. `run` still works, on the calling thread."""
        with self._free:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
