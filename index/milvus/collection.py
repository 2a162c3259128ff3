"""A Milvus collection: writes, deletes, queries and searches rows, and lists them in order with cursors."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from index.milvus.client import TIMEOUT, library_errors
from index.milvus.schema import RECORD, SORT_FIELDS, read_clip
from index.records import Clip, ClipNotFound, InvalidCursor, LibraryError

MAX_HITS = 16_384  # Milvus' limit for a search
WINDOW = 16_384  # Milvus' limit for a query
Position = tuple[Any, int, str]  # (sort value, microseconds of arrival, id): unique for each clip
Query = Callable[[str, list[str], int], list[dict[str, Any]]]  # (expression, fields, limit) → rows

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]*")
_CURSOR_TYPES = {"created": int, "filename": str, "duration": float}


class Collection:
    """A collection of rows as in index.milvus.schema. Raises LibraryError once it is closed.

    Queries are strongly consistent: they see every write that any process has completed. Searches use the consistency
    of the address.
    """

    def __init__(self, client: Any, name: str, consistency: str) -> None:
        self._client: Any = client
        self._name, self._consistency = name, consistency

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> Any:
        client = self._client
        if client is None:
            raise LibraryError("the library is closed")
        return client

    def _call(self, name: str, **arguments: Any) -> Any:
        """Calls Milvus, and loads the collection again if a restart of milvus-lite has unloaded it."""
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
        """Returns any rows that match an expression, up to `limit`. Omit the limit only if the expression lists ids."""
        options = {} if limit is None else {"limit": limit}
        return list(
            self._call("query", filter=where, output_fields=list(fields), consistency_level="Strong", **options)
        )

    def count(self) -> int:
        """Returns the number of rows."""
        return int(self.query("", ["count(*)"])[0]["count(*)"])

    def row(self, clip_id: str, fields: Sequence[str]) -> dict[str, Any]:
        """Returns the row of a clip. Raises ClipNotFound."""
        rows = self.query(f'id == "{clip_id}"', fields) if _ID.fullmatch(clip_id) else []
        if not rows:
            raise ClipNotFound(clip_id)
        return dict(rows[0])

    def rows_of(self, hashes: Iterable[str]) -> list[dict[str, Any]]:
        """Returns the rows of audio with these hashes, oldest first."""
        quoted = ", ".join(f'"{sha256}"' for sha256 in hashes if _SHA256.fullmatch(sha256))
        rows = self.query(f"sha256 in [{quoted}]", [*RECORD, "id", "sha256", "arrived"]) if quoted else []
        return sorted(rows, key=lambda row: (row["arrived"], row["id"]))

    def by_sha256(self, hashes: Iterable[str]) -> dict[str, Clip]:
        """Returns the existing clips by hash."""
        return {row["sha256"]: read_clip(row) for row in reversed(self.rows_of(hashes))}

    def by_id(self, ids: Iterable[str], where: str = "") -> dict[str, Clip]:
        """Returns the existing clips that match `where`, by id."""
        return {row["id"]: read_clip(row) for row in self.rows(ids, RECORD, where)}

    def rows(self, ids: Iterable[str], fields: Sequence[str], where: str = "") -> list[dict[str, Any]]:
        """Returns the existing rows that match `where`, with `fields` and the id, in any order."""
        quoted = ", ".join(f'"{clip_id}"' for clip_id in ids if _ID.fullmatch(clip_id))
        named = f"id in [{quoted}]" + (f" and ({where})" if where else "")
        return self.query(named, [*fields, "id"]) if quoted else []

    def search(
        self, field: str, query: Any, k: int, where: str, fields: Sequence[str], parameters: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Returns the best k hits (at most MAX_HITS) in a vector field: {"distance", "entity"}, best first."""
        options = {"filter": where, "output_fields": list(fields), "search_params": parameters}
        return self._search(field, [query], min(k, MAX_HITS), options)[0]

    def any_hits(self, field: str, queries: Sequence[Any], parameters: dict[str, Any]) -> list[bool]:
        """Returns whether each query has a hit, in one call."""
        found = self._search(field, list(queries), 1, {"output_fields": ["id"], "search_params": parameters})
        return [len(hits) > 0 for hits in found]

    def _search(self, field: str, queries: list[Any], limit: int, options: dict[str, Any]) -> list[list[dict]]:
        found = self._call(
            "search", data=queries, anns_field=field, limit=limit, consistency_level=self._consistency, **options
        )
        return [list(hits) for hits in found]

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Inserts rows, replacing those with the same id."""
        self._call("upsert", data=list(rows))

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes rows; ids that do not exist are ignored."""
        if ids:
            self._call("delete", ids=list(ids))


def page(
    query: Query, count: int, where: str, sort: str, after: Position | None, window: int = WINDOW
) -> list[Position]:
    """Returns up to `count` positions (< window) of rows that pass `where`, sorted, after the position `after`.

    Milvus filters but does not sort: a query returns any rows that match, up to a limit. So the range is narrowed:
    while a result is full, everything beyond its smallest rows is excluded and the query repeated; the first result
    that is not full is complete, and is sorted here. Each round leaves about a sixteenth of the rows: a hundred
    million rows take five or six rounds. The result is correct whichever rows a query returns.
    """
    field, down = SORT_FIELDS[sort.removeprefix("-")], sort.startswith("-")
    fields = list(dict.fromkeys([field, "arrived", "id"]))
    within: Position | None = None
    while True:
        parts = [where, _beyond(field, after, down), "" if within is None else f"not ({_beyond(field, within, down)})"]
        rows = query(" and ".join(f"({part})" for part in parts if part), fields, window)
        found = sorted(((row[field], row["arrived"], row["id"]) for row in rows), reverse=down)
        if len(rows) < window and (within is None or len(found) >= count):
            return found[:count]
        # Full: narrow down to the smallest. Too few: rows were deleted meanwhile, so start again.
        within = found[max(count, window // 16) - 1] if len(rows) >= window else None


def _beyond(field: str, position: Position | None, down: bool) -> str:
    if position is None:
        return ""
    sign = "<" if down else ">"
    value, arrived, clip_id = position
    literal = f'"{value}"' if isinstance(value, str) else repr(value)
    later = f'arrived {sign} {arrived} or (arrived == {arrived} and id {sign} "{clip_id}")'
    return later if field == "arrived" else f"{field} {sign} {literal} or ({field} == {literal} and ({later}))"


def write_cursor(position: Position, sort: str) -> str:
    """Returns the cursor of a position."""
    return base64.urlsafe_b64encode(json.dumps([sort, *position]).encode()).decode().rstrip("=")


def read_cursor(cursor: str, sort: str) -> Position:
    """Returns the position of a cursor, whose values are safe in an expression. Raises InvalidCursor."""
    refused = InvalidCursor(f"invalid cursor for sort={sort}: {cursor[:200]!r}")
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        its_sort, value, arrived, clip_id = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused from error
    kind = _CURSOR_TYPES.get(sort.removeprefix("-"))
    if its_sort != sort or type(value) is not kind or type(arrived) is not int or not 0 <= arrived < 2**63:
        raise refused
    if not isinstance(clip_id, str) or not re.fullmatch(r"[0-9a-f]{32}", clip_id):
        raise refused
    if isinstance(value, str) and not _HEX.fullmatch(value) or isinstance(value, int) and value != arrived:
        raise refused
    if isinstance(value, float) and not math.isfinite(value):
        raise refused
    return value, arrived, clip_id
