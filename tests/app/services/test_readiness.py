"""Metrics that no request produces: readiness, disk space, GPU memory, and counters that start at 0."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.audio import errors as media_errors
from app.errors import KINDS
from app.observability.metrics import Metrics

Make = Callable[..., FastAPI]
Connect = Callable[..., httpx.AsyncClient]


async def numbers(client: httpx.AsyncClient) -> dict[str, float]:
    """All samples of GET /metrics."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def until(client: httpx.AsyncClient, ready: float) -> None:
    async with asyncio.timeout(30):
        while (await numbers(client))["finelap_ready"] != ready:
            await asyncio.sleep(0.01)


async def test_readiness_follows_a_forward_pass(make_app: Make, open_client: Connect, fake_model: Any) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        await until(client, 1)

        def broken() -> None:
            raise RuntimeError("the device is lost")

        fake_model.before = broken
        await until(client, 0)  # a passed check is valid for a second
        assert (await client.get("/health/ready")).status_code == 503
        fake_model.before = lambda: None
        await until(client, 1)
    assert (await numbers(open_client(app)))["finelap_ready"] == 0  # closed


async def test_a_hanging_model_does_not_block_the_metrics(
    make_app: Make, open_client: Connect, fake_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("app.state.READY_TIMEOUT_S", 2.0)
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        await until(client, 1)
        fake_model.before = lambda: gate.wait(60)
        try:
            await asyncio.sleep(1.1)
            async with asyncio.timeout(30):
                assert (await numbers(client))["finelap_ready"] == 1  # the check is still running
                await until(client, 0)
        finally:
            gate.set()
        await until(client, 1)


async def test_disk_metrics_and_counters_exist_from_the_start(
    make_app: Make, open_client: Connect, tmp_path: Path
) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), open_client(app) as client:
        told = await numbers(client)
    disk = shutil.disk_usage(tmp_path)
    assert told["finelap_disk_size_bytes"] == disk.total and 0 < told["finelap_disk_free_bytes"] <= disk.total
    for reason in media_errors.REASONS:
        assert told[f'finelap_decode_failures_total{{reason="{reason}"}}'] == 0
    slugs = {kind.slug for kind in KINDS.values() if kind.status in (413, 429, 503, 507)}
    assert {"queue-full", "storage-full", "body-too-large"} <= slugs
    assert all(told[f'finelap_rejected_total{{reason="{slug}"}}'] == 0 for slug in slugs)
    assert told["process_resident_memory_bytes"] > 1e6


def test_gpu_memory_metrics(tmp_path: Path) -> None:
    metrics = Metrics()
    assert b"finelap_gpu_memory_bytes{" not in metrics.render()
    metrics.watch_gpu(lambda kind: {"allocated": 5, "reserved": 8}[kind], ("allocated", "reserved"))
    text = metrics.render().decode()
    assert 'finelap_gpu_memory_bytes{kind="allocated"} 5.0' in text
    assert 'finelap_gpu_memory_bytes{kind="reserved"} 8.0' in text
    metrics.watch_disk(tmp_path / "nothing")
    assert "finelap_disk_free_bytes NaN" in metrics.render().decode()
