"""The recipe's distillation and alignment stages on a tiny model and a generated pool: they learn and resume exactly.

The pool's targets are a function of its mel, so that there is something to learn without the real teachers.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.adapter import ConceptAdapter
from model.audio import SILENCE, LogMel
from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig
from model.finelap import FineLAP
from training.checkpointing import TrainError
from training.config import AlignConfig, DistillConfig
from training.data.phrase_bank import PhraseBank
from training.recipes import finelap_small
from training.recipes.finelap_small import run_stage
from training.tasks.distillation import DistillationTask, Pool, PoolBatches, TeacherHeads, augment, white_noise_mel
from training.tasks.dual_stream import SceneAlignmentTask, SceneBatches
from training.tasks.task import BatchSource, Task
from training.trainer import Evaluation

CONCEPTS, LABELS = 12, ["dog", "rain", "bell", "car", "wind", "drum"]


class WordTokenizer:
    """Enough of a tokenizer: one id a word, taken from a fixed vocabulary, 1 for unknown words."""

    def __init__(self) -> None:
        words = [*LABELS, "the", "sound", "of", "a", "recording", "effect", "and", "then"]
        self.ids = {word: i for i, word in enumerate(words, start=2)}

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        rows = [[self.ids.get(w.strip(","), 1) for w in text.split()] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def tiny_model() -> FineLAP:
    torch.manual_seed(0)
    config = FineLAPConfig(
        name="tiny",
        dim=16,
        mel=MelConfig(num_mel_bins=16, pad_value=-15.9),
        windows=WindowConfig(mel_frames=256, frames=16, frame_hop=0.16, overlap_frames=4),
        audio_encoder=EncoderConfig("cnn", {"stem": 4, "stages": [[8, 4, 2], [16, 2, 2]], "width": 32, "heads": 4}),
        adapter=AdapterConfig("concept", {"concepts": CONCEPTS, "hidden": 16}),
        text=TextConfig(
            "mean",
            16,
            "residual",
            {"hidden": 16},
            {
                "model_type": "bert",
                "vocab_size": 32,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
            },
        ),
    )
    model = FineLAP(config, WordTokenizer())
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
        assert isinstance(model.adapter, ConceptAdapter)
        model.adapter.anchors.copy_(torch.nn.functional.normalize(torch.randn(CONCEPTS, 16), dim=-1))
    return model.eval()


def write_pool(folder: Path) -> None:
    """Two shards of 24 scenes of 32 frames; each sound is a band of the spectrum."""
    for shard in range(2):
        rng = np.random.default_rng(shard)
        mel = rng.normal(-8, 0.5, (24, 512, 16)).astype(np.float32)
        logits = np.full((24, 32, CONCEPTS), -5.0, np.float32)
        events = []
        for scene in range(24):
            source, first = int(rng.integers(len(LABELS))), int(rng.integers(0, 16))
            last = first + int(rng.integers(6, 16))
            mel[scene, first * 16 : last * 16, source * 2 : source * 2 + 3] += 6
            logits[scene, first:last, source] = 3.0
            events.append([(source, first * 0.16, last * 0.16)])
        target = folder / f"{shard:03d}"
        target.mkdir(parents=True)
        arrays = {
            "mel": mel,
            "logits": logits,
            "features": np.tile(logits, (1, 1, 86))[..., :1024],
            "active": np.ones((24, 32), bool),
        }
        if shard:
            arrays["aisfx"] = np.tile(logits, (1, 1, 43))[..., :512]
        for name, values in arrays.items():
            np.save(target / f"{name}.npy", values if values.dtype == bool else values.astype(np.float16))
        (target / "events.json").write_text(json.dumps(events))


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder)
    return folder


def heads_of(model: FineLAP) -> TeacherHeads:
    torch.manual_seed(1)
    return TeacherHeads(model.audio_encoder.width)


class Killed(Exception):
    pass


def stage(
    task: Task, batches: BatchSource, config: DistillConfig | AlignConfig, folder: Path, stop_after: int | None
) -> FineLAP:
    """Runs to the end, or stops right after the save at a step, as a killed process would."""

    state = folder / "state" / "training.pt"

    def report() -> dict[str, float]:
        if state.is_file() and torch.load(state, weights_only=True)["step"] == stop_after:
            raise Killed
        return {"metric": 1.0}

    try:
        run_stage(task, batches, config, folder, Evaluation(report, config.save_every))
    except Killed:
        assert stop_after is not None
    assert isinstance(task.model, FineLAP)
    return task.model


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as f:
        return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in csv.DictReader(f)]


def run_distill(pool: Path, folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    model = tiny_model()
    config = DistillConfig(steps=30, batch=8, crop_frames=8, learning_rate=3e-3, warmup=5, save_every=10)
    task = DistillationTask(model, heads_of(model), config)
    stage(task, PoolBatches(Pool(pool), config), config, folder, stop_after)
    return task.state_dict()


def test_distillation_learns_and_resumes_exactly(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finelap_small, "LOG_EVERY", 10)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = run_distill(pool_folder, whole)
    run_distill(pool_folder, parts, stop_after=10)
    assert [int(r["step"]) for r in rows(parts, "log")] == [10, 20], "stopped before the second save"
    resumed = run_distill(pool_folder, parts)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    log = rows(parts, "log")
    assert log == rows(whole, "log") and [int(r["step"]) for r in log] == [10, 20, 30]
    assert float(log[-1]["features_loss"]) < 0.8 * float(log[0]["features_loss"])
    assert float(rows(parts, "validation")[0]["metric"]) == 1.0


def run_align(pool: Path, folder: Path, stop_after: int | None = None) -> FineLAP:
    model = tiny_model()
    config = AlignConfig(
        steps=24,
        batch=8,
        crop_frames=8,
        learning_rate=3e-3,
        encoder_learning_rate=3e-3,
        warmup=2,
        phrases=4,
        save_every=6,
    )
    bank = PhraseBank([[label] for label in LABELS])
    batches = SceneBatches(Pool(pool), LABELS, bank, config, model.frame_hop)
    return stage(SceneAlignmentTask(model, heads_of(model), config), batches, config, folder, stop_after)


def test_alignment_learns_and_resumes_exactly(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finelap_small, "LOG_EVERY", 6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    before = {k: v.clone() for k, v in tiny_model().state_dict().items()}
    straight = run_align(pool_folder, whole)
    run_align(pool_folder, parts, stop_after=12)
    resumed = run_align(pool_folder, parts)
    log = rows(whole, "log")
    assert [int(r["step"]) for r in log] == [6, 12, 18, 24] and rows(parts, "log") == log
    after = straight.state_dict()
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=0, msg=name)
    assert float(log[-1]["frame_loss"]) < float(log[0]["frame_loss"])
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"audio_encoder", "adapter", "text", "temp_global", "b_global", "temp_local", "b_local"}
    frozen = [n for n in after if n.startswith("text.encoder.")]
    assert frozen and all(torch.equal(after[n], before[n]) for n in frozen)
    assert torch.equal(after["adapter.anchors"], before["adapter.anchors"])


def test_a_stage_with_other_settings_is_not_resumed(pool_folder: Path, tmp_path: Path) -> None:
    def run(rate: float) -> None:
        model, config = tiny_model(), DistillConfig(steps=1, batch=2, crop_frames=4, learning_rate=rate)
        task = DistillationTask(model, heads_of(model), config)
        run_stage(task, PoolBatches(Pool(pool_folder), config), config, tmp_path / "stage", None)

    run(1e-3)
    with pytest.raises(TrainError, match="another learning_rate"):
        run(2e-3)


def test_augmentation_adds_noise_as_the_front_end_sees_it() -> None:
    front = LogMel(MelConfig(num_mel_bins=64, low_freq=50.0, pad_value=SILENCE))
    quiet = torch.full((400, 8, 64), SILENCE)
    torch.manual_seed(0)
    noisy = augment(quiet, front.config, white_noise_mel(front), 0.5)
    loudest, silent = noisy.amax(dim=(1, 2)), (noisy <= SILENCE + 2.4).flatten(1).sum(1)
    real = front(torch.from_numpy(np.random.default_rng(0).normal(0, 10 ** (-36 / 20), (1, 16000)).astype(np.float32)))
    assert float(loudest.max()) < float(real.max()) + 1.5
    clean = (silent > 0.7 * 8 * 64).float().mean()
    assert 0.3 < float(clean) < 0.8  # about half, and crops with the faintest noise
    dry = augment(quiet, front.config, white_noise_mel(front), 0.0)
    assert float((dry <= SILENCE + 2.4).float().mean()) > 0.7  # except the hidden bands
    middle = noisy[loudest.argmax()].median(0).values
    assert float((middle - real[0].median(0).values).abs().median()) < 2.5


def test_scenes_with_an_unlabelled_sound_are_skipped(pool_folder: Path) -> None:
    captions = ["", *LABELS[1:]]
    bank = PhraseBank([[label] for label in LABELS])
    config = AlignConfig(batch=32, crop_frames=8, phrases=4, swap=0.0)
    batch = SceneBatches(Pool(pool_folder), captions, bank, config, 0.16).batch(np.random.default_rng(0))
    assert len(batch.captions) == 32
    assert not any("dog" in names for names in batch.meanings)
    for names, phrases, labels in zip(batch.meanings, batch.phrases, batch.labels, strict=True):
        assert len(phrases) == 4
        assert all(any(name in phrase for phrase in phrases) for name in names)
        assert labels[: len(names)].any(dim=1).all() and not labels[len(names) :].any()
