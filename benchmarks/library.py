"""Fills a library with clips of random vectors, for benchmarks that need one of a given size."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

from benchmarks.common import REPO
from index import NewClip, SqliteLibrary
from model import FineLAP
from model.config import SAMPLE_RATE


def fill_library(folder: Path, clips: int) -> float:
    """Creates a library of `clips` clips for the bundled checkpoint; returns the seconds it takes to open."""
    model = FineLAP.from_pretrained(REPO / "checkpoints" / "finelap-small")
    rng = np.random.default_rng(0)
    with SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp) as library:
        for at in range(0, clips, 500):
            vectors = rng.standard_normal((min(500, clips - at), 17, model.dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
            library.add_many([_clip(at + i, rows) for i, rows in enumerate(vectors)])
    began = time.perf_counter()
    SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp).close()
    return time.perf_counter() - began


def _clip(number: int, vectors: np.ndarray) -> NewClip:
    audio = b"%d" % number
    sha256 = hashlib.sha256(audio).hexdigest()
    metadata = {"number": number}
    return NewClip(f"{number}.wav", sha256, 2.5, SAMPLE_RATE, 1, metadata, vectors[0], vectors[1:], 0.16, audio)
