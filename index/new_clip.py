"""Validates and encodes a new clip for storage: assigns its id, quantises its frames and cuts its segments."""

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
class EncodedClip:
    """A validated clip with everything in the form in which stores write it."""

    clip: Clip
    metadata: str  # JSON
    embedding: np.ndarray  # (D,)
    codes: bytes  # the frames, FrameCodes.to_bytes
    frame_hop: float  # seconds
    segments: FrameCodes


def encode_clip(new: NewClip, dim: int, created: datetime) -> EncodedClip:
    """Encodes a clip and assigns it an id. `created`: UTC. Raises InvalidMetadata, ValueError for invalid vectors."""
    embedding = check_vector(new.embedding, dim, "embedding")
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
    return EncodedClip(clip, metadata, embedding, frames.to_bytes(), hop, cut_segments(frames, hop))


def check_vector(vector: np.ndarray, dim: int, what: str, unit: bool = True) -> np.ndarray:
    """Returns the vector as (D,) float32. Raises ValueError for a wrong shape, length or non-finite values."""
    vector = np.asarray(vector, dtype=np.float32)
    if vector.shape != (dim,):
        raise ValueError(f"{what} must be ({dim},), not {vector.shape}")
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        raise ValueError(f"{what} must be finite")
    if unit and abs(length - 1) > _UNIT_TOLERANCE:
        raise ValueError(f"{what} must have unit length, not {length:.4f}")
    return vector
