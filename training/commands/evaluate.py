"""`finelap evaluate`: a checkpoint on benchmarks or on manifests, as a report with pictures."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

HELP = "measure a checkpoint: retrieval, classification, detection, grounding"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder, published file or hub id")
    what = "a benchmark in its own layout, as in esc50=data/ESC-50 or clotho=data/clotho:evaluation"
    add("--dataset", action="append", default=[], type=_dataset, metavar="NAME=ROOT[:SPLIT]", help=what)
    add("--manifest", action="append", default=[], type=Path, metavar="FILE", help="retrieval by captions, detection")
    tasks = ("retrieval", "classification", "detection", "grounding")
    add("--task", choices=tasks, help="what the manifests are evaluated for, instead of what they hold")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for report.json, report.md and pictures")
    add("--median-filter", type=_odd, default=3, metavar="N", help="frames of the sliding median, odd (3)")
    add("--threshold", type=_fraction, default=0.5, metavar="X", help="score from which F1 counts a frame (0.5)")
    add("--pictures", type=_count, default=6, metavar="N", help="recordings drawn of each dataset (6)")
    add("--device", default="cpu", help="cpu, cuda, … (cpu)")


def run(args: argparse.Namespace) -> int | None:
    """Evaluates one dataset after another and prints the tables; 1 if nothing could be asked for."""
    from model.finelap import FineLAP
    from training.data.manifests import read_manifest
    from training.evaluation.benchmark import BenchmarkError, EvaluationSettings, evaluate, manifest_datasets
    from training.evaluation.readers import read_dataset
    from training.evaluation.report import figure_table, write_report

    if not args.dataset and not args.manifest:
        raise BenchmarkError("nothing to evaluate on: give --dataset NAME=ROOT or --manifest FILE")
    # every list is read before the first recording is heard, so that a wrong path costs no time
    datasets = [read_dataset(name, root, split) for name, root, split in args.dataset]
    for path in args.manifest:
        asked = manifest_datasets(path.stem, read_manifest(path), args.task)
        if not asked or not all(d.items for d in asked):
            raise BenchmarkError(f"{path}: no item with what {args.task or 'any task'} needs")
        datasets += asked
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
        # after each, so that an interruption leaves what was finished
        write_report(args.out, reports, about)
        print("\n".join([f"{dataset.name}, {dataset.task}", *figure_table([report]), ""]))
        for name, reason in list(report.unreadable.items())[:5]:
            print(f"not scored: {name}: {reason}")
    print(args.out / "report.md")
    return None


def _dataset(text: str) -> tuple[str, Path, str | None]:
    """NAME=ROOT[:SPLIT]; a colon inside an existing folder's name is part of it."""
    name, separator, place = text.partition("=")
    if not (name and separator and place):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROOT or NAME=ROOT:SPLIT")
    root, colon, split = place.rpartition(":")
    if not colon or Path(place).is_dir():
        return name, Path(place), None
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
