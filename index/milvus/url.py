"""The address of a library in Milvus: `milvus://[user:password@]host:19530[/database][?option=…]`.

Knows no Milvus. Options: `collection` (finelap), `files` (where audio and frames go: a folder or an fsspec address,
s3://bucket/prefix; the data folder otherwise), `consistency` (of searches: Strong, Session, Bounded, Eventually),
`index` (HNSW, FLAT, DISKANN or AUTOINDEX), `tls` (0 or 1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEME = "milvus"
CONSISTENCIES = ("Strong", "Session", "Bounded", "Eventually")
INDEXES = ("HNSW", "FLAT", "DISKANN", "AUTOINDEX")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_OPTIONS = {"collection": "finelap", "files": "", "consistency": "Strong", "index": "HNSW", "tls": "0"}


@dataclass(frozen=True)
class MilvusUrl:
    """An address, taken apart."""

    host: str
    port: int
    user: str
    password: str
    database: str
    collection: str
    files: str  # empty: the data folder
    consistency: str
    index: str
    tls: bool

    @property
    def uri(self) -> str:
        """As pymilvus takes it; no password in it, so that it may be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_milvus_url(url: str) -> MilvusUrl:
    """The parts of an address. Raises ValueError, with what is wrong (and never the password)."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME or not parts.hostname:
        raise ValueError("the address of a library in Milvus is milvus://host:19530, with options after a ?")
    options = dict(_OPTIONS)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in options:
            raise ValueError(f"milvus:// has no option {name!r}; it has {', '.join(_OPTIONS)}")
        options[name] = value
    for name, allowed in (("consistency", CONSISTENCIES), ("index", INDEXES), ("tls", ("0", "1"))):
        if options[name] not in allowed:
            raise ValueError(f"milvus://: {name} is one of {', '.join(allowed)}, not {options[name]!r}")
    database = parts.path.strip("/")
    for name, value in (("collection", options["collection"]), ("database", database or "default")):
        if not _NAME.fullmatch(value):
            raise ValueError(f"milvus://: the {name} is letters, digits and underscores, not {value!r}")
    return MilvusUrl(
        host=parts.hostname,
        port=parts.port or 19530,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=database,
        collection=options["collection"],
        files=options["files"],
        consistency=options["consistency"],
        index=options["index"],
        tls=options["tls"] == "1",
    )
