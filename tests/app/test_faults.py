"""Injects one fault at a time and checks the response, the readiness, and that the service recovers by itself.

The service uses the fake model and a real library. docs/operations/reliability.md has the table of faults;
tests/e2e/test_faults.py covers those that need a separate process or disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from index.records import LibraryDamaged, LibraryError, LibraryUnavailable, NewClip
from index.sqlite import backup, store
from index.sqlite import library as catalog
from index.sqlite.library import SqliteLibrary

Make = Callable[..., FastAPI]
Connect = Callable[..., httpx.AsyncClient]

GPU_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB."
CPU_SAYS = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"


@pytest.fixture
async def service(make_app: Make, open_client: Connect) -> AsyncIterator[SimpleNamespace]:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        yield SimpleNamespace(client=client, catalog=app.state.service.library, app=app)


async def add(client: httpx.AsyncClient, data: bytes, name: str = "a.wav") -> httpx.Response:
    return await client.post("/clips", files={"files": (name, data)})


def told(answer: httpx.Response, status: int, slug: str) -> str:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["type"] == f"urn:finelap:problem:{slug}"
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0
    return str(problem["detail"])


async def ready(client: httpx.AsyncClient) -> int:
    return (await client.get("/health/ready")).status_code


# Memory


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(GPU_SAYS), RuntimeError(CPU_SAYS)])
async def test_memory_that_runs_out_in_a_batch(
    service: SimpleNamespace, fake_model: Any, sounds: SimpleNamespace, error: Exception
) -> None:
    """Batches of several do not fit: each caller is computed alone, and all are answered."""
    encode, sizes = fake_model.encode_windows, []
    lane = service.app.state.service.engine.audio_lane

    def small_device(waveforms: Any) -> Any:
        deadline = time.monotonic() + 20
        while not sizes and lane.depth < 4 and time.monotonic() < deadline:  # the first waits until others have come
            time.sleep(0.01)
        sizes.append(len(waveforms))
        if len(waveforms) > 1:
            raise error
        return encode(waveforms)

    fake_model.encode_windows = small_device
    files = [{"files": (f"{n}.wav", sounds.wav(seconds=0.5 + n / 100))} for n in range(12)]
    answers = await asyncio.gather(*(service.client.post("/embed", files=file) for file in files))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert max(sizes) > 1, "no two of them met in a batch"
    assert await ready(service.client) == 200


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(GPU_SAYS), RuntimeError(CPU_SAYS)])
async def test_memory_that_runs_out_for_one(
    service: SimpleNamespace, fake_model: Any, sounds: SimpleNamespace, error: Exception
) -> None:
    encode = fake_model.encode_windows

    def no_room(waveforms: Any) -> Any:
        raise error

    fake_model.encode_windows = no_room
    assert "memory" in told(await add(service.client, sounds.wav()), 503, "out-of-memory")
    assert len(service.catalog) == 0
    assert (await service.client.get("/search", params={"q": "tone 400"})).status_code == 200
    assert await ready(service.client) == 503
    fake_model.encode_windows = encode
    assert (await add(service.client, sounds.wav())).status_code == 201
    assert await ready(service.client) == 200


# The database


async def test_a_database_that_another_process_has_locked(service: SimpleNamespace, sounds: SimpleNamespace) -> None:
    kept = (await add(service.client, sounds.wav(400))).json()["clips"][0]
    service.catalog._store._writer.execute("PRAGMA busy_timeout = 200")
    other = sqlite3.connect(service.catalog.folder / "catalog.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert "locked" in told(await add(service.client, sounds.wav(800)), 503, "library-unavailable")
        assert (await service.client.delete(f"/clips/{kept['id']}")).status_code == 503
        patch = await service.client.patch(f"/clips/{kept['id']}", json={"metadata": {"a": 1}})
        assert patch.status_code == 503
        found = (await service.client.get("/search", params={"q": "tone 400"})).json()["hits"]
        assert [hit["clip"]["id"] for hit in found] == [kept["id"]]  # what could not be deleted is still found
        assert await ready(service.client) == 200
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert (await add(service.client, sounds.wav(800))).status_code == 201
    assert (await service.client.delete(f"/clips/{kept['id']}")).status_code == 204
    assert len(list((service.catalog.folder / "audio").glob("??/*"))) == 1


async def test_a_database_that_is_damaged_while_it_is_open(service: SimpleNamespace, sounds: SimpleNamespace) -> None:
    for n in range(12):
        assert (await add(service.client, sounds.wav(400 + n))).status_code == 201
    service.catalog._store.shrink_log()
    file = service.catalog.folder / "catalog.sqlite3"
    page, size = 4096, file.stat().st_size
    with file.open("r+b") as database:  # all but the first page, which has the schema
        database.seek(page)
        database.write(os.urandom(size - page))
    assert "damaged" in told(await service.client.get("/clips"), 503, "library-unavailable")
    assert "restore" in told(await service.client.get("/health/ready"), 503, "not-ready")
    assert (await service.client.get("/health/live")).status_code == 200


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other"])
def test_a_database_that_is_damaged_before_it_is_opened(tmp_path: Path, damage: str) -> None:
    data, copies = tmp_path / "data", tmp_path / "copies"
    with SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        for n in range(30):
            library.add(new_clip(n))
        before = {clip.id for clip in library.list(100)[0]}
    backup.back_up(data, copies, lambda *_: None)
    file = data / "catalog.sqlite3"
    whole = file.read_bytes()
    broken = {
        "cut": whole[: len(whole) // 2 + 100],
        "noise": os.urandom(len(whole)),
        "empty": b"",
        "other": b"SQLite format 3\0" + os.urandom(5000),
    }[damage]
    file.write_bytes(broken)
    with pytest.raises(LibraryError) as error, SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        library.list(100)
    assert not isinstance(error.value.__cause__, AttributeError | TypeError | KeyError)
    assert damage == "empty" or isinstance(error.value, LibraryDamaged)
    assert "restore" in str(error.value) or "put the database back" in str(error.value)
    assert len(list((data / "audio").glob("??/*"))) == 30  # nothing was tidied away
    backup.restore(copies, tmp_path / "again", lambda *_: None)
    with SqliteLibrary.open(tmp_path / "again", dim=8, checkpoint="c") as library:
        assert {clip.id for clip in library.list(100)[0]} == before and not library.recovery_report


def new_clip(seed: int) -> NewClip:
    import hashlib

    random = np.random.default_rng(seed)
    vectors = random.standard_normal((5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    audio = random.bytes(100)
    return NewClip(
        f"{seed}.wav", hashlib.sha256(audio).hexdigest(), 1.0, 16_000, 1, {"n": seed}, vectors[0], vectors, 0.16, audio
    )


# The disk


async def test_a_disk_that_fails_while_audio_is_written(
    service: SimpleNamespace, sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, slug, status in (
        (errno.EIO, "library-unavailable", 503),
        (errno.EROFS, "library-unavailable", 503),
        (errno.EACCES, "library-unavailable", 503),
        (errno.ENOSPC, "storage-full", 507),
        (errno.EDQUOT, "storage-full", 507),
    ):
        real = os.fsync

        def fails(descriptor: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fails)
        told(await add(service.client, sounds.wav(400)), status, slug)
        monkeypatch.setattr(os, "fsync", real)
        assert len(service.catalog) == 0 and not list((service.catalog.folder / "audio").glob("??/*"))
        assert await ready(service.client) == 200
    assert (await add(service.client, sounds.wav(400))).status_code == 201
    assert not list((service.catalog.folder / "audio" / ".incoming").iterdir())


async def test_no_room_for_uploads(
    service: SimpleNamespace, sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of temporary files is full: more than a megabyte cannot be taken in."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert "TMPDIR" in told(await add(service.client, sounds.wav(seconds=60.0)), 507, "storage-full")
    small = await add(service.client, sounds.wav(seconds=1.0))
    if hasattr(os, "memfd_create"):  # a small one never leaves the memory
        assert small.status_code == 201, small.text
    else:
        assert "TMPDIR" in told(small, 507, "storage-full")
    assert await ready(service.client) == 200
    monkeypatch.setattr(tempfile, "TemporaryFile", real)
    assert (await add(service.client, sounds.wav(seconds=60.0))).status_code == 201


@pytest.mark.skipif(sys.platform != "linux", reason="rights are tried by another user of Linux")
def test_a_data_folder_without_rights(tmp_path: Path) -> None:
    """Tried in a process that is nobody in particular, as root may write anywhere."""
    closed = tmp_path / "closed"
    with SqliteLibrary.open(closed / "data", dim=8, checkpoint="c"):
        pass
    (closed / "data" / "catalog.sqlite3").chmod(0o400)
    closed.chmod(0o500)
    (closed / "data").chmod(0o500)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "opened"
        try:
            for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
                folder.chmod(0o755)
            if os.getuid() == 0:
                os.seteuid(65534)
            SqliteLibrary.open(closed / "data", dim=8, checkpoint="c")
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    for folder in (closed, closed / "data"):
        folder.chmod(0o700)
    assert said.startswith(LibraryUnavailable.__name__) and "ermission denied" in said, said


# The clock


class Clock(datetime):
    """A clock that can be put forward and back."""

    offset = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + cls.offset


async def test_a_clock_that_jumps(
    service: SimpleNamespace, sounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lists are in order of arrival, whatever the clock says; the last backup is the last."""
    monkeypatch.setattr(catalog, "datetime", Clock)
    monkeypatch.setattr(backup, "datetime", Clock)
    names, snapshots = [], []
    for number, offset in enumerate((0, -365, 3650, -1, 0)):
        Clock.offset = timedelta(days=offset)
        names.append(f"{number}.wav")
        assert (await add(service.client, sounds.wav(400 + 10 * number), names[-1])).status_code == 201
        snapshots.append(backup.back_up(service.catalog.folder, tmp_path / "copies", lambda *_: None).snapshot)
    for sort, expected in (("created", names), ("-created", names[::-1])):
        seen, cursor = [], None
        while True:
            query = {"sort": sort, "limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await service.client.get("/clips", params=query)).json()
            seen += [clip["filename"] for clip in page["clips"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == expected
    assert [one.name for one in backup.snapshots(tmp_path / "copies")] == [one.name for one in snapshots]
    assert backup.snapshots(tmp_path / "copies")[-1].clips == len(names)
    assert await ready(service.client) == 200


# A release that is too old


def test_a_library_of_a_newer_release(tmp_path: Path) -> None:
    with SqliteLibrary.open(tmp_path, dim=8, checkpoint="c") as library:
        library.add(new_clip(1))
    newer = [*store.MIGRATIONS, "CREATE TABLE of_the_future (a INTEGER) STRICT;"]
    store.Store(tmp_path / "catalog.sqlite3", newer).close()
    before = (tmp_path / "catalog.sqlite3").read_bytes()
    with pytest.raises(
        LibraryError, match=f"format {len(newer)}, but this release reads formats up to {len(newer) - 1}.*newer"
    ):
        SqliteLibrary.open(tmp_path, dim=8, checkpoint="c")
    assert (tmp_path / "catalog.sqlite3").read_bytes() == before


def test_a_database_that_is_older_than_its_audio(tmp_path: Path) -> None:
    """Somebody put an old copy of it back: what it does not name is no leftover of a crash."""
    data, aside = tmp_path / "data", tmp_path / "old"
    with SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        library.add(new_clip(0))
    aside.write_bytes((data / "catalog.sqlite3").read_bytes())
    with SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        library.add_many([new_clip(n) for n in range(1, 150)])
    newest = (data / "catalog.sqlite3").read_bytes()
    (data / "catalog.sqlite3").write_bytes(aside.read_bytes())
    with SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        assert len(library) == 1 and "149 audio files" in " ".join(library.recovery_report)
    (data / "catalog.sqlite3").write_bytes(newest)
    with SqliteLibrary.open(data, dim=8, checkpoint="c") as library:
        assert len(library) == 150 and not library.recovery_report
