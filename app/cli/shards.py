"""Shards of a bulk ingest: which files each of several machines uploads, without talking to each other.

A file's content decides, by its SHA-256. Copies of a file are therefore in one shard, and neither a new path, another
order of the folders nor a second run moves a file to another shard.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from app.cli.upload import Checksums, Source, as_text

_READERS = 8  # files read at once
_DIGITS = 16  # of the checksum that decide: 64 bits, even for any number of shards
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}  # of sha256sum


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 0."""

    index: int
    count: int

    def has(self, sha256: str) -> bool:
        """Whether content with this checksum (hex) belongs to the shard."""
        return int(sha256[:_DIGITS], 16) % self.count == self.index


def choose(
    sources: Sequence[Source], shard: Shard, checksums: Checksums, listed: Mapping[str, str] | None = None
) -> list[Source]:
    """The sources of the shard, in order. Reads the files that `listed` (absolute path → SHA-256) does not have.

    A file that cannot be read is in the shard of its name, so that exactly one of them reports it.
    """

    def belongs(source: Source) -> bool:
        path = os.path.abspath(source.path)
        try:
            sha256 = (listed or {}).get(path) or checksums.of(source.path)
        except OSError:
            sha256 = hashlib.sha256(os.fsencode(path)).hexdigest()
        return shard.has(sha256)

    with ThreadPoolExecutor(_READERS) as readers:
        bar = tqdm(readers.map(belongs, sources), "choosing the shard", len(sources), unit="file", delay=2.0)
        return [source for source, mine in zip(sources, bar, strict=True) if mine]


def read_manifest(file: Path) -> dict[str, str]:
    """Absolute paths and their SHA-256 from the lines of `sha256sum`; relative paths start at the manifest's folder.

    Raises OSError, and ValueError for a line that is none of these.
    """
    listed: dict[str, str] = {}
    folder = file.absolute().parent
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.rstrip(b"\r\n")
            if not line:
                continue
            escaped = line.startswith(b"\\")  # sha256sum escapes line breaks and backslashes in names
            digest, kind, name = line[escaped:][:64], line[escaped:][64:66], line[escaped:][66:]
            if kind not in (b"  ", b" *") or not name or not _is_hex(digest):
                raise ManifestError(f"{as_text(str(file))}: line {number} is not a line of sha256sum")
            if escaped:
                name = re.sub(rb"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), name)
            listed[os.path.normpath(folder / os.fsdecode(name))] = digest.decode().lower()
    return listed


class ManifestError(ValueError):
    """The manifest has a line that is not a checksum and a path."""


def _is_hex(digest: bytes) -> bool:
    return len(digest) == 64 and all(digit in b"0123456789abcdefABCDEF" for digit in digest)
