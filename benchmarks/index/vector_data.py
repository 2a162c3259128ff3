"""Synthetic vectors like those of a large library, the exact results of queries, and a database with the vectors.

A clip's vector is the normalised sum of four Gaussian vectors whose variance falls with 1 / dimension, like the spectra
of embeddings: one shared by all clips (length 0.5), one per kind of sound (0.6; one kind per 2,500 clips), one per
source, for example one dog (0.5; one per 50 clips), and its own (0.5). The sizes of kinds and sources are as uneven as
word frequencies: the share of the r-th falls with r^-0.8.

Half of the queries are drawn like clips ("sounds": search by example). The other half ("texts") share another direction
(0.8), plus the kind (0.4), the source (0.3) and noise (0.5): their nearest clips are far away, as with real texts.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.sqlite.store import Store

BEST = 10
_BLOCK = 20_000


class Generator:
    """Draws vectors (N, D) of one library, deterministic for a count, dim and seed."""

    def __init__(self, count: int, dim: int) -> None:
        self.dim = dim
        rng = np.random.default_rng(1)
        self._spread = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
        self._spread /= np.linalg.norm(self._spread)
        kinds, sources = max(4, count // 2500), max(20, count // 50)
        self._all, self._texts = self._draw(rng, 1), self._draw(rng, 1)
        self._kinds = self._draw(rng, kinds)
        self._sources = self._draw(rng, sources)
        self._kind_of = rng.choice(kinds, sources, p=_shares(kinds))
        self._shares = _shares(sources)

    def _draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, self.dim), dtype=np.float32) * self._spread

    def clips(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws clip vectors."""
        source = rng.choice(len(self._sources), count, p=self._shares)
        own = 0.5 * self._draw(rng, count)
        own += 0.5 * self._all + 0.6 * self._kinds[self._kind_of[source]] + 0.5 * self._sources[source]
        return own / np.linalg.norm(own, axis=1, keepdims=True)

    def texts(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws text queries."""
        source = rng.choice(len(self._sources), count, p=self._shares)
        own = 0.5 * self._draw(rng, count)
        own += 0.8 * self._texts + 0.4 * self._kinds[self._kind_of[source]] + 0.3 * self._sources[source]
        return own / np.linalg.norm(own, axis=1, keepdims=True)


def _shares(count: int) -> np.ndarray:
    shares = np.arange(1, count + 1) ** -0.8
    return shares / shares.sum()


@dataclass(frozen=True)
class Data:
    """The files of one library of `count` vectors in `work`, created once by `make`."""

    work: Path
    count: int
    dim: int
    queries: int

    @property
    def database(self) -> Path:
        """A database that holds only clips and vectors, rows 1 … count."""
        return self.work / "catalog.sqlite3"

    def vectors(self) -> np.ndarray:
        """Vectors (count, D) float32, memory-mapped; row n of the database is index n - 1."""
        return np.load(self.work / "vectors.npy", mmap_mode="r")

    def asked(self) -> np.ndarray:
        """Queries (Q, D): sounds, then as many texts."""
        return np.load(self.work / "queries.npy")

    def truth(self) -> np.ndarray:
        """Rows (Q, BEST) with the largest inner product, best first."""
        return np.load(self.work / "truth.npy")

    def more(self, count: int) -> np.ndarray:
        """Draws vectors (count, D) that are not in the library."""
        return Generator(self.count, self.dim).clips(count, np.random.default_rng(4))

    def make(self) -> None:
        """Creates the files that do not exist yet."""
        self.work.mkdir(parents=True, exist_ok=True)
        wanted = {"count": self.count, "dim": self.dim, "queries": self.queries}
        noted = self.work / "data.json"
        if noted.exists() and json.loads(noted.read_text()) != wanted:
            raise SystemExit(f"{self.work} has data of {noted.read_text()}: choose another folder")
        noted.write_text(json.dumps(wanted))
        if not (self.work / "truth.npy").exists():
            self._make_vectors()
        if not self.database.exists():
            self._make_database()

    def _make_vectors(self) -> None:
        maker = Generator(self.count, self.dim)
        rng = np.random.default_rng(2)
        half = self.queries // 2
        asked = np.concatenate([maker.clips(half, rng), maker.texts(self.queries - half, rng)])
        np.save(self.work / "queries.npy", asked)
        shape = (self.count, self.dim)
        file = np.lib.format.open_memmap(self.work / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
        rng = np.random.default_rng(3)
        rows = np.zeros((self.queries, 0), np.int64)
        similarities = np.zeros((self.queries, 0), np.float32)
        for first in range(0, self.count, _BLOCK):
            block = maker.clips(min(_BLOCK, self.count - first), rng)
            file[first : first + len(block)] = block
            rows, similarities = _best(rows, similarities, asked @ block.T, first + 1)
        file.flush()
        np.save(self.work / "truth.npy", rows)

    def _make_database(self) -> None:
        """Writes without fsync, unlike the service."""
        aside = self.database.with_suffix(".part")
        for leftover in self.work.glob(aside.name + "*"):
            leftover.unlink()
        Store(aside).close()
        connection = sqlite3.connect(aside, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        vectors = self.vectors()
        for first in range(0, self.count, _BLOCK):
            connection.execute("BEGIN")
            insert(
                connection, np.arange(first + 1, min(first + _BLOCK, self.count) + 1), vectors[first : first + _BLOCK]
            )
            connection.execute("COMMIT")
        connection.close()
        aside.rename(self.database)


def insert(connection: sqlite3.Connection, rows: np.ndarray, vectors: np.ndarray) -> None:
    """Inserts clips with a record and a vector only."""
    names = [f"{row:032x}" for row in rows.tolist()]
    connection.executemany(
        "INSERT INTO clips VALUES (?, ?, ?, ?, 5.0, 48000, 1, '2026-01-01T00:00:00Z', '{}')",
        ((row, name, name * 2, name + ".wav") for row, name in zip(rows.tolist(), names, strict=True)),
    )
    connection.executemany(
        "INSERT INTO vectors (row, embedding) VALUES (?, ?)",
        ((row, vector.tobytes()) for row, vector in zip(rows.tolist(), vectors, strict=True)),
    )


def _best(
    rows: np.ndarray, similarities: np.ndarray, more: np.ndarray, first_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the best results so far (Q, ≤ BEST) with another block's similarities (Q, N)."""
    top = np.argpartition(-more, min(BEST, more.shape[1] - 1), axis=1)[:, :BEST]
    rows = np.concatenate([rows, top + first_row], axis=1)
    similarities = np.concatenate([similarities, np.take_along_axis(more, top, axis=1)], axis=1)
    order = np.argsort(-similarities, axis=1)[:, :BEST]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarities, order, axis=1)
