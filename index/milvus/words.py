"""Words as both stores cut them: SQLite's FTS5 cuts and stems, Milvus' BM25 only counts what it is given.

Knows no Milvus and no clip. What differs from the search by words in SQLite: a word that is cut ("50Hz") is found by
its parts and not only as a phrase, and the weights of name, tags and other texts are made by repeating them.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from index import text as words

MAX_BYTES = 65_535  # the most that a text in Milvus holds

_WEIGHTS = (2, 3, 1)  # of name, tags and other texts
_PHRASE = re.compile(r'"([^"]*)"')


def terms(text: str) -> list[str]:
    """The stems of a text's words, in order, as FTS5 with words.TOKENIZER has them."""
    database = sqlite3.connect(":memory:")
    try:
        database.execute(f"CREATE VIRTUAL TABLE texts USING fts5(body, tokenize = '{words.TOKENIZER}')")
        database.execute("CREATE VIRTUAL TABLE found USING fts5vocab(texts, instance)")
        database.execute("INSERT INTO texts VALUES (?)", (text,))
        return [term for (term,) in database.execute("SELECT term FROM found ORDER BY offset")]
    finally:
        database.close()


def body(filename: str, metadata: dict[str, Any]) -> str:
    """What is indexed of a clip: its stems, those that count more repeated; what has no room is left out at the end."""
    stems: list[str] = []
    for weight, column in zip(_WEIGHTS, words.columns(filename, metadata), strict=True):
        stems += terms(column) * weight
    text = " ".join(stems)
    if len(text.encode()) <= MAX_BYTES:
        return text
    return text.encode()[:MAX_BYTES].decode("utf-8", "ignore").rpartition(" ")[0]


def wanted(query: str) -> str | None:
    """The stems that a query looks for, any of them; None when it has no word."""
    match = words.match(query)
    stems = terms(" ".join(_PHRASE.findall(match))) if match else []
    return " ".join(dict.fromkeys(stems)) or None
