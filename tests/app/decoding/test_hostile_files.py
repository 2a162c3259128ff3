"""Hostile files in isolated decoders: each has the expected outcome, and no process or descriptor remains."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from app.audio.decode import DecoderFailed, MediaError
from app.decoding import protocol
from app.decoding.pool import DecoderPool
from app.errors import kind_of
from tests.support import hostile


def _fork_server(pool: DecoderPool) -> psutil.Process:
    assert pool._fork_server._process is not None
    return psutil.Process(pool._fork_server._process.pid)


async def _drain(pool: DecoderPool, file: Any) -> np.ndarray:
    async with pool.open(io.BytesIO(file.data), file.name, hostile.LIMIT) as stream:
        return np.concatenate([block async for block in stream])


@pytest.fixture(scope="module")
def hostile_files() -> list[Any]:
    return hostile.hostile_files(np.random.default_rng(7))


def test_hostile_files_are_reproducible(hostile_files: list[Any]) -> None:
    again = hostile.hostile_files(np.random.default_rng(7))
    assert again == hostile_files


async def test_hostile_files(hostile_files: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file decodes or raises its error in bounded time and leaves nothing behind."""
    request = protocol.REQUEST
    # CPU seconds, because wall-clock time depends on the load
    monkeypatch.setattr(
        protocol, "REQUEST", SimpleNamespace(pack=lambda longest, _, rate: request.pack(longest, 20.0, rate))
    )
    pool = DecoderPool(workers=2, max_workers=4)
    await pool.start()
    server = _fork_server(pool)
    memory = psutil.Process().memory_info().rss
    surprises: list[str] = []

    async def one(file: Any) -> None:
        try:
            samples = await _drain(pool, file)
        except MediaError as error:
            assert str(error).startswith(f"{file.name}: ")
            # some files do exceed the memory limit
            crashed = isinstance(error, DecoderFailed) and "memory limit" not in str(error)
            if file.expect == "ok" or crashed or kind_of(error).status not in file.statuses:
                surprises.append(f"{error!r} ({kind_of(error).status})")
        else:
            if file.expect == "error" or not len(samples) or not np.isfinite(samples).all():
                surprises.append(f"{file.name}: {len(samples)} samples")

    slots = asyncio.Semaphore(4)

    async def in_turn(file: Any) -> None:
        async with slots:
            await one(file)

    await asyncio.gather(*(in_turn(file) for file in hostile_files))
    assert not surprises, "\n".join(surprises)
    while len(pool._idle) != pool.alive:
        await asyncio.sleep(0.01)
    assert _fork_server(pool) == server and 2 <= pool.alive <= 4
    assert psutil.Process().memory_info().rss - memory < 100 << 20
    assert sum(child.memory_info().rss for child in server.children()) < (pool.alive * 150) << 20
    await pool.close()
