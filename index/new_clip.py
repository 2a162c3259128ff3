"""A new clip before any store sees it: checked, named, dated, its frames encoded and its segments cut.

The same for every store. Knows no database.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from index.quantization import FrameCodes, encode_frames
from index.records import Clip, NewClip, check_text, dump_metadata
from index.segments import cut_segments

_UNIT_TOLERANCE = 1e-2  # how far from 1 the length of an embedding may be


@dataclass(frozen=True)
class Prepared:
    """A new clip, checked and encoded."""

    clip: Clip
    metadata: str  # the clip's, as JSON
    embedding: np.ndarray  # (D,)
    codes: bytes  # of its frames, as FrameCodes.to_bytes makes them
    frame_hop: float  # seconds
    segments: FrameCodes


def prepare(new: NewClip, dim: int, created: datetime) -> Prepared:
    """A clip with an id of its own, created then (UTC). Raises InvalidMetadata, ValueError where something is unfit."""
    embedding = checked_vector(new.embedding, dim, "embedding")
    frames = new.frames if isinstance(new.frames, FrameCodes) else encode_frames(new.frames)
    if frames.dim != dim or not len(frames):
        raise ValueError(f"frames must be (T, {dim}), T ≥ 1, not ({len(frames)}, {frames.dim})")
    if not new.frame_hop > 0:
        raise ValueError(f"frame_hop must be positive seconds, not {new.frame_hop}")
    metadata = dump_metadata(new.metadata)
    clip = Clip(
        id=uuid.uuid4().hex,
        filename=check_text(new.filename, "the file name"),
        sha256=new.sha256,
        duration=float(new.duration),
        sample_rate=int(new.sample_rate),
        channels=int(new.channels),
        created=created.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        metadata=json.loads(metadata),
    )
    hop = float(new.frame_hop)
    return Prepared(clip, metadata, embedding, frames.to_bytes(), hop, cut_segments(frames, hop))


def checked_vector(vector: np.ndarray, dim: int, what: str, unit: bool = True) -> np.ndarray:
    """The vector as (D,) float32; ValueError when it is not one, or not of unit length where it must be."""
    vector = np.asarray(vector, dtype=np.float32)
    if vector.shape != (dim,):
        raise ValueError(f"{what} must be ({dim},), not {vector.shape}")
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        raise ValueError(f"{what} must be finite")
    if unit and abs(length - 1) > _UNIT_TOLERANCE:
        raise ValueError(f"{what} must have unit length, not {length:.4f}")
    return vector
