"""`finelap concepts`: lists, teaches, suggests, exports and imports through a running service."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from app.cli.remote import connect
from app.client import Client, Concept, FileError, NotFound, to_json


def run(args: argparse.Namespace) -> int:
    """Runs one action and returns the exit code: 1 if a file failed."""
    with connect(args.server) as client:
        return _ACTIONS[args.action](client, args)


def _list(client: Client, args: argparse.Namespace) -> int:
    found = client.concepts()
    _print([to_json(one) for one in found] if args.json else _table(found))
    return 0


def _teach(client: Client, args: argparse.Namespace) -> int:
    """Creates the concept, or adds to the one that exists."""
    given: dict[str, Any] = {}
    for name in ("positive", "negative"):
        values = getattr(args, name)
        given[f"{name}_files"] = [value for value in values if isinstance(value, Path)]
        given[name] = [value for value in values if not isinstance(value, Path)]
    has_examples = any(given.values())
    try:
        concept = client.concept(args.name)
    except NotFound:
        concept = client.create_concept(args.name, args.text, **given)
        failed = concept.failed
        if args.threshold is not None:
            concept = client.update_concept(args.name, threshold=args.threshold)
    else:
        changes = {name: getattr(args, name) for name in ("text", "threshold") if getattr(args, name) is not None}
        if changes:
            concept = client.update_concept(args.name, **changes)
        failed = ()
        if has_examples:
            added = client.add_examples(args.name, **given)
            concept, failed = added.concept, added.failed
    _print(to_json(concept) if args.json else _table([concept]))
    return _report(failed)


def _suggest(client: Client, args: argparse.Namespace) -> int:
    found = client.suggestions(args.name, args.k)
    if args.json:
        _print([to_json(one) for one in found])
        return 0
    lines = [f"{'score':>5}  {'example':<50}  file"]
    for one in found:
        place = f"{one.clip.id}@{one.start:.2f}-{one.end:.2f}"
        lines.append(f"{one.score:5.2f}  {place:<50}  {one.clip.filename}")
    _print("\n".join(lines) if found else "nothing to suggest")
    return 0


def _export(client: Client, args: argparse.Namespace) -> int:
    labels = client.export_labels(args.name, args.format, clip_id=args.clip)
    if args.output is None:
        sys.stdout.write(labels)
    else:
        args.output.write_text(labels, encoding="utf-8", newline="")
    return 0


def _import(client: Client, args: argparse.Namespace) -> int:
    added = client.import_labels(args.name, args.file, args.format, clip_id=args.clip, label=args.label)
    skipped = f", {added.skipped} rows of other sounds" if added.skipped else ""
    _print(f"{len(added.examples)} examples{skipped}\n{_table([added.concept])}")
    return _report(added.failed)


def _delete(client: Client, args: argparse.Namespace) -> int:
    client.delete_concept(args.name)
    return 0


_ACTIONS = {
    "list": _list,
    "teach": _teach,
    "suggest": _suggest,
    "export": _export,
    "import": _import,
    "delete": _delete,
}


def _table(concepts: list[Concept] | tuple[Concept, ...]) -> str:
    """A line for each concept, with its notes below."""
    if not concepts:
        return "no concepts"
    lines = [f"{'positive':>8}  {'negative':>8}  {'quality':>7}  {'threshold':>9}  name"]
    for one in concepts:
        quality = "–" if one.quality is None else f"{one.quality.average_precision:.2f}"
        counts = f"{one.positives:8}  {one.negatives:8}"
        lines.append(
            f"{counts}  {quality:>7}  {one.threshold:9.2f}  {one.name}" + (f" ({one.text})" if one.text else "")
        )
        lines += [f"{'':40}{note}" for note in one.notes]
    return "\n".join(lines)


def _report(failed: tuple[FileError, ...]) -> int:
    for one in failed:
        print(f"{one.filename}: {one.reason}", file=sys.stderr)
    return 1 if failed else 0


def _print(value: Any) -> None:
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2))
