"""The page at `/` and its files under `/web/`: what the browser may keep, and what the page is told before it starts.

Knows the folder of the page; nothing of what the page does.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).resolve().parents[1] / "web"
VENDOR = WEB / "vendor"  # wavesurfer, put there by app/web/install.py
_NO_PAGE = "<!doctype html><title>FineLAP</title><h1>FineLAP</h1><p>See <a href='/docs'>the API</a>.</p>"
_ROOT = '<html lang="en">'
_SCRIPT = "<script "


class PageFiles(StaticFiles):
    """Files that a browser keeps but asks about each time: an ETag makes that cheap, and an upgrade shows at once."""

    def __init__(self) -> None:
        super().__init__(directory=WEB)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def page(needs_key: bool, nonce: str) -> str:
    """The page's HTML. Its root says whether there is a wavesurfer to load and whether the service wants a key.

    `nonce` (see app.server.security) is its script's, which passes it on to wavesurfer.

    So the page asks for neither in vain: browsers log failed requests as errors.
    """
    try:
        html = (WEB / "index.html").read_text(encoding="utf-8")
    except FileNotFoundError:
        return _NO_PAGE
    told = [name for name, so in (("data-key", needs_key), ("data-vendor", VENDOR.is_dir())) if so]
    html = html.replace(_ROOT, " ".join([_ROOT[:-1], *told]) + ">", 1)
    return html.replace(_SCRIPT, f'<script nonce="{nonce}" ', 1)
