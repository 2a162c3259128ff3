"""`finelap ablate`: trains and measures the ablations of the paper and prints the table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

HELP = "train and measure the paper's ablation rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--config", type=Path, default=Path("training/configs/ablation.yaml"), metavar="FILE")
    parser.add_argument("--rows", metavar="A,B", help="rows to run, by name (all)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps per row, overriding the file")
    parser.add_argument(
        "--seeds", type=_seeds, metavar="A,B", help="seeds to train every row with, overriding the file"
    )


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers") from error


def run(args: argparse.Namespace) -> None:
    """Runs the rows; finished rows are kept and an interrupted row is resumed."""
    if not args.config.is_file():
        raise FileNotFoundError(2, "no such file", str(args.config))
    from training.recipes.ablation import Ablation, read_ablation

    config = read_ablation(args.config)
    ablation = Ablation(replace(config, seeds=args.seeds or config.seeds), Path.cwd(), args.steps)
    rows = [r.strip() for r in args.rows.split(",") if r.strip()] if args.rows else list(ablation.changes)
    print(ablation.run(rows))
