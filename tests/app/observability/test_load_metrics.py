"""Metrics to scale on: the backlog in seconds of sound, and requests in progress."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI


async def sample(client: httpx.AsyncClient, name: str) -> float:
    """The value of a sample of GET /metrics."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_backlog_and_requests_in_progress(
    make_app: Callable[..., FastAPI],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    sounds: SimpleNamespace,
) -> None:
    """While a batch runs, queued sound is counted as the model will compute it: padded to whole buckets."""
    app, running = make_app(max_batch_windows=1), threading.Event()
    running.set()
    fake_model.before = lambda: running.wait(60)
    async with app.router.lifespan_context(app), open_client(app) as client:
        backlog, inflight = 'finelap_queue_seconds{lane="audio"}', "finelap_inflight_requests"
        assert (await sample(client, backlog), await sample(client, inflight)) == (0, 0)
        running.clear()
        uploads = [
            asyncio.create_task(client.post("/embed", files={"files": ("a.wav", sounds.wav(400, seconds))}))
            for seconds in (10.0, 1.2, 1.2, 5.0)
        ]
        try:
            for _ in range(3000):
                await asyncio.sleep(0.01)
                if app.state.service.engine.audio_lane.depth == 3:
                    break
            seconds, busy = await sample(client, backlog), await sample(client, inflight)
        finally:
            running.set()
        assert [answer.status_code for answer in await asyncio.gather(*uploads)] == [200] * 4
        frame = fake_model.frame_hop
        padded = {10.0: 64 * frame, 1.2: 8 * frame, 5.0: 32 * frame}
        # one of the four is with the model, and which one depends on the decoders
        whole = padded[10.0] + 2 * padded[1.2] + padded[5.0]
        assert any(abs(seconds - (whole - one)) < 1e-6 for one in padded.values()), seconds
        assert busy == 4  # neither the scrapes nor health checks
        assert (await sample(client, backlog), await sample(client, inflight)) == (0, 0)


async def test_failed_and_rejected_requests_end(
    client: httpx.AsyncClient, fake_model: Any, sounds: SimpleNamespace
) -> None:
    fake_model.fail_on = 400
    assert (await client.post("/embed", files={"files": ("a.wav", sounds.wav(400))})).status_code == 500
    assert (await client.get("/search")).status_code == 422 and (await client.get("/nowhere")).status_code == 404
    assert (await client.head("/info")).status_code == 200
    assert await sample(client, "finelap_inflight_requests") == 0
