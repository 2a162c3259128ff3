"""What the C library does with memory that was freed.

By default glibc gives large blocks back to the system at once and asks for them again a moment later. The system hands
out zeroed pages, one fault each: of a service that computes batches all day long that took a twentieth of its time.
"""

from __future__ import annotations

import ctypes
import os

# numbers of mallopt(3)'s parameters, from glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MMAPPED = 32 << 20  # bytes from which blocks still come and go by themselves; glibc takes no larger number


def keep_freed(at_most: int) -> None:
    """From here on up to `at_most` freed bytes stay with the process, for its next blocks.

    All threads share one heap, so that they also share what it keeps. Call it before there are threads. Does nothing
    where the C library is another one, or where the environment says how it is to allocate.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((_MMAP_THRESHOLD, _MMAPPED), (_TRIM_THRESHOLD, at_most), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
