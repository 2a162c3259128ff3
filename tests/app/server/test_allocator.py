"""Memory that was freed stays with the process that asked for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

BLOCK = 16 << 20  # bytes
PROGRAM = f"""
import resource, sys, threading
from app.server.allocator import keep_freed
if sys.argv[1] == "keep":
    keep_freed(256 << 20)

def fill():
    for _ in range(4):
        blocks = [bytearray({BLOCK}) for _ in range(6)]
        for block in blocks:
            block[::4096] = bytes({BLOCK // 4096})
        del blocks, block

for _ in range(2):  # the second thread finds what the first has left
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    """Pages that the system had to give for six blocks at a time, four times."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=kept | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's C library is another one")
def test_freed_blocks_are_used_again() -> None:
    pages = BLOCK // os.sysconf("SC_PAGESIZE")
    assert faults("keep") < pages
    assert faults("leave") > 10 * pages
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000") > 10 * pages
