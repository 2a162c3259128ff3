"""Commands in the documentation have existing options, files and configuration keys, even if they are not run."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import Block, commands, session
from tests.docs.test_examples import BLOCKS, RUN
from training.config import TrainConfig, parse_config

_COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ +)*(finelap|curl|make|pip|python3?|docker|accelerate|git|mkdocs) ")
_SYNOPSIS = re.compile(r"…|\[-|\b[A-Z]{2,}\b")  # a synopsis, not a command to paste
_ALL = [block for blocks in BLOCKS.values() for block in blocks]


def lines(block: Block) -> list[str]:
    """The commands of a block."""
    if block.language == "console":
        return [line for command, _ in session(block.text) for line in commands(command)]
    return [line for line in commands(block.text) if _COMMAND.match(line)]


def test_commands_are_in_blocks_that_run() -> None:
    """Blocks without a language are not run, so they may only contain synopses."""
    escaped = [
        f"{block}: {line}"
        for block in _ALL
        if block.language not in RUN
        for line in lines(block)
        if not _SYNOPSIS.search(line)
    ]
    assert not escaped, "mark these as sh, with a reason if they cannot run:\n" + "\n".join(escaped)


def test_skipped_blocks_state_a_reason() -> None:
    for block in _ALL:
        assert block.reason is None or (block.language in RUN and len(block.reason) > 10), str(block)


@functools.cache
def options(command: tuple[str, ...], repo: Path) -> set[str]:
    """The options in `finelap COMMAND --help`."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", *command, "--help"], cwd=repo, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"finelap {' '.join(command)} is not a command:\n{done.stderr}"
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))


_WITH_ACTIONS = {"concepts", "collections"}  # commands whose first argument is a command of its own


def command_of(name: str, rest: str) -> tuple[str, ...]:
    """The words of a command before its options."""
    return (name, *rest.split()[:1]) if name in _WITH_ACTIONS else (name,)


@pytest.mark.parametrize("page", BLOCKS)
def test_options_exist(page: str, repo_dir: Path) -> None:
    for block in BLOCKS[page]:
        for line in lines(block):
            found = re.match(r"(?:.*\s)?finelap +([a-z]+)\b(.*)", line)
            if found is None or "mkdocs" in line:
                continue
            used = re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"'[^']*'|\"[^\"]*\"|[|;&].*", "", found[2]))
            assert set(used) <= options(command_of(found[1], found[2]), repo_dir), f"{block}: {line}"


def test_inline_commands_exist(repo_dir: Path) -> None:
    """Inline code such as `finelap detect --plot`."""
    for page in set(BLOCKS) - {"docs/development/errors.md"}:  # which has commands that don't exist
        source = (repo_dir / page).read_text(encoding="utf-8")
        for command, rest in re.findall(r"`finelap ([a-z]+)\b([^`\n]*)`", source):
            known = options((command,), repo_dir)
            assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"\"[^\"]*\"", "", rest))) <= known, (
                page,
                command,
            )


def test_files_and_modules_in_commands_exist(repo_dir: Path) -> None:
    seen = 0
    for block in _ALL:
        for line in lines(block):
            for word in re.findall(r"(?:training|benchmarks|demo|checkpoints)/[\w./-]+\w", line):
                if not _SYNOPSIS.search(line) and not line.startswith(
                    ("finelap convert", "finelap serve --checkpoint")
                ):
                    assert (repo_dir / word).exists(), f"{block}: {word}"
                    seen += 1
            for name in re.findall(r"python3? -m ((?:benchmarks|training)[.\w]+)", line):
                module = repo_dir / name.replace(".", "/")
                assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), f"{block}: {name}"
                seen += 1
    assert seen > 10


def test_yaml_blocks_are_valid_configuration() -> None:
    """Each top-level key of a training's configuration, with its values as the trainer would read them."""
    hints = typing.get_type_hints(TrainConfig)
    seen = 0
    for block in _ALL:
        if block.language != "yaml" or "kustomize.config.k8s.io" in block.text:  # see tests/docker/test_kubernetes.py
            continue
        for piece in filter(str.strip, re.split(r"^(?=\w)", block.text, flags=re.MULTILINE)):
            for key, values in yaml.safe_load(piece).items():
                assert key in hints, f"{block}: {key}"
                parse_config(hints[key], values, str(block))
                seen += 1
    assert seen >= 5


def test_make_targets_exist(repo_dir: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (repo_dir / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        word for block in _ALL for line in lines(block) if line.startswith("make ") for word in shlex.split(line)[1:]
    }
    wanted = {word for word in named if re.fullmatch(r"[a-z]+", word)}
    assert wanted and wanted <= targets
