"""Segments: pools a recording's frames into few vectors, one for each stretch of similar sound.

A segment is a run of similar frames, pooled into one unit vector. It ends where the sound changes, so a knock of half a
second is one segment and a minute of rain is a few. Segments of a fixed length find less with more vectors
(docs/development/log.md has the measurements). NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Stored segments depend on these: changing one needs a migration that cuts all segments again.
MAX_SECONDS = 10.0  # of one segment
THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # cosines of a frame and its segment, tried in this order
MIN_ALLOWED = 4  # segments that a clip of any length may have, plus
SECONDS_PER_SEGMENT = 2.0  # one for each of these

_READ_FRAMES = 4096  # at a time

ReadFrames = Callable[[int, int], np.ndarray]  # (start, stop) → frames (stop - start, D), fewer at the end


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) at unit length; those that have it, as quantised ones nearly do, are returned unchanged.

    The frames of some models have lengths, which are part of their scores.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors if np.all(np.abs(lengths - 1) < 0.05) else np.asarray(vectors / np.maximum(lengths, 1e-12))


def pool_segments(read: ReadFrames, count: int, frame_hop: float) -> np.ndarray:
    """Pools `count` frames of unit length into segments (S, D) float32 of unit length; 1 ≤ S ≤ 4 + seconds / 2.

    A frame extends the segment while its cosine with the segment's mean is at least the first of THRESHOLDS, up to
    MAX_SECONDS. If that gives too many segments, the next threshold is tried; after the last, segments of equal length.
    """
    max_frames = max(1, round(MAX_SECONDS / frame_hop))
    allowed = max(MIN_ALLOWED + count * frame_hop / SECONDS_PER_SEGMENT, count / max_frames + 1)
    for threshold in THRESHOLDS:
        sums = _segment_sums(read, count, threshold, max_frames, allowed)
        if sums is not None:
            break
    else:
        sums = _segment_sums(read, count, -np.inf, math.ceil(count / int(allowed)), allowed)
        assert sums is not None
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.where(lengths > 0, lengths, 1))


def _segment_sums(read: ReadFrames, count: int, threshold: float, max_frames: int, allowed: float) -> np.ndarray | None:
    """Returns the sum of each segment's frames (S, D) float32, or None if there are more than allowed."""
    sums: list[np.ndarray] = []
    total, length = np.zeros(0, np.float32), 0
    for start in range(0, count, _READ_FRAMES):
        for frame in read(start, start + _READ_FRAMES):
            if length and (length == max_frames or frame @ total < threshold * np.sqrt(total @ total)):
                sums.append(total)
                if len(sums) + 1 > allowed:
                    return None
                total, length = frame.copy(), 1
            else:
                total, length = total + frame if length else frame.copy(), length + 1
    return np.stack([*sums, total])
