"""A library in a folder whose audio is in an S3 bucket: a real server on this machine, and what it does wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from index import LibraryError, LibraryUnavailable, SqliteLibrary
from tests.support.clips import DIM, make_clip
from tests.support.s3 import BUCKET, S3

s3fs = pytest.importorskip("s3fs")

FILES = f"s3://{BUCKET}/library"
Open = Callable[..., SqliteLibrary]


@pytest.fixture
def open_it(s3: S3, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's library as a new process would; the one opened before is closed first."""
    opened: list[SqliteLibrary] = []

    def open_library(files: str = FILES) -> SqliteLibrary:
        if opened:
            opened[-1].close()
        s3fs.S3FileSystem.clear_instance_cache()
        opened.append(SqliteLibrary.open(tmp_path / "data", dim=DIM, checkpoint="a", files=files))
        return opened[-1]

    yield open_library
    opened[-1].close()


def test_audio_is_in_the_bucket_only(open_it: Open, tmp_path: Path) -> None:
    library = open_it()
    clip, _ = library.add(make_clip(1))
    assert not [path for path in (tmp_path / "data" / "audio").rglob("*") if path.is_file()]
    library = open_it()
    assert library.recovery_report == []
    assert library.audio_path(clip.id).read_bytes() == make_clip(1).audio
    library.delete(clip.id)
    assert list(library._audio.names()) == []


@pytest.mark.parametrize("fault", ["503", "drop", 1.0])
def test_brief_faults_are_not_noticed(s3: S3, open_it: Open, fault: str | float) -> None:
    library = open_it()
    remaining = iter([fault] * 2)
    s3.fault = lambda method, path: next(remaining, None)
    clip, added = library.add(make_clip(1))
    assert added and next(remaining, None) is None
    remaining = iter([fault] * 2)
    assert library.audio_path(clip.id).read_bytes() == make_clip(1).audio


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "drop", "expired"])
def test_lasting_faults_are_errors_and_store_nothing(s3: S3, open_it: Open, fault: str) -> None:
    library = open_it()
    clip, _ = library.add(make_clip(1))
    s3.fault = lambda method, path: fault
    for call in (lambda: library.add(make_clip(2)), lambda: library.audio_path(clip.id), library.check):
        with pytest.raises(LibraryUnavailable):
            call()
    assert [hit[0] for hit in library.nearest(make_clip(1).embedding, 9)] == [clip.id], "searches need no audio"
    assert len(library) == 1
    s3.fault = lambda method, path: None
    library.check()
    assert library.add(make_clip(2))[1] and library.audio_path(clip.id).read_bytes() == make_clip(1).audio


def test_an_upload_that_fails_among_others_stores_none(s3: S3, open_it: Open) -> None:
    library = open_it()
    bad = make_clip(3)
    s3.fault = lambda method, path: "expired" if path.endswith(bad.sha256) and method in ("PUT", "POST") else None
    with pytest.raises(LibraryUnavailable):
        library.add_many([make_clip(1), make_clip(2), bad])
    assert len(library) == 0 and list(library._audio.names()) == []


def test_what_a_failed_removal_leaves_goes_at_the_next_start(s3: S3, open_it: Open) -> None:
    library = open_it()
    kept, gone = (library.add(make_clip(seed))[0] for seed in (1, 2))
    s3.fault = lambda method, path: "expired" if method in ("DELETE", "POST") else None
    library.delete(gone.id)
    s3.fault = lambda method, path: None
    assert len(library) == 1 and set(library._audio.names()) == {kept.sha256, gone.sha256}
    library = open_it()
    assert library.recovery_report == ["removed 1 audio file without a record"]
    assert list(library._audio.names()) == [kept.sha256]


def test_lost_audio_is_reported_and_comes_back_with_the_file(open_it: Open) -> None:
    library = open_it()
    clip, _ = library.add(make_clip(1))
    library._audio.remove(clip.sha256)
    library = open_it()
    assert "is missing; add the file again" in library.recovery_report[0]
    assert library.add(make_clip(1)) == (clip, False)
    assert library.audio_path(clip.id).read_bytes() == make_clip(1).audio


def test_a_library_keeps_its_files_when_it_gets_a_bucket(open_it: Open, tmp_path: Path) -> None:
    """Older clips stay in the folder, and references where they are."""
    here, _ = open_it("").add(make_clip(1))
    file = tmp_path / "sound.wav"
    file.write_bytes(make_clip(2).audio)
    library = open_it()
    library.allow_references([tmp_path])
    there, _ = library.add(make_clip(2, reference=Path(os.path.realpath(file))))
    library.add(make_clip(3))
    assert library.audio_path(here.id).parent.parent == tmp_path / "data" / "audio"
    assert library.audio_path(there.id) == Path(os.path.realpath(file))
    assert sorted(library._audio._objects.names("audio")) == [make_clip(3).sha256[:2]]
    assert open_it().recovery_report == []


def test_a_wrong_key_or_bucket_is_an_error_at_the_start(open_it: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_it().add(make_clip(1))
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
        with pytest.raises(LibraryUnavailable):
            open_it()
    with pytest.raises(LibraryError):
        open_it("s3://finelap-nowhere/library").check()
    assert len(open_it()) == 1
