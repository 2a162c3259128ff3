"""The synthetic library of the moments benchmark opens, and its measures are correct."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.index.moments import Recording, _iou, fill, nearest
from index import SqliteLibrary
from index.quantization import encode_frames

DIM = 64


def recording(rng: np.random.Generator) -> Recording:
    frames = rng.standard_normal((30, DIM)).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    mean = frames.mean(axis=0)
    return Recording(4.8, mean / np.linalg.norm(mean), encode_frames(frames).to_bytes(), {})


def test_a_library_is_created_from_patterns(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(dim=DIM, frame_hop=0.16)
    SqliteLibrary.open(tmp_path, dim=DIM, checkpoint="a").close()
    fill(tmp_path / "catalog.sqlite3", model, [recording(np.random.default_rng(i)) for i in range(3)], 25)
    with SqliteLibrary.open(tmp_path, dim=DIM, checkpoint="a") as catalog:
        assert len(catalog) == 25
        vectors = [catalog.clip_vector(clip.id) for clip in catalog.list(100)[0]]
        assert len(np.unique(np.round(vectors, 4), axis=0)) == 25
        assert len(catalog.search_segments(vectors[0], 100)) == 25


def test_nearest_ranks_each_recording_once_by_its_best_vector() -> None:
    vectors = np.array([[0.1, 0], [0.9, 0], [0.5, 0.9], [0.8, 0]])
    texts = np.array([[1.0, 0], [0, 1.0]])
    found = nearest(texts, vectors, np.array([0, 0, 1, 2]), 2)
    assert [ids.tolist() for ids in found] == [[0, 2], [1, 0]]


def test_intersection_over_union() -> None:
    assert _iou(0, 2, 1, 3) == pytest.approx(1 / 3)
    assert _iou(0, 1, 2, 3) == 0
    assert _iou(1, 2, 1, 2) == 1
