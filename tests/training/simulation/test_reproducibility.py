"""Scenes, mixtures and written folders match values recorded for fixed seeds.

The first losses of a training run depend on every random draw here. Sums are compared with a tolerance, because the
last digits of a float sum differ between platforms; labels, captions and the number of draws are compared exactly.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from model.config import SAMPLE_RATE
from training.data.activity import ClipConfig
from training.data.mixer import MixConfig, Mixer, SceneConfig, SceneMaker, SoundClip
from training.simulation.dataset import MixtureSetConfig, write_mixtures
from training.simulation.sources import read_sources

RECORDED = json.loads(Path(__file__).with_name("recorded_values.json").read_text(encoding="utf-8"))
SCENES = {
    "default": SceneConfig(),
    "wild": SceneConfig(wild=0.5),
    "validation": SceneConfig(duration=10.24, mixture=1.0, augment=0.0),
}
MIXTURES: dict[str, dict[str, Any]] = {
    "default": {},
    "varied": {"reverb": 0.6, "equalise_db": 9.0, "swell_db": 12.0, "name_background": True},
}


def synthetic_sounds() -> list[np.ndarray]:
    """Tones and noise with pauses, 0.4 to 12 s, each (n,) float32 at 16 kHz."""
    rng = np.random.default_rng(11)
    sounds = []
    for number, seconds in enumerate((0.4, 0.9, 1.7, 2.6, 3.3, 5.0, 7.0, 12.0)):
        t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        wave = np.sin(2 * np.pi * (180 + 170 * number) * t) * (0.2 + 0.1 * number)
        wave += 0.02 * rng.standard_normal(len(t))
        if number % 2:
            wave *= (t % 1.1) < 0.6  # bursts with pauses
        edge = int(0.1 * seconds * SAMPLE_RATE)
        wave[:edge] = 0.0
        sounds.append(wave.astype(np.float32))
    return sounds


def summary(samples: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Sums over the samples, and the generator's next number, which depends on how often it was drawn from."""
    wide = samples.astype(np.float64)
    ramp = np.linspace(0, 1, len(wide))
    return {
        "sum": float(wide.sum()),
        "absolute": float(np.abs(wide).sum()),
        "squares": float((wide**2).sum()),
        "ramp": float((np.abs(wide) * ramp).sum()),
        "next_draw": float(rng.random()),
    }


def scenes(name: str) -> list[dict[str, Any]]:
    sounds = synthetic_sounds()
    maker = SceneMaker(lambda i: sounds[i], np.arange(1.0, 9.0), np.array([5, 6, 7]), SCENES[name])
    found = []
    for seed in range(12):
        rng = np.random.default_rng([3, seed])
        scene = maker.scene(rng)
        found.append({"events": [list(e) for e in scene.events], **summary(scene.samples, rng)})
    rng = np.random.default_rng(99)
    scene = maker.scene(rng, [1, 2, 7])
    found.append({"events": [list(e) for e in scene.events], **summary(scene.samples, rng)})
    return found


def mixtures(name: str) -> list[dict[str, Any]]:
    sounds = synthetic_sounds()
    events = [SoundClip(str(i), f"label {i % 5}", len(sounds[i]) / SAMPLE_RATE) for i in range(6)]
    beds = [SoundClip(str(i), f"label {i - 5}", len(sounds[i]) / SAMPLE_RATE) for i in (6, 7)]
    mixer = Mixer(events, beds, lambda clip: sounds[int(clip.name)], MixConfig(**MIXTURES[name]))
    found = []
    for seed in range(12):
        rng = np.random.default_rng([4, seed])
        mixture = mixer.draw(rng)
        rows = [[e.clip.name, e.snr_db, [list(s) for s in e.segments]] for e in mixture.events]
        found.append(
            {
                "events": rows,
                "background": mixture.background.name,
                "caption": mixture.caption,
                **summary(mixture.samples, rng),
            }
        )
    return found


def folder(tmp_path: Path) -> dict[str, Any]:
    """A small folder of mixtures: hashes of its lists, sums over its audio as 16-bit samples."""
    sounds = synthetic_sounds()
    source, out = tmp_path / "sounds", tmp_path / "out"
    for number, samples in enumerate(sounds):
        path = source / f"label_{number % 5}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    (source / "label_0" / "broken.wav").write_bytes(b"RIFF")
    cutting = ClipConfig(background=4.0, shortest=0.3, longest=3.0, backgrounds=("label 1", "label 2"))
    mixing = MixConfig(events=(1, 3))
    write_mixtures(read_sources(source), [], out, MixtureSetConfig(6, 5, cutting, mixing))
    lists = ("simulate.json", "mixtures.jsonl", "manifest.jsonl", "strong.tsv", "durations.tsv")
    found: dict[str, Any] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in lists}
    rows = [json.loads(line) for line in (out / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    found["clips"] = [[r["recording"], r["kind"], r.get("reason"), r.get("at")] for r in rows]
    for path in sorted((out / "audio").glob("*.flac")):
        samples = soundfile.read(path, dtype="int16")[0].astype(np.int64)
        found[path.name] = {"absolute": int(np.abs(samples).sum()), "squares": int((samples**2).sum())}
    return found


def assert_matches(found: Any, recorded: Any, where: str = "") -> None:
    """Numbers to a relative 1e-5, everything else exactly."""
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys(), where
        for key, value in recorded.items():
            assert_matches(found[key], value, f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for number, (a, b) in enumerate(zip(found, recorded, strict=True)):
            assert_matches(a, b, f"{where}[{number}]")
    elif isinstance(recorded, float | int):
        assert found == pytest.approx(recorded, rel=1e-5, abs=2e-3), where
    else:
        assert found == recorded, where


@pytest.mark.parametrize("name", list(SCENES))
def test_scenes_match_the_recorded_values(name: str) -> None:
    assert_matches(scenes(name), RECORDED["scenes"][name])


@pytest.mark.parametrize("name", list(MIXTURES))
def test_mixtures_match_the_recorded_values(name: str) -> None:
    assert_matches(mixtures(name), RECORDED["mixtures"][name])


def test_a_written_folder_matches_the_recorded_values(tmp_path: Path) -> None:
    assert_matches(folder(tmp_path), RECORDED["folder"])
