"""The service itself: health checks, info, metrics, and the web page."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from importlib import metadata

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from app.api import examples
from app.api.openapi import example, problems
from app.api.pages import web_page
from app.api.requests import Serving
from app.api.schemas import MAX_TEXT, MAX_TEXTS, Health, Info, Limits, ModelInfo
from app.audio.errors import MIN_DURATION
from app.server.security import nonce, page_policy
from app.state import AppState, ReadinessMonitor, check_ready

router = APIRouter()


def version() -> str:
    """The installed version; "0" in a checkout that is not installed."""
    try:
        return metadata.version("finelap")
    except metadata.PackageNotFoundError:
        return "0"


@router.get(
    "/health/live",
    tags=["health"],
    summary="Liveness probe",
    responses=example(examples.HEALTH, problems(400, 405, 414, 500)),
)
async def live() -> Health:
    return Health()


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Readiness probe",
    responses=example(examples.HEALTH, problems(400, 405, 414, 500, 503)),
)
async def ready(state: Serving) -> Health:
    """Returns 200 only while the model passes a real forward pass and the library is open."""
    await check_ready(state)
    return Health()


@router.get(
    "/info",
    tags=["service"],
    summary="Model, library and limits",
    responses=example(examples.INFO, problems(400, 401, 405, 413, 414, 500, 503)),
)
async def info(state: Serving) -> Info:
    engine, settings = state.engine, state.settings
    return Info(
        version=version(),
        model=ModelInfo(
            name=engine.name,
            stamp=engine.stamp,
            dim=engine.dim,
            frame_hop=None if engine.traits.frames is None else engine.frame_hop,
            device=engine.device,
            dtype=engine.dtype,
            match_cutoff=None if engine.matching is None else engine.matching.cutoff,
            **asdict(engine.traits),
        ),
        clips=await state.read(len, state.library),
        limits=Limits(
            max_upload_mb=settings.max_upload_mb,
            max_duration_s=settings.max_duration_s,
            min_duration_s=MIN_DURATION,
            max_phrases=settings.max_phrases,
            max_texts=MAX_TEXTS,
            max_text_length=MAX_TEXT,
        ),
    )


@router.get(
    "/metrics",
    tags=["service"],
    summary="Prometheus metrics",
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Metrics in the Prometheus text format",
        },
        **problems(400, 401, 405, 413, 414, 500),
    },
    response_class=PlainTextResponse,
)
async def metrics(request: Request) -> Response:
    state: AppState = request.app.state.service  # also while loading and shutting down
    monitor: ReadinessMonitor = request.app.state.readiness
    state.metrics.ready.set(await monitor.poll())
    text = await asyncio.to_thread(state.metrics.render)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    state: AppState = request.app.state.service  # also while loading: the page waits until the service is ready
    page_nonce = nonce()
    html = await asyncio.to_thread(web_page, bool(state.settings.api_keys), page_nonce)
    return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Content-Security-Policy": page_policy(page_nonce)})
