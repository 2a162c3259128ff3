"""The Range header of a request: is it one to follow, to refuse or to ignore (RFC 9110, section 14.2)?"""

from __future__ import annotations

import re

_RANGES = re.compile(r"bytes=\s*((\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+))*)\s*", re.ASCII | re.IGNORECASE)


def can_serve(header: str, size: int) -> bool | None:
    """True if the ranges can be served from `size` bytes, False if not, None if the header is to be ignored."""
    match = _RANGES.fullmatch(header)
    if match is None or len(header) > 1000:
        return None
    for part in match[1].split(","):
        first, last = part.strip().split("-")
        if first and last and int(last) < int(first):
            return None
        if int(first) >= size if first else int(last) == 0 or size == 0:
            return False
    return True
