"""Runs the blocks of a page from top to bottom, as a reader does who pastes them into a shell and into Python.

Shell blocks are run by bash in one folder, with the variables of the blocks before; `curl` fails where the service
answers with an error. Python blocks share one namespace. Knows nothing of which pages there are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docs.blocks import Block, session
from tests.docs.compare import last_answer, same_shape, same_text, same_values

ADDRESS = re.compile(r"http://(127\.0\.0\.1|localhost):8080")
_CALL = re.compile(r"^CALL (\S+) (\S+) (\d+)$", re.MULTILINE)
_OF_A_SERVICE = "ingest|search|moments|duplicates"

_BEFORE = """
[ -f .variables ] && . ./.variables 2>/dev/null
curl() { command curl -sS --fail-with-body -w '%{stderr}CALL %{method} %{url_effective} %{response_code}\\n' "$@"; }
trap 'export -p > "$FOLDER/.variables"' EXIT
set -aeo pipefail
"""

_FINELAP = f"""#!/bin/sh
case "$1" in {_OF_A_SERVICE}) export FINELAP_SERVER="$DOCS_SERVER";; esac
exec {sys.executable} -m app.cli.main "$@"
"""


@dataclass
class Reader:
    """Somebody who works through a page in `folder`, which looks like the checkout, with the service at `address`."""

    folder: Path
    address: str
    environment: dict[str, str]
    names: dict[str, Any] = field(default_factory=dict)  # of the Python blocks
    calls: list[tuple[str, str, int]] = field(default_factory=list)  # method, URL, status of every curl
    said: str = ""  # what the last shell block printed

    def __post_init__(self) -> None:
        programs = self.folder / ".programs"
        programs.mkdir()
        (programs / "finelap").write_text(_FINELAP)
        (programs / "finelap").chmod(0o755)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = self.environment | {"PATH": path, "FOLDER": str(self.folder), "DOCS_SERVER": self.address}

    def read(self, block: Block) -> None:
        """Does what the block says. Fails if that fails, or answers otherwise than the page shows."""
        text = ADDRESS.sub(self.address, block.text)
        match block.language:
            case "sh":
                self.said = self._shell(block, text)
            case "console":
                for command, shown in session(text):
                    said = self._shell(block, command)
                    if shown:
                        same_text(shown, said)
            case "json":
                compare = same_values if block.exact else same_shape
                compare(json.loads(block.text), last_answer(self.said), str(block))
            case "python":
                # as many empty lines before it as the page has, so that a traceback names the page's line
                exec(compile("\n" * (block.line - 1) + text, block.page, "exec"), self.names)
            case _:
                raise AssertionError(f"{block}: nobody knows how to run {block.language!r}")

    def _shell(self, block: Block, text: str) -> str:
        """What bash prints."""
        done = subprocess.run(
            ["bash", "-c", _BEFORE + text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",  # a picture may come to the terminal
            timeout=120,
        )
        self.calls += [(method, url, int(status)) for method, url, status in _CALL.findall(done.stderr)]
        assert (done.returncode != 0) == block.fails, (
            f"{block}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout
