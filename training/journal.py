"""Files that are whole or not there, and lists of results that outlive a killed run.

Knows nothing of what is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.simulation.jobs import ordered

PART = ".part"


def write_whole(path: Path, data: bytes) -> None:
    """The file with this content, or as it was before: written beside it, then renamed."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as f:
            f.write(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def journal(
    path: Path,
    jobs: Sequence[Any],
    work: Callable[[Any, Any], dict[str, Any]],
    shared: Any,
    workers: int,
    progress: bool,
    what: str,
) -> list[dict[str, Any]]:
    """A row for each job, in order. They go to a part file as they come; it takes its name when all are there."""
    from tqdm import tqdm

    rows = rows_of(path)
    if len(rows) >= len(jobs) and path.is_file():
        return rows
    part = path.with_name(path.name + PART)
    write_whole(part, "".join(line_of(r) for r in rows).encode())  # without the line that a killed run broke off
    with (
        part.open("a", encoding="utf-8") as f,
        tqdm(total=len(jobs), initial=len(rows), disable=not progress, mininterval=1) as bar,
    ):
        bar.set_description(what)
        for row in ordered(work, jobs[len(rows) :], shared, workers):
            f.write(line_of(row))
            f.flush()
            rows.append(json.loads(line_of(row)))
            bar.update()
    part.replace(path)
    return rows


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a list or, while it is being written, of its part."""
    part = path.with_name(path.name + PART)
    have = part if part.is_file() else path
    if not have.is_file():
        return []
    text = have.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def line_of(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
