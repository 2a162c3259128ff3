"""The door of the training module for `finelap train`: what a YAML file describes, carried out.

A file with `kind: train` is a run of the trainer; one with `kind: distil`, or without a kind, the bundled checkpoint's
recipe.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from model.config import ConfigError
from training.config import Recipe, build


def run(config: Path, resume: bool = True, root: Path | None = None) -> None:
    """Carries out a file; its relative paths start at `root`, the current folder unless given.

    With `resume`, it goes on from what the work folder holds; without, the work folder is emptied first.
    """
    from training.train_config import from_plain, read_yaml

    root = root or Path.cwd()
    data = read_yaml(config)
    kind = data.get("kind", "distil")
    if kind == "train":
        from training.train_config import TrainConfig

        run_config: TrainConfig = from_plain(TrainConfig, data, config.name)
        _empty(root / run_config.work_dir, resume)
        from training.trainer import train

        print(f"the best checkpoint: {train(run_config, root, resume)}")
    elif kind == "distil":
        recipe: Recipe = build(Recipe, {k: v for k, v in data.items() if k != "kind"}, config.name)
        _empty(root / recipe.work_dir, resume)
        from training.recipes.finelap_small import Run

        Run(recipe, root).run()
    else:
        raise ConfigError(f"{config.name}: kind: {kind!r} is none of train, distil")


def _empty(work_dir: Path, resume: bool) -> None:
    if not resume:
        shutil.rmtree(work_dir, ignore_errors=True)
