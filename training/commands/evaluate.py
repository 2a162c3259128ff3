"""`finelap evaluate`: evaluates a checkpoint on benchmarks or manifests and writes a report with plots."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

HELP = "measure a checkpoint: retrieval, classification, detection, grounding"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder, published file or hub id")
    what = "benchmark in its published layout, such as esc50=data/ESC-50 or clotho=data/clotho:evaluation"
    add("--dataset", action="append", default=[], type=_dataset, metavar="NAME=ROOT[:SPLIT]", help=what)
    add(
        "--manifest",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="manifest, for retrieval by its captions and detection by its phrases",
    )
    tasks = ("retrieval", "classification", "detection", "grounding")
    add("--task", choices=tasks, help="task to evaluate the manifests for, instead of those they support")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for report.json, report.md and plots")
    add("--median-filter", type=_odd, default=3, metavar="N", help="frames of the sliding median, odd (3)")
    add(
        "--threshold",
        type=_fraction,
        default=0.5,
        metavar="X",
        help="score above which a frame is active, for F1 (0.5)",
    )
    add("--pictures", type=_count, default=6, metavar="N", help="recordings to plot per dataset (6)")
    add("--device", default="cpu", help="cpu, cuda, … (cpu)")


def run(args: argparse.Namespace) -> int | None:
    """Evaluates the datasets in order and prints their tables. Raises BenchmarkError without datasets."""
    from model.finelap import FineLAP
    from training.data.manifests import read_manifest
    from training.evaluation.benchmark import BenchmarkError, EvaluationSettings, evaluate, manifest_datasets
    from training.evaluation.readers import read_dataset
    from training.evaluation.report import figure_table, write_report

    if not args.dataset and not args.manifest:
        raise BenchmarkError("nothing to evaluate: use --dataset NAME=ROOT or --manifest FILE")
    # all lists are read first, so that a wrong path fails immediately
    datasets = [read_dataset(name, root, split) for name, root, split in args.dataset]
    for path in args.manifest:
        found = manifest_datasets(path.stem, read_manifest(path), args.task)
        if not found or not all(d.items for d in found):
            raise BenchmarkError(f"{path}: no item has the labels that {args.task or 'any task'} needs")
        datasets += found
    args.out.mkdir(parents=True, exist_ok=True)
    model = FineLAP.from_pretrained(args.checkpoint, device=args.device)
    settings = EvaluationSettings(args.median_filter, args.threshold, pictures=args.pictures)
    about = {
        "model": model.config.name,
        "checkpoint": args.checkpoint,
        "median filter, frames": args.median_filter,
        "threshold": args.threshold,
        "frame hop, s": model.frame_hop,
    }
    reports = []
    for dataset in datasets:
        report = evaluate(model, dataset, settings=settings, progress=True)
        reports.append(report)
        # after each dataset, so that an interruption keeps finished results
        write_report(args.out, reports, about)
        print("\n".join([f"{dataset.name}, {dataset.task}", *figure_table([report]), ""]))
        for name, reason in list(report.unreadable.items())[:5]:
            print(f"not scored: {name}: {reason}")
    print(args.out / "report.md")
    return None


def _dataset(text: str) -> tuple[str, Path, str | None]:
    """Parses NAME=ROOT[:SPLIT]; a colon in the name of an existing folder is part of the name."""
    name, separator, location = text.partition("=")
    if not (name and separator and location):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROOT or NAME=ROOT:SPLIT")
    root, colon, split = location.rpartition(":")
    if not colon or Path(location).is_dir():
        return name, Path(location), None
    return name, Path(root), split or None


def _odd(text: str) -> int:
    number = _count(text)
    if number % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd number of frames")
    return number


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
