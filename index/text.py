"""Text for full-text search: splits clip texts into words and builds FTS5 queries.

The full-text index is SQLite's FTS5 with its Porter stemmer, so "barking" finds "bark". This module handles what
that tokenizer does not: splitting CamelCase, digits next to letters, and scripts written without spaces. `stem_words`
gives its stems to callers that compare words outside of the index. Letters that people also write as others are folded
to those: "Straße" and "strasse", "Ёлка" and "елка", "Łódź" and "Lodz" are the same words.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

TOKENIZER = "porter unicode61 remove_diacritics 2"
TAG_KEYS = frozenset(("tags", "tag", "category", "subcategory", "keywords", "title", "label", "labels"))

COLLECTIONS = "collections"  # the metadata key with the names of a clip's collections
_NOT_OTHERS = TAG_KEYS | {COLLECTIONS}  # a collection says where somebody has put a sound, not what it is

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
_FOLDED = str.maketrans(
    {
        **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE"},
        **dict(zip("ёЁøØłŁđĐıİ", "еЕoOlLdDiI", strict=True)),
    }
)
_WORD = re.compile(r"\w", re.UNICODE)
_WORDS = re.compile(r"[^\W_]+")
_MAX_STEMS = 200_000  # that are remembered
STOP_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "some", "the", "to", "with"]
)


def split_words(text: str) -> str:
    """Inserts spaces at word boundaries: "DogBark_01.wav" → "Dog Bark_01.wav"; also around each CJK character.

    Folds letters, see the module.
    """
    return _split(text).translate(_FOLDED)[:_MAX_CHARACTERS]


def has_folded_letters(text: str) -> bool:
    """Whether `split_words` folds letters of the text, which earlier releases did not."""
    return not text.isascii() and not _FOLDED.keys().isdisjoint(map(ord, unicodedata.normalize("NFKC", text)))


def _split(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.replace("\0", " "))  # SQLite ends strings at NUL
    return _UNSPACED.sub(r" \1 ", _WORD_BOUNDARIES.sub(" ", text))[:_MAX_CHARACTERS]


def text_columns(filename: str, metadata: dict[str, Any]) -> tuple[str, str, str]:
    """Returns a clip's indexed texts: its file name, its tags (values of TAG_KEYS), other texts in its metadata.

    Names of collections are not among them.
    """
    tags = [text for key, value in metadata.items() if key.lower() in TAG_KEYS for text in _texts(value)]
    others = [text for key, value in metadata.items() if key.lower() not in _NOT_OTHERS for text in _texts(value)]
    return split_words(filename), split_words("\n".join(tags)), split_words("\n".join(others))


def fts_query(query: str) -> str | None:
    """Returns an FTS5 query for clips with any of the words, None if there are no words.

    A word that `split_words` splits becomes a phrase. Stop words count only if there are no other words. A word with
    folded letters is also looked up as it is, because earlier releases indexed it so, and Milvus keeps their words.
    """
    terms = [term for term in query.split() if _WORD.search(term)][:_MAX_TERMS]
    content = [term for term in terms if term.lower() not in STOP_WORDS]
    forms = [form for term in content or terms for form in (split_words(term), _split(term))]
    phrases = ['"' + " ".join(form.replace('"', " ").split()) + '"' for form in forms]
    return " OR ".join(dict.fromkeys(phrases)) or None


def words_of(text: str) -> list[str]:
    """Returns a text's words in lower case, separated as in the full-text index."""
    return _WORDS.findall(split_words(text).lower())


def stem_words(words: Sequence[str]) -> list[str]:
    """Returns the stem of each word as the full-text index has it: "barking" → "bark", "Café" → "cafe"."""
    return _STEMMER.stems(words)


class _Stemmer:
    """Stems by FTS5 itself, in a database in memory that is created on first use; remembers words."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def stems(self, words: Sequence[str]) -> list[str]:
        with self._lock:
            unknown = [word for word in dict.fromkeys(words) if word not in self._known]
            if unknown:
                if len(self._known) + len(unknown) > _MAX_STEMS:
                    self._known, unknown = {}, list(dict.fromkeys(words))
                self._learn(unknown)
            return [self._known[word] for word in words]

    def _learn(self, words: Sequence[str]) -> None:
        if self._database is None:
            self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._database.execute(f"CREATE VIRTUAL TABLE texts USING fts5(body, tokenize = '{TOKENIZER}')")
            self._database.execute("CREATE VIRTUAL TABLE found USING fts5vocab(texts, instance)")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO texts (rowid, body) VALUES (?, ?)", enumerate(words))
        found = dict(self._database.execute("SELECT doc, term FROM found ORDER BY doc, offset DESC").fetchall())
        self._database.execute("ROLLBACK")
        self._known.update((word, found.get(number, word)) for number, word in enumerate(words))


_STEMMER = _Stemmer()


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
