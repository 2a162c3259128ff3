"""Every loss of the first 50 steps of each training stage, compared with stored values.

The values were recorded before the stages shared one training loop. `python tests/training/test_golden_losses.py`
prints the current ones in the stored form.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from training.config import AlignConfig, DistillConfig, OptimiserConfig, Recipe, read_recipe
from training.data.phrase_bank import PhraseBank
from training.recipes.finelap_small import run_stage
from training.tasks.distillation import DistillationTask, Pool, PoolBatches
from training.tasks.dual_stream import SceneAlignmentTask, SceneBatches
from training.tasks.task import BatchSource, Task
from training.trainer import train

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_losses.json"
STEPS = 50
# A run repeats to the last bit on one machine with one thread. Another CPU, or another order of a sum, changes losses
# by less than 1e-6, provided that the learning rate is low: at 1e-3 Adam amplifies such differences to 1e-3 in 50
# steps. A changed seed, weight or schedule exceeds 1e-5 within a step or two.
TOLERANCE = 1e-5
LEARNING_RATE = 1e-4  # of distillation and of `kind: train`; alignment uses the recipe's own

Losses = dict[str, list[float]]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stage_case, trainer_case = _load("stage_case"), _load("trainer_case")


def tiny_recipe() -> Recipe:
    """The bundled recipe with 50 steps a stage and batches small enough for a test."""
    recipe = read_recipe(HERE.parents[1] / "training" / "configs" / "finelap-small-first.yaml")
    small: dict[str, Any] = {"steps": STEPS, "batch": 8, "crop_frames": 8, "warmup": 10, "save_every": 20}
    return replace(
        recipe,
        distill=replace(recipe.distill, learning_rate=LEARNING_RATE, **small),
        align=replace(recipe.align, phrases=4, **small),
        second=replace(recipe.second, phrases=4, **small),
    )


def recorded(
    task: Task, batches: BatchSource, config: DistillConfig | AlignConfig, folder: Path, terms: Sequence[str]
) -> Losses:
    """Runs a stage and returns these terms of the loss at every step."""
    losses: Losses = {name: [] for name in terms}

    def record(module: torch.nn.Module, inputs: object, output: dict[str, torch.Tensor]) -> None:
        for name in terms:
            losses[name].append(float(output[name].detach()))

    task.register_forward_hook(record)
    run_stage(task, batches, config, folder, None)
    return losses


def distillation(pool: Path, folder: Path) -> dict[str, Losses]:
    model, config = stage_case.tiny_model(), tiny_recipe().distill
    task = DistillationTask(model, stage_case.heads_of(model), config)
    terms = ("frame", "clip", "features", "aisfx")
    return {"distillation": recorded(task, PoolBatches(Pool(pool), config), config, folder, terms)}


def alignment(pool: Path, folder: Path) -> dict[str, Losses]:
    recipe, found = tiny_recipe(), {}
    model = stage_case.tiny_model()
    heads, bank = stage_case.heads_of(model), PhraseBank([[label] for label in stage_case.LABELS])
    for stage, config in (("align", recipe.align), ("second", recipe.second)):
        task = SceneAlignmentTask(model, heads, config)
        batches = SceneBatches(Pool(pool), stage_case.LABELS, bank, config, model.frame_hop)
        found[stage] = recorded(task, batches, config, folder / stage, ("teacher", "clip", "frame"))
    return found


def trainer(pool: Path, folder: Path) -> dict[str, Losses]:
    optimiser = OptimiserConfig(learning_rate=LEARNING_RATE, warmup=10, clip_norm=5.0)
    train(
        trainer_case.tiny_config(folder, steps=STEPS, save_every=STEPS, accumulate=2, optimiser=optimiser),
        folder,
        model=trainer_case.tiny_model(),
        batches=trainer_case.Tones(4),
    )
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {"train": {key: [float(row[f"{key}_loss"]) for row in rows] for key in ("clip", "frame")}}


def measure(run: Callable[[Path, Path], dict[str, Losses]], pool: Path, folder: Path) -> dict[str, Losses]:
    """The losses of a stage's run, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(pool, folder)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("run", [distillation, alignment, trainer], ids=lambda run: run.__name__)
def test_losses_match_the_recorded_ones(
    run: Callable[[Path, Path], dict[str, Losses]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    golden = json.loads(GOLDEN.read_text())
    pool = tmp_path_factory.mktemp("pool")
    stage_case.write_pool(pool)
    for stage, losses in measure(run, pool, tmp_path).items():
        assert losses.keys() == golden[stage].keys()
        for name, values in losses.items():
            assert values == pytest.approx(golden[stage][name], rel=TOLERANCE), f"{stage}: {name}"


def main() -> None:
    import tempfile

    found: dict[str, Losses] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        stage_case.write_pool(pool)
        for run in (distillation, alignment, trainer):
            (Path(folder) / run.__name__).mkdir()
            found |= measure(run, pool, Path(folder) / run.__name__)
    rounded = {s: {k: [float(f"{v:.8g}") for v in vs] for k, vs in losses.items()} for s, losses in found.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
