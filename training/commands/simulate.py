"""`finelap simulate`: makes a set of synthetic mixtures with exact labels out of single sounds."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = "make mixtures with exact labels out of labelled recordings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="labelled recordings: manifest.jsonl, FSD50K, or a tree")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; a run that was ended goes on there")
    add("--count", type=_whole(1), default=100, metavar="N", help="mixtures in all (100)")
    add("--seed", type=_whole(0), default=0, metavar="N", help="the same seed makes the same files (0)")
    add("--workers", type=_whole(1), default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    add("--restart", action="store_true", help="delete what an earlier run made there, and begin again")
    add("--only", action="append", default=[], metavar="GROUP", help="take recordings of this package or split alone")
    add("--exclude", action="append", default=[], metavar="GROUP", help="take none of this package or split")
    add("--split", choices=("dev", "eval"), default="dev", help="of FSD50K (dev)")
    add("--background", action="append", default=[], metavar="PATTERN", help='labels that lie underneath: "rain*"')
    add("--background-from", action="append", default=[], type=Path, metavar="DIR", help="folder of backgrounds alone")
    add("--name-background", action="store_true", help="the background is a phrase, and in the caption, too")
    _pair(add, "--events", (1, 5), "events in a mixture", _whole(1))
    _pair(add, "--event-seconds", (1.0, 7.5), "length of a kept stretch", _number(0.01))
    _pair(add, "--snr", (12.0, 20.0), "decibels of an event over the background", _number())
    add("--seconds", type=_number(0.5), default=10.0, metavar="S", help="length of a mixture (10)")
    add("--threshold", type=_number(-100, -1), default=-50.0, metavar="DB", help="silence, below the peak (-50)")
    add("--reverb", type=_number(0, 1), default=0.0, metavar="X", help="share of events put in a room (0)")
    add("--equalise", type=_number(0, 40), default=0.0, metavar="DB", help="random equaliser for events, up to (0)")
    add("--swell", type=_number(0, 40), default=0.0, metavar="DB", help="events grow or fade by up to (0)")
    add("--pictures", type=_whole(0), default=0, metavar="N", help="draw the first clips and mixtures (0)")


def run(args: argparse.Namespace) -> None:
    """Makes the set, going on with an earlier run, and says what came of it."""
    from training.data.activity import ClipConfig
    from training.data.mixer import MixConfig
    from training.simulation.dataset import MixtureSetConfig, write_mixtures
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
    groups: dict[str, Any] = {"split": args.split, "only": args.only, "exclude": args.exclude}
    sources = [s for folder in args.folders for s in read_sources(folder.resolve(), **groups)]
    backgrounds = [s for folder in args.background_from for s in read_sources(folder.resolve(), split=args.split)]
    made = write_mixtures(sources, backgrounds, args.out, config, Workers(args.workers, progress=True), args.restart)
    print(f"{made.events} events of {made.labels} labels, {made.backgrounds} backgrounds")
    if made.unusable:
        print(f"{made.unusable.total()} recordings unusable (clips.jsonl says which):")
        for reason, count in made.unusable.most_common():
            print(f"  {count:6d}  {reason}")
    rate = f", {made.made / made.seconds:.1f} a second" if made.made and made.seconds > 0 else ""
    print(f"{args.out}: {made.count} mixtures, {made.made} of them new{rate}")
    if args.pictures:
        from training.simulation.plots import draw_set

        paths = {s.name: s.path for s in (*sources, *backgrounds)}
        for path in draw_set(args.out, paths, config.cutting, args.pictures):
            print(path)


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.strip().lstrip("-").isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return parse


def _number(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            span = f" from {least:g} to {most:g}" if math.isfinite(most) else f" from {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{span if math.isfinite(least) else ''}")
        return value

    return parse


class _Ordered(argparse.Action):
    """Two values, the lower one first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if values[0] > values[1]:
            raise argparse.ArgumentError(self, f"{values[0]:g} is more than {values[1]:g}")
        setattr(namespace, self.dest, values)


def _pair(add: Callable[..., Any], name: str, default: tuple[float, float], what: str, kind: Callable) -> None:
    shown = f"{what} ({default[0]:g} {default[1]:g})"
    add(name, nargs=2, type=kind, default=default, action=_Ordered, metavar=("LEAST", "MOST"), help=shown)
