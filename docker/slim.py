"""Removes what a service never reads from the PyTorch in a virtual environment, in the step that installs it.

    python docker/slim.py VENV

Goes: C++ headers, tests and test programs, static libraries. Compiling extensions needs them, running models does not.
Prints how much it removed. Standard library only.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_KEPT = ("torch_shm_manager",)  # torch/bin has programs of the tests as well; this one serves shared tensors


def unneeded(torch: Path) -> Iterator[Path]:
    """The files and folders of an installed `torch` package that only development needs."""
    yield from (folder for name in ("include", "test", "share") if (folder := torch / name).is_dir())
    yield from (file for file in sorted((torch / "bin").glob("*")) if file.name not in _KEPT)
    yield from sorted((torch / "lib").glob("*.a"))


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def main() -> int:
    found = sorted(Path(sys.argv[1]).glob("lib/python*/site-packages/torch"))
    if not found:
        print(f"{sys.argv[1]} has no PyTorch", file=sys.stderr)
        return 1
    removed = 0
    for path in unneeded(found[0]):
        removed += size(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"PyTorch: removed {removed / 1e6:.0f} MB of headers, tests and static libraries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
