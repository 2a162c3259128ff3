"""`finelap evaluate`: evaluates checkpoints on benchmarks or manifests and writes reports, tables and plots."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.evaluation.benchmark import EvaluationSettings
    from training.evaluation.protocol import Protocol
    from training.evaluation.readers import Dataset
    from training.evaluation.tables import Row

HELP = "measure a checkpoint: retrieval, classification, detection, grounding"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", nargs="+", help="folder, published file or hub id; several give a table")
    what = "benchmark in its published layout, such as esc50=data/ESC-50 or clotho=data/clotho:evaluation"
    add("--dataset", action="append", default=[], type=_dataset, metavar="NAME=ROOT[:SPLIT]", help=what)
    what = "folder whose folders are benchmarks, such as data/ESC-50 and data/clotho: all of them"
    add("--benchmarks", type=Path, metavar="FOLDER", help=what)
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
    what = "full (all audio, equal captions merged, spoken labels) or published (as the paper's released code)"
    add("--protocol", choices=("full", "published"), default="full", help=what)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for report.json, report.md, tables and plots")
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
    from training.evaluation.benchmark import EvaluationSettings
    from training.evaluation.protocol import PROTOCOLS
    from training.evaluation.tables import tables, write_tables

    protocol = PROTOCOLS[args.protocol]
    datasets = _datasets(args, protocol)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = EvaluationSettings(args.median_filter, args.threshold, pictures=args.pictures, protocol=protocol)
    names = _names(args.checkpoints)
    rows = []
    for checkpoint, name in zip(args.checkpoints, names, strict=True):
        out = args.out if len(names) == 1 else args.out / name
        rows.append(_measure(args, (checkpoint, name), datasets, settings, out))
        # after each checkpoint, so that an interruption keeps finished results
        files = write_tables(args.out, rows)
    if len(rows) > 1:
        print("\n".join(tables(rows)))
    print(files[0])
    return None


def _datasets(args: argparse.Namespace, protocol: Protocol) -> list[Dataset]:
    """All lists are read before any model, so that a wrong path fails immediately."""
    from training.data.manifests import read_manifest
    from training.evaluation.benchmark import BenchmarkError, manifest_datasets
    from training.evaluation.readers import find_datasets, read_dataset

    named = list(args.dataset)
    if args.benchmarks is not None:
        given = {name for name, *_ in named}
        named += [(name, root, None) for name, root in find_datasets(args.benchmarks) if name not in given]
    if not named and not args.manifest:
        raise BenchmarkError("nothing to evaluate: use --dataset NAME=ROOT, --benchmarks FOLDER or --manifest FILE")
    datasets = [read_dataset(name, root, split, protocol) for name, root, split in named]
    for path in args.manifest:
        items = read_manifest(path, empty_captions=protocol.empty_texts == "query")
        found = manifest_datasets(path.stem, items, args.task, protocol)
        if not found or not all(d.items for d in found):
            raise BenchmarkError(f"{path}: no item has the labels that {args.task or 'any task'} needs")
        datasets += found
    return datasets


def _measure(
    args: argparse.Namespace,
    checkpoint: tuple[str, str],
    datasets: Sequence[Dataset],
    settings: EvaluationSettings,
    out: Path,
) -> Row:
    """Evaluates one checkpoint, given as source and name, and writes its report after each dataset."""
    from model.external.contract import load_external
    from model.finelap import FineLAP
    from training.evaluation.benchmark import evaluate
    from training.evaluation.report import figure_table, write_report
    from training.evaluation.tables import PeakMemory, Row

    source, name = checkpoint
    memory, began = PeakMemory(args.device), time.perf_counter()
    memory.reset()
    model: Any = load_external(source, device=args.device) or FineLAP.from_pretrained(source, device=args.device)
    about = {
        "model": model.config.name,
        "checkpoint": source,
        "protocol": settings.protocol.about(),
        "median filter, frames": settings.median_frames,
        "threshold": settings.threshold,
        "frame hop, s": model.frame_hop,
    }
    reports = []
    for dataset in datasets:
        if model.traits.frames is None and dataset.task in ("detection", "grounding"):
            print(f"{name}: {dataset.name}, {dataset.task}: left out, because the model has no frames\n")
            continue
        report = evaluate(model, dataset, settings=settings, progress=True)
        reports.append(report)
        write_report(out, reports, about)
        print("\n".join([f"{name}: {dataset.name}, {dataset.task}", *figure_table([report]), ""]))
        for item, reason in list(report.unreadable.items())[:5]:
            print(f"not scored: {item}: {reason}")
    print(out / "report.md")
    parameters = sum(p.numel() for p in model.parameters())
    return Row(name, tuple(reports), parameters, memory.megabytes(), time.perf_counter() - began)


def _names(checkpoints: Sequence[str]) -> list[str]:
    """A name for each checkpoint: the last part of its path, with a number where that is not unique."""
    names: list[str] = []
    for checkpoint in checkpoints:
        path = Path(checkpoint)
        name = path.stem if path.is_file() else path.resolve().name
        count = sum(n == name or n.startswith(f"{name}-") and n[len(name) + 1 :].isdecimal() for n in names)
        names.append(f"{name}-{count + 1}" if count else name)
    return names


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
