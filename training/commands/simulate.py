"""`finelap simulate`: mixes labelled recordings into synthetic recordings with exact labels."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = "mix labelled recordings into synthetic recordings with exact labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="labelled recordings: manifest.jsonl, FSD50K, or one folder per label",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="output folder; an interrupted run is resumed there")
    what = "published: the paper's own rules, an absolute threshold, 22.05 kHz and uniform draws of clips"
    add("--preset", choices=("published",), help=what)
    add("--count", type=_integer(1), default=100, metavar="N", help="total number of mixtures (100)")
    add("--seed", type=_integer(0), default=0, metavar="N", help="random seed; the same seed gives the same files (0)")
    add("--workers", type=_integer(1), default=os.cpu_count() or 1, metavar="N", help="worker processes (one per core)")
    add("--restart", action="store_true", help="delete the results of earlier runs and start again")
    add("--only", action="append", default=[], metavar="GROUP", help="use only recordings of this package or split")
    add("--exclude", action="append", default=[], metavar="GROUP", help="skip recordings of this package or split")
    add("--split", choices=("dev", "eval"), default="dev", help="FSD50K split (dev)")
    add("--background", action="append", default=[], metavar="PATTERN", help='labels of backgrounds, such as "rain*"')
    add(
        "--background-from",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="folder of recordings used only as backgrounds",
    )
    add("--name-background", action="store_true", help="include the background in the phrases and the caption")
    _pair(add, "--events", (1, 5), "events per mixture", _integer(1))
    _pair(add, "--event-seconds", (1.0, 7.5), "event length in seconds", _number(0.01))
    _pair(add, "--snr", (12.0, 20.0), "event level over the background in decibels", _number())
    add("--seconds", type=_number(0.5), default=10.0, metavar="S", help="mixture length in seconds (10)")
    add(
        "--threshold",
        type=_number(-100, -1),
        default=-50.0,
        metavar="DB",
        help="silence threshold relative to the peak; absolute with --preset published (-50)",
    )
    add("--reverb", type=_number(0, 1), default=0.0, metavar="X", help="share of events with reverberation (0)")
    add("--equalise", type=_number(0, 40), default=0.0, metavar="DB", help="range of the random equaliser (0)")
    add("--swell", type=_number(0, 40), default=0.0, metavar="DB", help="range of level changes over an event (0)")
    add("--pictures", type=_integer(0), default=0, metavar="N", help="plot the first N clips and mixtures (0)")


def run(args: argparse.Namespace) -> None:
    """Writes the mixtures, resuming an earlier run, and prints a summary."""
    from training.data.activity import ClipConfig, SimulationError
    from training.data.mixer import MixConfig
    from training.simulation.dataset import MixtureSetConfig, published_config, write_mixtures
    from training.simulation.jobs import Workers
    from training.simulation.sources import read_sources

    config = MixtureSetConfig(
        args.count,
        args.seed,
        ClipConfig(
            threshold_db=args.threshold,
            shortest=args.event_seconds[0],
            longest=args.event_seconds[1],
            background=args.seconds,
            backgrounds=tuple(args.background),
        ),
        MixConfig(
            tuple(args.events), tuple(args.snr), 3.0, 3, args.reverb, args.equalise, args.swell, args.name_background
        ),
    )
    if args.preset == "published":
        config = published_config(config)
        if args.pictures:
            raise SimulationError("--pictures shows our rule for cutting; leave it out with --preset published")
    groups: dict[str, Any] = {"split": args.split, "only": args.only, "exclude": args.exclude}
    sources = [s for folder in args.folders for s in read_sources(folder.resolve(), **groups)]
    backgrounds = [s for folder in args.background_from for s in read_sources(folder.resolve(), split=args.split)]
    made = write_mixtures(sources, backgrounds, args.out, config, Workers(args.workers, progress=True), args.restart)
    print(f"{made.events} events of {made.labels} labels, {made.backgrounds} backgrounds")
    if made.unusable:
        print(f"{made.unusable.total()} unusable recordings, listed in clips.jsonl:")
        for reason, count in made.unusable.most_common():
            print(f"  {count:6d}  {reason}")
    rate = f", {made.made / made.seconds:.1f} a second" if made.made and made.seconds > 0 else ""
    print(f"{args.out}: {made.count} mixtures, {made.made} new{rate}")
    if args.pictures:
        from training.simulation.plots import draw_set

        paths = {s.name: s.path for s in (*sources, *backgrounds)}
        for path in draw_set(args.out, paths, config.cutting, args.pictures):
            print(path)


def _integer(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.strip().lstrip("-").isdecimal() and int(text) >= minimum):
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {minimum}")
        return int(text)

    return parse


def _number(minimum: float = -math.inf, maximum: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and minimum <= value <= maximum):
            span = f" from {minimum:g} to {maximum:g}" if math.isfinite(maximum) else f" of at least {minimum:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{span if math.isfinite(minimum) else ''}")
        return value

    return parse


class _Ordered(argparse.Action):
    """Two values in ascending order."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if values[0] > values[1]:
            raise argparse.ArgumentError(self, f"{values[0]:g} is more than {values[1]:g}")
        setattr(namespace, self.dest, values)


def _pair(add: Callable[..., Any], name: str, default: tuple[float, float], what: str, kind: Callable) -> None:
    shown = f"{what} ({default[0]:g} {default[1]:g})"
    add(name, nargs=2, type=kind, default=default, action=_Ordered, metavar=("MIN", "MAX"), help=shown)
