"""Windows cover a recording once on one frame grid, and their embeddings join in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import WindowConfig
from model.windows import Joiner, WindowCutter, centred, frame_count, join_windows, plan_windows, window_samples

SHAPES = [
    WindowConfig(),
    WindowConfig(frame_hop=0.15625),
    WindowConfig(mel_frames=256, frames=16, overlap_frames=4),
    WindowConfig(overlap_frames=0),
]


@given(st.integers(1, 16_000 * 90), st.sampled_from(SHAPES))
def test_every_frame_is_kept_once_and_lies_in_its_window(samples: int, windows: WindowConfig) -> None:
    plan = plan_windows(samples, windows)
    kept = [w.first_frame + i for w in plan for i in range(w.keep.start, w.keep.stop)]
    assert kept == list(range(frame_count(samples, windows)))
    for window in plan:
        assert 0 <= window.start < window.stop <= samples
        assert window.stop - window.start <= window_samples(windows)
        assert 0 <= window.keep.start < window.keep.stop <= windows.frames
        assert window.start == round(window.first_frame * windows.frame_hop * 16_000)
    assert plan[-1].stop == samples or plan[-1].stop - plan[-1].start == window_samples(windows)


def test_inner_frames_keep_their_distance_from_an_edge() -> None:
    plan = plan_windows(16_000 * 60, WindowConfig())
    assert len(plan) > 3
    for window in plan[1:]:
        assert window.keep.start >= 4
    for window in plan[:-1]:
        assert window.keep.stop <= 60


def test_a_tiny_recording_is_one_frame() -> None:
    assert frame_count(1, WindowConfig()) == 1
    assert len(plan_windows(1, WindowConfig())) == 1


def test_join_weights_windows_by_their_kept_frames() -> None:
    plan = plan_windows(16_000 * 14, WindowConfig())
    first, second = plan
    clips = np.eye(2, dtype=np.float32)
    frames = [np.full((64, 2), i, np.float32) for i in range(2)]
    clip, track = join_windows(plan, clips, frames)
    kept = np.array([w.keep.stop - w.keep.start for w in (first, second)], dtype=np.float64)
    np.testing.assert_allclose(clip, kept / np.linalg.norm(kept), rtol=1e-6)
    assert track.shape == (frame_count(16_000 * 14, WindowConfig()), 2)
    assert (track[: int(kept[0])] == 0).all() and (track[int(kept[0]) :] == 1).all()


def test_join_of_one_window_is_that_window() -> None:
    plan = plan_windows(16_000, WindowConfig())
    clip, track = join_windows(plan, np.ones((1, 3), np.float32), [np.arange(192, dtype=np.float32).reshape(64, 3)])
    assert clip.tolist() == [1, 1, 1] and len(track) == 7
    with pytest.raises(ValueError):
        join_windows(plan_windows(16_000 * 14, WindowConfig()), np.eye(2, dtype=np.float32), [track])


def test_frame_share_adds_the_frames_to_the_clip_embedding() -> None:
    rng = np.random.default_rng(0)
    windows = WindowConfig()
    plan = plan_windows(16_000 * 25, windows)
    units = rng.normal(size=(len(plan), 65, 8)).astype(np.float32)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    clips, frames = units[:, 0], list(units[:, 1:])
    alone, track = join_windows(plan, clips, frames)
    shared, same = join_windows(plan, clips, frames, frame_share=0.5)
    mean = track.mean(axis=0) / np.linalg.norm(track.mean(axis=0))
    wanted = alone + 0.5 * mean
    np.testing.assert_allclose(shared, wanted / np.linalg.norm(wanted), atol=1e-6)
    np.testing.assert_array_equal(track, same)
    short, _ = join_windows(plan_windows(16_000, windows), clips[:1], frames[:1], frame_share=1.0)
    assert short @ frames[0][:7].mean(axis=0) > clips[0] @ frames[0][:7].mean(axis=0)


@settings(deadline=None)  # a stride of one frame gives a thousand windows
@given(
    st.integers(1, 16_000 * 70),
    st.lists(st.integers(0, 16_000 * 40), max_size=12),
    st.sampled_from([*SHAPES, WindowConfig(overlap_frames=7), WindowConfig(overlap_frames=63)]),
)
def test_a_streamed_recording_has_the_windows_of_the_whole(
    samples: int, cuts: list[int], windows: WindowConfig
) -> None:
    recording = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) + 0.3
    cutter = WindowCutter(windows)
    given_out = []
    for piece in np.split(recording, sorted(cut for cut in cuts if cut < samples)):
        given_out += list(cutter.push(piece))
        assert cutter.samples - (given_out[-1][0].start if given_out else 0) <= 3 * window_samples(windows)
    given_out += list(cutter.finish())
    plan = plan_windows(samples, windows)
    assert [window for window, _ in given_out] == plan
    for window, cut in given_out:
        np.testing.assert_array_equal(cut, centred(recording[window.start : window.stop]))


def test_windows_are_yielded_while_samples_arrive() -> None:
    cutter = WindowCutter(WindowConfig())
    arrived = [len(list(cutter.push(np.zeros(16_000, np.float32)))) for _ in range(60)]
    assert sum(arrived[:30]) >= 2 and max(arrived) == 1
    assert list(WindowCutter(WindowConfig()).finish()) == []


@given(st.integers(1, 16_000 * 60), st.sampled_from([0.0, 0.5, 1.0]))
def test_joiner_equals_join_windows(samples: int, share: float) -> None:
    plan = plan_windows(samples, WindowConfig())
    rng = np.random.default_rng(samples)
    clips, *frames = (_units(rng, n) for n in (len(plan), *[64] * len(plan)))
    joiner = Joiner(share)
    tracks = [joiner.add(*parts) for parts in zip(plan, clips, frames, strict=True)]
    clip, track = join_windows(plan, clips, frames, share)
    np.testing.assert_array_equal(joiner.clip(), clip)
    np.testing.assert_array_equal(np.concatenate(tracks), track)
    # the slow reference
    kept = np.array([window.keep.stop - window.keep.start for window in plan], dtype=np.float64)
    slow = clips[0] if len(plan) == 1 else kept @ clips / np.linalg.norm(kept @ clips)
    slow = slow + share * track.mean(axis=0) / np.linalg.norm(track.mean(axis=0))
    np.testing.assert_allclose(clip, slow / np.linalg.norm(slow), atol=1e-6)


def _units(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
