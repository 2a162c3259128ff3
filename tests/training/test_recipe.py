"""The bundled checkpoint's recipe: what ends up in the weights."""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import read_recipe
from training.recipes.finelap_small import mean_weights


def test_weights_of_two_runs_are_averaged_and_counts_are_not() -> None:
    first = {"w": torch.tensor([1.0, 3.0]), "running_mean": torch.tensor([0.0]), "num_batches_tracked": torch.tensor(7)}
    second = {
        "w": torch.tensor([3.0, -3.0]),
        "running_mean": torch.tensor([1.0]),
        "num_batches_tracked": torch.tensor(9),
    }
    mean = mean_weights(first, second)
    assert mean["w"].tolist() == [2.0, 0.0] and mean["running_mean"].tolist() == [0.5]
    assert mean["num_batches_tracked"].item() == 9


def test_the_bundled_recipe_goes_on_from_its_first_run(repo_dir: Path) -> None:
    recipe = read_recipe(repo_dir / "training" / "configs" / "finelap-small.yaml")
    assert recipe.second.steps > 0 and recipe.second.encoder_learning_rate > recipe.align.encoder_learning_rate
    assert recipe.pool.shards > recipe.pool.wild_from
