"""`finelap train`: carries out a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    parser.add_argument("--restart", action="store_true", help="begin again, deleting the recipe's work folder")


def run(args: argparse.Namespace) -> None:
    """Trains, resuming unless told otherwise."""
    from training.commands.parser import run

    if not args.config.is_file():
        raise FileNotFoundError(2, "no such file", str(args.config))
    run(args.config, resume=not args.restart)
