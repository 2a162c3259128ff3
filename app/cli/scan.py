"""`finelap scan`: detects sound events in the whole library of a running service, and fetches the table."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.client import Client, DetectOptions, Job, to_json
from app.client.types import Json

_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".txt": "raven", ".zip": "audacity", ".ndjson": "ndjson"}
_SUMMARIES = {".csv": "csv", ".json": "json", ".png": "png"}
_PATIENCE = 60.0  # seconds to retry a call while the service is busy
_RECONNECT = 600.0  # and while it restarts: the job goes on afterwards
_MOST = 1e7  # times real time; a clip whose frames are all reused takes no time

Output = tuple[Path, str]  # a file and the format of the events
Summary = tuple[Path, str, str]  # a file, its format, and what it summarises by
Wanted = tuple[Output | None, Summary | None, bool]  # and whether to print JSON


def choose_format(path: Path, given: str | None) -> str:
    """The format of the events in a file. Raises ValueError if its suffix tells none."""
    chosen = given or _SUFFIXES.get(path.suffix.lower())
    if chosen is None:
        raise ValueError(f"--out {path}: its suffix tells no format; give --format")
    return chosen


def choose_summary(path: Path, by: str | None) -> tuple[str, str]:
    """The format of a summary, and what it is by. Raises ValueError."""
    format = _SUMMARIES.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"--summary {path}: use a name that ends with {', '.join(_SUMMARIES)}")
    if format == "png" and by not in (None, "hour"):
        raise ValueError(f"--summary {path}: a heat map is of hours; use --by hour")
    return format, by or ("hour" if format == "png" else "clip")


def run_scan(
    server: str,
    phrases: Sequence[str],
    filter: Mapping[str, Any] | None,
    options: DetectOptions,
    wanted: Wanted,
) -> int:
    """Runs a job to its end with a progress bar, writes the files, prints what was found. Returns 1 if it failed.

    An interrupt cancels the job; the same command goes on where it stopped.
    """
    output, summary, as_json = wanted
    with Client(server, os.environ.get("FINELAP_API_KEY"), _PATIENCE, reconnect=_RECONNECT) as client:
        client.reconnect = 0.0  # report a wrong address at once
        job = client.start_job(phrases, filter=filter, **options)
        client.reconnect = _RECONNECT
        try:
            job = _wait(client, job)
        except KeyboardInterrupt:
            client.reconnect = 0.0
            client.delete_job(job.id)
            print("the job is cancelled; the same command goes on where it stopped", file=sys.stderr)
            raise
        if job.state != "done":
            print(f"finelap scan: the job {job.id} is {job.state}: {job.error or 'cancelled'}", file=sys.stderr)
            return 1
        if output is not None:
            client.save_job_events(job.id, *output)
        if summary is not None:
            path, format, by = summary
            path.write_bytes(client.job_summary_as(format, job.id, by))
        found = client.job_summary(job.id)
    print(json.dumps(to_json(job), ensure_ascii=False, indent=2) if as_json else _table(job, found))
    return 0


def _wait(client: Client, job: Job) -> Job:
    terminal = sys.stderr.isatty()
    began, before = time.monotonic(), job.seconds
    with tqdm(
        desc="scanning",
        total=job.total,
        unit=" clips",
        delay=1.0,
        leave=False,
        mininterval=0.1 if terminal else 10.0,  # keep logs short
    ) as bar:

        def show(now: Job) -> None:
            speed = (now.seconds - before) / max(time.monotonic() - began, 1e-3)
            if now.state == "queued":
                bar.set_postfix_str("waiting for other jobs", refresh=False)
            elif 0 < speed < _MOST:
                bar.set_postfix_str(f"{now.events} events, {speed:,.0f} × real time", refresh=False)
            bar.total = now.total
            bar.update(now.done - bar.n)

        return client.wait_for_job(job.id, show, 0.3)


def _table(job: Job, found: Json) -> str:
    """Events, seconds and clips of each phrase."""
    hours = job.seconds / 3600
    reused = f", {job.reused} of them scored before" if job.reused else ""
    lines = [f"{job.total} clips, {hours:.2f} hours{reused}: {job.events} events"]
    lines.append(f"{'events':>8}  {'seconds':>10}  {'clips':>7}  phrase")
    for row in found["phrases"]:
        phrase = " ".join(row["phrase"].split())
        lines.append(f"{row['events']:8d}  {row['duration']:10.1f}  {row['clips']:7d}  {phrase}")
    return "\n".join(lines)
