"""The `finelap` command line: parses arguments, runs one command, and turns errors into one line and an exit code.

Each command imports its modules when it runs, which keeps `--help` fast. Exit codes: 0 success, 1 failure, 2 invalid
arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from app.client import DetectOptions
    from app.settings import Settings
    from model.detection import DetectionSettings


class UsageError(Exception):
    """Invalid combination of arguments: one line, exit code 2."""


class CommandError(Exception):
    """Expected failure of a command: one line, exit code 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except UsageError as error:
        return _fail(f"finelap {args.command}: {error}", 2)
    except CommandError as error:
        return _fail(f"finelap {args.command}: {error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reading end was closed, for example by head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _expected(error):
            raise
        return _fail(f"finelap {args.command}: {_reason(error)}", 1)


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _expected(error: Exception) -> bool:
    """Whether an error needs a message rather than a traceback: it concerns a file, a server or a checkpoint."""
    if isinstance(error, OSError):
        return True
    return type(error).__module__.startswith(("app.", "model.", "index.", "training."))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Reports invalid arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_readable(message)} (see {self.prog} --help)\n")


def _readable(message: str) -> str:
    """An unknown command or choice with the one that was probably meant, in place of a long list."""
    found = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if found is None:
        return message
    from difflib import get_close_matches

    what, given, choices = found[1], found[2], [choice.strip("' ") for choice in found[3].split(",")]
    near = get_close_matches(given, choices, 1, 0.6)
    name = "command" if what == "COMMAND" else f"value of {what}"
    if near:
        return f"unknown {name} '{given}'; did you mean '{near[0]}'?"
    return f"unknown {name} '{given}'; there are {', '.join(choices)}"


def _parser() -> argparse.ArgumentParser:
    from app.cli import options

    parser = _Parser(prog="finelap", description="Find sounds by describing them, and detect when they occur.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    options.serve(command("serve", _serve, "run the HTTP service"))
    options.ingest(command("ingest", _ingest, "add files and folders to the library"))
    options.search(command("search", _search, "search the library by a description or by a sound"))
    options.detect(command("detect", _detect, "detect sound events in a recording, locally unless --server is given"))
    options.scan(command("scan", _scan, "detect sound events in the whole library of a service"))
    options.concepts(command("concepts", _concepts, "teach sounds with examples, and use them as concept:NAME"))
    options.collections(command("collections", _collections, "list and change collections of clips"))
    options.listen(command("listen", _listen, "send live sound to a service and print its events"))
    options.embed(command("embed", _embed, "write embeddings of audio files to an .npz file, locally"))
    options.watch(command("watch", _watch, "keep the library equal to folders"))
    options.mcp(command("mcp", _mcp, "offer the library to language models, over standard input and output"))
    options.reindex(command("reindex", _reindex, "re-embed the library with another checkpoint while it is in use"))
    options.backup(command("backup", _backup, "back up a library, even while it is in use"))
    options.restore(command("restore", _restore, "restore a library from a backup"))
    options.export(command("export", _export, "write a library as a folder of Parquet files"))
    options.import_(command("import", _import, "make a library of a folder that export wrote"))
    options.convert(command("convert", _convert, "convert published weights without running their code"))
    _training_commands(command)
    return parser


def _training_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    from training.commands import NAMES

    for name in NAMES:
        module = import_module(f"training.commands.{name}")
        module.add_arguments(command(name, partial(_train, module.run), module.HELP))


def _settings(args: argparse.Namespace, *names: str) -> Settings:
    """Settings from the environment and .env, overridden by the options with these names."""
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
    gc.disable()  # while loading, collections free nothing and take a tenth of the start-up time
    try:
        from app.cli.serve import serve

        return serve(settings, args.demo)
    finally:
        gc.enable()


def _ingest(args: argparse.Namespace) -> int:
    from app.cli.remote import Selection, run_ingest

    if args.manifest is not None and args.shard is None:
        raise UsageError("--manifest needs --shard")
    selection = Selection(args.paths, args.metadata, args.shard, args.manifest, args.track)
    return run_ingest(selection, args.server, args.workers, args.json)


def _search(args: argparse.Namespace) -> None:
    from app.cli.remote import run_search

    described = any(given is not None for given in (args.query, args.audio, args.like))
    if described == (args.similar_to is not None):
        raise UsageError(
            'give a query ("dog barking"), --audio FILE or --like ID, or several of these, or --similar-to ID'
        )
    if args.query is not None and not args.query.strip():
        raise UsageError("the query is empty")
    if any(not text.strip() for text in args.without or ()):
        raise UsageError("--without is empty")
    named = ("filter", "without", "like", "unlike", "min_score", "mode")
    options = {name: getattr(args, name) for name in named if getattr(args, name) is not None}
    if args.similar_to is not None and (options or args.moments):
        raise UsageError("--similar-to can only be combined with -k")
    run_search(
        args.query,
        args.audio,
        args.similar_to,
        {"k": args.k, "moments": args.moments, **options},  # type: ignore[typeddict-item]  # `named` lists its keys
        args.server,
        args.json,
    )


def _check_phrases(phrases: list[str]) -> None:
    if not phrases:
        raise UsageError('give at least one phrase: -p "dog barking" (repeat -p for more)')
    if any(not phrase.strip() for phrase in phrases):
        raise UsageError("a phrase is empty")


def _detection_options(args: argparse.Namespace) -> tuple[DetectOptions, list[DetectionSettings]]:
    """The options that are given, and the settings of each phrase. Raises UsageError."""
    _check_phrases(args.phrases)
    names = ("threshold", "low_threshold", "method", "median_filter", "min_duration", "max_gap")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    from app.cli.options import detection_settings

    try:
        return given, detection_settings(args.phrases, given)  # type: ignore[return-value]  # `names` lists its keys
    except ValueError as error:
        raise UsageError(str(error)) from error


def _detect(args: argparse.Namespace) -> None:
    given, detections = _detection_options(args)
    from app.cli.remote import open_writer

    with open_writer(args.output, args.format) as writer:
        if args.server is not None and not (args.checkpoint or args.device):
            from app.cli.remote import run_detect

            if args.track is not None:
                given["track"] = args.track
            run_detect(args.server, args.file, args.phrases, given, writer, args.plot)
        else:
            settings = _settings(args, "checkpoint", "device")
            from app.cli.local import detect_file
            from app.services.detection import DetectionRequest

            phrases = [" ".join(phrase.split()) for phrase in args.phrases]
            wanted = DetectionRequest(phrases, detections)
            detect_file(settings, args.file, wanted, writer.write, args.plot, args.track)


def _scan(args: argparse.Namespace) -> int:
    given, _ = _detection_options(args)
    from app.cli.scan import choose_format, choose_summary, run_scan

    try:
        output = None if args.out is None else (args.out, choose_format(args.out, args.format))
        summary = None if args.summary is None else (args.summary, *choose_summary(args.summary, args.by))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.out is None and args.format is not None:
        raise UsageError("--format needs --out")
    return run_scan(args.server, args.phrases, args.filter, given, (output, summary, args.json))


def _concepts(args: argparse.Namespace) -> int:
    if args.action == "teach" and args.text is None and not (args.positive or args.negative or args.threshold):
        raise UsageError("give --text, --positive, --negative or --threshold")
    from app.cli.concepts import run

    return run(args)


def _collections(args: argparse.Namespace) -> int:
    if args.action in ("add", "remove") and bool(args.clips) == (args.filter is not None):
        raise UsageError("give either ids of clips or --filter")
    from app.cli.remote import run_collections

    return run_collections(args)


def _listen(args: argparse.Namespace) -> int:
    _check_phrases(args.phrases)
    names = ("threshold", "low_threshold", "median_filter", "min_duration", "max_gap")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    from app.cli.listen import SECRET, listen, outbox_folder
    from app.cli.options import detection_settings

    if args.webhook is not None and not args.webhook.startswith(("http://", "https://")):
        raise UsageError(f"--webhook {args.webhook}: not an http or https address")
    if args.webhook is not None and not os.environ.get(SECRET):
        raise UsageError(f"--webhook needs the secret that signs its messages in {SECRET}")
    args.outbox = args.outbox or outbox_folder()
    try:
        detection_settings(args.phrases, given)
        return listen(args, {"phrases": args.phrases, **given})
    except ValueError as error:
        raise UsageError(str(error)) from error


def _embed(args: argparse.Namespace) -> int:
    settings = _settings(args, "checkpoint", "device")
    from app.cli.local import embed_files

    return embed_files(settings, args.files, args.output, args.frames, args.track)


def _watch(args: argparse.Namespace) -> int:
    from app.cli.remote import run_watch
    from app.cli.watch import WatchOptions

    names = ("reference", "interval", "grace", "once", "json", "state", "workers")
    return run_watch(args.folders, args.server, WatchOptions(**{name: getattr(args, name) for name in names}))


def _mcp(args: argparse.Namespace) -> None:
    from app.cli.mcp import run_mcp

    run_mcp(args.server, args.write)


def _require_folder(settings: Settings) -> Settings:
    """The settings, if the library is in their data folder. Raises UsageError otherwise."""
    if settings.index_url != "faiss://":
        raise UsageError(f"the library of FINELAP_INDEX_URL={settings.index_url} is not in a folder")
    return settings


def _reindex(args: argparse.Namespace) -> int:
    settings = _require_folder(_settings(args, "checkpoint", "data_dir", "device"))
    from app.cli.reindex import reindex

    return reindex(settings, args.follow)


def _backup(args: argparse.Namespace) -> int:
    settings = _require_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_backup

    return run_backup(settings.data_dir, args.dest, args.copy)


def _restore(args: argparse.Namespace) -> int:
    settings = _require_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_restore

    return run_restore(args.source, settings.data_dir, args.snapshot, args.partial)


def _export(args: argparse.Namespace) -> int:
    settings = _require_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_export

    return run_export(settings.data_dir, args.dest, args.audio)


def _import(args: argparse.Namespace) -> int:
    settings = _require_folder(_settings(args, "data_dir"))
    from app.cli.backup import run_import

    return run_import(args.source, settings.data_dir)


def _convert(args: argparse.Namespace) -> None:
    from model.conversion import convert

    report = convert(args.source, args.out, args.tokenizer)
    print(
        f"{report.name}: {report.used} of {report.tensors} tensors, {report.parameters:,} parameters → {report.folder}"
    )
    for label, names in (("computed, not stored", report.computed), ("not used by the model", report.ignored)):
        if names:
            print(f"{label}: {', '.join(names)}")
    if report.tokenizer is None:
        print("no tokenizer found: text embeddings need one; pass its folder with --tokenizer", file=sys.stderr)


def _train(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int | None:
    try:
        return run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("app", "model", "training"):
            raise
        raise CommandError(f"training needs {error.name}; install it with pip install -e '.[train]'") from error


if __name__ == "__main__":
    sys.exit(main())
