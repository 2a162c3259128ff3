"""Application factory: assembles settings, engine and library into a FastAPI app.

`create_app` takes an engine and a library; `build_app` loads them while the app already serves /health/live.
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
from starlette.responses import Response
from starlette.routing import Route

from app import errors
from app.agents.endpoint import McpEndpoint
from app.api import (
    clips,
    collections,
    concepts,
    detect,
    embed,
    excerpts,
    jobs,
    openai,
    openapi,
    requests,
    search,
    stream,
    system,
)
from app.api.pages import add_pages
from app.inference.engine import Engine, load_model
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.server.middleware import AccessControl, RequestCancellation, RequestContext
from app.server.prefix import PathPrefix
from app.server.security import OriginGuard, is_local
from app.server.shutdown import GracefulShutdown
from app.services.concepts import warm_up
from app.services.jobs import JobRunner
from app.services.waveforms import LoudnessCache, PeaksCache
from app.services.words import sound_stems
from app.settings import Settings
from app.state import AppState, Load, ReadinessMonitor
from index import Library, LibraryError, MilvusLibrary, SqliteLibrary

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Search audio by describing it, and detect when sounds occur in a recording. Times are in seconds. Errors are "
    "`application/problem+json` (RFC 9457) with the request's id. HEAD is supported wherever GET is."
)
_ROUTERS = (
    search.router,
    excerpts.router,
    collections.router,
    clips.router,
    detect.router,
    stream.router,
    concepts.router,
    jobs.router,
    embed.router,
    openai.router,
    system.router,
)


def create_app(settings: Settings, engine: Engine, library: Library, tracing: Tracing | None = None) -> FastAPI:
    """The app around an engine and a library; its lifespan starts and closes both."""

    async def start(state: AppState) -> None:
        await state.open(engine, library)

    return _assemble(settings, start, tracing or Tracing())


def build_app(settings: Settings, stop: Callable[[], None] | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The app for these settings. It starts at once, and becomes ready when the model and the library are loaded.

    If loading fails the reason is logged and stored as `app.state.failure` (an exception), and `stop` is called; by
    default that raises SIGTERM, on which servers shut down gracefully.
    """
    app: FastAPI

    async def load(state: AppState) -> None:
        try:
            await state.load(_loader(settings))
            await asyncio.to_thread(warm_up)  # once the service is ready
        except Exception as error:
            app.state.failure = error
            log.critical("The service failed to start: %s", error, exc_info=not _is_expected(error))
            (stop or _terminate)()
        finally:
            if not gc.isenabled():  # disabled by app.cli.main: nothing that startup allocates is garbage
                gc.freeze()
                gc.enable()

    async def start(state: AppState) -> None:
        app.state.loading = asyncio.create_task(load(state))

    app = _assemble(settings, start, tracing or Tracing())
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
        sound_stems()  # now, so that the first search does not wait for them
        return engine, _open_library(settings, model.dim, model.stamp)

    return load


def _open_library(settings: Settings, dim: int, checkpoint: str) -> Library:
    if settings.in_folder:
        library = SqliteLibrary.open(settings.data_dir, dim=dim, checkpoint=checkpoint, files=settings.audio_url)
        library.allow_references(settings.reference_roots)
        for line in library.recovery_report:
            log.warning("the library in %s: %s", settings.data_dir, line)
        return library
    return MilvusLibrary.open(settings.index_url, settings.data_dir, dim=dim, checkpoint=checkpoint)


def _is_expected(error: Exception) -> bool:
    """Whether this is an unusable checkpoint, library or setting: its message suffices, without a traceback."""
    from model.weight_files import CheckpointError

    return isinstance(error, CheckpointError | LibraryError | OSError | ValueError)


def _terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def _assemble(settings: Settings, start: Callable[[AppState], Awaitable[None]], tracing: Tracing) -> FastAPI:
    metrics = Metrics()
    state = AppState(settings, metrics, tracing)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.jobs = JobRunner(state)
        await start(state)
        app.state.jobs.start()
        try:
            yield
        finally:
            await agents.close()
            await app.state.jobs.close()
            await state.close(getattr(app.state, "loading", None))

    app = FastAPI(
        title="FineLAP",
        version=system.version(),
        description=_DESCRIPTION,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # app.api.pages serves it
    )
    app.state.service = state
    app.state.readiness = ReadinessMonitor(state)
    app.state.peaks, app.state.loudness = PeaksCache(), LoudnessCache()
    app.state.failure = None
    for router in _ROUTERS:
        app.include_router(router)
    add_pages(app)
    agents = McpEndpoint(app, system.version(), settings.mcp_write)
    app.router.routes.append(Route("/mcp", agents, methods=["GET", "POST", "DELETE"], include_in_schema=False))
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    _add_middleware(app, state)
    return app


def _add_middleware(app: FastAPI, state: AppState) -> None:
    """The last one added is the outermost."""
    settings = state.settings
    app.add_middleware(RequestCancellation, timeout=settings.request_timeout_s, cutoff=state.cutoff)
    app.add_middleware(AccessControl, api_keys=settings.api_keys, max_body=settings.max_upload_bytes)
    app.add_middleware(
        OriginGuard,
        hosts=settings.allowed_hosts,
        origins=settings.cors_origins,
        local=is_local(settings.host) and not settings.api_keys,
    )
    app.add_middleware(RequestContext, metrics=state.metrics, tracing=state.tracing)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "Content-Range"],
        )
    app.add_middleware(GracefulShutdown, stopping=lambda: state.closing)
    app.add_middleware(PathPrefix, root_path=settings.root_path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405 and (allowed := _allowed(request.url.path)):
        # Starlette lists the methods of one route only, and a path may have several routes
        error = HTTPException(405, error.detail, {"Allow": ", ".join(sorted(allowed))})
    return errors.problem_response(error, request.url.path)


def _allowed(path: str) -> set[str]:
    """The methods that a path supports."""
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    allowed = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return allowed | {"HEAD"} if "GET" in allowed else allowed


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    requests.raise_invalid([{**fault, "loc": fault["loc"][1:]} for fault in error.errors()])
