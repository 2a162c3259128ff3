"""Clips to put into libraries: small, random, the same on every run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import NewClip, SqliteLibrary

DIM = 16


def unit(values: np.ndarray) -> np.ndarray:
    """The rows at unit length, float32."""
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def make_clip(seed: int, metadata: dict[str, Any] | None = None, dim: int = DIM, **changes: Any) -> NewClip:
    """The clip that belongs to this seed."""
    rng = np.random.default_rng(seed)
    audio = changes.pop("audio", b"audio of %d " % seed + rng.bytes(200))
    fields = {
        "filename": f"sound {seed}.wav",
        "sha256": hashlib.sha256(audio).hexdigest(),
        "duration": 0.5 + seed % 7,
        "sample_rate": 44_100,
        "channels": 2,
        "metadata": {} if metadata is None else metadata,
        "embedding": unit(rng.standard_normal(dim)),
        "frames": unit(rng.standard_normal((1 + seed % 5, dim))),
        "frame_hop": 0.16,
        "audio": audio,
    }
    return NewClip(**(fields | changes))


@pytest.fixture
def new_clip() -> Callable[..., NewClip]:
    return make_clip


@pytest.fixture
def open_library(tmp_path: Path) -> Iterator[Callable[..., SqliteLibrary]]:
    """Opens the test's library; the one opened before is closed first."""
    opened: list[SqliteLibrary] = []

    def open_it(folder: Path = tmp_path / "library", dim: int = DIM, checkpoint: str = "checkpoint-a") -> SqliteLibrary:
        if opened:
            opened[-1].close()
        opened.append(SqliteLibrary.open(folder, dim=dim, checkpoint=checkpoint))
        return opened[-1]

    yield open_it
    for catalog in opened:
        catalog.close()


@pytest.fixture
def catalog(open_library: Callable[..., SqliteLibrary]) -> SqliteLibrary:
    return open_library()
