"""Filters and full-text search in Milvus: the fields of a row that they use, and expressions over them.

Expressions never contain a caller's text: equality compares hashes, and ranges of text compare the hexadecimal of its
UTF-8 bytes, which sorts the same. Nothing needs escaping and nothing can be injected.

- `facts`: a hash of each (key, kind, value) from index.records.metadata_facts.
- `spans`: for ranges, "<kind><hash of key>_<position>" → number, or text in hexadecimal. Holds the first MAX_POSITIONS
  numbers and texts of a list; texts by their first _PREFIX bytes, numbers as doubles.
- `words`: stems as SQLite's FTS5 produces them, which Milvus' BM25 only counts. Unlike in SQLite, a word that is split
  ("50Hz") matches by its parts rather than as a phrase, and columns are weighted by repeating their stems.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable
from typing import Any

from index.filters import RECORD_FIELDS, Condition
from index.records import Fact, InvalidMetadata, Metadata, metadata_facts
from index.text import TOKENIZER, fts_query, text_columns

MAX_FACTS = 4096  # Milvus' limit for an array
MAX_BYTES = 65_535  # Milvus' limit for a text or JSON value
MAX_POSITIONS = 16  # values of a list that ranges compare

_PREFIX = 64  # bytes of a text that ranges compare
_WEIGHTS = (2, 3, 1)  # of name, tags and other texts
_ID = re.compile(r"[0-9a-f]{1,64}")
_PHRASE = re.compile(r'"([^"]*)"')


def hexadecimal(text: str) -> str:
    """Returns the text as hexadecimal digits, which sort like its code points."""
    return text.encode("utf-8").hex()


def token(fact: Fact) -> str:
    """Returns a fact's hash, 32 hexadecimal digits; equal for 1 and 1.0."""
    key, kind, value = fact
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hashlib.blake2b(json.dumps([key, kind, value]).encode(), digest_size=16).hexdigest()


def filterable(metadata: Metadata) -> tuple[list[str], dict[str, Any]]:
    """Returns (facts, spans) of a clip's metadata. Raises InvalidMetadata if they exceed the row's limits."""
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
        raise InvalidMetadata("metadata in Milvus is limited to about 1,000 keys and 4,096 values")
    return list(facts), spans


def expression(conditions: Iterable[Condition]) -> str:
    """Returns the expression that all conditions must satisfy; empty without conditions."""
    return " and ".join(f"({_one(condition)})" for condition in conditions)


def _one(condition: Condition) -> str:
    if condition.field:
        name = "name" if condition.key == "filename" else condition.key
        kind = RECORD_FIELDS[condition.key]
        if condition.bounds:
            return _within(name, kind, condition.bounds)
        if condition.key == "clip_id":  # ids are stored as they are: others than our own are left out
            ids = [f'"{value}"' for _, _, value in condition.facts if _ID.fullmatch(str(value))]
            return f"id in [{', '.join(ids)}]" if ids else 'id == ""'
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


def stems(text: str) -> list[str]:
    """Returns the stems of a text's words, in order, as FTS5 with TOKENIZER produces them."""
    database = sqlite3.connect(":memory:")
    try:
        database.execute(f"CREATE VIRTUAL TABLE texts USING fts5(body, tokenize = '{TOKENIZER}')")
        database.execute("CREATE VIRTUAL TABLE found USING fts5vocab(texts, instance)")
        database.execute("INSERT INTO texts VALUES (?)", (text,))
        return [term for (term,) in database.execute("SELECT term FROM found ORDER BY offset")]
    finally:
        database.close()


def indexed_text(filename: str, metadata: Metadata) -> str:
    """Returns a clip's stems, repeated by weight and truncated to MAX_BYTES."""
    found: list[str] = []
    for weight, column in zip(_WEIGHTS, text_columns(filename, metadata), strict=True):
        found += stems(column) * weight
    text = " ".join(found)
    if len(text.encode()) <= MAX_BYTES:
        return text
    return text.encode()[:MAX_BYTES].decode("utf-8", "ignore").rpartition(" ")[0]


def query_stems(query: str) -> str | None:
    """Returns the distinct stems of a query, None if it has no words."""
    match = fts_query(query)
    found = stems(" ".join(_PHRASE.findall(match))) if match else []
    return " ".join(dict.fromkeys(found)) or None
