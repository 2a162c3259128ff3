"""The first minute of a new service: once it can work, add the demo sounds to an empty library and say what to try.

Runs beside the service, as its client. Whatever goes wrong here is one printed line; the service is not touched.
"""

from __future__ import annotations

import csv
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.checksums import Checksums
from app.cli.finding import Source, find_sources
from app.client import Client, ServerError, Stopped
from app.errors import request_id

_REQUEST_ID = "welcome"  # of our own requests, which the access log leaves out
_PATIENCE = 60.0  # seconds one sound waits for a busy service


def welcome(server: str, api_key: str | None, demo: Path | None, stop: threading.Event) -> threading.Thread:
    """Starts the greeting in the background. Setting `stop` ends it, whatever it is doing."""
    logging.getLogger("app.access").addFilter(lambda record: request_id.get() != _REQUEST_ID)
    thread = threading.Thread(target=_welcome, args=(server, api_key, demo, stop), name="welcome", daemon=True)
    thread.start()
    return thread


def _welcome(server: str, api_key: str | None, demo: Path | None, stop: threading.Event) -> None:
    with Client(server, api_key, _PATIENCE, stop, _REQUEST_ID) as client:
        while not client.ready():
            if stop.wait(0.2):
                return
        try:
            if demo is not None:
                _add_demo(client, demo)
            clips = client.info().clips
        except Stopped:
            return
        except (ServerError, OSError) as error:
            print(f"The demo sounds were not added: {error}", flush=True)
            clips = 0
    if not stop.is_set():
        print(_greeting(server, clips, api_key is not None), flush=True)


def _greeting(server: str, clips: int, locked: bool) -> str:
    key = " -H 'Authorization: Bearer <your key>'" if locked else ""
    lines = ["", f"FineLAP is ready: {server}", f"  {clips} clips in the library; API at {server}/docs; Ctrl-C stops"]
    if clips:
        lines.append(f"  curl{key} '{server}/search?q=dog+barking'")
    else:
        lines.append(f"  finelap ingest FOLDER --server {server}")
    return "\n".join([*lines, ""])


def _add_demo(client: Client, folder: Path) -> None:
    if client.info().clips:
        return
    sources = [
        _with_credits(source, credits) for credits in [_credits(folder)] for source in find_sources([folder], {})
    ]
    from app.cli.upload import ingest  # here: few starts need it

    print(f"The library is empty: adding {len(sources)} demo sounds from {folder}", flush=True)
    with Checksums(None) as checksums:
        summary = ingest(client, sources, checksums)
    if not client.stop.is_set():
        for file, reason in summary.failed:
            print(f"{file}: {reason}", flush=True)
        print(f"Added {summary.added} sounds in {summary.seconds:.1f} s", flush=True)


def _credits(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of CREDITS.csv by file name; the column `file` names the sound. No file, no credits."""
    table = next((p for p in (folder / "CREDITS.csv", folder.parent / "CREDITS.csv") if p.is_file()), None)
    if table is None:
        return {}
    with table.open(newline="", encoding="utf-8") as text:
        return {Path(row["file"]).name: row for row in csv.DictReader(text)}


def _with_credits(source: Source, credits: dict[str, dict[str, str]]) -> Source:
    row: dict[str, Any] = {k: v for k, v in credits.get(source.path.name, {}).items() if k and k != "file" and v}
    return replace(source, metadata=source.metadata | row)
