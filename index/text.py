"""Text for full-text search: splits clip texts into words and builds FTS5 queries.

The full-text index is SQLite's FTS5 with its Porter stemmer, so "barking" finds "bark". This module handles what
that tokenizer does not: splitting CamelCase, digits next to letters, and scripts written without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

TOKENIZER = "porter unicode61 remove_diacritics 2"
TAG_KEYS = frozenset(("tags", "tag", "category", "subcategory", "keywords", "title", "label", "labels"))

_MAX_TERMS = 32  # of a query
_MAX_CHARACTERS = 100_000  # of a clip's text in one column
_WORD_BOUNDARIES = re.compile(
    r"(?<=[^\W\d_A-Z])(?=[A-Z])"  # dogBark
    r"|(?<=[A-Z])(?=[A-Z][a-z])"  # SFXDog
    r"|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"  # bark01
)
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff])"
)
_WORD = re.compile(r"\w", re.UNICODE)
_STOP_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "some", "the", "to", "with"]
)


def split_words(text: str) -> str:
    """Inserts spaces at word boundaries: "DogBark_01.wav" → "Dog Bark_01.wav"; also around each CJK character."""
    text = unicodedata.normalize("NFKC", text.replace("\0", " "))  # SQLite ends strings at NUL
    return _UNSPACED.sub(r" \1 ", _WORD_BOUNDARIES.sub(" ", text))[:_MAX_CHARACTERS]


def text_columns(filename: str, metadata: dict[str, Any]) -> tuple[str, str, str]:
    """Returns a clip's indexed texts: its file name, its tags (values of TAG_KEYS), other texts in its metadata."""
    tags = [text for key, value in metadata.items() if key.lower() in TAG_KEYS for text in _texts(value)]
    others = [text for key, value in metadata.items() if key.lower() not in TAG_KEYS for text in _texts(value)]
    return split_words(filename), split_words("\n".join(tags)), split_words("\n".join(others))


def fts_query(query: str) -> str | None:
    """Returns an FTS5 query for clips with any of the words, None if there are no words.

    A word that `split_words` splits becomes a phrase. Stop words count only if there are no other words.
    """
    terms = [term for term in query.split() if _WORD.search(term)][:_MAX_TERMS]
    content = [term for term in terms if term.lower() not in _STOP_WORDS]
    phrases = ['"' + " ".join(split_words(term).replace('"', " ").split()) + '"' for term in content or terms]
    return " OR ".join(dict.fromkeys(phrases)) or None


def _texts(value: Any) -> Iterator[str]:
    """Yields all strings in a JSON value, at any depth."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            todo += reversed(value)
        elif isinstance(value, dict):
            todo += reversed(value.values())
