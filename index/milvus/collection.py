"""One collection of Milvus as the library uses it: rows written, erased, asked for and searched.

Knows the calls and their consistency; knows no object, no page and no policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from index.milvus.client import TIMEOUT, library_errors
from index.milvus.schema import RECORD, read_clip
from index.records import Clip, ClipNotFound, LibraryError

MOST = 16_384  # hits of a search, as many as Milvus gives

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Collection:
    """Rows of a collection; see index.milvus.schema for what they hold. Raises LibraryError once it is closed.

    Every question but a search is asked with Strong consistency: what any process was told is written is seen.
    """

    def __init__(self, client: Any, name: str, consistency: str) -> None:
        self._client: Any = client
        self._name, self._consistency = name, consistency

    def close(self) -> None:
        """Ends the connection. Closing twice is fine."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> Any:
        client = self._client
        if client is None:
            raise LibraryError("the library is closed")
        return client

    def _call(self, name: str, **arguments: Any) -> Any:
        """Calls Milvus; a collection that is not loaded any more, after a restart of milvus-lite, is loaded again."""
        from pymilvus.exceptions import MilvusException

        client = self._open()
        with library_errors():
            try:
                return getattr(client, name)(self._name, timeout=TIMEOUT, **arguments)
            except MilvusException as error:
                if "not loaded" not in error.message and "released" not in error.message:
                    raise
                client.load_collection(self._name, timeout=TIMEOUT)
                return getattr(client, name)(self._name, timeout=TIMEOUT, **arguments)

    def query(self, where: str, fields: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
        """Any rows that pass an expression, up to `limit`; no limit only where the expression names the rows."""
        options = {} if limit is None else {"limit": limit}
        return list(
            self._call("query", filter=where, output_fields=list(fields), consistency_level="Strong", **options)
        )

    def count(self) -> int:
        """How many rows there are."""
        return int(self.query("", ["count(*)"])[0]["count(*)"])

    def row(self, clip_id: str, fields: Sequence[str]) -> dict[str, Any]:
        """The row of a clip. Raises ClipNotFound."""
        rows = self.query(f'id == "{clip_id}"', fields) if _ID.fullmatch(clip_id) else []
        if not rows:
            raise ClipNotFound(clip_id)
        return dict(rows[0])

    def rows_of(self, hashes: Iterable[str]) -> list[dict[str, Any]]:
        """The rows of audio with these hashes, oldest first."""
        quoted = ", ".join(f'"{sha256}"' for sha256 in hashes if _SHA256.fullmatch(sha256))
        rows = self.query(f"sha256 in [{quoted}]", [*RECORD, "id", "sha256", "arrived"]) if quoted else []
        return sorted(rows, key=lambda row: (row["arrived"], row["id"]))

    def by_sha256(self, hashes: Iterable[str]) -> dict[str, Clip]:
        """Hash → clip, for those of the hashes that are there."""
        return {row["sha256"]: read_clip(row) for row in reversed(self.rows_of(hashes))}

    def by_id(self, ids: Iterable[str], where: str = "") -> dict[str, Clip]:
        """Id → clip, for those of the ids that are there and pass `where`."""
        return {row["id"]: read_clip(row) for row in self.rows(ids, RECORD, where)}

    def rows(self, ids: Iterable[str], fields: Sequence[str], where: str = "") -> list[dict[str, Any]]:
        """The rows, with `fields` and the id, of those of the ids that are there and pass `where`, in any order."""
        quoted = ", ".join(f'"{clip_id}"' for clip_id in ids if _ID.fullmatch(clip_id))
        named = f"id in [{quoted}]" + (f" and ({where})" if where else "")
        return self.query(named, [*fields, "id"]) if quoted else []

    def search(
        self, field: str, query: Any, k: int, where: str, fields: Sequence[str], how: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The best k hits (at most MOST) for a query of a vector field: {"distance", "entity"}, best first."""
        found = self._call(
            "search",
            data=[query],
            anns_field=field,
            limit=min(k, MOST),
            filter=where,
            output_fields=list(fields),
            search_params=how,
            consistency_level=self._consistency,
        )
        return list(found[0])

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows whole, in place of those with the same id."""
        self._call("upsert", data=list(rows))

    def erase(self, ids: Sequence[str]) -> None:
        """Removes rows; those that are not there are no matter."""
        if ids:
            self._call("delete", ids=list(ids))
