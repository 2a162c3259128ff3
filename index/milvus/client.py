"""Connecting to Milvus, and what it and the files beside it raise, as errors of the library.

The only module that imports pymilvus at its start-up cost; it does so when a library is opened.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from index.milvus import schema as milvus_rows
from index.milvus.url import MilvusUrl
from index.records import CheckpointMismatch, LibraryError, LibraryUnavailable, StorageFull

TIMEOUT = 30.0  # seconds that a call may take

_CONNECT_TIMEOUT = 3.0
_FULL = {3, 7, 9}  # Milvus' codes: no memory, no disk, a quota is used up


@contextmanager
def library_errors() -> Iterator[None]:
    """Turns what pymilvus and file systems raise into StorageFull or LibraryError."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        if error.code in _FULL:
            raise StorageFull(f"no room left in Milvus: {error.message}") from error
        raise LibraryUnavailable(f"Milvus does not do what the library asks of it: {error.message}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room left for audio files: {error}") from error
        raise LibraryError(f"the place of the audio files failed: {error}") from error


def connect(url: MilvusUrl) -> Any:
    """A client of the server. Raises LibraryError when it does not answer, or pymilvus is not installed."""
    where = f"milvus://{url.host}:{url.port}"
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise LibraryError(f"the library {where} needs pymilvus: pip install 'finelap[milvus]'") from error
    try:
        return MilvusClient(
            uri=url.uri, user=url.user, password=url.password, db_name=url.database, timeout=_CONNECT_TIMEOUT
        )
    except MilvusException as error:
        raise LibraryUnavailable(f"the library {where} cannot be reached: {error.message}") from error


def take(client: Any, url: MilvusUrl, dim: int, checkpoint: str) -> None:
    """Makes the collections, or takes those that are there, and has them loaded; several may do so at once.

    Raises CheckpointMismatch when another checkpoint made it, LibraryError when it is something else.
    """
    name = url.collection
    with library_errors():
        _have_collection(client, name, milvus_rows.schema(client, dim, checkpoint))
        found = milvus_rows.stamp(client.describe_collection(name, timeout=TIMEOUT))
        if found is None:
            raise LibraryError(f"the collection {name!r} is there, but not a library of this version of FineLAP")
        _load(client, name, milvus_rows.indexes(client, url.index))
        if found != (checkpoint, dim):
            clips = client.query(name, filter="", output_fields=["count(*)"], timeout=TIMEOUT)[0]["count(*)"]
            raise CheckpointMismatch(
                library=found[0], library_dim=found[1], opened_with=checkpoint, dim=dim, clips=clips
            )
        _have_collection(client, segments_of(name), milvus_rows.segment_schema(client, dim))
        _load(client, segments_of(name), milvus_rows.indexes(client, url.index, segments=True))


def segments_of(name: str) -> str:
    """The collection of the segments of the clips in another."""
    return f"{name}_segments"


def _have_collection(client: Any, name: str, schema: Any) -> None:
    from pymilvus.exceptions import MilvusException

    if not client.has_collection(name, timeout=TIMEOUT):
        try:
            client.create_collection(name, schema=schema, consistency_level="Strong", num_shards=1, timeout=TIMEOUT)
        except MilvusException:
            if not client.has_collection(name, timeout=TIMEOUT):  # else another process was faster
                raise


def _load(client: Any, name: str, indexes: dict[str, Any]) -> None:
    for field, index in indexes.items():
        _have_index(client, name, field, index)
    client.load_collection(name, timeout=TIMEOUT)


def _have_index(client: Any, name: str, field: str, index: Any) -> None:
    from pymilvus.exceptions import MilvusException

    if not client.list_indexes(name, field_name=field, timeout=TIMEOUT):
        try:
            client.create_index(name, index, timeout=TIMEOUT, sync=False)  # whoever loads it waits for it
        except MilvusException:
            if not client.list_indexes(name, field_name=field, timeout=TIMEOUT):  # else another process was faster
                raise
