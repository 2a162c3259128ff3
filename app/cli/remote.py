"""The commands that talk to a running service: ingest, search, and detect when a server is named.

Takes checked arguments; knows no model. The offline side of detect is in app.cli.local.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from app.cli.checksums import Checksums, cache_file
from app.cli.detections import Writer
from app.cli.finding import as_text, find_sources
from app.cli.upload import ingest
from app.client import Client, DetectOptions, SearchOptions, SearchResult, to_json

_INGEST_PATIENCE = 3600.0  # seconds one file waits for a server that says it is busy
_INGEST_RECONNECT = 120.0  # seconds one file waits for a server that is not there
_CALL_PATIENCE = 20.0  # seconds a single question waits for a busy one


def _client(server: str, patience: float = _CALL_PATIENCE, reconnect: float = 0.0) -> Client:
    return Client(server, os.environ.get("FINELAP_API_KEY"), patience, reconnect=reconnect)


def run_ingest(paths: list[Path], server: str, metadata: dict[str, Any], workers: int, as_json: bool) -> int:
    """Adds files and folders and prints the summary, also of an interrupted run.

    130 if it was interrupted, 1 if a file failed or none was found, else 0.
    """
    unread: list[tuple[str, str]] = []
    sources = find_sources(paths, metadata, lambda e: unread.append((as_text(str(e.filename)), e.strerror or str(e))))
    if not sources and not unread:
        raise FileNotFoundError(errno.ENOENT, "no audio files in it", str(paths[0]))
    with _client(server) as client:
        client.info()  # a wrong address or key is said now, not once per file
    with (
        _client(server, _INGEST_PATIENCE, _INGEST_RECONNECT) as client,
        Checksums(cache_file()) as checksums,
    ):
        summary = ingest(client, sources, checksums, workers)
    summary.failed = sorted(unread + summary.failed)
    print(json.dumps(summary.to_dict(), ensure_ascii=False, indent=2) if as_json else summary, flush=True)
    if summary.interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    return 1 if summary.failed else 0


def run_search(
    query: str | None,
    audio: Path | None,
    similar_to: str | None,
    options: SearchOptions,
    server: str,
    as_json: bool,
) -> None:
    """Prints the hits for a text query, for sounds like an audio file, or for sounds like a clip of the library."""
    with _client(server) as client:
        if similar_to is None:
            found = client.search(query, file=audio, **options)
        else:
            found = client.similar(similar_to, options.get("k"))
    print(json.dumps(to_json(found), ensure_ascii=False, indent=2) if as_json else _table(found))


def run_detect(
    server: str, file: Path, phrases: list[str], options: DetectOptions, writer: Writer, plot: Path | None
) -> None:
    """Hands the server's detection in `file` to the writer as it is found, and writes its picture to `plot`."""
    with _client(server) as client:
        for message in client.detect_stream(phrases, file=file, **options):
            writer.take(message)
        if plot is not None:
            plot.write_bytes(client.detect_as("png", phrases, file=file, **options))


def _table(found: SearchResult) -> str:
    """Best first, moments indented under their clip."""
    if not found.hits:
        return "nothing found"
    lines = [f"{'score':>5}  {'similarity':>10}  {'duration':>9}  file"]
    for hit in found:
        lines.append(f"{hit.score:5.2f}  {hit.similarity:10.3f}  {hit.clip.duration:7.2f} s  {hit.clip.filename}")
        for moment in hit.moments or ():
            lines.append(f"{'':19}{moment.start:8.2f} – {moment.end:.2f} s, score {moment.score:.2f}")
    return "\n".join(lines)
