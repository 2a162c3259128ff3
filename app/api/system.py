"""About the service itself: health, info, metrics, and the page."""

from __future__ import annotations

import asyncio
from importlib import metadata

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from app.api import examples
from app.api import page as pages
from app.api.openapi import example, problems
from app.api.schemas import MAX_TEXT, MAX_TEXTS, Health, Info, Limits, ModelInfo
from app.audio import errors as media_errors
from app.server.security import nonce, page_policy
from app.services.readiness import Readiness, check
from app.state import Services, Serving

router = APIRouter()


def version() -> str:
    """The installed version, "0" in a checkout that is not installed."""
    try:
        return metadata.version("finelap")
    except metadata.PackageNotFoundError:
        return "0"


@router.get(
    "/health/live",
    tags=["health"],
    summary="Is the process alive?",
    responses=example(examples.HEALTH, problems(400, 405, 414, 500)),
)
async def live() -> Health:
    return Health()


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Can it work now?",
    responses=example(examples.HEALTH, problems(400, 405, 414, 500, 503)),
)
async def ready(services: Serving) -> Health:
    """200 only while the model answers a real forward pass and the library is open."""
    await check(services)
    return Health()


@router.get(
    "/info",
    tags=["service"],
    summary="Model, library and limits",
    responses=example(examples.INFO, problems(400, 401, 405, 413, 414, 500, 503)),
)
async def info(services: Serving) -> Info:
    engine, settings = services.engine, services.settings
    return Info(
        version=version(),
        model=ModelInfo(
            name=engine.name,
            stamp=engine.stamp,
            dim=engine.dim,
            frame_hop=engine.frame_hop,
            device=engine.device,
            dtype=engine.dtype,
        ),
        clips=await services.read(len, services.catalog),
        limits=Limits(
            max_upload_mb=settings.max_upload_mb,
            max_duration_s=settings.max_duration_s,
            min_duration_s=media_errors.MIN_DURATION,
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
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The text exposition"},
        **problems(400, 401, 405, 413, 414, 500),
    },
    response_class=PlainTextResponse,
)
async def metrics(request: Request) -> Response:
    services: Services = request.app.state.services  # also while loading and closing
    readiness: Readiness = request.app.state.readiness
    services.metrics.ready.set(await readiness.look())
    text = await asyncio.to_thread(services.metrics.render)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    services: Services = request.app.state.services  # also while loading: the page then waits
    word = nonce()
    html = await asyncio.to_thread(pages.page, bool(services.settings.api_keys), word)
    return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Content-Security-Policy": page_policy(word)})
