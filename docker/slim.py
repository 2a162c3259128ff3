"""Removes what a service never reads from the packages in a virtual environment, in the step that installs them.

    python docker/slim.py VENV

Goes: C++ headers, tests and test programs, static libraries, and the parts of Arrow and of the AWS client that nothing
here calls. Compiling extensions needs some of it, running models does not. Prints how much it removed of each package.
Standard library only.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Glob patterns in a package's folder.
UNNEEDED = {
    "torch": ("include", "test", "share", "bin/*", "lib/*.a"),
    "pyarrow": ("include", "src", "tests", "libarrow_flight*", "_flight*"),
    "pandas": ("tests",),
    "scipy": ("**/tests",),
    "numpy": ("**/tests",),
    "matplotlib": ("tests",),
    "botocore": ("data/*",),
}
KEPT = {
    "torch/bin/torch_shm_manager",  # serves shared tensors; the rest of torch/bin are programs of the tests
    *(f"botocore/data/{name}" for name in ("s3", "sts", "sso", "sso-oidc", "signin", "endpoints.json")),
    *(f"botocore/data/{name}" for name in ("partitions.json", "sdk-default-configuration.json", "_retry.json")),
}


def unneeded(packages: Path) -> Iterator[tuple[str, Path]]:
    """The names of packages, and the files and folders of each in site-packages that only development needs."""
    for name, patterns in UNNEEDED.items():
        for pattern in patterns:
            for path in sorted((packages / name).glob(pattern)):
                if path.exists() and path.relative_to(packages).as_posix() not in KEPT:
                    yield name, path


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def main() -> int:
    found = sorted(Path(sys.argv[1]).glob("lib/python*/site-packages"))
    if not found:
        print(f"{sys.argv[1]} has no packages", file=sys.stderr)
        return 1
    removed = dict.fromkeys(UNNEEDED, 0)
    for name, path in unneeded(found[0]):
        if path.exists():  # a folder of tests may lie in one that is gone
            removed[name] += size(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print("removed", ", ".join(f"{count / 1e6:.0f} MB of {name}" for name, count in removed.items() if count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
