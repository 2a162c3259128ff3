"""The options of the `finelap` commands, and the types that check their values.

Imports only the standard library, so that `finelap --help` stays fast.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.detection import DetectionSettings

DEFAULT_SERVER = "http://127.0.0.1:8080"
DEFAULT_CHECKPOINT = "checkpoints/finelap-small"


# Commands


def serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (FINELAP_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=port, help="port, 0 for any free one (FINELAP_PORT, default 8080)")
    parser.add_argument("--checkpoint", help=f"folder or hub id (FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT})")
    _data_dir(parser)
    _device(parser)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="add the sounds in this folder to an empty library")


def ingest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="audio file, or folder to search")
    _server(parser)
    parser.add_argument("--metadata", type=json_object, default={}, metavar="JSON", help="object added to every clip")
    parser.add_argument("--workers", type=positive, default=32, metavar="N", help="parallel uploads (32)")
    about = "only the files of shard I of N, from 0/N to N-1/N, chosen by their content"
    parser.add_argument("--shard", type=shard, metavar="I/N", help=about)
    about = "checksums of the files, as sha256sum prints them, so that choosing a shard reads no file"
    parser.add_argument("--manifest", type=Path, metavar="FILE", help=about)
    _track(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", help='description of the sound, as in "dog barking"')
    parser.add_argument("--audio", type=Path, metavar="FILE", help="search by this recording, alone or with a query")
    parser.add_argument("--similar-to", metavar="ID", help="search by this clip of the library instead")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="number of hits (10)")
    parser.add_argument("--moments", action="store_true", help="show the matching moments in each clip")
    parser.add_argument("--filter", type=json_object, metavar="JSON", help="only clips with this metadata")
    parser.add_argument("--without", action="append", metavar="TEXT", help="sound to exclude; may be repeated")
    for name, effect in (("--like", "should"), ("--unlike", "should not")):
        about = f"clip, or stretch of it in seconds, that hits {effect} sound like; may be repeated"
        parser.add_argument(name, action="append", type=example, metavar="ID[@START-END]", help=about)
    parser.add_argument("--mode", choices=["hybrid", "semantic", "lexical"], help="by both, sound or words (hybrid)")
    parser.add_argument("--min-score", type=fraction, metavar="X", help="drop hits with a lower score")
    _server(parser)
    parser.add_argument("--json", action="store_true", help="print the service's response")


def detect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the recording")
    _events(parser)
    add("--method", choices=["threshold", "sebb"], help="how events are formed (threshold)")
    _track(parser)
    add("--plot", type=Path, metavar="PNG", help="write a plot of the detection")
    add("--format", choices=["table", "json", "csv", "audacity", "raven", "ndjson"], default="table")
    add("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    add("-o", "--output", type=Path, metavar="FILE", help="write the events to this file")
    _server(parser, default=None)
    _model(parser)


def scan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _events(parser)
    add("--method", choices=["threshold", "sebb"], help="how events are formed (threshold)")
    add("--filter", type=json_object, metavar="JSON", help="only clips with this metadata")
    add("-o", "--out", type=Path, metavar="FILE", help="write the events to this file")
    formats = ["csv", "parquet", "raven", "audacity", "ndjson"]
    add("--format", choices=formats, help="of the file; default by its suffix: .csv .parquet .txt .zip .ndjson")
    add("--summary", type=Path, metavar="FILE", help="write a summary too: .csv, .json, or a heat map as .png")
    add("--by", choices=["phrase", "clip", "hour"], help="what to summarise by (hour for .png, else clip)")
    add("--json", action="store_true", help="print the job as JSON")
    _server(parser)


def concepts(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        if name != "list":
            sub.add_argument("name", metavar="NAME", help="the concept, used as concept:NAME")
        _server(sub)
        return sub

    formats = ["raven", "audacity", "csv"]
    action("list", "list all concepts").add_argument("--json", action="store_true", help="print JSON")
    teach = action("teach", "create a concept, or add examples to it")
    teach.add_argument("--text", metavar="TEXT", help="description of the sound")
    for name, about in (("--positive", "example"), ("--negative", "example of what it isn't")):
        about += ": an audio file, a clip, or a stretch of a clip in seconds; may be repeated"
        kind: dict[str, Any] = {"type": file_or_example, "metavar": "FILE|ID[@START-END]"}
        teach.add_argument(name, action="append", default=[], help=about, **kind)
    teach.add_argument("--threshold", type=fraction, metavar="X", help="score from which the sound counts (fitted)")
    teach.add_argument("--json", action="store_true", help="print JSON")
    suggest = action("suggest", "show the moments whose label would teach most")
    suggest.add_argument("-k", type=positive, default=10, metavar="N", help="number of moments (10)")
    suggest.add_argument("--json", action="store_true", help="print JSON")
    export = action("export", "write the examples as labels")
    export.add_argument("--format", choices=formats, default="csv", help="format of the labels (csv)")
    export.add_argument("--clip", metavar="ID", help="only the examples of this clip")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the labels to this file")
    read = action("import", "add the examples in a label file")
    read.add_argument("file", type=Path, metavar="FILE", help="Raven selection table, Audacity labels or CSV")
    read.add_argument("--format", choices=formats, default="csv", help="format of the labels (csv)")
    read.add_argument("--clip", metavar="ID", help="the clip that the file describes")
    read.add_argument("--label", metavar="TEXT", help="label of the concept in the file (its name or text)")
    action("delete", "delete a concept; clips stay")


def collections(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        if name != "list":
            sub.add_argument("name", metavar="NAME", help="the collection")
        _server(sub)
        return sub

    for sub in (
        action("list", "list all collections"),
        action("show", "list the clips of a collection"),
    ):
        sub.add_argument("--json", action="store_true", help="print JSON")
    for sub in (
        action("add", "put clips into a collection, which is made if there is none"),
        action("remove", "take clips out of a collection"),
    ):
        sub.add_argument("clips", nargs="*", metavar="ID", help="ids of clips")
        sub.add_argument("--filter", type=json_object, metavar="JSON", help="all clips with this metadata")
    action("rename", "rename a collection, or join it to another").add_argument("new", metavar="NEW", help="new name")
    action("delete", "delete a collection; clips stay")
    export = action("export", "write the files of a collection as a ZIP archive")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP", help="file to write")


def listen(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    about = "microphone, alsa:DEVICE, - for raw samples, a file, or an http or rtsp address"
    add("sources", nargs="+", metavar="SOURCE", help=about)
    _events(parser)
    _server(parser)
    add("--json", action="store_true", help="print a JSON object per line, open events included")
    add("--rate", type=positive, default=16_000, metavar="HZ", help="sample rate of - (16000)")
    add("--channels", type=positive, default=1, metavar="N", help="channels of - (1), 16 bit, interleaved")
    add("--webhook", metavar="URL", help="post each event here, signed with FINELAP_WEBHOOK_SECRET")
    add("--keep", type=seconds, metavar="S", help="add a clip with S seconds around each event to the library")
    add("--keep-for", type=seconds, default=30.0, metavar="DAYS", help="delete kept clips after DAYS (30), 0: never")
    add("--outbox", type=Path, metavar="DIR", help="what is not delivered yet (FINELAP_OUTBOX)")
    add("--metrics-port", type=port, metavar="PORT", help="serve Prometheus metrics")
    add("--metrics-host", default="127.0.0.1", metavar="HOST", help="address of the metrics (127.0.0.1)")


def embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio file, or folder to search")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NPZ", help="file to write")
    parser.add_argument("--frames", action="store_true", help="write the embedding of every frame too")
    _track(parser)
    _model(parser)


def watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder to watch, with its subfolders")
    parser.add_argument("--reference", action="store_true", help="leave the audio where it is instead of copying it")
    parser.add_argument("--interval", type=seconds, default=300.0, metavar="S", help="seconds between full scans (300)")
    parser.add_argument(
        "--grace", type=seconds, default=5.0, metavar="S", help="seconds until a missing file counts as deleted (5)"
    )
    parser.add_argument("--once", action="store_true", help="scan once and stop")
    parser.add_argument("--workers", type=positive, default=32, metavar="N", help="parallel uploads (32)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="where to remember files (~/.local/state/finelap)")
    _server(parser)
    parser.add_argument("--json", action="store_true", help="print each scan as a line of JSON")


def mcp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", action="store_true", help="add the tool that changes metadata")
    _server(parser)


def reindex(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help=f"the new checkpoint (FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT})")
    parser.add_argument("--follow", action="store_true", help="also embed new clips until the service has switched")
    _data_dir(parser)
    _device(parser)


def backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dest", type=Path, metavar="DEST", help="backup folder; later backups are incremental")
    _data_dir(parser)
    parser.add_argument("--copy", action="store_true", help="copy audio files instead of linking them")


def restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="backup folder")
    _data_dir(parser)
    parser.add_argument("--snapshot", metavar="NAME", help="snapshot to restore (the latest)")
    parser.add_argument("--partial", action="store_true", help="skip audio files that are missing or damaged")


def export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder to write; Hugging Face datasets reads it")
    parser.add_argument("--audio", action="store_true", help="include the audio files")
    _data_dir(parser)


def import_(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="folder that finelap export wrote")
    _data_dir(parser)


def convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="published .pt file, or Hugging Face folder of FineLAP")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of the text encoder's tokenizer")


# Options that several commands share


def _track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--track",
        metavar="N|LANG",
        help="audio track of files with several: number from 0, or language (the default one)",
    )


def _server(parser: argparse.ArgumentParser, default: str | None = DEFAULT_SERVER) -> None:
    server = os.environ.get("FINELAP_SERVER") or default
    parser.add_argument("--server", default=server, metavar="URL", help=f"FINELAP_SERVER, default {default or 'none'}")


def _events(parser: argparse.ArgumentParser) -> None:
    """The phrases, and how their scores become events."""
    add = parser.add_argument
    add("-p", "--phrase", action="append", dest="phrases", default=[], metavar="TEXT", help="sound to detect")
    scores: dict[str, Any] = {"type": fraction, "action": "append", "metavar": "X"}
    add(
        "--threshold",
        **scores,
        help="score that starts an event (0.5, or as set for a concept); once, or once per phrase",
    )
    add(
        "--low-threshold",
        **scores,
        help="score below which an event ends (follows its highest score); once, or once per phrase",
    )
    add("--median-filter", type=seconds, metavar="S", help="smoothing window in seconds (0.48)")
    add("--min-duration", type=seconds, metavar="S", help="drop shorter events (0)")
    add("--max-gap", type=seconds, metavar="S", help="join events at most this far apart (0.2)")


def _data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the library (FINELAP_DATA_DIR, ./data)")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="auto, cpu, cuda, … (FINELAP_DEVICE)")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", help=f"FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT}")
    _device(parser)


# Types of values


def port(text: str) -> int:
    """A TCP port."""
    return int(_number(text, "a port from 0 to 65535", lambda x: 0 <= x <= 65535 and x == int(x)))


def positive(text: str) -> int:
    """A positive integer."""
    return int(_number(text, "a positive integer", lambda x: x >= 1 and x == int(x)))


def shard(text: str) -> tuple[int, int]:
    """A shard as index and count."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"must be a shard from 0/N to N-1/N, such as 0/4, not {text!r}")
    return int(index), int(count)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def seconds(text: str) -> float:
    """A non-negative number of seconds."""
    return _number(text, "a non-negative number of seconds", lambda x: 0 <= x < float("inf"))


def example(text: str) -> dict[str, Any]:
    """A clip of the library, or a stretch of one: ID or ID@START-END, in seconds."""
    clip_id, at, stretch = text.partition("@")
    found = re.fullmatch(r"(\d+\.?\d*)-(\d+\.?\d*)", stretch)
    if not clip_id or bool(at) != bool(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a clip's ID, or ID@START-END in seconds")
    if found is None:
        return {"clip_id": clip_id}
    start, end = float(found[1]), float(found[2])
    if end <= start:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it starts")
    return {"clip_id": clip_id, "start": start, "end": end}


def file_or_example(text: str) -> Path | dict[str, Any]:
    """An existing file, or what `example` reads."""
    path = Path(text)
    try:
        return path if path.is_file() else example(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, and no such file") from error


def _number(text: str, expected: str, is_valid: Callable[[float], bool]) -> float:
    try:
        value = float(text)
        if is_valid(value):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object such as \'{"source": "field"}\'')
    return value


def detection_settings(phrases: list[str], options: dict[str, Any]) -> list[DetectionSettings]:
    """The settings of each phrase. Raises ValueError."""
    from model.detection import DetectionSettings

    per_phrase = {}
    for name in ("threshold", "low_threshold"):
        values = options.get(name, [])
        if len(values) not in (0, 1, len(phrases)):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"give {flag} once, or once per phrase: expected {len(phrases)}, not {len(values)}")
        if values:
            per_phrase[name] = values * len(phrases) if len(values) == 1 else values
    shared = {name: value for name, value in options.items() if name not in ("threshold", "low_threshold")}
    return [
        DetectionSettings(**shared, **{name: values[i] for name, values in per_phrase.items()})
        for i in range(len(phrases))
    ]
