"""What metadata is allowed, what a filter means, how a patch merges."""

from __future__ import annotations

import pytest

from index.records import InvalidMetadata, dump_metadata, merge_patch, metadata_facts


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [  # the examples of RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: object, patch: object, expected: object) -> None:
    assert merge_patch(target, patch) == expected


def test_merge_patch_leaves_its_arguments_alone() -> None:
    target, patch = {"a": {"b": 1}}, {"a": {"c": 2}}
    merge_patch(target, patch)
    assert (target, patch) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    "metadata", [[], None, "text", {"a": float("nan")}, {"a": float("inf")}, {"a": {1, 2}}, {1: "a"}, {"a": "\ud800"}]
)
def test_invalid_metadata_is_rejected(metadata: object) -> None:
    with pytest.raises(InvalidMetadata):
        dump_metadata(metadata)


def test_facts_are_the_scalars_a_filter_can_ask_for() -> None:
    metadata = {"tags": ["a", 2, ["deep"], None], "on": True, "n": 1.5, "o": {"x": 1}, "big": 10**30, "none": None}
    assert list(metadata_facts(metadata)) == [
        ("tags", "text", "a"),
        ("tags", "number", 2),
        ("on", "boolean", 1),
        ("n", "number", 1.5),
        ("big", "number", 1e30),
    ]
