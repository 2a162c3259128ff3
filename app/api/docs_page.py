"""The API's description for people: /docs, which works without a network.

The files of Swagger UI come from the package fastapi-offline; nothing is fetched from elsewhere.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

from app.server.security import docs_policy, nonce

_FILES = "/docs/files"


def add(app: FastAPI) -> None:
    """Adds /docs and its files to the app."""
    app.mount(_FILES, StaticFiles(directory=Path(str(resources.files("fastapi_offline"))) / "static"), name="docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        word = nonce()
        answer = get_swagger_ui_html(
            # relative, so that it works behind a proxy that adds a path
            openapi_url="openapi.json",
            title=f"{app.title}: HTTP API",
            swagger_js_url=f"{_FILES[1:]}/swagger-ui-bundle.js",
            swagger_css_url=f"{_FILES[1:]}/swagger-ui.css",
            swagger_favicon_url=f"{_FILES[1:]}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # which is asked about every service that is not localhost
        )
        html = bytes(answer.body).decode().replace("<script>", f'<script nonce="{word}">')
        return HTMLResponse(html, headers={"Content-Security-Policy": docs_policy(word)})
