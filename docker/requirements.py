"""Prints the requirements in pyproject.toml, one per line, so that an image installs them in a layer of their own.

    python docker/requirements.py [--extra NAME]... [--gpu] [--only NAME]

--gpu replaces faiss-cpu with the extra `gpu`, which provides the same modules. Reads pyproject.toml in the current
folder. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FAISS_CPU = "faiss-cpu"


def requirements(project: dict[str, Any], extras: Iterable[str] = (), gpu: bool = False) -> list[str]:
    """The requirements of a [project] table and the given extras. Raises KeyError for an unknown extra."""
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    if gpu:
        wanted = [line for line in wanted if name(line) != _FAISS_CPU] + optional["gpu"]
    return wanted


def name(requirement: str) -> str:
    """The name of the required package, in lower case."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} does not name a package")
    return found[0].lower()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the requirements in pyproject.toml, one per line.")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="include an extra")
    parser.add_argument("--gpu", action="store_true", help="FAISS for GPUs")
    parser.add_argument("--only", metavar="NAME", help="only this package")
    args = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = requirements(project, args.extra, args.gpu)
    print("\n".join(line for line in lines if args.only in (None, name(line))))


if __name__ == "__main__":
    main()
