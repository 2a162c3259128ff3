"""The page's shell in a browser: it loads whole, small and without a complaint, and lets everybody in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from benchmarks.common import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

TABS = ("search", "detect", "library", "concepts")
MOST_SCRIPT = 300_000  # bytes over the wire


def wait_until_ready(page: Page) -> None:
    page.wait_for_selector("#status[data-state=ready]")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_is_accessible(
    open_page: Callable[..., Page], check_accessibility: Callable[[Page], None], width: int, scheme: str
) -> None:
    page = open_page(width, scheme=scheme)
    wait_until_ready(page)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f"#{tab}:not([hidden])", state="attached")
        check_accessibility(page)


def test_scripts_are_small(open_page: Callable[..., Page], server: Server) -> None:
    """All scripts that any tab loads, the libraries included, as they come over the wire."""
    scripts: list[Response] = []

    def keep(response: Response) -> None:
        if response.url.partition("?")[0].endswith(".js"):
            scripts.append(response)

    clip = server.get("/clips", limit=1).json()["clips"][0]["id"]
    page = open_page(path=None)
    page.on("response", keep)
    for address in ("/", "/?tab=detect", "/?tab=library", "/?tab=concepts", f"/?open={clip}"):
        page.goto(server.address + address)
        wait_until_ready(page)
        page.wait_for_load_state("networkidle")
    sizes: dict[str, int] = {}
    for script in scripts:  # later ones may come from the cache
        sizes[script.url] = max(sizes.get(script.url, 0), script.request.sizes()["responseBodySize"])
    assert {url.rpartition("/")[2] for url in sizes} >= {"main.js", "api.js", "dom.js"}
    assert 0 < sum(sizes.values()) < MOST_SCRIPT, sizes
    assert server.get("/web/search.js").headers["content-encoding"] == "gzip"


def test_tabs_are_reached_by_keys(page: Page) -> None:
    def shown() -> list[str]:
        return page.eval_on_selector_all("[role=tabpanel]:not([hidden])", "panels => panels.map(({id}) => id)")

    wait_until_ready(page)
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-detect" and shown() == ["detect"]
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-library" and shown() == ["library"]
    page.keyboard.press("1")
    assert shown() == ["search"]
    page.go_back()
    page.wait_for_selector("#library:not([hidden])", state="attached")
    assert shown() == ["library"]


def test_a_model_of_whole_clips_has_neither_detection_nor_moments(
    open_page: Callable[..., Page], server: Server
) -> None:
    info = server.get("/info").json()
    info["model"] |= {"frames": None, "frame_hop": None}
    page = open_page(path=None)
    page.route("**/info", lambda route: route.fulfill(json=info))
    with page.expect_request(lambda request: request.url.endswith("/search") and request.method == "POST") as asked:
        page.goto(f"{server.address}/?q=rain")
    assert asked.value.post_data_json["moments"] is False
    wait_until_ready(page)
    assert not page.is_visible("#tab-detect") and page.is_visible("#tab-library")
    page.click("#filter-toggle")
    assert page.is_visible("#mode") and not page.is_visible("input[name=mode][value=moments]")
    page.keyboard.press("2")
    assert page.is_visible("#search") and not page.is_visible("#detect")
    page.goto(f"{server.address}/?tab=detect")
    wait_until_ready(page)
    assert page.is_visible("#search") and not page.is_visible("#detect")
