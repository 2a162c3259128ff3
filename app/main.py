"""Putting the service together: settings, engine and library in, a FastAPI app out.

`create_app` takes parts that are ready; `build_app` makes them while the app already answers /health/live.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from app import errors
from app.api import clips, detect, embed, openai, openapi, search, system
from app.api import docs_page as manual
from app.api import requests as bodies
from app.api.page import WEB, PageFiles
from app.inference.engine import Engine, load_model
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.server.leaving import Leave
from app.server.middleware import Envelope, Gate, Lifeline
from app.server.security import Door, is_local
from app.services.readiness import Readiness
from app.services.waveforms import Waveforms
from app.settings import FAISS, Settings
from app.state import Load, Services
from index import Library, LibraryError, MilvusLibrary, SqliteLibrary

log = logging.getLogger(__name__)

_ABOUT = (
    "Find a sound by describing it, and know when in a recording it happens. Times are seconds; errors are "
    "`application/problem+json` (RFC 9457) with the request's id. HEAD is answered wherever GET is."
)
_ROUTERS = (search.router, clips.router, detect.router, embed.router, openai.router, system.router)


def create_app(settings: Settings, engine: Engine, catalog: Library, tracing: Tracing | None = None) -> FastAPI:
    """The service around a ready engine and library; its lifespan starts and closes both."""

    async def begin(services: Services) -> None:
        await services.open(engine, catalog)

    return _assemble(settings, begin, tracing or Tracing())


def build_app(settings: Settings, stop: Callable[[], None] | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The service for these settings. It answers at once, and is ready when model and library are loaded.

    If they cannot be loaded the reason is logged, kept as `app.state.failure` (an exception), and `stop` is called;
    by default that ends the process with SIGTERM, which servers take as the wish to stop in order.
    """
    app: FastAPI

    async def load(services: Services) -> None:
        try:
            await services.load(_loader(settings))
        except Exception as error:
            app.state.failure = error
            log.critical("The service could not start: %s", error, exc_info=not _is_expected(error))
            (stop or _terminate)()
        finally:
            if not gc.isenabled():  # app.cli.main: of what a start makes nothing is garbage, and it stays
                gc.freeze()
                gc.enable()

    async def begin(services: Services) -> None:
        app.state.loading = asyncio.create_task(load(services))

    app = _assemble(settings, begin, tracing or Tracing())
    return app


def _loader(settings: Settings) -> Load:
    def load() -> tuple[Engine, Library]:
        model = load_model(settings)
        engine = Engine(
            model,
            max_batch_windows=settings.max_batch_windows,
            max_queue_windows=settings.max_queue_windows,
            max_wait=settings.max_wait_ms / 1000,
        )
        return engine, _open_library(settings, model.dim, model.stamp)

    return load


def _open_library(settings: Settings, dim: int, checkpoint: str) -> Library:
    if settings.index_url == FAISS:
        catalog = SqliteLibrary.open(settings.data_dir, dim=dim, checkpoint=checkpoint)
        for line in catalog.healed:
            log.warning("the library in %s: %s", settings.data_dir, line)
        return catalog
    return MilvusLibrary.open(settings.index_url, settings.data_dir, dim=dim, checkpoint=checkpoint)


def _is_expected(error: Exception) -> bool:
    """A checkpoint, library or setting that cannot be used: its message says all, a traceback would hide it."""
    from model.weight_files import CheckpointError

    return isinstance(error, CheckpointError | LibraryError | OSError | ValueError)


def _terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def _assemble(settings: Settings, begin: Callable[[Services], Awaitable[None]], tracing: Tracing) -> FastAPI:
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await begin(services)
        try:
            yield
        finally:
            await services.close(getattr(app.state, "loading", None))

    services = Services(settings, metrics, tracing)
    app = FastAPI(
        title="FineLAP", version=system.version(), description=_ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.services = services
    app.state.readiness = Readiness(services)
    app.state.waveforms = Waveforms()
    app.state.failure = None
    for router in _ROUTERS:
        app.include_router(router)
    manual.add(app)
    if WEB.is_dir():
        app.mount("/web", GZipMiddleware(PageFiles(), minimum_size=1024, compresslevel=6), name="web")
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    # the last added is the outermost
    app.add_middleware(Lifeline, timeout=settings.request_timeout_s, ending=services.ending)
    app.add_middleware(Gate, api_keys=settings.api_keys, max_body=settings.max_upload_bytes)
    app.add_middleware(
        Door,
        hosts=settings.allowed_hosts,
        origins=settings.cors_origins,
        local=is_local(settings.host) and not settings.api_keys,
    )
    app.add_middleware(Envelope, metrics=metrics, tracing=tracing)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "Content-Range"],
        )
    app.add_middleware(Leave, stopping=lambda: services.closing)
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405 and (allowed := _allowed(request.url.path)):
        # the framework names the methods of one route; a path may have several
        error = HTTPException(405, error.detail, {"Allow": ", ".join(sorted(allowed))})
    return errors.problem_response(error, request.url.path)


def _allowed(path: str) -> set[str]:
    """The methods that a path takes."""
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    allowed = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return allowed | {"HEAD"} if "GET" in allowed else allowed


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    bodies.raise_invalid([{**fault, "loc": fault["loc"][1:]} for fault in error.errors()])
