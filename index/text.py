"""What a clip says about itself in words, made findable: how texts are cut into words, and a query into a match.

The full-text index is SQLite's FTS5 with its Porter stemmer, so "barking" finds "bark". What is ours is only what a
sound library needs and a tokenizer does not know: file names in CamelCase or with numbers stuck to words, and scripts
written without spaces. Knows no table and no ranking.
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
_SEAMS = re.compile(
    r"(?<=[^\W\d_A-Z])(?=[A-Z])"  # dogBark
    r"|(?<=[A-Z])(?=[A-Z][a-z])"  # SFXDog
    r"|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"  # bark01
)
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff])"
)
_WORD = re.compile(r"\w", re.UNICODE)
_COMMON = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "some", "the", "to", "with"]
)


def cut(text: str) -> str:
    """The text with spaces where words meet: "DogBark_01.wav" → "Dog Bark_01.wav"; one around each CJK character."""
    text = unicodedata.normalize("NFKC", text.replace("\0", " "))  # SQLite's texts end at a NUL
    return _UNSPACED.sub(r" \1 ", _SEAMS.sub(" ", text))[:_MAX_CHARACTERS]


def columns(filename: str, metadata: dict[str, Any]) -> tuple[str, str, str]:
    """What is indexed of a clip: its name, its tags (the values of TAG_KEYS), and all other texts of its metadata."""
    tags = [text for key, value in metadata.items() if key.lower() in TAG_KEYS for text in _texts(value)]
    others = [text for key, value in metadata.items() if key.lower() not in TAG_KEYS for text in _texts(value)]
    return cut(filename), cut("\n".join(tags)), cut("\n".join(others))


def match(query: str) -> str | None:
    """The query as FTS5 reads it: clips with any of its words, each a phrase if it is cut; None if it has no words.

    Very common words count only where there is nothing else.
    """
    terms = [term for term in query.split() if _WORD.search(term)][:_MAX_TERMS]
    telling = [term for term in terms if term.lower() not in _COMMON]
    phrases = ['"' + " ".join(cut(term).replace('"', " ").split()) + '"' for term in telling or terms]
    return " OR ".join(dict.fromkeys(phrases)) or None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, at any depth."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            todo += reversed(value)
        elif isinstance(value, dict):
            todo += reversed(value.values())
