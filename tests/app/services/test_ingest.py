"""Clips that arrive together share a transaction, and one that cannot be written fails alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.services import ingest
from index.records import Clip, LibraryError, NewClip
from index.sqlite.library import SqliteLibrary

Opener = Callable[..., httpx.AsyncClient]


def upload(client: httpx.AsyncClient, name: str, audio: bytes) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(client.post("/clips", files=[("files", (name, audio))]))


async def test_clips_added_during_a_transaction_share_the_next_one(
    make_app: Callable[..., FastAPI],
    open_client: Opener,
    sounds: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []
    going, all_wait = threading.Event(), threading.Event()
    add_many = SqliteLibrary.add_many

    def counted(self: SqliteLibrary, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        batches.append(len(new))
        going.set()
        assert all_wait.wait(60)
        return add_many(self, new)

    monkeypatch.setattr(SqliteLibrary, "add_many", counted)
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        first = upload(client, "first.wav", sounds.wav(400, 0.5))
        assert await asyncio.to_thread(going.wait, 60)
        others = [upload(client, f"{n}.wav", sounds.wav(400, 0.6 + 0.1 * n)) for n in range(8)]
        lane = app.state.service.additions
        while lane.depth < len(others):
            await asyncio.sleep(0.01)
        all_wait.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.status_code for answer in answers] == [201] * 9
        assert (await client.get("/info")).json()["clips"] == 9
    assert batches == [1, 8]


async def test_files_that_arrive_during_a_look_up_share_the_next_one(
    make_app: Callable[..., FastAPI],
    open_client: Opener,
    sounds: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    going, all_wait = threading.Event(), threading.Event()
    find_many = SqliteLibrary.find_many

    def counted(self: SqliteLibrary, hashes: Sequence[str]) -> dict[str, Clip]:
        asked.append(len(hashes))
        going.set()
        assert all_wait.wait(60)
        if len(asked) == 3:
            raise LibraryError("the library does not answer")
        return find_many(self, hashes)

    monkeypatch.setattr(SqliteLibrary, "find_many", counted)
    app = make_app()
    files = [sounds.wav(400, 0.5 + 0.1 * n) for n in range(21)]  # more than there are threads for reading
    async with app.router.lifespan_context(app), open_client(app) as client:
        first = upload(client, "first.wav", files[0])
        assert await asyncio.to_thread(going.wait, 60)
        others = [upload(client, f"{n}.wav", audio) for n, audio in enumerate(files[1:])]
        lane = app.state.service._finds
        while lane.depth < len(others):
            await asyncio.sleep(0.01)
        all_wait.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.status_code for answer in answers] == [201] * 21 and asked == [1, 20]
        failed = await upload(client, "first.wav", files[0])
        assert failed.status_code >= 500
        again = await upload(client, "first.wav", files[0])
        assert again.status_code == 200 and again.json()["clips"] == answers[0].json()["clips"]


async def test_a_clip_that_cannot_be_written_fails_alone(
    make_app: Callable[..., FastAPI],
    open_client: Opener,
    sounds: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_many = SqliteLibrary.add_many

    def failing(self: SqliteLibrary, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        if any(clip.filename == "bad.wav" for clip in new):
            raise LibraryError("this one cannot be written")
        return add_many(self, new)

    monkeypatch.setattr(SqliteLibrary, "add_many", failing)
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        names = ["a.wav", "bad.wav", "b.wav"]
        answers = await asyncio.gather(
            *(upload(client, n, sounds.wav(400, 0.5 + 0.1 * i)) for i, n in enumerate(names))
        )
        assert [answer.status_code for answer in answers][::2] == [201, 201] and answers[1].status_code >= 500
        assert {clip["filename"] for clip in (await client.get("/clips")).json()["clips"]} == {"a.wav", "b.wav"}


async def test_a_large_file_does_not_delay_others(
    make_app: Callable[..., FastAPI],
    open_client: Opener,
    sounds: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copying, finish = threading.Event(), threading.Event()
    add = SqliteLibrary.add

    def slow(self: SqliteLibrary, new: NewClip) -> tuple[Clip, bool]:
        copying.set()
        assert finish.wait(60)
        return add(self, new)

    monkeypatch.setattr(SqliteLibrary, "add", slow)
    large = sounds.wav(400, 3.0)
    monkeypatch.setattr(ingest, "_LARGE", len(large) - 1)
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        first = upload(client, "large.wav", large)
        assert await asyncio.to_thread(copying.wait, 60)
        small: Any = await upload(client, "small.wav", sounds.wav(400, 0.5))
        assert small.status_code == 201 and not first.done()
        finish.set()
        assert (await first).status_code == 201
