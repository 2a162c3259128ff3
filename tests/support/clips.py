"""Clips for tests of libraries: small, random, the same in every run."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from index import Filter, Hit, Library, NewClip

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


def ask_for_hits(
    library: Library, way: str, vector: np.ndarray, k: int, filter: Filter | None = None
) -> list[Hit] | None:
    """The hits of one way of searching: "search" (`nearest_hits`), "search_segments", …

    For "search", records are read after the search: they may be newer, and if one is gone, the result is None.
    """
    if way != "search":
        return list(getattr(library, way)(vector, k, filter))
    try:
        return nearest_hits(library, vector, k, filter)
    except KeyError:
        return None


def nearest_hits(library: Library, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
    """What `nearest` finds, with the records."""
    found = library.nearest(vector, k, filter)
    clips = library.clips([clip_id for clip_id, _ in found])
    return [Hit(clips[clip_id], similarity) for clip_id, similarity in found]
