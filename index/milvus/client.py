"""Milvus connections: addresses, clients, collection set-up, and conversion of errors.

A library's address is `milvus://[user:password@]host:19530[/database][?option=…]` with the options `collection`
(finelap), `files` (where audio and frames are stored: a folder or an fsspec address such as s3://bucket/prefix; the
data folder by default), `consistency` (of searches: Strong, Session, Bounded, Eventually), `index` (HNSW, FLAT,
DISKANN or AUTOINDEX) and `tls` (0 or 1). pymilvus is imported only when a library is opened.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from index.milvus import schema
from index.records import CheckpointMismatch, LibraryError, LibraryUnavailable, StorageFull

SCHEME = "milvus"
CONSISTENCIES = ("Strong", "Session", "Bounded", "Eventually")
INDEXES = ("HNSW", "FLAT", "DISKANN", "AUTOINDEX")
TIMEOUT = 30.0  # seconds per call

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_OPTIONS = {"collection": "finelap", "files": "", "consistency": "Strong", "index": "HNSW", "tls": "0"}
_CONNECT_TIMEOUT = 3.0
_CONNECT_ATTEMPTS = 2  # pymilvus shares connections; one that the server has just closed fails once
_FULL = {3, 7, 9}  # Milvus error codes: out of memory, out of disk, quota exceeded


@dataclass(frozen=True)
class MilvusUrl:
    """A parsed address."""

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
        """The address for pymilvus, without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_milvus_url(url: str) -> MilvusUrl:
    """Parses an address. Raises ValueError with the problem, never with the password."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME or not parts.hostname:
        raise ValueError("a Milvus library's address is milvus://host:19530, with options after a ?")
    options = dict(_OPTIONS)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in options:
            raise ValueError(f"milvus:// has no option {name!r}; options are {', '.join(_OPTIONS)}")
        options[name] = value
    for name, allowed in (("consistency", CONSISTENCIES), ("index", INDEXES), ("tls", ("0", "1"))):
        if options[name] not in allowed:
            raise ValueError(f"milvus://: {name} must be one of {', '.join(allowed)}, not {options[name]!r}")
    database = parts.path.strip("/")
    for name, value in (("collection", options["collection"]), ("database", database or "default")):
        if not _NAME.fullmatch(value):
            raise ValueError(f"milvus://: the {name} must consist of letters, digits and underscores, not {value!r}")
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


@contextmanager
def library_errors() -> Iterator[None]:
    """Converts errors of pymilvus and file systems to StorageFull or LibraryUnavailable."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        if error.code in _FULL:
            raise StorageFull(f"no space left in Milvus: {error.message}") from error
        raise LibraryUnavailable(f"Milvus failed: {error.message}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left for audio files: {error}") from error
        raise LibraryUnavailable(f"the storage of the audio files failed: {error}") from error


def connect(url: MilvusUrl) -> Any:
    """Returns a connected pymilvus client. Raises LibraryUnavailable, LibraryError if pymilvus is not installed."""
    where = f"milvus://{url.host}:{url.port}"
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise LibraryError(f"the library {where} needs pymilvus: pip install 'finelap[milvus]'") from error
    for attempt in range(_CONNECT_ATTEMPTS):
        try:
            return MilvusClient(
                uri=url.uri, user=url.user, password=url.password, db_name=url.database, timeout=_CONNECT_TIMEOUT
            )
        except MilvusException as error:
            if attempt + 1 == _CONNECT_ATTEMPTS:
                raise LibraryUnavailable(f"the library {where} cannot be reached: {error.message}") from error


def open_collections(client: Any, url: MilvusUrl, dim: int, checkpoint: str) -> None:
    """Creates the collections if needed, and loads them. Several processes may do so at once.

    Raises CheckpointMismatch if another checkpoint made them, LibraryError if the collection is something else.
    """
    name = url.collection
    with library_errors():
        _ensure_collection(client, name, schema.clip_schema(client, dim, checkpoint))
        found = schema.stamp(client.describe_collection(name, timeout=TIMEOUT))
        if found is None:
            raise LibraryError(f"the collection {name!r} exists, but is not a library of this FineLAP version")
        _load(client, name, schema.indexes(client, url.index))
        if found != (checkpoint, dim):
            clips = client.query(name, filter="", output_fields=["count(*)"], timeout=TIMEOUT)[0]["count(*)"]
            raise CheckpointMismatch(
                library=found[0], library_dim=found[1], opened_with=checkpoint, dim=dim, clips=clips
            )
        _ensure_collection(client, segments_of(name), schema.segment_schema(client, dim))
        _load(client, segments_of(name), schema.indexes(client, url.index, segments=True))
        _ensure_collection(client, concepts_of(name), schema.concept_schema(client))
        _load(client, concepts_of(name), schema.concept_indexes(client))


def segments_of(name: str) -> str:
    """Returns the name of the collection with the segments of a clip collection."""
    return f"{name}_segments"


def concepts_of(name: str) -> str:
    """Returns the name of the collection with the concepts of a clip collection."""
    return f"{name}_concepts"


def _ensure_collection(client: Any, name: str, fields: Any) -> None:
    from pymilvus.exceptions import MilvusException

    if not client.has_collection(name, timeout=TIMEOUT):
        try:
            client.create_collection(name, schema=fields, consistency_level="Strong", num_shards=1, timeout=TIMEOUT)
        except MilvusException:
            if not client.has_collection(name, timeout=TIMEOUT):  # otherwise another process created it
                raise


def _load(client: Any, name: str, indexes: dict[str, Any]) -> None:
    for field, index in indexes.items():
        _ensure_index(client, name, field, index)
    client.load_collection(name, timeout=TIMEOUT)


def _ensure_index(client: Any, name: str, field: str, index: Any) -> None:
    from pymilvus.exceptions import MilvusException

    if not client.list_indexes(name, field_name=field, timeout=TIMEOUT):
        try:
            client.create_index(name, index, timeout=TIMEOUT, sync=False)  # loading waits for it
        except MilvusException:
            if not client.list_indexes(name, field_name=field, timeout=TIMEOUT):  # otherwise another process created it
                raise
