"""Filters as Milvus understands them: what a row carries to be filtered by, and expressions over it.

No text of a caller ever stands in an expression: equality compares hashes, and the order of texts is kept by comparing
the hexadecimal of their UTF-8 bytes. So nothing needs escaping, and there is nothing to inject. Knows no client.

- `facts`: a hash for each (key, kind, value) of index.records.metadata_facts.
- `spans`: for ranges, "<kind><hash of key>_<position>" → number, or text in hexadecimal. Only the first MAX_POSITIONS
  numbers and texts of a list are there, texts by their first _PREFIX bytes, numbers as doubles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from index.filters import RECORD_FIELDS, Condition
from index.records import Fact, InvalidMetadata, Metadata, metadata_facts

MAX_FACTS = 4096  # the most that an array in Milvus holds
MAX_BYTES = 65_535  # the most that a text or a JSON value in Milvus holds
MAX_POSITIONS = 16  # values of one list that ranges look at

_PREFIX = 64  # bytes of a text that ranges compare


def hexadecimal(text: str) -> str:
    """The text in digits that sort as its code points do."""
    return text.encode("utf-8").hex()


def token(fact: Fact) -> str:
    """32 hexadecimal digits that stand for a fact; 1 and 1.0 have the same."""
    key, kind, value = fact
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hashlib.blake2b(json.dumps([key, kind, value]).encode(), digest_size=16).hexdigest()


def filterable(metadata: Metadata) -> tuple[list[str], dict[str, Any]]:
    """(facts, spans) of a clip's metadata. Raises InvalidMetadata where that is more than a row holds."""
    facts: dict[str, None] = {}
    spans: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for fact in metadata_facts(metadata):
        facts[token(fact)] = None
        key, kind, value = fact
        if kind == "boolean":
            continue
        name = _span(key, kind)
        position = seen.get(name, 0)
        seen[name] = position + 1
        if position < MAX_POSITIONS:
            spans[f"{name}_{position}"] = _spanned(kind, value)
    if len(facts) > MAX_FACTS or len(json.dumps(spans)) > MAX_BYTES:
        raise InvalidMetadata("metadata in Milvus has room for some 1,000 keys and 4096 values")
    return list(facts), spans


def expression(conditions: Iterable[Condition]) -> str:
    """What passes every condition; empty when there is none."""
    return " and ".join(f"({_one(condition)})" for condition in conditions)


def _one(condition: Condition) -> str:
    if condition.field:
        name = "name" if condition.key == "filename" else condition.key
        kind = RECORD_FIELDS[condition.key]
        if condition.bounds:
            return _within(name, kind, condition.bounds)
        return f"{name} in [{', '.join(_literal(kind, value) for _, _, value in condition.facts)}]"
    if condition.bounds:
        paths = [f'spans["{_span(condition.key, condition.kind)}_{i}"]' for i in range(MAX_POSITIONS)]
        return " or ".join(f"({_within(path, condition.kind, condition.bounds)})" for path in paths)
    tokens = ", ".join(f'"{token(fact)}"' for fact in condition.facts)
    return f"array_contains_any(facts, [{tokens}])"


def _within(name: str, kind: str, bounds: Iterable[tuple[str, str | int | float]]) -> str:
    return " and ".join(f"{name} {operator} {_literal(kind, value, name)}" for operator, value in bounds)


def _literal(kind: str, value: str | int | float, name: str = "") -> str:
    if kind == "text":
        return f'"{_spanned(kind, value) if name.startswith("spans") else hexadecimal(str(value))}"'
    return repr(float(value))


def _spanned(kind: str, value: str | int | float) -> str | float:
    return str(value).encode("utf-8")[:_PREFIX].hex() if kind == "text" else float(value)


def _span(key: str, kind: str) -> str:
    return kind[0] + hashlib.blake2b(key.encode("utf-8"), digest_size=8).hexdigest()
