"""Scenes are reproducible, and their labels are where the sound is."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import SAMPLE_RATE
from training.data.activity import active_stretches, frame_labels, trim
from training.data.mixer import SceneConfig, SceneMaker


def burst(onset: float, length: float, total: float) -> np.ndarray:
    samples = np.zeros(int(total * SAMPLE_RATE), np.float32)
    at = int(onset * SAMPLE_RATE)
    samples[at : at + int(length * SAMPLE_RATE)] = np.sin(np.arange(int(length * SAMPLE_RATE)) * 0.3)
    return samples


def test_active_stretches_find_bursts_and_bridge_short_gaps() -> None:
    sound = burst(0.5, 0.4, 3.0) + burst(1.0, 0.4, 3.0) + burst(2.4, 0.3, 3.0)
    np.testing.assert_allclose(active_stretches(sound), [(0.5, 1.4), (2.4, 2.7)], atol=0.021)
    assert active_stretches(np.zeros(16000, np.float32)) == []


def test_trim_cuts_silence_only() -> None:
    assert len(trim(burst(0.5, 0.4, 3.0))) == pytest.approx(0.4 * SAMPLE_RATE, abs=700)
    silent = np.zeros(100, np.float32)
    assert trim(silent) is silent


def maker(**changes: float) -> SceneMaker:
    sounds = [burst(0.2, 0.5, 1.0), burst(0.0, 2.0, 2.5), burst(0.0, 6.0, 6.0)]
    return SceneMaker(lambda i: sounds[i], np.ones(3), np.array([2]), SceneConfig(**changes))


def test_one_state_one_scene() -> None:
    first, second, other = (maker().scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.samples, second.samples)
    assert first.events == second.events
    assert not np.array_equal(first.samples, other.samples)


def test_labels_are_where_the_energy_is() -> None:
    scenes = maker(mixture=0.0, noise_floor=0.0, augment=0.0)
    for seed in range(20):
        scene = scenes.scene(np.random.default_rng(seed))
        heard = np.zeros(len(scene.samples), bool)
        for _, onset, offset in scene.events:
            heard[int(onset * SAMPLE_RATE) : int(offset * SAMPLE_RATE)] = True
        energy = scene.samples**2
        assert energy[heard].sum() > 0.99 * energy.sum()
        assert len(scene.samples) == int(5.12 * SAMPLE_RATE) and np.abs(scene.samples).max() <= 1


def test_mixtures_keep_every_event_inside() -> None:
    for seed in range(30):
        scene = maker(mixture=1.0).scene(np.random.default_rng(seed))
        assert scene.events
        assert all(0 <= a < b <= 5.12 for _, a, b in scene.events)


def test_frame_labels() -> None:
    hop = 0.16
    assert frame_labels([(0.0, 0.32)], 4, hop).tolist() == [1, 1, 0, 0]
    assert frame_labels([(0.09, 0.32)], 4, hop).tolist() == [0, 1, 0, 0]  # less than half of the first frame
    assert frame_labels([(0.33, 0.36)], 4, hop).tolist() == [0, 0, 1, 0]  # short, but its middle counts
    assert frame_labels([], 4, hop).tolist() == [0, 0, 0, 0]
