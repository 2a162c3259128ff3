"""The bundled recipe: its stages learn and resume exactly on a tiny model and a generated pool."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from model.audio import SILENCE, LogMel
from model.config import MelConfig
from model.finelap import FineLAP
from training.checkpointing import TrainError
from training.config import AlignConfig, DistillConfig, read_recipe
from training.data.phrase_bank import PhraseBank
from training.recipes import finelap_small
from training.recipes.finelap_small import mean_weights, run_stage
from training.tasks.distillation import DistillationTask, Pool, PoolBatches, augment, white_noise_mel
from training.tasks.dual_stream import SceneAlignmentTask, SceneBatches
from training.tasks.task import BatchSource, Task
from training.trainer import Evaluation


def _load_case() -> ModuleType:
    path = Path(__file__).parents[1] / "stage_case.py"
    spec = importlib.util.spec_from_file_location("stage_case", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stage_case"] = module
    spec.loader.exec_module(module)
    return module


case = _load_case()


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    case.write_pool(folder)
    return folder


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
    model = case.tiny_model()
    config = DistillConfig(steps=30, batch=8, crop_frames=8, learning_rate=3e-3, warmup=5, save_every=10)
    task = DistillationTask(model, case.heads_of(model), config)
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
    model = case.tiny_model()
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
    bank = PhraseBank([[label] for label in case.LABELS])
    batches = SceneBatches(Pool(pool), case.LABELS, bank, config, model.frame_hop)
    return stage(SceneAlignmentTask(model, case.heads_of(model), config), batches, config, folder, stop_after)


def test_alignment_learns_and_resumes_exactly(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finelap_small, "LOG_EVERY", 6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    before = {k: v.clone() for k, v in case.tiny_model().state_dict().items()}
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
        model, config = case.tiny_model(), DistillConfig(steps=1, batch=2, crop_frames=4, learning_rate=rate)
        task = DistillationTask(model, case.heads_of(model), config)
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
    captions = ["", *case.LABELS[1:]]
    bank = PhraseBank([[label] for label in case.LABELS])
    config = AlignConfig(batch=32, crop_frames=8, phrases=4, swap=0.0)
    batch = SceneBatches(Pool(pool_folder), captions, bank, config, 0.16).batch(np.random.default_rng(0))
    assert len(batch.captions) == 32
    assert not any("dog" in names for names in batch.meanings)
    for names, phrases, labels in zip(batch.meanings, batch.phrases, batch.labels, strict=True):
        assert len(phrases) == 4
        assert all(any(name in phrase for phrase in phrases) for name in names)
        assert labels[: len(names)].any(dim=1).all() and not labels[len(names) :].any()


def test_weights_are_averaged_and_counters_are_not() -> None:
    first = {"w": torch.tensor([1.0, 3.0]), "running_mean": torch.tensor([0.0]), "num_batches_tracked": torch.tensor(7)}
    second = {
        "w": torch.tensor([3.0, -3.0]),
        "running_mean": torch.tensor([1.0]),
        "num_batches_tracked": torch.tensor(9),
    }
    mean = mean_weights(first, second)
    assert mean["w"].tolist() == [2.0, 0.0] and mean["running_mean"].tolist() == [0.5]
    assert mean["num_batches_tracked"].item() == 9


def test_the_bundled_recipe_continues_the_first_edition(repo_dir: Path) -> None:
    configs = repo_dir / "training" / "configs"
    first, recipe = (read_recipe(configs / f"finelap-small{name}.yaml") for name in ("-first", ""))
    assert first.second.encoder_learning_rate > first.align.encoder_learning_rate and not first.start_from
    assert recipe.start_from == first.output and recipe.second.steps > 0
    assert set(recipe.corpora) > set(first.corpora) and recipe.validation_groups == first.validation_groups
    closed_form = recipe.closed_form
    assert closed_form.direct_weight and closed_form.evidence_share and closed_form.label_share


def test_teacher_heads_alone_leave_the_model_as_it_is(pool_folder: Path, tmp_path: Path) -> None:
    model = case.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads = case.heads_of(model)
    untrained = heads.to_yamnet.weight.clone()
    config = DistillConfig(steps=6, batch=8, crop_frames=8, learning_rate=3e-3, save_every=6)
    task = DistillationTask(model, heads, config, heads_only=True)
    stage(task, PoolBatches(Pool(pool_folder), config), config, tmp_path / "heads", None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(heads.to_yamnet.weight, untrained)
