"""Pages of clips in order, from a store that filters but does not sort.

Milvus answers a query with any rows that pass, up to a number. So a page is narrowed down: while an answer is full,
everything beyond its smallest rows is excluded and the question asked again; the first answer that is not full is
complete, and is sorted here. Each round leaves a sixteenth of the rows, more or less: a library of a hundred million
takes five or six. Correct whichever rows an answer has. Knows no client: it is given the function that asks.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

from index.milvus.schema import SORTED_BY
from index.records import InvalidCursor

WINDOW = 16_384  # rows of an answer, as many as Milvus gives
Position = tuple[Any, int, str]  # (what is sorted by, microseconds of arrival, id): no two clips have the same
Ask = Callable[[str, list[str], int], list[dict[str, Any]]]  # (expression, fields, limit) -> rows

_KINDS = {"created": int, "filename": str, "duration": float}
_HEX = re.compile(r"[0-9a-f]*")


def page(ask: Ask, count: int, where: str, sort: str, after: Position | None, window: int = WINDOW) -> list[Position]:
    """Up to `count` positions of rows that pass `where`, in order, beyond `after`. `count` is less than `window`."""
    field, down = SORTED_BY[sort.removeprefix("-")], sort.startswith("-")
    fields = list(dict.fromkeys([field, "arrived", "id"]))
    within: Position | None = None
    while True:
        parts = [where, _beyond(field, after, down), "" if within is None else f"not ({_beyond(field, within, down)})"]
        rows = ask(" and ".join(f"({part})" for part in parts if part), fields, window)
        found = sorted(((row[field], row["arrived"], row["id"]) for row in rows), reverse=down)
        if len(rows) < window and (within is None or len(found) >= count):
            return found[:count]
        # full: only the smallest are of interest; too few: some were deleted meanwhile, begin again
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
    """The cursor that stands on a position."""
    return base64.urlsafe_b64encode(json.dumps([sort, *position]).encode()).decode().rstrip("=")


def read_cursor(cursor: str, sort: str) -> Position:
    """The position of a cursor. Raises InvalidCursor; what it returns is safe in an expression."""
    refused = InvalidCursor(f"not a cursor of this library, sorted by {sort}: {cursor[:200]!r}")
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        its_sort, value, arrived, clip_id = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused from error
    kind = _KINDS.get(sort.removeprefix("-"))
    if its_sort != sort or type(value) is not kind or type(arrived) is not int or not 0 <= arrived < 2**63:
        raise refused
    if not isinstance(clip_id, str) or not re.fullmatch(r"[0-9a-f]{32}", clip_id):
        raise refused
    if isinstance(value, str) and not _HEX.fullmatch(value) or isinstance(value, int) and value != arrived:
        raise refused
    if isinstance(value, float) and not math.isfinite(value):
        raise refused
    return value, arrived, clip_id
