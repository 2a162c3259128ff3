"""Every loss of the first 50 steps of each training stage, compared with stored values.

The values were recorded before the stages shared one training loop. `python tests/training/test_golden_losses.py`
prints the current ones in the stored form.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from training.config import Recipe, read_recipe
from training.data.phrase_bank import PhraseBank

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_losses.json"
STEPS = 50
# On one machine with one thread a run repeats to the last bit. Another CPU sums floats in another order: a relative
# difference of about 1e-7 a step, which training amplifies. A changed seed, weight or schedule exceeds 1e-5 at once.
TOLERANCE = 1e-5

Losses = dict[str, list[float]]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


loops, trainer_case = _load("test_loops"), _load("trainer_case")


def tiny_recipe() -> Recipe:
    """The bundled recipe with 50 steps a stage and batches small enough for a test."""
    recipe = read_recipe(HERE.parents[1] / "training" / "configs" / "finelap-small.yaml")
    small: dict[str, Any] = {"steps": STEPS, "batch": 8, "crop_frames": 8, "warmup": 10, "save_every": 20}
    return replace(
        recipe,
        distill=replace(recipe.distill, **small),
        align=replace(recipe.align, phrases=4, **small),
        second=replace(recipe.second, phrases=4, **small),
    )


@contextmanager
def recorded(module: Any, name: str, keep: Callable[[Any], dict[str, torch.Tensor]], losses: Losses) -> Iterator[None]:
    """Appends what `keep` finds in each result of `module.name` to `losses`."""
    original = getattr(module, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for key, value in keep(result).items():
            losses.setdefault(key, []).append(float(value.detach()))
        return result

    setattr(module, name, wrapper)
    try:
        yield
    finally:
        setattr(module, name, original)


def distillation(pool: Path, folder: Path) -> dict[str, Losses]:
    from training.tasks import distillation as module

    model, losses = loops.tiny_model(), Losses()
    student = loops.student_of(model)
    with recorded(module.Student, "losses_of", dict, losses):
        for _ in module.distill(student, model.log_mel, module.Pool(pool), folder, tiny_recipe().distill, dict):
            pass
    return {"distillation": losses}


def alignment(pool: Path, folder: Path) -> dict[str, Losses]:
    from training.tasks import align as module
    from training.tasks.distillation import LOSS_WEIGHTS, Pool

    def teacher(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"teacher": torch.stack([LOSS_WEIGHTS[k] * v for k, v in terms.items()]).sum()}

    recipe, found = tiny_recipe(), {}
    model = loops.tiny_model()
    student, bank = loops.student_of(model), PhraseBank([[label] for label in loops.LABELS])
    for stage, config in (("align", recipe.align), ("second", recipe.second)):
        losses: Losses = {}
        (folder / stage).mkdir()
        with (
            recorded(module, "clip_sigmoid_loss", lambda value: {"clip": value}, losses),
            recorded(module, "frame_sigmoid_loss", lambda value: {"frame": value}, losses),
            recorded(module.Student, "losses_of", teacher, losses),
        ):
            for _ in module.align(model, student, Pool(pool), loops.LABELS, bank, folder / stage, config, dict):
                pass
        found[stage] = losses
    return found


def trainer(pool: Path, folder: Path) -> dict[str, Losses]:
    import csv

    from training.trainer import train

    train(
        trainer_case.tiny_config(folder, steps=STEPS, save_every=STEPS, accumulate=2),
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
    loops.write_pool(pool)
    for stage, losses in measure(run, pool, tmp_path).items():
        assert losses.keys() == golden[stage].keys()
        for name, values in losses.items():
            assert values == pytest.approx(golden[stage][name], rel=TOLERANCE), f"{stage}: {name}"


def main() -> None:
    import tempfile

    found: dict[str, Losses] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        loops.write_pool(pool)
        for run in (distillation, alignment, trainer):
            (Path(folder) / run.__name__).mkdir()
            found |= measure(run, pool, Path(folder) / run.__name__)
    rounded = {s: {k: [float(f"{v:.8g}") for v in vs] for k, vs in losses.items()} for s, losses in found.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
