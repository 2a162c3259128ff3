"""Scenes and mixtures are reproducible, and their labels match the audio."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import SAMPLE_RATE
from training.data.activity import ClipConfig, SimulationError
from training.data.mixer import GAP, MixConfig, Mixer, SceneConfig, SceneMaker, SoundClip, caption


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.3)).astype(np.float32)


def burst(onset: float, length: float, total: float) -> np.ndarray:
    samples = np.zeros(int(total * SAMPLE_RATE), np.float32)
    at = int(onset * SAMPLE_RATE)
    samples[at : at + int(length * SAMPLE_RATE)] = np.sin(np.arange(int(length * SAMPLE_RATE)) * 0.3)
    return samples


def maker(**changes: float) -> SceneMaker:
    sounds = [burst(0.2, 0.5, 1.0), burst(0.0, 2.0, 2.5), burst(0.0, 6.0, 6.0)]
    return SceneMaker(lambda i: sounds[i], np.ones(3), np.array([2]), SceneConfig(**changes))


def test_scenes_are_reproducible() -> None:
    first, second, other = (maker().scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.samples, second.samples)
    assert first.events == second.events
    assert not np.array_equal(first.samples, other.samples)


def test_labels_match_the_energy() -> None:
    scenes = maker(mixture=0.0, noise_floor=0.0, augment=0.0)
    for seed in range(20):
        scene = scenes.scene(np.random.default_rng(seed))
        active = np.zeros(len(scene.samples), bool)
        for _, onset, offset in scene.events:
            active[int(onset * SAMPLE_RATE) : int(offset * SAMPLE_RATE)] = True
        energy = scene.samples**2
        assert energy[active].sum() > 0.99 * energy.sum()
        assert len(scene.samples) == int(5.12 * SAMPLE_RATE) and np.abs(scene.samples).max() <= 1


def test_events_stay_within_the_scene() -> None:
    for seed in range(30):
        scene = maker(mixture=1.0).scene(np.random.default_rng(seed))
        assert scene.events
        assert all(0 <= a < b <= 5.12 for _, a, b in scene.events)


def sounds() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(1).standard_normal(10 * SAMPLE_RATE).astype(np.float32) * 0.1
    return {"bed": noise} | {f"e{i}": tone(1.0 + i, 0.3) for i in range(6)}


def mixer(**settings: object) -> Mixer:
    store = sounds()
    events = [SoundClip(f"e{i}", f"label {i}", 1.0 + i) for i in range(6)]
    return Mixer(events, [SoundClip("bed", "label 0", 10.0)], lambda c: store[c.name], MixConfig(**settings))  # type: ignore[arg-type]


def test_mixtures_match_their_settings() -> None:
    counts, repeats = set(), set()
    for seed in range(80):
        mixture = mixer().draw(np.random.default_rng(seed))
        counts.add(len(mixture.events))
        assert len(mixture.samples) == 10 * SAMPLE_RATE and np.abs(mixture.samples).max() <= 0.9501
        labels = [e.clip.label for e in mixture.events]
        assert len(set(labels)) == len(labels) and "label 0" not in labels  # the label of the background
        for event in mixture.events:
            assert 12 <= event.snr_db <= 20
            spans = event.segments
            assert all(b - a == pytest.approx(event.clip.seconds, abs=1e-3) and 0 <= a < b <= 10 for a, b in spans)
            assert all(later[0] - sooner[1] >= GAP - 1e-3 for sooner, later in zip(spans, spans[1:], strict=False))
            repeats.add(len(spans))
            assert len(spans) == 1 or event.clip.seconds < 3
    assert counts == {1, 2, 3, 4, 5} and repeats == {1, 2, 3}


def test_events_have_the_stated_snr() -> None:
    for seed in range(10):
        mixture = mixer(events=(1, 1)).draw(np.random.default_rng(seed))
        (event,) = mixture.events
        bed, active = sounds()["bed"], np.zeros(10 * SAMPLE_RATE, bool)
        for a, b in event.segments:
            active[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] = True
        scale = np.sqrt((mixture.samples[~active] ** 2).mean() / (bed[~active] ** 2).mean())  # of the peak limiter
        alone = mixture.samples[active] / scale - bed[active]
        assert 10 * np.log10((alone**2).mean() / (bed**2).mean()) == pytest.approx(event.snr_db, abs=0.1)


def test_mixtures_are_reproducible_and_augmentation_changes_them() -> None:
    first, second, other = (mixer().draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.samples, second.samples)
    assert (first.events, first.caption) == (second.events, second.caption) and first.events != other.events
    for varied in ({"reverb": 1.0}, {"equalise_db": 9.0}, {"swell_db": 12.0}):
        mixture = mixer(**varied).draw(np.random.default_rng(3))
        assert not np.array_equal(mixture.samples, first.samples)
        assert all(0 <= a < b <= 10 for e in mixture.events for a, b in e.segments)


def test_captions_name_every_sound() -> None:
    for seed in range(30):
        text = caption(["dog bark", "bell", "horn"], "rain", np.random.default_rng(seed))
        assert text[0].isupper() and text.endswith(".") and "dog bark, bell and horn" in text.lower() and "rain" in text


def test_invalid_settings_and_sounds_are_rejected() -> None:
    for bad in ({"events": (0, 2)}, {"events": (3, 2)}, {"snr_db": (20.0, 12.0)}, {"reverb": 2.0}):
        with pytest.raises(SimulationError):
            MixConfig(**bad)  # type: ignore[arg-type]
    for bad in ({"shortest": 2.0, "longest": 1.0}, {"longest": 11.0}, {"threshold_db": 3.0}):
        with pytest.raises(SimulationError):
            ClipConfig(**bad)
    with pytest.raises(SimulationError, match="no background"):
        Mixer([SoundClip("a", "a", 1)], [], lambda c: tone(1))
    with pytest.raises(SimulationError, match="every event has the label of a background"):
        Mixer([SoundClip("a", "a", 1)], [SoundClip("b", "a", 1)], lambda c: tone(1)).draw(np.random.default_rng(0))


def test_as_published_clips_are_drawn_uniformly_and_peaks_are_one() -> None:
    events = [SoundClip(f"many {n}", "many", 1.0) for n in range(9)] + [SoundClip("one", "one", 1.0)]
    bed, noise = [SoundClip("bed", "bed", 10.0)], sounds()["bed"]

    def get(clip: SoundClip) -> np.ndarray:
        return noise if clip.name == "bed" else tone(1.0)

    found = {}
    for draw in ("labels", "clips"):
        one = Mixer(events, bed, get, MixConfig(events=(1, 1), draw=draw, normalise=draw == "clips"))  # type: ignore[arg-type]
        mixtures = [one.draw(np.random.default_rng(seed)) for seed in range(150)]
        found[draw] = np.mean([m.events[0].clip.label == "many" for m in mixtures])
        peaks = [float(np.abs(m.samples).max()) for m in mixtures]
        assert np.allclose(peaks, 1.0, atol=1e-6) == (draw == "clips")
    assert found["clips"] > 0.8 and 0.35 < found["labels"] < 0.65
    both = Mixer(events, bed, get, MixConfig(events=(2, 2), draw="clips"))
    assert all(len({e.clip.label for e in both.draw(np.random.default_rng(s)).events}) == 2 for s in range(10))
    with pytest.raises(SimulationError, match="work at 16000 Hz, not at 22050"):
        Mixer(events, bed, get, MixConfig(reverb=0.5), ClipConfig(sample_rate=22_050))
