"""Parses and validates filters: conditions on a clip's metadata and record fields.

A filter is an object; a clip passes if every key is satisfied. The value of a key is

- a string, number or boolean: the clip's value equals it, or is a list that contains it;
- a list of those: one of them matches;
- an object of bounds, {"gte": 1, "lt": 5}: the clip's number (or text, by code points), or one in its list, is within.

Keys name record fields (RECORD_FIELDS) first, then metadata; "metadata.duration" refers to a metadata key that has the
name of a record field. `created` takes instants: RFC 3339 with any offset and any number of decimals, or a day, which
begins at midnight in UTC. Texts are compared in NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from index.records import Fact, Filter, InvalidFilter, InvalidMetadata, check_text, nfc, scalar_fact

RECORD_FIELDS = {
    "clip_id": "text",
    "filename": "text",
    "duration": "number",  # seconds
    "sample_rate": "number",  # Hz
    "channels": "number",
    "created": "text",  # RFC 3339 in UTC, so that text order is chronological
}
COLUMNS = {"clip_id": "id"}  # of a clip, where it has another name than the field
BOUNDS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

_METADATA = "metadata."
_MAX_KEYS = 100
_MAX_VALUES = 1000  # in one filter
_CREATED = "created"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d\d:\d\d)?)?", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """The condition of one key: a value among `facts` or, with `bounds`, a value of `kind` within them.

    `field`: whether the key is a record field rather than metadata.
    """

    key: str
    field: bool
    facts: tuple[Fact, ...] = ()
    kind: str = ""
    bounds: tuple[tuple[str, str | int | float], ...] = ()  # (SQL operator, value)


def parse_filter(filter: Filter | None) -> list[Condition]:
    """Returns the conditions of a filter, none for None. Raises InvalidFilter with the key and the problem."""
    if filter is None:
        return []
    if not isinstance(filter, Mapping):
        raise InvalidFilter(f"a filter must be an object of metadata keys and values, not {type(filter).__name__}")
    conditions = [_condition(key, wanted) for key, wanted in filter.items()]
    if len(conditions) > _MAX_KEYS or sum(_count(wanted) for wanted in filter.values()) > _MAX_VALUES:
        raise InvalidFilter(f"a filter has at most {_MAX_KEYS} keys and {_MAX_VALUES} values")
    return conditions


def _count(wanted: object) -> int:
    return len(wanted) if isinstance(wanted, (list, tuple, Mapping)) else 1


def _condition(key: object, wanted: Any) -> Condition:
    if not isinstance(key, str):
        raise InvalidFilter(f"filter keys must be strings, not {key!r}")
    field = key in RECORD_FIELDS
    name = nfc(key.removeprefix(_METADATA)) if not field else key
    if isinstance(wanted, Mapping):
        return _range(key, name, field, wanted)
    values = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if not values:
        raise InvalidFilter(f"the filter on {key!r} has an empty list, so no clip could pass")
    if name == _CREATED and field:
        values = [_instant(key, value) for value in values]
    facts = tuple(_fact(key, name, value) for value in values)
    if field and any(kind != RECORD_FIELDS[name] for _, kind, _ in facts):
        raise InvalidFilter(f"the filter on {key!r} needs a {RECORD_FIELDS[name]}")
    return Condition(name, field, _spellings(facts))


def _spellings(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """The facts, texts in NFC and in NFD, which earlier releases stored as they were given."""
    decomposed = ((key, kind, unicodedata.normalize("NFD", v) if isinstance(v, str) else v) for key, kind, v in facts)
    return tuple(dict.fromkeys((*facts, *decomposed)))


def _instant(key: str, text: object) -> str:
    """A moment as records store it, in UTC with microseconds. Raises InvalidFilter."""
    if isinstance(text, str) and _RFC3339.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text.upper())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
        except (ValueError, OverflowError):
            pass
    raise InvalidFilter(
        f"the filter on {key!r} needs a time as in RFC 3339, such as 2026-03-01T08:30:00+01:00, or a day, not {text!r}"
    )


def _range(key: str, name: str, field: bool, wanted: Mapping[Any, Any]) -> Condition:
    if field and name == "clip_id":
        raise InvalidFilter("the filter on 'clip_id' takes ids, not a range")
    unknown = [bound for bound in wanted if bound not in BOUNDS]
    if unknown or not wanted:
        problem = f"not {unknown[0]!r}" if unknown else "at least one of them"
        raise InvalidFilter(f"the range filter on {key!r} takes {', '.join(BOUNDS)}, {problem}")
    if name == _CREATED and field:
        wanted = {bound: _instant(key, value) for bound, value in wanted.items()}
    facts = [(BOUNDS[bound], _fact(key, name, value)) for bound, value in wanted.items()]
    kinds = {kind for _, (_, kind, _) in facts}
    if len(kinds) > 1 or "boolean" in kinds:
        raise InvalidFilter(f"the range on {key!r} needs either numbers or texts")
    (kind,) = kinds
    if field and kind != RECORD_FIELDS[name]:
        raise InvalidFilter(f"the range on {key!r} needs {RECORD_FIELDS[name]}s")
    return Condition(name, field, (), kind, tuple((operator, value) for operator, (_, _, value) in facts))


def _fact(key: str, name: str, value: object) -> Fact:
    fact = scalar_fact(name, value)
    if fact is None:
        raise InvalidFilter(f"the filter on {key!r} needs strings, numbers or booleans, not {value!r}")
    try:
        check_text(name, "a filter key")
        check_text(str(value), f"the filter on {key!r}")
    except InvalidMetadata as error:
        raise InvalidFilter(str(error)) from error
    return fact
