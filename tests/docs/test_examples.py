"""Runs the examples of every page from top to bottom and compares their output with the page.

A block runs unless the line above its fence gives a reason not to (tests/docs/blocks.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from benchmarks.common import REPO
from tests.docs.blocks import read_blocks
from tests.docs.runner import Reader

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
RUN = ("sh", "console", "json", "python")
BLOCKS = {page.relative_to(REPO).as_posix(): read_blocks(page, REPO) for page in PAGES}


TO_RUN = {page: [b for b in blocks if b.language in RUN and b.reason is None] for page, blocks in BLOCKS.items()}


# what a newcomer reads first, and every endpoint; the other pages take minutes
QUICK = ("README.md", "docs/guide/getting-started.md", "docs/reference/http-api.md")
CASES = [
    pytest.param(page, marks=() if page in QUICK else pytest.mark.slow) for page, blocks in TO_RUN.items() if blocks
]


@pytest.mark.parametrize("page", CASES)
def test_examples_run(page: str, reader: Reader) -> None:
    for block in TO_RUN[page]:
        reader.read(block)
    check = _AFTERWARDS.get(page)
    if check is not None:
        check(reader)


def _http_api(reader: Reader) -> None:
    """The page has every endpoint of the service, almost all of them in an example."""
    document = httpx.get(f"{reader.address}/openapi.json", timeout=60).json()
    every = {f"{method.upper()} {path}" for path, calls in document["paths"].items() for method in calls}
    patterns = {
        call: re.compile(re.sub(r"\{\w+\}", "[^/]+", re.escape(call).replace(r"\{", "{").replace(r"\}", "}")))
        for call in every
    }
    called = set()
    for method, url, _ in reader.calls:
        call = f"{method} {unquote(urlsplit(url).path)}"
        named = call if call in every else next((name for name, fits in patterns.items() if fits.fullmatch(call)), None)
        assert named is not None, f"{call} is not an endpoint of the service"
        called.add(named)
    prose = {
        "GET /concepts/{key}/examples/{example_id}/audio",
        "DELETE /clips/{clip_id}",
        "GET /clips/{clip_id}/similar",
        "GET /clips/duplicates",
        "POST /clips/reference",
        "PATCH /collections/{name}",
        "GET /v1/models/{model}",
    }
    assert every - called <= prose
    page = (REPO / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    for call in every - called - {"GET /v1/models/{model}"}:
        assert call.replace("{clip_id}", "{id}") in page
    assert len(reader.names["texts"].data) == 2 and len(reader.names["sounds"].data[0].embedding) == 512


def _client(reader: Reader) -> None:
    assert Path("copy.wav").read_bytes() == Path("dog.wav").read_bytes()
    names: dict[str, Any] = reader.names
    assert names["png"].startswith(b"\x89PNG") and names["outline"].shape == (200, 2)
    assert names["texts"].shape == (2, 512) and names["sounds"].audio[0].frames.shape[1] == 512


_AFTERWARDS = {"docs/reference/http-api.md": _http_api, "docs/reference/client.md": _client}


def test_the_api_page_lists_every_status() -> None:
    from app.errors import KINDS

    page = (REPO / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    listed = set(map(int, re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)))
    assert listed == {kind.status for kind in KINDS.values()} | {405}
