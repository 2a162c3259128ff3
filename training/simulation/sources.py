"""Lists labelled recordings for mixtures: folders with a manifest, FSD50K, or one folder per label.

Only names, labels and groups are read, no audio. Recordings without exactly one label are listed with the reason.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.manifests import plain_label

SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
FSD50K_SPLITS = ("dev", "eval")


class SourceError(ValueError):
    """A folder without labelled recordings in a supported layout, or an invalid line in its lists."""


@dataclass(frozen=True)
class SoundSource:
    """A recording; `name` is its path relative to its folder, prefixed with the folder's name."""

    name: str
    path: Path
    label: str | None  # None: no label, or several
    reason: str = ""  # why `label` is None
    group: str = ""  # must stay on the same side of a validation split
    licence: str = ""


def read_sources(
    folder: Path, *, split: str = "dev", only: Iterable[str] = (), exclude: Iterable[str] = ()
) -> list[SoundSource]:
    """Recordings of a folder, sorted by name. Raises SourceError and OSError.

    The layout is a `manifest.jsonl` with `audio`, `label` and optionally `package` per line; or
    `FSD50K.ground_truth/` beside `FSD50K.{split}_audio/`; or else a tree in which a file's folder is its label. `only`
    and `exclude` select groups: packages of a manifest, or FSD50K's train and val.
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
    selected = [s for s in found if (not only or s.group in only) and s.group not in excluded]
    return sorted(selected, key=lambda s: s.name)


def _from_manifest(folder: Path) -> list[SoundSource]:
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
                SoundSource(
                    f"{folder.name}/{audio}",
                    folder / audio,
                    plain_label(label) if label else None,
                    "" if label else "no label",
                    str(row.get("package", "")),
                    str(row.get("licence", "")),
                )
            )
    return found


def _from_tree(folder: Path) -> list[SoundSource]:
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            inside = path.parent != folder
            label = plain_label(path.parent.name) if inside else None
            reason = "" if inside else "in no folder that would be its label"
            found.append(SoundSource(f"{folder.name}/{path.relative_to(folder).as_posix()}", path, label, reason))
    if not found:
        raise SourceError(
            f"{folder}: no recordings; expected a manifest.jsonl, FSD50K.ground_truth, or one folder per label"
        )
    return found


def _from_fsd50k(folder: Path, split: str) -> list[SoundSource]:
    """FSD50K lists every label with all its ancestors; a recording with one leaf label is a single sound."""
    if split not in FSD50K_SPLITS:
        raise SourceError(f"FSD50K has dev and eval, not {split!r}")
    listed = folder / "FSD50K.ground_truth" / f"{split}.csv"
    with listed.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for number, row in enumerate(rows, start=2):
        if not row.get("fname") or not row.get("labels"):
            raise SourceError(f"{listed.name}, line {number}: fname and labels are required")
    labels = [tuple(row["labels"].split(",")) for row in rows]
    above = _ancestors(labels)
    found = []
    for row, names in zip(rows, labels, strict=True):
        own = leaves(names, above)
        path = folder / f"FSD50K.{split}_audio" / f"{row['fname']}.wav"
        one = plain_label(own[0]) if len(own) == 1 else None
        reason = "" if one else "several labels"
        name = f"{folder.name}/{path.parent.name}/{path.name}"
        found.append(SoundSource(name, path, one, reason, row.get("split") or ""))
    return found


def leaves(labels: Sequence[str], above: Mapping[str, set[str]]) -> list[str]:
    """The labels of a recording that are not an ancestor of another of its labels, in order."""
    return [a for a in labels if not any(a in above[b] for b in labels if b != a)]


def _ancestors(recordings: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """Label → its ancestors, inferred from the lists, which are published without the ontology.

    An ancestor occurs on every recording of its descendant. Of two labels that always occur together, the one listed
    first is the descendant, because the lists go from the leaf upwards.
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
