"""The fenced blocks of a Markdown page, as the tests of the documentation see them.

A comment on the line above a fence may say what is special about the block that follows:

    <!-- not run: why -->    it is only looked at: its options and files exist
    <!-- fails -->           its last command ends with an error
    <!-- exact -->           the values of a JSON answer are compared too, not only its shape

Knows Markdown; knows nothing of shells, services or Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!-- *(not run: *(?P<reason>\S.*?)|fails|exact) *-->\n\n?\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language ("" for none), its text, and what the comment above it says."""

    page: str
    line: int  # of its first line, from 1
    language: str
    text: str
    reason: str | None = None  # why it is not run
    fails: bool = False
    exact: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(path: Path, repo: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    source = path.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(source):
        indent = len(fence["indent"])
        comment = _COMMENT.search(source, 0, fence.start())
        said = comment[1] if comment else ""
        found.append(
            Block(
                page=path.relative_to(repo).as_posix(),
                line=source.count("\n", 0, fence.start()) + 2,
                language=fence["language"].strip(),
                text="".join(line[indent:] or "\n" for line in fence["text"].splitlines(keepends=True)),
                reason=comment["reason"] if comment else None,
                fails=said == "fails",
                exact=said == "exact",
            )
        )
    return found


def without_code(source: str) -> str:
    """A page without its blocks and its inline code, so that only prose and links are left."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", _FENCE.sub("", source))


def commands(text: str) -> list[str]:
    """The commands of a shell block, a line each: continued lines joined, comments and empty lines left out."""
    joined = re.sub(r" *\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def session(text: str) -> list[tuple[str, str]]:
    """What a console block shows: commands (after `$ `, continued after `> ` or a backslash) with their output."""
    steps: list[tuple[str, str]] = []
    command = ""
    for line in text.splitlines():
        if command.endswith("\\"):
            command += "\n" + line.removeprefix("> ")
            steps[-1] = (command, "")
        elif line.startswith("$ "):
            command = line[2:]
            steps.append((command, ""))
        else:
            assert steps, f"a console block begins with `$ `, not with {line!r}"
            steps[-1] = (steps[-1][0], steps[-1][1] + line + "\n")
    return steps
