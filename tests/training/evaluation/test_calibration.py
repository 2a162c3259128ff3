"""Calibration: logistic fits, the match cutoff, and the command that fits a user's own checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from app.cli.main import main
from model import FineLAP
from model.config import SAMPLE_RATE, AdapterConfig
from tests.model.conftest import build_config, build_tokenizer, fill
from training.commands.calibrate import label_of, labelled_sounds
from training.evaluation.calibration import (
    CalibrationError,
    EmbeddedSounds,
    best_cut,
    fit_logistic,
    fit_matching,
    nonsense,
)


def test_logistic_fit_recovers_the_true_parameters() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.2, 0.8, 200_000)
    labels = rng.random(len(similarity)) < 1 / (1 + np.exp(-(similarity / 0.08 - 6)))
    temp, bias = fit_logistic(similarity, labels.astype(float))
    assert temp == pytest.approx(0.08, rel=0.03) and bias == pytest.approx(-6, rel=0.03)


def test_logistic_fit_of_a_narrow_range() -> None:
    rng = np.random.default_rng(1)
    similarity = 0.3 + 0.002 * rng.standard_normal(200_000)
    labels = rng.random(len(similarity)) < 1 / (1 + np.exp(-(similarity - 0.303) / 0.001))
    temp, bias = fit_logistic(similarity, labels.astype(float))
    assert temp == pytest.approx(0.001, rel=0.05) and -bias * temp == pytest.approx(0.303, rel=0.01)


def test_the_best_cut_separates_what_can_be_separated() -> None:
    similarity = np.concatenate([np.linspace(0, 0.5, 950), np.linspace(0.6, 0.9, 50)])
    assert 0.5 <= best_cut(similarity, similarity > 0.55) <= 0.62


class Names:
    """A model whose texts are the axes, every other text lies between them, and nonsense is near one of them."""

    temp_global, b_global = torch.tensor(0.2), torch.tensor(-3.0)

    def __init__(self, labels: list[str], near: float) -> None:
        self.labels, self.near = labels, near

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        dim = len(self.labels) + 1
        vectors = torch.zeros(len(texts), dim)
        for row, text in zip(vectors, texts, strict=True):
            if text in self.labels:
                row[self.labels.index(text)] = 1.0
            else:
                row[len(text) % len(self.labels)] = self.near
                row[-1] = (1 - self.near**2) ** 0.5
        return vectors


@pytest.mark.parametrize("near", [0.1, 0.45])
def test_the_cutoff_rejects_absent_phrases_and_nonsense(near: float) -> None:
    labels = [f"label {i}" for i in range(10)]
    rng = np.random.default_rng(0)
    names = [label for label in labels for _ in range(4)]
    clips = np.stack([np.eye(11)[labels.index(name)] + 0.05 * rng.standard_normal(11) for name in names])
    clips = (clips / np.linalg.norm(clips, axis=1, keepdims=True)).astype(np.float32)
    sounds = EmbeddedSounds(clips, [clip[None] for clip in clips], names)
    model = Names(labels, near)
    matching = fit_matching(model, sounds)  # type: ignore[arg-type]

    def score(similarity: float) -> float:
        by_clip = similarity / 0.2 - 3.0
        by_segment = similarity / matching.segment[0] + matching.segment[1]
        return float(1 / (1 + np.exp(-max(by_clip, by_segment))))

    assert score(near) <= matching.cutoff < score(0.95)
    same, other = float(clips[0] @ clips[1]), float(clips[0] @ clips[9])
    by_sound = [1 / (1 + np.exp(-(s / matching.sound[0] + matching.sound[1]))) for s in (same, other)]
    assert by_sound[0] > 0.5 > by_sound[1]


def test_nonsense_has_no_words_in_it() -> None:
    texts = nonsense(50, np.random.default_rng(0))
    assert len(set(texts)) == 50 and all(text.replace(" ", "").isalpha() for text in texts)


def tones(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        t = np.arange(int(SAMPLE_RATE * (0.5 + 0.1 * (number % 5)))) / SAMPLE_RATE
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * 200 * (1 + number // 2) * t), SAMPLE_RATE)


def test_finelap_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = FineLAP(build_config(adapter=AdapterConfig("concept", {"concepts": 7, "hidden": 8})), build_tokenizer())
    fill(model)
    model.save_pretrained(tmp_path / "old", dtype=torch.float16)
    tones(tmp_path / "sounds", [f"{label}/{take}.wav" for label in ("dog", "car", "rain", "bird") for take in (1, 2)])
    arguments = ["calibrate", str(tmp_path / "old"), "--sounds", str(tmp_path / "sounds"), "--mixtures", "3"]
    assert main([*arguments, "--out", str(tmp_path / "new")]) == 0
    assert "8 sounds, 4 labels; clips match from 0." in capsys.readouterr().out
    before, after = (FineLAP.from_pretrained(tmp_path / name) for name in ("old", "new"))
    assert before.config.matching is None and after.config.matching is not None
    assert after.stamp == before.stamp and float(after.temp_local) != float(before.temp_local)
    assert (tmp_path / "new/model.safetensors").stat().st_size == (tmp_path / "old/model.safetensors").stat().st_size
    assert main(["calibrate", str(tmp_path / "old"), "--sounds", str(tmp_path / "old")]) == 1
    assert "no sounds with labels" in capsys.readouterr().err


def test_labels_come_from_a_manifest_folders_or_file_names(tmp_path: Path) -> None:
    tones(tmp_path, ["Dog_bark-02.wav", "rain/heavy 1.wav"])
    assert [item.captions for item in labelled_sounds(tmp_path)] == [("dog bark",), ("rain",)]
    rows = [{"audio": "rain/heavy 1.wav", "label": "heavy rain", "package": "p"}]
    rows.append({"audio": "Dog_bark-02.wav", "label": None, "package": "p"})  # type: ignore[dict-item]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.captions for item in labelled_sounds(tmp_path)] == [("heavy rain",)]
    assert label_of("UI_Click-03b") == "ui click b" and label_of("007") == ""
    with pytest.raises(CalibrationError, match="no sounds with labels"):
        labelled_sounds(tmp_path / "rain" / "none")
