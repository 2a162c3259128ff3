"""The page in a real browser, Debian's Chromium, against a real server with the small checkpoint and the demo sounds.

    open_page(width=..., path=..., scheme=..., server=...)  a tab of its own, in a browser profile of its own
    page, phone                                             the page at 1280 and at 390 pixels
    server                                                  one server for all tests here: what a test adds it removes
    complaints                                              what the browser complained about: any fails the test
    check_accessibility(page)                               no serious finding of axe-core
    shoot(page, name)                                       a picture, where FINELAP_SCREENSHOTS names a folder

Chromium is FINELAP_CHROMIUM, /usr/bin/chromium or one on PATH; Playwright comes with the test extra, and downloads
nothing. Without one of the two the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.common import SOUNDS, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

WIDE, NARROW = 1280, 390  # CSS pixels
HEIGHTS = {WIDE: 800, NARROW: 844}
PATIENCE = 30_000  # ms: the machine may be busy
VENDOR = (
    Path(__file__).resolve().parent / "vendor"
)  # axe-core, put there by `python app/web/install.py tests/e2e/browser`
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
_GRAVE = ("serious", "critical")  # axe-core's words


def chromium() -> str | None:
    """The browser's program, if there is one."""
    named = os.environ.get("FINELAP_CHROMIUM")
    if named:
        return named
    usual = "/usr/bin/chromium"
    return usual if Path(usual).exists() else shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Of the module: Playwright's event loop is in the way of asynchronous tests."""
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium: install Debian's package, or name one in FINELAP_CHROMIUM")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(small_checkpoint: Path) -> Iterator[Server]:
    """`finelap serve` with the demo sounds in its library."""
    if chromium() is None:
        pytest.skip("there is no Chromium: install Debian's package, or name one in FINELAP_CHROMIUM")
    if not SOUNDS.is_dir():
        pytest.skip("the demo sounds are not in this checkout")
    with Server(demo=True) as running:
        yield running


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """`expect` waits as long as everything else does."""
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=PATIENCE)
    yield
    expect.set_options(timeout=5_000)


class Complaints:
    """Errors in the console, uncaught ones, requests that failed or went elsewhere."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._allowed: list[re.Pattern[str]] = []

    def allow(self, pattern: str) -> None:
        """What the test provokes: browsers log every answer that is an error."""
        self._allowed.append(re.compile(pattern))

    def listen(self, page: Page, origin: str) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._said.append(f"uncaught: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: self._left(request, origin))

    @property
    def open(self) -> list[str]:
        """Those that are not allowed."""
        return [line for line in self._said if not any(pattern.search(line) for pattern in self._allowed)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self._said.append(f"console: {message.text} ({message.location.get('url')})")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page gives up what nobody waits for any more
            self._said.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _left(self, request: Request, origin: str) -> None:
        if not request.url.startswith((origin + "/", "data:", "blob:")):
            self._said.append(f"elsewhere: {request.url}")


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    kept = Complaints()
    yield kept
    assert not kept.open, "\n".join(kept.open)


@pytest.fixture
def open_page(browser: Browser, server: Server, complaints: Complaints) -> Iterator[Callable[..., Page]]:
    """Opens the page in a profile of its own, of another `server` too; path None: nothing yet. Closed at the end."""
    contexts = []

    def open_page(
        width: int = WIDE, path: str | None = "/", *, scheme: str = "light", server: Server = server, **options: Any
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": HEIGHTS.get(width, 800)},
            color_scheme=scheme,
            has_touch=width == NARROW,
            locale="en-GB",
            timezone_id="Europe/London",
            reduced_motion="reduce",
            **options,
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        complaints.listen(page, server.address)
        if path is not None:
            page.goto(server.address + path)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The page on a desk: 1280 pixels."""
    return open_page(WIDE)


@pytest.fixture
def phone(open_page: Callable[..., Page]) -> Page:
    """The page on a phone: 390 pixels."""
    return open_page(NARROW)


@pytest.fixture
def check_accessibility() -> Callable[[Page], None]:
    """Fails on what axe-core finds serious or critical, and where the page is wider than its window."""
    script = VENDOR / "axe.min.js"
    if not script.is_file():
        pytest.skip("axe-core is not here: python app/web/install.py tests/e2e/browser")

    def check(page: Page) -> None:
        page.evaluate(script.read_text(encoding="utf-8"))
        # preload: style sheets read in advance, which the page's policy forbids and these rules do not need
        options = "{preload: false, resultTypes: ['violations']}"
        found = page.evaluate(f"axe.run(document, {options}).then(({{violations}}) => violations)")
        lines = [
            f"{finding['impact']}: {finding['help']} ({finding['id']}): {node['html'][:160]} {node['failureSummary']}"
            for finding in found
            if finding["impact"] in _GRAVE
            for node in finding["nodes"]
        ]
        assert not lines, "\n".join(lines)
        page_width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert page_width <= window, f"the page is {page_width} pixels wide in a window of {window}"

    return check


@pytest.fixture
def shoot() -> Callable[..., None]:
    """Keeps a picture of the window as `name`.png in the folder FINELAP_SCREENSHOTS, if that is set."""
    folder = os.environ.get("FINELAP_SCREENSHOTS")

    def shoot(page: Page, name: str, **options: Any) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", **options)

    return shoot
