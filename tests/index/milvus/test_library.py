"""What only the library in Milvus has: many processes, objects beside it, pages from a store that does not sort."""

from __future__ import annotations

import hashlib
import io
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import (
    AudioMissing,
    CheckpointMismatch,
    ClipNotFound,
    InvalidMetadata,
    LibraryError,
    LibraryUnavailable,
    NewClip,
)
from index import objects as objects_module
from index.milvus import library as milvus_library
from index.milvus.client import parse_milvus_url
from index.milvus.collection import page, read_cursor, write_cursor
from index.milvus.filters import indexed_text, query_stems, stems
from index.milvus.library import KeyLocks, MilvusLibrary, MonotonicClock
from index.objects import FolderObjects, RemoteObjects, open_objects
from tests.support.clips import nearest_hits

DIM = 16
Make = Callable[..., NewClip]
Url = Callable[[], str]


def open_it(url: str, folder: Path, checkpoint: str = "checkpoint-a", dim: int = DIM) -> MilvusLibrary:
    return MilvusLibrary.open(url, folder, dim=dim, checkpoint=checkpoint)


# Two at once


def test_two_libraries_on_one_milvus_see_each_others_changes(milvus_url: Url, tmp_path: Path, new_clip: Make) -> None:
    url = milvus_url()
    one, two = open_it(url, tmp_path), open_it(url, tmp_path)
    clip, _ = one.add(new_clip(1, {"a": 1}))
    assert two.get(clip.id) == two.find(clip.sha256) == clip
    assert two.add(new_clip(1)) == (clip, False)
    assert [hit.clip for hit in nearest_hits(two, new_clip(1).embedding, 3)] == [clip]
    assert two.audio_path(clip.id).read_bytes() == new_clip(1).audio
    changed = two.update_metadata(clip.id, {"b": 2})
    assert one.get(clip.id) == changed and changed.metadata == {"a": 1, "b": 2}
    one.delete(clip.id)
    assert len(two) == 0 and nearest_hits(two, new_clip(1).embedding, 3) == []
    assert two._segments.count() == 0
    with pytest.raises(ClipNotFound):
        two.get(clip.id)
    one.close()
    two.close()


def test_another_process_sees_them_too(milvus_url: Url, tmp_path: Path, new_clip: Make) -> None:
    url = milvus_url()
    library = open_it(url, tmp_path)
    clip, _ = library.add(new_clip(1))
    program = (
        "import sys; from pathlib import Path; from index.milvus.library import MilvusLibrary\n"
        "there = MilvusLibrary.open(sys.argv[1], Path(sys.argv[2]), dim=16, checkpoint='checkpoint-a')\n"
        "[clip] = there.list(5)[0]\n"
        "there.update_metadata(clip.id, {'seen': clip.filename})\n"
    )
    subprocess.run([sys.executable, "-c", program, url, str(tmp_path)], check=True, timeout=60)
    assert library.get(clip.id).metadata == {"seen": clip.filename}
    library.close()


class Meeting(RemoteObjects):
    """A place where two writers wait for each other, so that neither sees the other's row before it writes its own."""

    def __init__(self, inner: FolderObjects, barrier: threading.Barrier) -> None:
        self._inner, self._barrier, self._met = inner, barrier, False

    def put(self, name: str, content: Any) -> str:
        if not self._met:
            self._met = True
            self._barrier.wait(120)
        return self._inner.put(name, content)

    def __getattribute__(self, name: str) -> Any:
        if name in ("put", "_inner", "_barrier", "_met"):
            return object.__getattribute__(self, name)
        return getattr(self._inner, name)


def test_the_same_audio_added_to_both_at_one_moment_is_one_clip(
    milvus_url: Url, tmp_path: Path, new_clip: Make
) -> None:
    url, barrier = milvus_url(), threading.Barrier(2)
    pair = [open_it(url, tmp_path), open_it(url, tmp_path)]
    for library in pair:
        library._objects = Meeting(FolderObjects(tmp_path), barrier)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda library: library.add(new_clip(1)), pair))
    assert sorted(created for _, created in results) == [False, True]
    assert results[0][0] == results[1][0] == pair[0].find(new_clip(1).sha256)
    assert len(pair[0]) == 1
    assert len(list((tmp_path / "audio").glob("??/*"))) == len(list((tmp_path / "frames").glob("??/*"))) == 1
    for library in pair:
        library.close()


def test_a_clip_deleted_while_another_process_changes_it_stays_deleted(
    milvus_url: Url, tmp_path: Path, new_clip: Make
) -> None:
    url = milvus_url()
    one, two = open_it(url, tmp_path), open_it(url, tmp_path)
    clip, _ = one.add(new_clip(1))
    write = one._rows.write

    def late(rows: Any) -> None:
        two.delete(clip.id)
        write(rows)

    one._rows.write = late  # type: ignore[method-assign]
    with pytest.raises(ClipNotFound):
        one.update_metadata(clip.id, {"a": 1})
    assert len(two) == 0 and two.find(clip.sha256) is None
    one.close()
    two.close()


def test_an_addition_that_fails_leaves_nothing(milvus_url: Url, tmp_path: Path, new_clip: Make) -> None:
    library = open_it(milvus_url(), tmp_path)
    write = library._rows.write

    def half(rows: Any) -> None:
        write(rows)
        raise LibraryUnavailable("the connection broke after the row was written")

    library._rows.write = half  # type: ignore[method-assign]
    with pytest.raises(LibraryUnavailable):
        library.add_many([new_clip(1), new_clip(2)])
    library._rows.write = write  # type: ignore[method-assign]
    assert len(library) == 0 and not list(tmp_path.glob("*/??/*"))
    assert library._segments.count() == 0
    assert library.add(new_clip(1))[1]
    library.close()


# Refusals


def test_an_empty_library_keeps_its_checkpoint_too(milvus_url: Url, tmp_path: Path) -> None:
    url = milvus_url()
    open_it(url, tmp_path).close()
    with pytest.raises(CheckpointMismatch):  # another replica may be adding to it right now
        open_it(url, tmp_path, checkpoint="checkpoint-b")


def test_a_foreign_collection_is_rejected(milvus_url: Url, tmp_path: Path) -> None:
    from pymilvus import MilvusClient

    url = milvus_url()
    parts = parse_milvus_url(url)
    client = MilvusClient(uri=parts.uri)
    client.create_collection(parts.collection, dimension=DIM)
    client.close()
    with pytest.raises(LibraryError, match="not a library"):
        open_it(url, tmp_path)


def test_filters_that_many_pass_and_segments_that_nobody_owns(
    milvus_url: Url, tmp_path: Path, new_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_library, "_MAX_LISTED", 3)
    library = open_it(milvus_url(), tmp_path)
    library.add_many([new_clip(i, {"n": i}) for i in range(30)])
    [lost] = [row["id"] for row in library._rows.query("", ["id"], 1)]
    library._rows.delete([lost])  # as a crash in the middle of a delete leaves it
    frames, _ = library.frames(library.list(1)[0][0].id)
    everything = library.search_segments(frames[0], 100)
    assert len(everything) == 29 and lost not in [hit.clip.id for hit in everything]
    few = library.search_segments(frames[0], 2, {"n": {"lt": 6}})
    assert few == [hit for hit in everything if hit.clip.metadata["n"] < 6][:2]
    library.close()


def test_metadata_over_the_row_limit_is_rejected(milvus_url: Url, tmp_path: Path, new_clip: Make) -> None:
    library = open_it(milvus_url(), tmp_path)
    for metadata in ({"note": "x" * 70_000}, {"n": list(range(5000))}, {f"k{i}": i for i in range(3000)}):
        with pytest.raises(InvalidMetadata, match="Milvus"):
            library.add(new_clip(1, metadata))
    with pytest.raises(InvalidMetadata, match="Milvus"):
        library.add(new_clip(1, filename="ß" * 3000))
    clip, _ = library.add(new_clip(1, {"note": "x" * 60_000, "n": list(range(40))}, filename="ß" * 2000))
    assert library.get(clip.id) == clip
    for limit, found in ((15, 1), (16, 0)):  # ranges look at sixteen values of a list
        assert len(library.list(5, None, {"n": {"gte": limit}})[0]) == found
    library.close()


def test_an_unreachable_server_is_reported_at_once(tmp_path: Path) -> None:
    pytest.importorskip("pymilvus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LibraryUnavailable, match=f"milvus://127.0.0.1:{port}"):
        open_it(f"milvus://user:secret@127.0.0.1:{port}", tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "faiss://",
        "milvus://",
        "milvus://:19530",
        "milvus://host:port",
        "milvus://host?colour=red",
        "milvus://host?consistency=sometimes",
        "milvus://host?index=IVF_PQ",
        "milvus://host?tls=yes",
        "milvus://host?collection=a-b",
        "milvus://host/a/b",
    ],
)
def test_invalid_addresses_are_rejected(url: str) -> None:
    with pytest.raises(ValueError):
        parse_milvus_url(url)


def test_addresses_are_parsed() -> None:
    url = parse_milvus_url("milvus://me:p%40ss@db.example/sounds?collection=fx&files=s3://bucket/a&index=FLAT&tls=1")
    assert (url.uri, url.user, url.password) == ("https://db.example:19530", "me", "p@ss")
    assert (url.database, url.collection, url.files, url.index) == ("sounds", "fx", "s3://bucket/a", "FLAT")
    plain = parse_milvus_url("milvus://[::1]")
    assert (plain.uri, plain.collection, plain.consistency) == ("http://[::1]:19530", "finelap", "Strong")


# Objects


@pytest.fixture(params=["folder", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> objects_module.Objects:
    if request.param == "folder":
        return open_objects(str(tmp_path / "objects"), tmp_path / "fetched")
    pytest.importorskip("fsspec")
    return open_objects(f"memory://{tmp_path.name}", tmp_path / "fetched")


def test_objects_are_kept_whole(place: objects_module.Objects) -> None:
    content = np.random.default_rng(1).bytes(2_500_000)
    file = io.BytesIO(content)
    file.seek(7)
    assert place.put("audio/abc", file) == place.put("audio/xyz", content) == hashlib.sha256(content).hexdigest()
    assert place.has("audio/abc") and not place.has("audio/ab")
    for _ in range(2):
        assert place.local("audio/abc").read_bytes() == content
    place.remove("audio/abc")
    place.remove("audio/abc")
    assert not place.has("audio/abc") and place.has("audio/xyz")
    with pytest.raises(FileNotFoundError):
        place.local("audio/abc")
    place.check()


def test_a_write_that_breaks_off_leaves_no_object(place: objects_module.Objects) -> None:
    class Breaks(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError("gone")

    with pytest.raises(OSError):
        place.put("audio/abc", Breaks())
    assert not place.has("audio/abc")


def test_fetched_copies_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setattr(objects_module, "FETCHED_BYTES", 2500)
    place = open_objects(f"memory://{tmp_path.name}", tmp_path / "fetched")
    for name in ("a1", "b2", "c3", "d4"):
        place.put(f"audio/{name}", name.encode() * 500)
        assert place.local(f"audio/{name}").stat().st_size == 1000
    assert len(list((tmp_path / "fetched").iterdir())) == 2
    assert place.local("audio/a1").read_bytes() == b"a1" * 500


def test_a_library_with_its_audio_elsewhere(milvus_url: Url, tmp_path: Path, new_clip: Make) -> None:
    pytest.importorskip("fsspec")
    url = f"{milvus_url()}&files=memory://{tmp_path.name}"
    one, two = open_it(url, tmp_path / "one"), open_it(url, tmp_path / "two")
    clip, _ = one.add(new_clip(1))
    assert two.audio_path(clip.id).read_bytes() == new_clip(1).audio
    assert two.audio_path(clip.id).is_relative_to(tmp_path / "two" / "fetched")
    assert len(two.frames(clip.id)[0]) == 2
    one.delete(clip.id)
    with pytest.raises(ClipNotFound):
        two.audio_path(clip.id)
    again, _ = two.add(new_clip(1))
    one._objects.remove(f"audio/{again.sha256}.{again.id}")
    with pytest.raises(AudioMissing):
        two.audio_path(again.id)
    one.close()
    two.close()


# Pages


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60),
    st.sampled_from(["created", "-created", "filename", "-filename", "duration", "-duration"]),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_pages_are_right_whichever_rows_the_store_answers_with(
    values: list[tuple[int, int]], sort: str, size: int, random: Any
) -> None:
    """The store is a list that is asked with Python's own reading of the expressions; any full answer is as good."""
    rows = [
        {"name": f"{number:02x}", "duration": number / 2, "arrived": arrived, "id": f"{i:032x}"}
        for i, (number, arrived) in enumerate(values)
    ]

    def ask(where: str, fields: list[str], limit: int) -> list[dict[str, Any]]:
        found = [row for row in rows if not where or eval(where, {}, dict(row))]
        random.shuffle(found)
        return [{field: row[field] for field in fields} for row in found[:limit]]

    field = {"created": "arrived", "filename": "name", "duration": "duration"}[sort.removeprefix("-")]
    expected = sorted(((r[field], r["arrived"], r["id"]) for r in rows), reverse=sort.startswith("-"))
    seen: list[Any] = []
    after = None
    for _ in range(len(rows) // size + 1):
        found = page(ask, size, "", sort, after, window=8)
        assert len(found) <= size
        seen += found
        if found:
            after = read_cursor(write_cursor(found[-1], sort), sort)
    assert seen == expected


# Words and turns


def test_words_are_split_and_stemmed_as_in_sqlite() -> None:
    assert stems("Barking DOGS, café-au-lait 7") == ["bark", "dog", "cafe", "au", "lait", "7"]
    assert indexed_text("DogBark_01.wav", {"tags": ["dog"], "x": {"y": "Cars pass"}}).split() == (
        ["dog", "bark", "01", "wav"] * 2 + ["dog"] * 3 + ["car", "pass"]
    )
    assert (
        query_stems("the barking") == "bark"
        and query_stems("barks OR dogs") == "bark dog"
        and query_stems("??") is None
    )
    long = indexed_text("x", {"text": "wörter " * 20_000})
    assert 60_000 < len(long.encode()) <= 65_535 and set(long.split()) == {"x", "worter"}


def test_per_key_locks() -> None:
    locks, inside, most = KeyLocks(), set(), []
    counter = itertools.count()

    def work(names: tuple[str, ...]) -> None:
        for _ in range(50):
            with locks.hold(names):
                assert not inside & set(names)
                inside.update(names)
                most.append(len(inside))
                next(counter)
                inside.difference_update(names)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [("a", "b"), ("b", "c"), ("c", "a"), ("d",)]))
    assert next(counter) == 200


def test_the_clock_is_strictly_increasing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MonotonicClock()
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: clock.now(), range(5000)))
    assert len(set(told)) == 5000
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    assert clock.now() == max(told) + 1
