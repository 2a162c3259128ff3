"""Small things that the page owes to people who work with it all day."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.common import SOUNDS, Server
from tests.e2e.browser.conftest import Complaints
from tests.e2e.browser.test_search import _LISTEN, wait_for_hits

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page


def test_a_click_on_a_waveform_leaves_space_to_the_sound(page: Page) -> None:
    from playwright.sync_api import expect

    page.locator("#query").fill("dog barking")
    row = wait_for_hits(page, re.compile("^dog-barking"))
    page.evaluate(_LISTEN)
    row.locator(".stage").click()
    expect(row.locator("a.title")).to_be_focused()
    at = page.evaluate("scrollY")
    page.keyboard.press(" ")
    page.keyboard.press(" ")
    assert page.evaluate("scrollY") == at


def test_the_search_field_stays_in_view_and_the_heading_counts_the_library(page: Page, server: Server) -> None:
    from playwright.sync_api import expect

    wait_for_hits(page, re.compile("."))
    clips = server.get("/info").json()["clips"]
    expect(page.locator("#search-message")).to_have_text(f"{clips} sounds, newest first")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#query")).to_be_in_viewport()


def test_detect_from_a_hit_keeps_the_query(page: Page) -> None:
    from playwright.sync_api import expect

    page.locator("#query").fill("dog barking")
    wait_for_hits(page, re.compile("^dog-barking")).locator("a.title").click()
    page.get_by_role("button", name="Detect sounds in this clip").click()
    expect(page.locator("#phrase-list")).to_contain_text("dog barking")
    expect(page.locator("#events")).to_contain_text("dog barking")  # it runs at once


def test_a_filter_that_matches_nothing_says_so(open_page: Callable[..., Page]) -> None:
    from playwright.sync_api import expect

    page = open_page(1280, '/?q=dog+barking&filter={"tags":"no such tag"}')
    expect(page.locator("#no-hits")).to_contain_text("No sounds match the filters")


def test_files_that_fail_come_first_and_are_not_tried_again(page: Page, tmp_path: Path, complaints: Complaints) -> None:
    from playwright.sync_api import expect

    complaints.allow("415")
    bad = tmp_path / "broken.wav"
    bad.write_bytes(b"not audio")
    page.get_by_role("tab", name="Library").click()
    good = sorted(SOUNDS.glob("*.ogg"))[:3]
    page.locator("#library input[type=file]").first.set_input_files([*good, bad])
    expect(page.locator("#uploads-about")).to_contain_text("1 failed")
    expect(page.locator("#upload-list li").first).to_contain_text("broken.wav")
    expect(page.locator("#uploads-again")).to_be_hidden()


def test_the_status_tells_that_the_service_has_died(
    open_page: Callable[..., Page], server: Server, complaints: Complaints
) -> None:
    from playwright.sync_api import expect

    page = open_page(1280, None)
    complaints.allow("ERR_FAILED|Failed to load")
    page.clock.install()
    page.goto(server.address)
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    page.route("**/*", lambda route: route.abort())
    page.clock.fast_forward(11_000)
    expect(page.locator("#status")).to_have_attribute("data-state", "wrong")
    page.unroute("**/*")
    page.clock.fast_forward(3_000)
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")


def test_a_phone_has_every_action_of_a_result(phone: Page, check_accessibility: Callable[[Page], None]) -> None:
    from playwright.sync_api import expect

    phone.locator("#query").fill("dog barking")
    row = wait_for_hits(phone, re.compile("^dog-barking"))
    for name in ("Find sounds like", "Download", "Favourite", "Teach", "More like", "Less like"):
        expect(row.get_by_role("button", name=re.compile(f"^{name}", re.IGNORECASE))).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    check_accessibility(phone)
    row.get_by_role("button", name=re.compile("^Find sounds like")).click()
    expect(phone.locator("#query-chip")).to_contain_text("dog-barking")


def test_a_wide_screen_is_used(open_page: Callable[..., Page]) -> None:
    page = open_page(2560, "/?q=dog+barking")
    row = wait_for_hits(page, re.compile("^dog-barking"))
    assert row.evaluate("(node) => node.getBoundingClientRect().width") > 0.7 * 2560
    chip = row.locator(".tags .chip").first
    assert chip.evaluate("(node) => node.scrollWidth <= node.clientWidth && node.getBoundingClientRect().width > 60")
