"""Conditional and range requests on one file, as RFC 9110 has them (sections 13 and 14).

`evaluate` says what to answer before any of the file is read. Ranges apply to GET only, those beyond the end of the
file are dropped, and what cannot be parsed is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_MAX_RANGES = 64  # of one request; more are an attack, and the whole file is sent
_MAX_HEADER = 1000  # characters of a Range header
_RANGES = re.compile(r"bytes=[ \t]*(?:,[ \t]*)*((\d+-\d*|-\d+)([ \t]*,[ \t]*(\d+-\d*|-\d+)?)*)[ \t]*", re.ASCII | re.I)
_TAG = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')


@dataclass(frozen=True)
class Version:
    """What identifies a file's content: its strong `etag`, with quotes, and when it was `modified` (s since 1970)."""

    etag: str
    modified: float
    size: int


@dataclass(frozen=True)
class Outcome:
    """The status to answer with, 200, 206, 304, 412 or 416, and for 206 the ranges (first, last), both inclusive."""

    status: int
    ranges: tuple[tuple[int, int], ...] = ()


def evaluate(method: str, headers: Mapping[str, str], version: Version) -> Outcome:
    """What to answer to a GET or HEAD of a file, in the order of section 13.2.2."""
    if (wanted := headers.get("if-match")) is not None:
        if not _matches(wanted, version.etag, strong=True):
            return Outcome(412)
    elif (since := _seconds(headers.get("if-unmodified-since"))) is not None and int(version.modified) > since:
        return Outcome(412)
    if (known := headers.get("if-none-match")) is not None:
        if _matches(known, version.etag, strong=False):
            return Outcome(304)
    elif (since := _seconds(headers.get("if-modified-since"))) is not None and int(version.modified) <= since:
        return Outcome(304)
    wanted_ranges = headers.get("range")
    if method != "GET" or wanted_ranges is None or not _is_current(headers.get("if-range"), version):
        return Outcome(200)
    ranges = parse_ranges(wanted_ranges, version.size)
    if ranges is None:
        return Outcome(200)
    return Outcome(206, tuple(ranges)) if ranges else Outcome(416)


def parse_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges of a file of `size` bytes that can be served; None if the header is to be ignored (section 14.2)."""
    match = _RANGES.fullmatch(header)
    if match is None or len(header) > _MAX_HEADER:
        return None
    served: list[tuple[int, int]] = []
    parts = [part.strip() for part in match[1].split(",") if part.strip()]
    if len(parts) > _MAX_RANGES:
        return None
    for part in parts:
        first, last = part.split("-")
        if first and last and int(last) < int(first):
            return None
        if not first:
            if int(last) and size:
                served.append((max(0, size - int(last)), size - 1))
        elif int(first) < size:
            served.append((int(first), min(int(last), size - 1) if last else size - 1))
    return served


def _matches(header: str, etag: str, *, strong: bool) -> bool:
    """Whether a list of entity tags contains `etag`, a strong one, by strong or weak comparison (section 8.8.3.2)."""
    if header.strip() == "*":
        return True
    return any(tag == etag and not (strong and weak) for weak, tag in _TAG.findall(header))


def _is_current(if_range: str | None, version: Version) -> bool:
    """Whether ranges may be served to a client that has a part of this version already (section 13.1.5)."""
    if if_range is None:
        return True
    text = if_range.strip()
    if text.startswith(('"', "W/")):
        return text == version.etag
    return _seconds(text) == int(version.modified)


def _seconds(date: str | None) -> int | None:
    """An HTTP date as seconds since 1970; None if there is none, or one that cannot be read."""
    if date is None:
        return None
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, OverflowError, TypeError):
        return None
