"""The microphone in a browser: Chromium plays a file as its microphone, and its events appear while it listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.common import Server
from tests.e2e.browser.conftest import _QUIET, Complaints, chromium
from tests.e2e.browser.test_detect import add, write_scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium whose microphone repeats a scene with sounds."""
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium: install Debian's package, or name one in FINELAP_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api")
    scene: Path = write_scene(tmp_path_factory.mktemp("live") / "microphone.wav", 12)
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        args = [*_QUIET, *fake, f"--use-file-for-fake-audio-capture={scene}"]
        browser = playwright.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


def test_the_microphone(
    open_page: Callable[..., Page],
    server: Server,
    complaints: Complaints,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
) -> None:
    from playwright.sync_api import expect

    page = open_page(1280, "/?tab=detect", device_scale_factor=1.5)
    page.set_viewport_size({"width": 1180, "height": 660})
    page.click("#live-start")
    expect(page.locator("#detect-message")).to_have_text("Enter or choose a sound to detect first.")
    add(page, "dog barking", "breaking glass")
    page.click("#live-start")
    expect(page.locator("#live-label")).to_have_text("Stop listening")
    expect(page.locator("#detect-message")).to_have_text("Listening …")
    expect(page.locator("#listen")).to_be_disabled()
    expect(page.locator("#live-events td", has_text="dog barking").first).to_be_visible()
    expect(page.locator("#live-events tr:not([data-open])").first).to_contain_text("s")
    check_accessibility(page)
    page.locator("#live-start").evaluate("button => button.scrollIntoView({ block: 'center' })")
    shoot(page, "page-live")
    page.click("#live-start")
    expect(page.locator("#live-label")).to_have_text("Listen")
    expect(page.locator("#detect-message")).to_contain_text("Listened for")
    expect(page.locator("#listen")).to_be_enabled()
    heard = page.locator("#live-events tr").count()
    assert heard >= 1
