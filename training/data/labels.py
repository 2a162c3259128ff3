"""Phrases out of label lists: text files, JSON lines, columns of a table.

Knows nothing of clusters. Every phrase has its runs of white space made one space; an empty one is an error that names
file and line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from training.data.phrase_bank import PhraseError

COLUMNS = ("phrase", "label", "labels", "display_name", "event_label")  # looked for, in this order


def read_labels(path: Path, column: str | None = None, separator: str | None = None) -> list[str]:
    """Phrases of a file, in order, repetitions too.

    - `.jsonl`: lines with `phrases` (a manifest), `phrase` and `alternatives` (a bank), or `label` (a folder of sounds;
      null where there is none). Captions are sentences about a whole clip and are not read.
    - `.csv`, `.tsv`: a column, named or one of COLUMNS; with `separator`, several phrases in a cell.
    - else: a phrase a line; lines of white space are skipped.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        found = _of_json(path)
    elif kind in (".csv", ".tsv"):
        found = _of_table(path, "\t" if kind == ".tsv" else ",", column, separator)
    else:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        found = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    phrases = []
    for number, phrase in found:
        if not isinstance(phrase, str) or not phrase.strip():
            what = "an empty phrase" if isinstance(phrase, str) else f"{phrase!r} is no phrase"
            raise PhraseError(f"{path.name}, line {number}: {what}")
        phrases.append(" ".join(phrase.split()))
    if not phrases:
        raise PhraseError(f"{path.name}: no phrases")
    return phrases


def _of_json(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if "alternatives" in row:
                    phrases = [row["phrase"], *row["alternatives"]]
                elif "label" in row:
                    phrases = [] if row["label"] is None else [row["label"]]
                elif "phrases" in row or "caption" in row:
                    phrases = [p["phrase"] for p in row.get("phrases") or []]
                else:
                    raise PhraseError("neither phrases nor a label")
            except (ValueError, KeyError, TypeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise PhraseError(f"{path.name}, line {number}: {what}") from error
            yield from ((number, phrase) for phrase in phrases)


def _of_table(path: Path, delimiter: str, column: str | None, separator: str | None) -> Iterator[tuple[int, object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        names = list(rows.fieldnames or [])
        chosen = column or next((c for c in COLUMNS if c in names), None)
        if chosen not in names:
            raise PhraseError(f"{path.name}: no column {column or 'of labels'}; it has {', '.join(names)}")
        for row in rows:
            cell = row[chosen] or ""
            for phrase in cell.split(separator) if separator else [cell]:
                yield rows.line_num, phrase
