"""What a filter means: conditions on a clip's metadata and on its record, checked before any database sees them.

A filter is an object; a clip passes when every key is satisfied. The value of a key is

- a string, number or boolean: the clip's value equals it, or is a list that contains it;
- a list of such: one of them does;
- an object of bounds, {"gte": 1, "lt": 5}: the clip's number (or text, by code points), or one of its list, is within.

Keys are metadata keys, but for the fields of the record (RECORD_FIELDS), which win; "metadata.duration" asks for a
metadata key that has a field's name. Knows no SQL and no vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from index.records import Fact, Filter, InvalidFilter, InvalidMetadata, check_text, scalar_fact

RECORD_FIELDS = {
    "filename": "text",
    "duration": "number",  # seconds
    "sample_rate": "number",  # Hz
    "channels": "number",
    "created": "text",  # RFC 3339 in UTC, so that the order of the texts is the order in time
}
BOUNDS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

_METADATA = "metadata."
_MAX_KEYS = 100
_MAX_VALUES = 1000  # in one filter


@dataclass(frozen=True)
class Condition:
    """What one key asks for: a value among `facts`, or, if there are `bounds`, a value of `kind` within them.

    `field`: whether the key is a record's field and not metadata.
    """

    key: str
    field: bool
    facts: tuple[Fact, ...] = ()
    kind: str = ""
    bounds: tuple[tuple[str, str | int | float], ...] = ()  # (SQL operator, value)


def parse_filter(filter: Filter | None) -> list[Condition]:
    """The conditions of a filter, none for None. Raises InvalidFilter, with what is wrong and where."""
    if filter is None:
        return []
    if not isinstance(filter, Mapping):
        raise InvalidFilter(f"a filter must be an object of metadata keys and values, not {type(filter).__name__}")
    conditions = [_condition(key, wanted) for key, wanted in filter.items()]
    if len(conditions) > _MAX_KEYS or sum(len(c.facts) for c in conditions) > _MAX_VALUES:
        raise InvalidFilter(f"a filter has at most {_MAX_KEYS} keys and {_MAX_VALUES} values")
    return conditions


def _condition(key: object, wanted: Any) -> Condition:
    if not isinstance(key, str):
        raise InvalidFilter(f"filter keys must be strings, not {key!r}")
    field = key in RECORD_FIELDS
    name = key.removeprefix(_METADATA) if not field else key
    if isinstance(wanted, Mapping):
        return _range(key, name, field, wanted)
    values = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if not values:
        raise InvalidFilter(f"the filter on {key!r} lists no value, so no clip could pass")
    facts = tuple(_fact(key, name, value) for value in values)
    if field and any(kind != RECORD_FIELDS[name] for _, kind, _ in facts):
        raise InvalidFilter(f"the filter on {key!r} needs a {RECORD_FIELDS[name]}, as every clip has one")
    return Condition(name, field, facts)


def _range(key: str, name: str, field: bool, wanted: Mapping[Any, Any]) -> Condition:
    unknown = [bound for bound in wanted if bound not in BOUNDS]
    if unknown or not wanted:
        told = f"not {unknown[0]!r}" if unknown else "and at least one of them"
        raise InvalidFilter(f"the filter on {key!r} is a range: it takes {', '.join(BOUNDS)}, {told}")
    facts = [(BOUNDS[bound], _fact(key, name, value)) for bound, value in wanted.items()]
    kinds = {kind for _, (_, kind, _) in facts}
    if len(kinds) > 1 or "boolean" in kinds:
        raise InvalidFilter(f"the range on {key!r} needs numbers, or texts, and not both")
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
