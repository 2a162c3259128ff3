"""Parses the fenced code blocks of a Markdown page.

A comment on the line above a fence marks the block that follows:

    <!-- not run: why -->    not executed; only its options and file names are checked
    <!-- fails -->           its last command must fail
    <!-- exact -->           the values of a JSON response are compared too, not only its shape
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!-- *(not run: *(?P<reason>\S.*?)|fails|exact) *-->\n\n?\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: its position, language ("" for none), text, and the markers of the comment above it."""

    page: str
    line: int  # of its first line, counted from 1
    language: str
    text: str
    reason: str | None = None  # why it is not run, None if it is
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
        marker = comment[1] if comment else ""
        found.append(
            Block(
                page=path.relative_to(repo).as_posix(),
                line=source.count("\n", 0, fence.start()) + 2,
                language=fence["language"].strip(),
                text="".join(line[indent:] or "\n" for line in fence["text"].splitlines(keepends=True)),
                reason=comment["reason"] if comment else None,
                fails=marker == "fails",
                exact=marker == "exact",
            )
        )
    return found


def without_code(source: str) -> str:
    """The page without code blocks and inline code: only prose and links."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", _FENCE.sub("", source))


def commands(text: str) -> list[str]:
    """The commands of a shell block, one per line, with continued lines joined and comments and empty lines removed."""
    joined = re.sub(r" *\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def session(text: str) -> list[tuple[str, str]]:
    """The commands of a console block (after `$ `, continued after `> ` or a backslash) with their output."""
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
            assert steps, f"a console block must begin with `$ `, not {line!r}"
            steps[-1] = (steps[-1][0], steps[-1][1] + line + "\n")
    return steps
