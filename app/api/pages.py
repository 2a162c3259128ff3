"""The HTML pages: the web page at `/` with its files below `/web/`, and the API reference at `/docs`.

Nothing is loaded from other hosts: the page's libraries are vendored by app/web/install.py, and Swagger UI comes with
the package fastapi-offline.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.server.prefix import prefix_of
from app.server.security import docs_policy, nonce

WEB = Path(__file__).resolve().parents[1] / "web"
VENDOR = WEB / "vendor"  # wavesurfer, installed by app/web/install.py
_NO_PAGE = "<!doctype html><title>FineLAP</title><h1>FineLAP</h1><p>See <a href='docs'>the API</a>.</p>"
_ROOT = '<html lang="en">'
_SCRIPT = "<script "
_DOCS_FILES = "/docs/files"


def add_pages(app: FastAPI) -> None:
    """Adds /docs and the files of both pages to the app; app.api.system serves `/` itself."""
    swagger = Path(str(resources.files("fastapi_offline"))) / "static"
    app.mount(_DOCS_FILES, StaticFiles(directory=swagger), name="docs")
    if WEB.is_dir():
        app.mount("/web", GZipMiddleware(_WebFiles(directory=WEB), minimum_size=1024, compresslevel=6), name="web")

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        # relative to this document's own address where the prefix is not known: OpenAPI 3.1, section 4.8.5
        servers = [{"url": prefix_of(request.scope) or "./"}]
        return JSONResponse(app.openapi() | {"servers": servers}, headers={"Vary": "X-Forwarded-Prefix"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page_nonce = nonce()
        page = get_swagger_ui_html(
            # relative, so that it works behind a proxy that adds a path prefix
            openapi_url="openapi.json",
            title=f"{app.title}: HTTP API",
            swagger_js_url=f"{_DOCS_FILES[1:]}/swagger-ui-bundle.js",
            swagger_css_url=f"{_DOCS_FILES[1:]}/swagger-ui.css",
            swagger_favicon_url=f"{_DOCS_FILES[1:]}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # otherwise swagger.io is called for every public host
        )
        html = bytes(page.body).decode().replace("<script>", f'<script nonce="{page_nonce}">')
        return HTMLResponse(html, headers={"Content-Security-Policy": docs_policy(page_nonce)})


def web_page(needs_key: bool, nonce: str) -> str:
    """The web page's HTML, whose scripts carry `nonce` (see app.server.security).

    Attributes of the root say whether the service requires an API key and whether wavesurfer is installed. The page
    would otherwise have to try, and browsers log failed requests as errors.
    """
    try:
        html = (WEB / "index.html").read_text(encoding="utf-8")
    except FileNotFoundError:
        return _NO_PAGE
    attributes = [name for name, is_set in (("data-key", needs_key), ("data-vendor", VENDOR.is_dir())) if is_set]
    html = html.replace(_ROOT, " ".join([_ROOT[:-1], *attributes]) + ">", 1)
    return html.replace(_SCRIPT, f'<script nonce="{nonce}" ', 1)


class _WebFiles(StaticFiles):
    """Files that browsers cache but revalidate by ETag, so that an upgrade shows at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
