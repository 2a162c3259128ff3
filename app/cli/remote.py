"""The commands that talk to a running service: ingest, search, collections, and detect with --server.

`Writer` prints a detection in the requested format, whether a service or this process produced it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from app.cli.shards import Shard, choose, read_manifest
from app.cli.upload import Checksums, IngestOptions, LeftOut, as_text, cache_file, find_sources, ingest, left_out_text
from app.client import Client, Clip, DetectOptions, SearchOptions, SearchResult, to_json
from app.client.types import DetectionEnd, DetectionEvent, DetectionMessage, DetectionProgress, DetectionStart
from app.export.formats import FORMATS

if TYPE_CHECKING:
    from app.cli.watch import WatchOptions

_INGEST_PATIENCE = 3600.0  # seconds to retry one file while the server is busy
_INGEST_RECONNECT = 120.0  # seconds to retry one file while the server is unreachable
_CALL_PATIENCE = 20.0  # seconds to retry any other call while the server is busy
_MATCH = {True: "yes", False: "–", None: ""}
_BAR = "{desc}: {n:.0f} s of audio in {elapsed}"


def connect(server: str, patience: float = _CALL_PATIENCE, reconnect: float = 0.0) -> Client:
    """A client of the service at this address, with the API key of the environment."""
    return Client(server, os.environ.get("FINELAP_API_KEY"), patience, reconnect=reconnect)


@dataclass(frozen=True)
class Selection:
    """The files of an ingest, and which track of each.

    shard: index and count, to take only those of one shard; manifest: see read_manifest.
    """

    paths: list[Path]
    metadata: dict[str, Any]
    shard: tuple[int, int] | None = None
    manifest: Path | None = None
    track: str | None = None


def run_ingest(selection: Selection, server: str, workers: int, as_json: bool) -> int:
    """Adds files and folders and prints a summary, also when interrupted.

    Returns 130 if interrupted, 1 if a file failed, else 0. Raises FileNotFoundError if there are no audio files.
    """
    unreadable: list[tuple[str, str]] = []
    left_out: LeftOut = Counter()
    sources = find_sources(
        selection.paths,
        selection.metadata,
        lambda e: unreadable.append((as_text(str(e.filename)), e.strerror or str(e))),
        left_out,
    )
    if not sources and not unreadable:
        why = f"no audio files found; left out: {left_out_text(left_out)}" if left_out else "no audio files found"
        raise FileNotFoundError(errno.ENOENT, why, str(selection.paths[0]))
    shard = None if selection.shard is None else Shard(*selection.shard)
    listed = {} if selection.manifest is None else read_manifest(selection.manifest)
    with connect(server) as client:
        client.info()  # report a wrong address or key once instead of once per file
    with (
        connect(server, _INGEST_PATIENCE, _INGEST_RECONNECT) as client,
        Checksums(cache_file()) as checksums,
    ):
        if shard is not None:
            sources = choose(sources, shard, checksums, listed)
        summary = ingest(client, sources, checksums, workers, options=IngestOptions(shard, selection.track))
    summary.failed = sorted(unreadable + summary.failed)
    summary.left_out = left_out
    print(json.dumps(summary.to_dict(), ensure_ascii=False, indent=2) if as_json else summary, flush=True)
    if summary.interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    return 1 if summary.failed else 0


def run_watch(folders: list[Path], server: str, options: WatchOptions) -> int:
    """Keeps the library equal to folders, see app.cli.watch. Raises FileNotFoundError for no folder."""
    from app.cli import watch

    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with connect(server) as client:
        client.info()  # report a wrong address or key once
    with connect(server, _INGEST_PATIENCE, _INGEST_RECONNECT) as client:
        return watch.run_watch(client, folders, options)


def run_search(
    query: str | None,
    audio: Path | None,
    similar_to: str | None,
    options: SearchOptions,
    server: str,
    as_json: bool,
) -> None:
    """Prints the hits for a text query, an audio file, both, or a clip of the library.

    Tells on standard error if the service corrected the query; JSON contains the correction.
    """
    with connect(server) as client:
        if similar_to is None:
            found = client.search(query, file=audio, **options)
        else:
            found = client.similar(similar_to, options.get("k"))
    if as_json:
        print(json.dumps(to_json(found), ensure_ascii=False, indent=2))
        return
    if found.did_you_mean is not None:
        print(f"Showing results for “{found.did_you_mean}” instead of “{query}”.", file=sys.stderr)
    print(_table(found))


def run_collections(args: argparse.Namespace) -> int:
    """Lists and changes collections; returns the exit code."""
    with connect(args.server) as client:
        return _COLLECTIONS[args.action](client, args)


def _list_collections(client: Client, args: argparse.Namespace) -> int:
    found = client.collections()
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print("\n".join([f"{'clips':>7}  name", *(f"{clips:7}  {name}" for name, clips in found.items())]))
    return 0


def _show_collection(client: Client, args: argparse.Namespace) -> int:
    clips = _clips_of(client, args.name)
    if args.json:
        print(json.dumps([to_json(clip) for clip in clips], ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{clip.id}  {clip.duration:7.2f} s  {clip.filename}" for clip in clips))
    return 0


def _edit_collection(client: Client, args: argparse.Namespace) -> int:
    """Adds clips to the collection, which exists from then on, or removes them."""
    wanted = {"clip_ids": args.clips} if args.filter is None else {"filter": args.filter}
    change: dict[str, Any] = {args.action: {"collections": [args.name]}}
    edited = client.edit(**wanted, **change)
    missing = 0 if args.filter is not None else len(set(args.clips)) - edited
    print(f"{edited} clips {'added to' if args.action == 'add' else 'removed from'} {args.name}")
    if missing:
        print(f"{missing} of the ids are not in the library", file=sys.stderr)
    return 1 if missing else 0


def _rename_collection(client: Client, args: argparse.Namespace) -> int:
    print(f"{client.rename_collection(args.name, args.new)} clips are in {args.new}")
    return 0


def _delete_collection(client: Client, args: argparse.Namespace) -> int:
    client.delete_collection(args.name)
    return 0


def _export_collection(client: Client, args: argparse.Namespace) -> int:
    clips = _clips_of(client, args.name)
    client.save_archive([clip.id for clip in clips], args.output)
    print(f"{len(clips)} clips written to {args.output}")
    return 0


def _clips_of(client: Client, collection: str) -> list[Clip]:
    """The clips of a collection. Raises FileNotFoundError if it has none."""
    clips = list(client.clips({"collections": collection}))
    if not clips:
        raise FileNotFoundError(errno.ENOENT, "there is no collection with this name", collection)
    return clips


_COLLECTIONS = {
    "list": _list_collections,
    "show": _show_collection,
    "add": _edit_collection,
    "remove": _edit_collection,
    "rename": _rename_collection,
    "delete": _delete_collection,
    "export": _export_collection,
}


def run_detect(
    server: str, file: Path, phrases: list[str], options: DetectOptions, writer: Writer, plot: Path | None
) -> None:
    """Streams the server's detection in `file` to the writer, and saves its plot to `plot` if given."""
    with connect(server) as client:
        for message in client.detect_stream(phrases, file=file, **options):
            writer.write(message)
        if plot is not None:
            plot.write_bytes(client.detect_as("png", phrases, file=file, **options))


def _table(found: SearchResult) -> str:
    """A table of hits, best first, with moments indented under their clip.

    It has a column for `match` if the service says so for any hit.
    """
    if not found.hits:
        return "nothing found"
    judged = any(hit.match is not None for hit in found)

    def match(text: str) -> str:
        return f"  {text:<5}" if judged else ""

    lines = ["No close match; the nearest sounds:"] if found.matches == 0 else []
    lines.append(f"{'score':>5}{match('match')}  {'similarity':>10}  {'duration':>9}  file")
    for hit in found:
        score, clip = f"{hit.score:5.2f}{match(_MATCH[hit.match])}", hit.clip
        lines.append(f"{score}  {hit.similarity:10.3f}  {clip.duration:7.2f} s  {clip.filename}")
        for moment in hit.moments or ():
            stretch = f"{moment.start:8.2f} – {moment.end:.2f} s, score {moment.score:.2f}"
            lines.append(f"{'':19}{match('')}{stretch}")
    return "\n".join(lines)


class Writer:
    """Writes the messages of one detection in a format: "ndjson" or one of FORMATS.

    ndjson has a line for the start, for each event as it is confirmed, and for the end; the other formats are written
    once, at the end. `output` is the file to write, or None for standard output. A detection that fails before its
    first output leaves the file untouched.
    """

    def __init__(self, stack: contextlib.ExitStack, output: Path | None, format: str, bar: tqdm[Any]) -> None:
        self._stack, self._output, self._format, self._bar = stack, output, format, bar
        self._out: TextIO | None = None if output is not None else sys.stdout

    def write(self, message: DetectionMessage) -> None:
        """Writes a message, or updates the progress bar."""
        if isinstance(message, DetectionProgress):
            self._bar.update(message.position - self._bar.n)
        elif self._format != "ndjson":
            if isinstance(message, DetectionEnd):
                self._print(FORMATS[self._format](to_json(message.detection)))
        elif isinstance(message, DetectionStart):
            self._line("start", message)
        elif isinstance(message, DetectionEvent):
            self._line("event", message)
        elif isinstance(message, DetectionEnd):
            self._line("end", message.detection)

    def _line(self, kind: str, value: Any) -> None:
        self._print(json.dumps({"type": kind} | to_json(value), ensure_ascii=False) + "\n")

    def _print(self, text: str) -> None:
        self._bar.clear()
        if self._out is None:
            assert self._output is not None
            self._out = self._stack.enter_context(self._output.open("w", encoding="utf-8", newline=""))
        self._out.write(text)
        self._out.flush()  # so that a program reading the lines gets each one at once


@contextlib.contextmanager
def open_writer(output: Path | None, format: str) -> Iterator[Writer]:
    """A writer with a progress bar on standard error, shown if the detection takes over a second."""
    terminal = sys.stderr.isatty()
    with (
        contextlib.ExitStack() as stack,
        tqdm(
            desc="analysing",
            bar_format=_BAR,
            leave=False,
            delay=1.0,
            mininterval=0.1 if terminal else 10.0,  # keep logs short
        ) as bar,
    ):
        yield Writer(stack, output, format, bar)
