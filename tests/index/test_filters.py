"""What a filter may ask, and that the database answers it as the reference does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from index import NewClip, SqliteLibrary
from index.filters import parse_filter
from index.records import InvalidFilter
from index.vectors.exact import matches
from tests.support.clips import nearest_hits


@pytest.mark.parametrize(
    "filter",
    [
        ["tags"],
        "tags",
        {"tags": None},
        {"tags": []},
        {"tags": {}},
        {"tags": {"$ne": "a"}},
        {"tags": {"gte": 1, "near": 2}},
        {"tags": {"gte": True}},
        {"tags": {"gte": [1]}},
        {"tags": {"gte": 1, "lt": "b"}},
        {"duration": "long"},
        {"duration": {"gte": "1"}},
        {"filename": 5},
        {"tags": ["a", None]},
        {"tags": [["a"]]},
        {"tags": float("nan")},
        {"tags": "\ud800"},
        {"\ud800": "a"},
        {3: "a"},
        {str(i): i for i in range(101)},
        {"n": list(range(1001))},
    ],
)
def test_invalid_filters_are_rejected(filter: object) -> None:
    with pytest.raises(InvalidFilter):
        parse_filter(filter)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metadata", "filter", "passes"),
    [
        ({"tags": ["dog", "animal"]}, {"tags": "animal"}, True),
        ({"tags": ["dog", "animal"]}, {"tags": ["cat", "dog"]}, True),
        ({"tags": "dog"}, {"tags": ["cat", "dog"]}, True),
        ({"tags": ["dog"]}, {"tags": "do"}, False),
        ({"n": 1}, {"n": 1.0}, True),
        ({"n": 1}, {"n": True}, False),
        ({"n": True}, {"n": 1}, False),
        ({"n": "1"}, {"n": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        ({}, {"a": 1}, False),
        ({"a": None}, {}, True),
        ({"n": 3}, {"n": {"gte": 3}}, True),
        ({"n": 3}, {"n": {"gt": 3}}, False),
        ({"n": [1, 9]}, {"n": {"gt": 2, "lt": 8}}, False),  # one value must satisfy both
        ({"n": [1, 5, 9]}, {"n": {"gt": 2, "lt": 8}}, True),
        ({"n": "3"}, {"n": {"gte": 3}}, False),
        ({"n": True}, {"n": {"gte": 0}}, False),
        ({"s": "b"}, {"s": {"gte": "a", "lt": "c"}}, True),
        ({"duration": 1000}, {"duration": {"lt": 5}}, True),  # of the record: 1.5 s
        ({"duration": 1000}, {"metadata.duration": {"gte": 5}}, True),
        ({}, {"filename": ["x", "sound.wav"]}, True),
        ({"filename": "x"}, {"filename": "x"}, False),
    ],
)
def test_the_reference_filter_and_the_database_agree(
    metadata: dict,
    filter: dict,
    passes: bool,
    open_library: Callable[..., SqliteLibrary],
    new_clip: Callable[..., NewClip],
) -> None:
    record = {"filename": "sound.wav", "duration": 1.5, "sample_rate": 44_100, "channels": 2}
    assert matches(metadata, filter, record) is passes
    library = open_library()
    new = new_clip(1, metadata, **record)
    library.add(new)
    assert len(library.list(5, None, filter)[0]) == passes
    assert len(nearest_hits(library, new.embedding, 5, filter)) == passes
