"""`finelap ablate`: trains and measures the paper's ablation rows, and prints the table."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train and measure the paper's ablation rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, default=Path("training/configs/ablation.yaml"), metavar="FILE")
    parser.add_argument("--rows", metavar="A,B", help="only these rows, by name; all unless given")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps of every row, instead of the file's")


def run(args: argparse.Namespace) -> None:
    """Rows that are done are kept; one that was stopped goes on."""
    if not args.config.is_file():
        raise FileNotFoundError(2, "no such file", str(args.config))
    from training.recipes.ablation import Ablation, read_ablation

    ablation = Ablation(read_ablation(args.config), Path.cwd(), args.steps)
    rows = [r.strip() for r in args.rows.split(",") if r.strip()] if args.rows else list(ablation.changes)
    print(ablation.run(rows))
