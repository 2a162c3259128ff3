"""Runs the blocks of a page from top to bottom, as if a reader pasted them into a shell and into Python.

Bash runs all shell blocks in one folder and keeps variables between blocks; `curl` fails if the service returns an
error. Python blocks share one namespace.
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
from tests.docs.compare import last_json, same_shape, same_text, same_values

ADDRESS = re.compile(r"http://(127\.0\.0\.1|localhost):8080")
_CALL = re.compile(r"^CALL (\S+) (\S+) (\d+)$", re.MULTILINE)
_SERVICE_COMMANDS = "ingest|scan|listen|search|moments|duplicates|collections|concepts|watch|mcp"

_BEFORE = """
[ -f .variables ] && . ./.variables 2>/dev/null
curl() { command curl -sS --fail-with-body -w '%{stderr}CALL %{method} %{url_effective} %{response_code}\\n' "$@"; }
trap 'export -p > "$FOLDER/.variables"' EXIT
set -aeo pipefail
"""

_FINELAP = f"""#!/bin/sh
case "$1" in {_SERVICE_COMMANDS}) export FINELAP_SERVER="$DOCS_SERVER";; esac
exec {sys.executable} -m app.cli.main "$@"
"""


@dataclass
class Reader:
    """Runs a page in `folder`, which looks like the checkout, with the service at `address`."""

    folder: Path
    address: str
    environment: dict[str, str]
    names: dict[str, Any] = field(default_factory=dict)  # namespace of the Python blocks
    calls: list[tuple[str, str, int]] = field(default_factory=list)  # method, URL, status of every curl
    output: str = ""  # of the last shell block

    def __post_init__(self) -> None:
        programs = self.folder / ".programs"
        programs.mkdir()
        (programs / "finelap").write_text(_FINELAP)
        (programs / "finelap").chmod(0o755)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = self.environment | {"PATH": path, "FOLDER": str(self.folder), "DOCS_SERVER": self.address}

    def read(self, block: Block) -> None:
        """Run the block. Raises AssertionError if it fails or its output differs from the page."""
        text = ADDRESS.sub(self.address, block.text)
        match block.language:
            case "sh":
                self.output = self._shell(block, text)
            case "console":
                for command, shown in session(text):
                    printed = self._shell(block, command)
                    if shown:
                        same_text(shown, printed)
            case "json":
                compare = same_values if block.exact else same_shape
                compare(json.loads(block.text), last_json(self.output), str(block))
            case "python":
                # preceding empty lines make tracebacks show the line number of the page
                exec(compile("\n" * (block.line - 1) + text, block.page, "exec"), self.names)
            case _:
                raise AssertionError(f"{block}: cannot run language {block.language!r}")

    def _shell(self, block: Block, text: str) -> str:
        """The standard output of bash."""
        done = subprocess.run(
            ["bash", "-c", _BEFORE + text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",  # output can be a picture
            timeout=120,
        )
        self.calls += [(method, url, int(status)) for method, url, status in _CALL.findall(done.stderr)]
        assert (done.returncode != 0) == block.fails, (
            f"{block}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout
