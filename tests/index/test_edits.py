"""Changes of many clips, and facets, in both stores; facets beside a slow count."""

from __future__ import annotations

from typing import Any

import pytest

from index import ClipEdit, InvalidFilter, InvalidMetadata, Library
from index.edits import count_facets
from tests.index.test_library_contract import Make, Open, library, open_store  # noqa: F401  (fixtures)


@pytest.mark.parametrize(
    ("before", "edit", "after"),
    [
        ({}, ClipEdit(add={"tags": ["a", "b", "a"]}), {"tags": ["a", "b"]}),
        ({"tags": "a"}, ClipEdit(add={"tags": ["b"]}), {"tags": ["a", "b"]}),
        ({"tags": ["a", "b"]}, ClipEdit(remove={"tags": ["a", "x"]}), {"tags": ["b"]}),
        ({"tags": ["a"], "n": 1}, ClipEdit(remove={"tags": ["a"], "m": ["a"]}), {"n": 1}),
        ({"tags": "a"}, ClipEdit(remove={"tags": ["b"]}), {"tags": "a"}),
        ({"c": ["old", "x"]}, ClipEdit(remove={"c": ["old"]}, add={"c": ["new"]}), {"c": ["x", "new"]}),
        ({"tags": ["a"], "n": 1}, ClipEdit({"tags": None, "n": 2}, add={"tags": ["b"]}), {"tags": ["b"], "n": 2}),
    ],
)
def test_lists_are_changed(
    library: Library,  # noqa: F811
    new_clip: Make,
    before: dict[str, Any],
    edit: ClipEdit,
    after: dict[str, Any],
) -> None:
    one, two, other = (library.add(new_clip(seed, dict(before)))[0] for seed in (1, 2, 3))
    changed = library.edit([one.id, "0" * 32, two.id, one.id], edit)
    assert {clip_id: clip.metadata for clip_id, clip in changed.items()} == {one.id: after, two.id: after}
    assert library.get(one.id).metadata == after and library.get(other.id) == other


def test_a_renamed_clip_is_found_by_its_name(open_store: Open, new_clip: Make) -> None:  # noqa: F811
    store = open_store()
    clip, _ = store.add(new_clip(1, {"collections": ["zebra"]}))
    store.add(new_clip(2))
    renamed = store.edit([clip.id], ClipEdit(filename="okapi call.wav"))[clip.id]
    assert renamed.filename == "okapi call.wav" and renamed.sha256 == clip.sha256
    vector = new_clip(1).embedding
    assert [hit.clip.id for hit in store.search_words("okapi", vector, 5)] == [clip.id]
    assert store.search_words("zebra", vector, 5) == [], "the name of a collection says nothing of the sound"
    assert store.list(5, None, {"filename": "okapi call.wav"})[0] == [renamed]
    assert [one.id for one in store.list(5, None, None, "filename")[0]][0] == clip.id
    store = open_store()
    assert store.get(clip.id) == renamed and store.audio_path(clip.id).is_file()
    with pytest.raises(InvalidMetadata):
        store.edit([clip.id], ClipEdit(filename="\ud800"))


def test_clips_are_filtered_by_id(library: Library, new_clip: Make) -> None:  # noqa: F811
    clips = [library.add(new_clip(seed))[0] for seed in range(5)]
    some = [clips[1].id, clips[3].id, '" or id > "', "é"]
    assert {clip.id for clip in library.list(10, None, {"clip_id": some})[0]} == {clips[1].id, clips[3].id}
    assert library.list(10, None, {"clip_id": '" or id > "'})[0] == []
    with pytest.raises(InvalidFilter):
        library.list(10, None, {"clip_id": {"gt": "0"}})


def test_facets_equal_a_count(library: Library, new_clip: Make) -> None:  # noqa: F811
    metadata = [{"tags": [f"t{i % 3}", "all"], "n": i % 2, "live": True, "collections": "x"} for i in range(12)]
    clips = [library.add(new_clip(seed, own))[0] for seed, own in enumerate(metadata)]
    keys = ["tags", "n", "live", "collections", "channels", "none", "metadata.n", "duration"]
    assert library.facets(keys) == count_facets(clips, keys, 100)
    assert library.facets(["tags"], None, 2) == {"tags": [("all", 12), ("t0", 4)]}
    some = [clip for clip in clips if "t1" in clip.metadata["tags"]]
    assert library.facets(keys, {"tags": "t1"}) == count_facets(some, keys, 100)
    library.delete(some[0].id)
    assert library.facets(["tags"], {"tags": "t1"})["tags"] == [("all", 3), ("t1", 3)]
