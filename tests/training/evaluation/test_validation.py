"""Evaluation and calibration of a model with known results: it recognises three tones by name."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from training.config import EvaluationConfig
from training.data.audio_cache import AudioStore
from training.data.manifests import Item
from training.evaluation.calibration import calibrate, embed_sounds
from training.evaluation.validation import (
    best_threshold,
    event_f1,
    event_report,
    frame_report,
    make_mixtures,
    text_to_clip,
    tracks,
)

TONES = {"low": 300.0, "middle": 900.0, "high": 2500.0}


class ToneEmbedding(tuple):
    @property
    def clip(self) -> torch.Tensor:
        return self[0]

    @property
    def frames(self) -> torch.Tensor:
        return self[1]

    @property
    def frame_hop(self) -> float:
        return 0.16


class ToneModel:
    """Embeds a frame by the level of each tone; the names of the tones are the axes."""

    frame_hop = 0.16

    def __init__(self) -> None:
        self.temp_local, self.b_local = torch.tensor(0.1), torch.tensor(-10.0)
        self.temp_global, self.b_global = torch.tensor(0.1), torch.tensor(-10.0)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        axes = torch.eye(4)
        return torch.stack([next(axes[i] for i, n in enumerate(TONES) if n in t.split()) for t in texts])

    def encode_audio(self, waveforms: list[np.ndarray], sample_rate: int) -> list[ToneEmbedding]:
        result = []
        for x in waveforms:
            x = np.pad(x, (0, -len(x) % 2560)).reshape(-1, 2560)
            t = np.arange(2560) / sample_rate
            tones = [np.abs(x @ np.exp(-2j * np.pi * f * t)) for f in TONES.values()]
            level = torch.tensor(np.stack([*tones, np.full(len(x), 3.0)], 1), dtype=torch.float32)
            frames = torch.nn.functional.normalize(level, dim=-1)
            result.append(ToneEmbedding((torch.nn.functional.normalize(level.sum(0), dim=-1), frames)))
        return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    folder, items = tmp_path_factory.mktemp("tones"), []
    for name, frequency in TONES.items():
        for i in range(4):
            t = np.arange(int(16000 * (0.6 + 0.3 * i))) / 16000
            soundfile.write(folder / f"{name}{i}.wav", 0.5 * np.sin(2 * np.pi * frequency * t), 16000)
            items.append(Item(f"{name}{i}", folder / f"{name}{i}.wav", (name,)))
    return AudioStore(folder / "store.i16", items)


CONFIG = EvaluationConfig(mixtures=12, duration=5.12, phrases=3, seed=5)


def test_retrieval_of_a_perfect_model(store: AudioStore) -> None:
    report = text_to_clip(ToneModel(), store)  # type: ignore[arg-type]
    assert report["label R@1"] == report["sound_of mAP@10"] == 100.0
    assert report["chance R@1"] < 60


def test_mixtures_are_reproducible(store: AudioStore) -> None:
    first, second, other = make_mixtures(store, CONFIG), make_mixtures(store, CONFIG), make_mixtures(store, CONFIG, 1)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.samples, b.samples)
        assert a.segments == b.segments
    assert not np.array_equal(first[0].samples, other[0].samples)
    assert all(len(m.segments) == 3 for m in first)
    assert all(b <= c for m in first for s in m.segments.values() for (_, b), (c, _) in zip(s, s[1:], strict=False))


def test_frames_of_a_perfect_model_beat_loudness(store: AudioStore) -> None:
    report = frame_report(tracks(ToneModel(), make_mixtures(store, CONFIG)))  # type: ignore[arg-type]
    assert report["frame AP"] > 85 > report["frame AP, loudness alone"] > report["frame AP, chance"] - 15


def test_calibration_moves_the_best_threshold_to_a_half(store: AudioStore) -> None:
    model = ToneModel()
    mixtures = make_mixtures(store, CONFIG)
    found = tracks(model, mixtures)  # type: ignore[arg-type]
    assert event_f1(found, 0.1, -10.0, 0.5, 0.16) < 0.5  # uncalibrated: few frames reach 0.5
    calibrate(model, mixtures, embed_sounds(model, store))  # type: ignore[arg-type]
    temp, bias = float(model.temp_local), float(model.b_local)
    _, best = best_threshold(found, temp, bias, 0.16)
    assert event_f1(found, temp, bias, 0.5, 0.16) >= 0.95 * best > 0.4
    report = event_report(model, found)  # type: ignore[arg-type]
    assert report["F1 at the best threshold"] == pytest.approx(100 * best, abs=0.01)
    assert report["F1, chance"] < report["F1, loudness alone"] + 20 < report["F1 at 0.5"]
