"""Near-duplicates: the blocked search against every pair compared by itself, and what the definition promises."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import duplicates
from index.duplicates import frame_similarity, near_duplicates, peak_correlation
from index.quantization import encode_frames

DIM = 24


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def slowly(vectors: np.ndarray, durations: np.ndarray, frames: list[np.ndarray]) -> list[list[int]]:
    """The definition: every pair, then what pairs connect."""
    count = len(vectors)
    groups = [{at} for at in range(count)]
    for a in range(count):
        for b in range(a + 1, count):
            longer = max(durations[a], durations[b])
            near = abs(durations[a] - durations[b]) <= duplicates.TOLERANCE + duplicates.TOLERANCE_SHARE * longer
            if not near or vectors[a] @ vectors[b] < duplicates.SIMILARITY:
                continue
            if frame_similarity(frames[a], frames[b]) >= duplicates.FRAME_SIMILARITY:
                both = next(g for g in groups if a in g) | next(g for g in groups if b in g)
                groups = [g for g in groups if not g & both] + [both]
    return sorted(sorted(group) for group in groups if len(group) > 1)


def library(seed: int, sounds: int, copies: int, noise: float) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Sounds, each with copies that differ by noise, in mixed order: vectors, durations, frames."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(sounds):
        duration = rng.choice([0.5, 1.0, 3.0]) + rng.uniform(0, 0.3)
        frames = unit(rng.standard_normal((max(1, round(duration / 0.16)), DIM)))
        for _ in range(rng.integers(1, copies + 1)):
            heard = unit(frames + noise * rng.standard_normal(frames.shape) / np.sqrt(DIM))
            clips.append((unit(heard.mean(axis=0)), duration + rng.uniform(0, 0.12), heard))
    order = rng.permutation(len(clips))
    return (
        np.stack([clips[at][0] for at in order]),
        np.array([clips[at][1] for at in order]),
        [clips[at][2] for at in order],
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 4), st.floats(0, 0.5))
def test_blocks_find_what_all_pairs_have(seed: int, sounds: int, copies: int, noise: float) -> None:
    vectors, durations, frames = library(seed, sounds, copies, noise)
    rows, columns = duplicates._ROWS, duplicates._COLUMNS
    try:
        for duplicates._ROWS, duplicates._COLUMNS in ((3, 4), (512, 8192)):
            found = near_duplicates(vectors, durations, frames.__getitem__)
            assert found == slowly(vectors, durations, frames)
    finally:
        duplicates._ROWS, duplicates._COLUMNS = rows, columns


def test_copies_are_found_and_others_are_not() -> None:
    vectors, durations, frames = library(1, 40, 3, 0.1)
    found = near_duplicates(vectors, durations, frames.__getitem__)
    assert found and found == slowly(vectors, durations, frames)


def test_frames_decide_where_clip_vectors_agree() -> None:
    rng = np.random.default_rng(2)
    frames = unit(rng.standard_normal((20, DIM)))
    backwards = frames[::-1]
    vectors = np.stack([frames.mean(axis=0), backwards.mean(axis=0)])
    assert near_duplicates(vectors, np.array([3.2, 3.2]), [frames, backwards].__getitem__) == []
    assert near_duplicates(vectors, np.array([3.2, 3.2]), [frames, frames].__getitem__) == [[0, 1]]


def test_codes_are_as_good_as_frames_and_a_shift_is_found() -> None:
    rng = np.random.default_rng(3)
    frames = unit(rng.standard_normal((30, DIM)))
    assert frame_similarity(encode_frames(frames[1:]), encode_frames(frames)) > 0.999
    assert frame_similarity(frames[:-2], frames[2:]) > 0.999
    assert frame_similarity(frames[:-3], frames[3:]) < 0.5


def outline(loudness: np.ndarray) -> np.ndarray:
    return np.stack([-loudness, 0.9 * loudness])


def test_peaks_decide_where_embeddings_agree() -> None:
    rng = np.random.default_rng(5)
    frames = unit(rng.standard_normal((10, DIM)))
    vectors = np.stack([frames.mean(axis=0)] * 4)
    one, other = rng.uniform(0.01, 1, (2, 160))
    outlines = [outline(one), outline(other), outline(one[5:] / 2), outline(other * 0.3)]
    tracks, durations = [frames] * 4, np.full(4, 1.6)
    assert near_duplicates(vectors, durations, tracks.__getitem__) == [[0, 1, 2, 3]]
    assert near_duplicates(vectors, durations, tracks.__getitem__, outlines.__getitem__) == [[0, 2], [1, 3]]


def test_peak_correlation_ignores_gain_and_shift() -> None:
    loudness = np.random.default_rng(6).uniform(0.01, 1, 200)
    assert peak_correlation(outline(loudness), outline(loudness)) == pytest.approx(1)
    assert peak_correlation(outline(loudness[15:]), outline(loudness / 4)) == pytest.approx(1, abs=1e-5)
    assert peak_correlation(outline(loudness[16:]), outline(loudness)) < 0.5
    assert peak_correlation(outline(np.ones(100)), outline(np.full(90, 0.2))) == 1
    assert peak_correlation(outline(np.ones(200)), outline(loudness)) == 0
    assert peak_correlation(outline(np.zeros(20)), outline(np.zeros(20))) == 1
    assert peak_correlation(np.empty((2, 0)), outline(loudness)) == -1


def test_a_single_frame_that_fits_is_no_agreement() -> None:
    frames = unit(np.eye(DIM)[:4])
    assert frame_similarity(frames[:3], np.concatenate([frames[3:], frames[3:], frames[:1]])) < 0.9


def test_durations_bound_what_is_the_same() -> None:
    frames = unit(np.random.default_rng(4).standard_normal((10, DIM)))
    vectors = np.stack([frames.mean(axis=0)] * 3)
    same = [frames] * 3
    assert near_duplicates(vectors, np.array([2.0, 1.86, 2.4]), same.__getitem__) == [[0, 1]]
    assert near_duplicates(vectors, np.array([2.0, 1.86, 2.4]), same.__getitem__, tolerance=0.5) == [[0, 1, 2]]


def test_ten_thousand_copies_of_silence_are_one_group_soon() -> None:
    frames = unit(np.ones((5, DIM)))
    asked: list[int] = []

    def frames_of(at: int) -> np.ndarray:
        asked.append(at)
        return frames

    began = time.process_time()
    found = near_duplicates(np.ones((10_000, DIM)), np.full(10_000, 0.8), frames_of)
    assert found == [list(range(10_000))]
    assert len(asked) <= 20_000  # each about once; all pairs would be fifty million
    assert time.process_time() - began < 20


def test_nothing_has_no_duplicates() -> None:
    assert near_duplicates(np.empty((0, DIM)), np.empty(0), lambda at: pytest.fail("asked for frames")) == []


@pytest.mark.parametrize(
    ("vectors", "durations"),
    [
        (np.ones((2, DIM)), np.ones(3)),
        (np.ones(DIM), np.ones(1)),
        (np.zeros((1, DIM)), np.ones(1)),
        (np.full((1, DIM), np.nan), np.ones(1)),
        (np.ones((1, DIM)), np.array([np.inf])),
    ],
)
def test_invalid_arguments_are_rejected(vectors: np.ndarray, durations: np.ndarray) -> None:
    with pytest.raises(ValueError):
        near_duplicates(vectors, durations, lambda at: np.ones((1, DIM)))
