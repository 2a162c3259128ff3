"""Removes what a service never reads from the packages in a virtual environment, in the step that installs them.

    python docker/slim.py VENV

Goes: C++ headers, tests and test programs, static libraries, the parts of Arrow and of the AWS client that nothing here
calls, and the symbol tables of shared libraries, which only linkers and debuggers read. Compiling extensions needs some
of it, running models does not. Prints how much it removed of each package. Standard library only.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Glob patterns in a package's folder.
UNNEEDED = {
    "torch": ("include", "test", "share", "bin/*", "lib/*.a"),
    "pyarrow": ("include", "src", "tests", "libarrow_flight*", "_flight*"),
    "pandas": ("tests",),
    "scipy": ("**/tests",),
    "numpy": ("**/tests",),
    "sympy": ("**/tests",),
    "networkx": ("**/tests",),
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


def strip(path: Path) -> int:
    """Cuts off what the loader of a 64-bit ELF file doesn't map: symbols and debug information. Returns its bytes.

    These lie behind the last segment, with the table that lists them. Other files stay as they are.
    """
    length, end = path.stat().st_size, mapped(path)
    if end is None or end >= length:  # opening for writing would copy a file of another layer
        return 0
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(40)
        file.write(bytes(8))  # where the table of sections is
        file.seek(58)
        file.write(bytes(6))  # size and number of its entries, and the one with their names
    return length - end


def mapped(path: Path) -> int | None:
    """Where the last segment of a 64-bit ELF file ends, in bytes; None for other files."""
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\2\1":  # 64 bits, little-endian
            return None
        (table,) = struct.unpack_from("<Q", header, 32)  # of the segments
        entry, count = struct.unpack_from("<HH", header, 54)
        end = int(table + entry * count)
        for number in range(count):
            file.seek(table + entry * number + 8)
            offset, _, _, length = struct.unpack("<4Q", file.read(32))
            end = max(end, offset + length)
    return end


def main() -> int:
    found = sorted(Path(sys.argv[1]).glob("lib/python*/site-packages"))
    if not found:
        print(f"{sys.argv[1]} has no packages", file=sys.stderr)
        return 1
    removed: Counter[str] = Counter()
    for name, path in unneeded(found[0]):
        if path.exists():  # a folder of tests may lie in one that is gone
            removed[name] += size(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(found[0].rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            removed[path.relative_to(found[0]).parts[0]] += strip(path)
    listed = [f"{count / 1e6:.0f} MB of {name}" for name, count in removed.most_common() if count >= 5e5]
    print(f"removed {sum(removed.values()) / 1e6:.0f} MB:", ", ".join(listed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
