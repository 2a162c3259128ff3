"""Labelled recordings to make mixtures of: our own folders, folder-per-label trees, FSD50K's layout.

Reads names, labels and groups; opens no audio. A recording without exactly one label of its own is told of with the
reason, never dropped in silence.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
FSD50K_SPLITS = ("dev", "eval")


class SourceError(ValueError):
    """A folder that holds no labelled recordings in a layout we know, or a line of its lists that cannot be used."""


@dataclass(frozen=True)
class Source:
    """One recording: `name` is its path below its folder, with that folder's own name in front."""

    name: str
    path: Path
    label: str | None  # None: it has no label, or several
    reason: str = ""  # why there is no label
    group: str = ""  # what a validation split must not tear apart
    licence: str = ""


def read_sources(
    folder: Path, *, split: str = "dev", only: Iterable[str] = (), exclude: Iterable[str] = ()
) -> list[Source]:
    """Recordings of a folder, sorted by name; the layout is recognised by what lies in it.

    A `manifest.jsonl` with `audio`, `label` and perhaps `package` a line; or `FSD50K.ground_truth/` beside
    `FSD50K.{split}_audio/`; or a tree in which a file's folder is its label. `only` and `exclude` name groups:
    packages of a manifest, FSD50K's train or val. Errors: SourceError, OSError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    if (folder / "manifest.jsonl").is_file():
        found = _from_manifest(folder)
    elif (folder / "FSD50K.ground_truth").is_dir():
        found = _from_fsd50k(folder, split)
    else:
        found = _from_tree(folder)
    only, excluded = set(only), set(exclude)
    unknown = (only | excluded) - {s.group for s in found}
    if unknown:
        raise SourceError(f"{folder.name}: no group is called {', '.join(sorted(unknown))}")
    kept = [s for s in found if (not only or s.group in only) and s.group not in excluded]
    return sorted(kept, key=lambda s: s.name)


def spoken(label: str) -> str:
    """A label as one would say it: underscores and runs of space become one space, lower case."""
    return " ".join(label.replace("_", " ").split()).lower()


def _from_manifest(folder: Path) -> list[Source]:
    found = []
    with (folder / "manifest.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                audio, label = str(row["audio"]), row["label"]
            except (ValueError, KeyError, TypeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise SourceError(f"{folder.name}/manifest.jsonl, line {number}: {what}") from error
            found.append(
                Source(
                    f"{folder.name}/{audio}",
                    folder / audio,
                    spoken(label) if label else None,
                    "" if label else "no label",
                    str(row.get("package", "")),
                    str(row.get("licence", "")),
                )
            )
    return found


def _from_tree(folder: Path) -> list[Source]:
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            inside = path.parent != folder
            label = spoken(path.parent.name) if inside else None
            reason = "" if inside else "in no folder that would be its label"
            found.append(Source(f"{folder.name}/{path.relative_to(folder).as_posix()}", path, label, reason))
    if not found:
        raise SourceError(
            f"{folder}: no recordings; wanted a manifest.jsonl, FSD50K.ground_truth, or a folder for each label"
        )
    return found


def _from_fsd50k(folder: Path, split: str) -> list[Source]:
    """FSD50K's lists carry every ancestor of a label too, so a recording of one sound has several names there."""
    if split not in FSD50K_SPLITS:
        raise SourceError(f"FSD50K has dev and eval, not {split!r}")
    listed = folder / "FSD50K.ground_truth" / f"{split}.csv"
    with listed.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for number, row in enumerate(rows, start=2):
        if not row.get("fname") or not row.get("labels"):
            raise SourceError(f"{listed.name}, line {number}: wants fname and labels")
    labels = [tuple(row["labels"].split(",")) for row in rows]
    above = _ancestors(labels)
    found = []
    for row, names in zip(rows, labels, strict=True):
        own = leaves(names, above)
        path = folder / f"FSD50K.{split}_audio" / f"{row['fname']}.wav"
        one = spoken(own[0]) if len(own) == 1 else None
        reason = "" if one else "several labels"
        found.append(Source(f"{folder.name}/{path.parent.name}/{path.name}", path, one, reason, row.get("split") or ""))
    return found


def leaves(labels: Sequence[str], above: Mapping[str, set[str]]) -> list[str]:
    """Those labels of a recording that are no ancestor of another of its labels, in order."""
    return [a for a in labels if not any(a in above[b] for b in labels if b != a)]


def _ancestors(recordings: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """Label → its ancestors, found in the lists themselves, which come without the ontology.

    An ancestor is on every recording of its descendant. Two labels that are always together tell nothing by that;
    of those the one listed first is the narrower, as the lists are written from the leaf upwards.
    """
    together: dict[str, set[str]] = {}
    count: dict[str, int] = defaultdict(int)
    before: set[tuple[str, str]] = set()
    for names in recordings:
        for place, name in enumerate(names):
            count[name] += 1
            together[name] = together[name] & set(names) if name in together else set(names)
            for later in names[place + 1 :]:
                before.add((name, later))
    return {
        name: {
            other
            for other in with_it
            if other != name and (count[other] > count[name] or (name, other) in before and (other, name) not in before)
        }
        for name, with_it in together.items()
    }
