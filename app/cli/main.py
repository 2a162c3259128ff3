"""The command line `finelap`: what a person types, checked, handed on, and answered in lines to read.

Parses and prints; the work is done in the modules that each command imports when it runs, so that `--help` is quick.
Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from app.settings import Settings

DEFAULT_SERVER = "http://127.0.0.1:8080"
DEFAULT_CHECKPOINT = "checkpoints/finelap-small"


class UsageError(Exception):
    """The arguments make no sense together; one line, exit code 2."""


class CommandError(Exception):
    """The command failed in a way that was to be expected; one line, exit code 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except UsageError as error:
        return _say(f"finelap {args.command}: {error}", 2)
    except CommandError as error:
        return _say(f"finelap {args.command}: {error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _expected(error):
            raise
        return _say(f"finelap {args.command}: {_reason(error)}", 1)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _expected(error: Exception) -> bool:
    """Errors that name a file, a server or a checkpoint: the reader needs their message, not a traceback."""
    if isinstance(error, OSError):
        return True
    ours = ("app.", "model.", "index.", "training.")
    return type(error).__module__.startswith(ours)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    from app.cli import arguments as kinds

    parser = _Parser(prog="finelap", description="Find a sound by describing it, and when in a recording it happens.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    serve = command("serve", _serve, "run the HTTP service")
    serve.add_argument("--host", help="address to listen on (FINELAP_HOST, default 127.0.0.1)")
    serve.add_argument("--port", type=kinds.port, help="port, 0 for any that is free (FINELAP_PORT, default 8080)")
    serve.add_argument("--checkpoint", help=f"folder or hub id (FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT})")
    _data_option(serve)
    serve.add_argument("--device", help="auto, cpu, cuda, … (FINELAP_DEVICE)")
    serve.add_argument("--demo", type=Path, metavar="DIR", help="add this folder's sounds if the library is empty")

    ingest = command("ingest", _ingest, "add files and folders to the library")
    ingest.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="audio file, or folder searched for them")
    _server_option(ingest)
    ingest.add_argument(
        "--metadata", type=kinds.json_object, default={}, metavar="JSON", help="object added to every clip"
    )
    ingest.add_argument("--workers", type=kinds.positive, default=32, metavar="N", help="uploads at once (32)")
    ingest.add_argument("--json", action="store_true", help="print the summary as JSON")

    search = command("search", _search, "search the library by a description or by a sound")
    search.add_argument("query", nargs="?", help='what to look for, as in "dog barking"')
    search.add_argument("--audio", type=Path, metavar="FILE", help="look for sounds like this one instead")
    search.add_argument("--similar-to", metavar="ID", help="look for sounds like this clip of the library instead")
    search.add_argument("-k", type=kinds.positive, default=10, metavar="N", help="number of hits (10)")
    search.add_argument("--moments", action="store_true", help="show where in each clip")
    search.add_argument("--filter", type=kinds.json_object, metavar="JSON", help="only clips with this metadata")
    search.add_argument("--without", action="append", metavar="TEXT", help="what must not be heard; may be repeated")
    search.add_argument("--mode", choices=["semantic", "hybrid", "lexical"], help="by sound, words or both (semantic)")
    search.add_argument("--min-score", type=kinds.fraction, metavar="X", help="only hits with at least this score")
    _server_option(search)
    search.add_argument("--json", action="store_true", help="print the server's answer")

    detect = command("detect", _detect, "find when sounds happen in a recording; without --server on this machine")
    detect.add_argument("file", type=Path, metavar="FILE", help="the recording")
    detect.add_argument(
        "-p", "--phrase", action="append", dest="phrases", default=[], metavar="TEXT", help="what to find"
    )
    detect.add_argument(
        "--threshold",
        type=kinds.fraction,
        action="append",
        metavar="X",
        help="score from which a sound counts (0.5); once, or once for each phrase",
    )
    detect.add_argument(
        "--low-threshold",
        type=kinds.fraction,
        action="append",
        metavar="X",
        help="score down to which an event goes on (three quarters of --threshold); once, or once for each phrase",
    )
    detect.add_argument("--method", choices=["threshold", "sebb"], help="how events are found (threshold)")
    detect.add_argument("--median-filter", type=kinds.seconds, metavar="S", help="seconds of smoothing (0.48)")
    detect.add_argument("--min-duration", type=kinds.seconds, metavar="S", help="drop shorter events (0)")
    detect.add_argument("--max-gap", type=kinds.seconds, metavar="S", help="join events at most this far apart (0.2)")
    detect.add_argument("--plot", type=Path, metavar="PNG", help="write a picture of it")
    detect.add_argument("--format", choices=["table", "json", "csv", "audacity", "raven", "ndjson"], default="table")
    detect.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    detect.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the events there, not to the screen")
    _server_option(detect, default=None)
    _model_options(detect)

    embed = command("embed", _embed, "write embeddings of audio files to an .npz file, on this machine")
    embed.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio file, or folder searched for them")
    embed.add_argument("-o", "--output", type=Path, required=True, metavar="NPZ", help="file to write")
    embed.add_argument("--frames", action="store_true", help="the embedding of every frame too")
    _model_options(embed)

    reindex = command("reindex", _reindex, "embed the library again with another checkpoint, beside a running service")
    reindex.add_argument("--checkpoint", help=f"the new one (FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT})")
    reindex.add_argument("--follow", action="store_true", help="go on with new clips until the service has taken over")
    _data_option(reindex)
    reindex.add_argument("--device", help="auto, cpu, cuda, … (FINELAP_DEVICE)")

    backup = command("backup", _backup, "copy a library, also while a service has it open")
    backup.add_argument("dest", type=Path, metavar="DEST", help="folder of backups; a second one only adds")
    _data_option(backup)
    backup.add_argument("--copy", action="store_true", help="copy audio files also where links would do")

    restore = command("restore", _restore, "make a library of a backup")
    restore.add_argument("source", type=Path, metavar="SRC", help="folder of backups")
    _data_option(restore)
    restore.add_argument("--snapshot", metavar="NAME", help="which of them (the last)")
    restore.add_argument("--partial", action="store_true", help="leave out audio files that are missing or damaged")

    convert = command("convert", _convert, "make a checkpoint folder of published weights, without running their code")
    convert.add_argument("source", metavar="SRC", help="published .pt file, or a Hugging Face folder of FineLAP")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    convert.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of the text tower's tokenizer")

    _training_commands(command)
    return parser


def _training_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    from training.commands import NAMES

    for name in NAMES:
        module = import_module(f"training.commands.{name}")
        module.add_arguments(command(name, partial(_train, module.run), module.HELP))


def _server_option(parser: argparse.ArgumentParser, default: str | None = DEFAULT_SERVER) -> None:
    server = os.environ.get("FINELAP_SERVER") or default
    parser.add_argument("--server", default=server, metavar="URL", help=f"FINELAP_SERVER, default {default or 'none'}")


def _data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the library (FINELAP_DATA_DIR, ./data)")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", help=f"FINELAP_CHECKPOINT, default {DEFAULT_CHECKPOINT}")
    parser.add_argument("--device", help="auto, cpu, cuda, … (FINELAP_DEVICE)")


def _settings(args: argparse.Namespace, *names: str) -> Settings:
    """Environment and .env, with the flags of these names above them."""
    from pydantic import ValidationError

    from app.settings import Settings

    flags = {name: getattr(args, name) for name in names}
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UsageError("; ".join(faults)) from error


def _serve(args: argparse.Namespace) -> int:
    settings = _settings(args, "host", "port", "checkpoint", "data_dir", "device")
    if args.demo is not None and not args.demo.is_dir():
        raise UsageError(f"--demo {args.demo}: no such folder")
    gc.disable()  # until all is loaded: a collection in between finds nothing and takes a tenth of a start
    try:
        from app.cli.serve import serve

        return serve(settings, args.demo)
    finally:
        gc.enable()


def _ingest(args: argparse.Namespace) -> int:
    from app.cli.remote import run_ingest

    return run_ingest(args.paths, args.server, args.metadata, args.workers, args.json)


def _search(args: argparse.Namespace) -> None:
    from app.cli.remote import run_search

    if sum(x is not None for x in (args.query, args.audio, args.similar_to)) != 1:
        raise UsageError('say what to look for: in words ("dog barking"), with --audio FILE, or with --similar-to ID')
    if args.query is not None and not args.query.strip():
        raise UsageError("the query is empty")
    if any(not text.strip() for text in args.without or ()):
        raise UsageError("a text of --without is empty")
    named = ("filter", "without", "min_score", "mode")
    options = {name: getattr(args, name) for name in named if getattr(args, name) is not None}
    if args.similar_to is not None and (options or args.moments):
        raise UsageError("--similar-to goes with -k alone")
    run_search(
        args.query,
        args.audio,
        args.similar_to,
        {"k": args.k, "moments": args.moments, **options},  # type: ignore[typeddict-item]  # the names are its own
        args.server,
        args.json,
    )


def _detect(args: argparse.Namespace) -> None:
    if not args.phrases:
        raise UsageError('say what to find: -p "dog barking" (repeat -p for more)')
    if any(not phrase.strip() for phrase in args.phrases):
        raise UsageError("a phrase is empty")
    names = ("threshold", "low_threshold", "method", "median_filter", "min_duration", "max_gap")
    how = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    from app.cli.arguments import detection_settings
    from app.cli.detections import open_writer

    try:
        detections = detection_settings(args.phrases, how)
    except ValueError as error:
        raise UsageError(str(error)) from error

    with open_writer(args.output, args.format) as writer:
        if args.server is not None and not (args.checkpoint or args.device):
            from app.cli.remote import run_detect

            run_detect(args.server, args.file, args.phrases, how, writer, args.plot)  # type: ignore[arg-type]
        else:
            settings = _settings(args, "checkpoint", "device")
            from app.cli.local import detect_file
            from app.services.detection import DetectionRequest

            phrases = [" ".join(phrase.split()) for phrase in args.phrases]
            detect_file(settings, args.file, DetectionRequest(phrases, detections), writer.take, args.plot)


def _embed(args: argparse.Namespace) -> int:
    settings = _settings(args, "checkpoint", "device")
    from app.cli.local import embed_files

    return embed_files(settings, args.files, args.output, args.frames)


def _of_a_folder(settings: Settings) -> Settings:
    """The settings, if the library is in their data folder."""
    if settings.index_url != "faiss://":
        raise UsageError(f"the library of FINELAP_INDEX_URL={settings.index_url} is not in a folder")
    return settings


def _reindex(args: argparse.Namespace) -> int:
    settings = _of_a_folder(_settings(args, "checkpoint", "data_dir", "device"))
    from app.cli.reindex import reindex

    return reindex(settings, args.follow)


def _backup(args: argparse.Namespace) -> int:
    settings = _of_a_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_backup

    return run_backup(settings.data_dir, args.dest, args.copy)


def _restore(args: argparse.Namespace) -> int:
    settings = _of_a_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_restore

    return run_restore(args.source, settings.data_dir, args.snapshot, args.partial)


def _convert(args: argparse.Namespace) -> None:
    from model.conversion import convert

    report = convert(args.source, args.out, args.tokenizer)
    print(f"{report.name}: {report.used} of {report.tensors} tensors, {report.parameters:,} numbers → {report.folder}")
    for what, names in (("computed, so not stored", report.computed), ("without a part in the model", report.ignored)):
        if names:
            print(f"{what}: {', '.join(names)}")
    if report.tokenizer is None:
        print("no tokenizer was found: give its folder with --tokenizer, or texts cannot be embedded", file=sys.stderr)


def _train(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int | None:
    try:
        return run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("app", "model", "training"):
            raise
        raise CommandError(f"training needs {error.name}; it comes with pip install -e '.[train]'") from error


if __name__ == "__main__":
    sys.exit(main())
