"""`finelap train`: runs a training configuration.

A file with `kind: train` configures the trainer. One with `kind: distil`, or without a kind, is the recipe of the
bundled checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

HELP = "train a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    parser.add_argument("--restart", action="store_true", help="begin again, deleting the recipe's work folder")


def run(args: argparse.Namespace) -> None:
    """Trains, resuming from the work folder unless `--restart` is given."""
    if not args.config.is_file():
        raise FileNotFoundError(2, "no such file", str(args.config))
    run_file(args.config, resume=not args.restart)


def run_file(file: Path, resume: bool = True, root: Path | None = None) -> None:
    """Runs a YAML file. Its relative paths start at `root`, by default the current folder.

    Without `resume` the work folder is deleted first.
    """
    from model.config import ConfigError
    from training.config import Recipe, TrainConfig, parse_config, read_yaml

    root = root or Path.cwd()
    data = read_yaml(file)
    kind = data.get("kind", "distil")
    if kind == "train":
        config = parse_config(TrainConfig, data, file.name)
        if not resume:
            shutil.rmtree(root / config.work_dir, ignore_errors=True)
        from training.trainer import train

        print(f"best checkpoint: {train(config, root, resume)}")
    elif kind == "distil":
        recipe = parse_config(Recipe, data, file.name)
        if not resume:
            shutil.rmtree(root / recipe.work_dir, ignore_errors=True)
        from training.recipes.finelap_small import RecipeRun

        RecipeRun(recipe, root).run()
    else:
        raise ConfigError(f"{file.name}: kind: expected 'train' or 'distil', found {kind!r}")
