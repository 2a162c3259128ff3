"""Compares responses with what a page shows: JSON by shape or by value, printed text word by word.

An ellipsis matches omitted content: as a JSON value any value, as a JSON key any further keys, in printed text any
words of its line, alone on a line any lines. Numbers may differ by TOLERANCE, because machines round differently.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

TOLERANCE = 0.02
_MORE = "…"
_NUMBER = re.compile(r"-?\d+\.\d+")


def last_json(text: str) -> Any:
    """The last JSON value that curl or a program printed: the last one on its last line, or the whole output."""
    try:
        return json.loads(text)
    except ValueError:
        decoder, line, value, at = json.JSONDecoder(), text.rstrip().rpartition("\n")[2], None, 0
        while at < len(line):  # the service's responses have no trailing newline
            value, at = decoder.raw_decode(line, at)
        return value


def same_shape(shown: Any, given: Any, where: str = "response") -> None:
    """Assert that a response has the keys and types that the page shows, and items where the page shows items."""
    if shown == _MORE:
        return
    if isinstance(shown, dict):
        assert isinstance(given, dict), (where, given)
        if not where.endswith(".metadata"):  # metadata has arbitrary keys
            assert set(shown) - {_MORE} <= set(given), (where, given)
            assert _MORE in shown or set(shown) == set(given), (where, given)
        for key in set(shown) & set(given):
            same_shape(shown[key], given[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(given, list), (where, given)
        assert bool(shown) == bool(given), (where, given)
        if shown:
            same_shape(shown[0], given[0], where + "[0]")
    elif isinstance(shown, bool) or shown is None or isinstance(shown, str):
        assert shown is None or type(shown) is type(given), (where, given)
    else:
        assert isinstance(given, int | float) and not isinstance(given, bool), (where, given)


def same_values(shown: Any, given: Any, where: str = "response") -> None:
    """Assert that a response equals what the page shows. … as the last list item matches any further items."""
    if shown == _MORE:
        return
    if isinstance(shown, dict):
        assert isinstance(given, dict) and set(shown) - {_MORE} <= set(given), (where, given)
        assert _MORE in shown or set(shown) == set(given), (where, given)
        for key in set(shown) - {_MORE}:
            same_values(shown[key], given[key], f"{where}.{key}")
    elif isinstance(shown, list):
        more = bool(shown) and shown[-1] == _MORE
        items = shown[:-1] if more else shown
        assert isinstance(given, list) and len(given) >= len(items) if more else len(given) == len(items), (
            where,
            given,
        )
        for number, item in enumerate(items):
            same_values(item, given[number], f"{where}[{number}]")
    elif isinstance(shown, float):
        assert math.isclose(shown, given, abs_tol=TOLERANCE), (where, shown, given)
    else:
        assert type(shown) is type(given) and shown == given, (where, given)


def same_text(shown: str, given: str) -> None:
    """Assert that the printed lines are those that the page shows."""
    pages, printed = shown.strip("\n").splitlines(), given.strip("\n").splitlines()
    assert _lines_fit(pages, printed), f"shown:\n{shown}\nprinted:\n{given}"


def _lines_fit(shown: list[str], given: list[str]) -> bool:
    if not shown:
        return not given
    if shown[0].strip() == _MORE:
        return any(_lines_fit(shown[1:], given[n:]) for n in range(len(given) + 1))
    return bool(given) and _words_fit(_words(shown[0]), _words(given[0])) and _lines_fit(shown[1:], given[1:])


def _words(line: str) -> list[str]:
    return re.findall(r"-?\d+\.\d+|…|[^\W\d]+|\d+|\S", line)


def _words_fit(shown: list[str], given: list[str]) -> bool:
    if not shown:
        return not given
    if shown[0] == _MORE:
        return any(_words_fit(shown[1:], given[n:]) for n in range(len(given) + 1))
    return bool(given) and _word_fits(shown[0], given[0]) and _words_fit(shown[1:], given[1:])


def _word_fits(shown: str, given: str) -> bool:
    if _NUMBER.fullmatch(shown) and _NUMBER.fullmatch(given):
        return math.isclose(float(shown), float(given), abs_tol=TOLERANCE)
    return shown == given
