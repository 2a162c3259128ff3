"""Scans in the Library tab: started, followed, downloaded and deleted, by pointer and by keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from benchmarks.common import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

    from tests.e2e.browser.conftest import Complaints


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_scan(
    open_page: Callable[..., Page],
    server: Server,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    complaints: Complaints,
    width: int,
    scheme: str,
) -> None:
    page = open_page(width, "/?tab=library", scheme=scheme, accept_downloads=True)
    page.locator("#scan-start").click()
    assert "Describe the sounds" in page.locator("#scan-message").inner_text()
    assert page.evaluate("document.activeElement.id") == "scan-phrases"
    page.keyboard.type("dog barking, rain")
    page.keyboard.press("Enter")
    row = page.locator("#jobs > li[data-state=done]").first
    row.wait_for()
    (job, *_) = server.get("/jobs").json()["jobs"]
    assert job["phrases"] == ["dog barking", "rain"] and job["threshold"] == [0.5, 0.5] and job["events"] > 0
    assert row.locator(".name").inner_text() == "dog barking, rain"
    assert f"{job['events']} events" in row.locator(".about").inner_text()
    check_accessibility(page)
    shoot(page, f"scan-{width}-{scheme}", full_page=True)
    with page.expect_download() as started:
        row.get_by_role("button", name="CSV").click()
    table = Path(started.value.path()).read_text(encoding="utf-8")
    assert started.value.suggested_filename == f"events-{job['id'][:8]}.csv"
    assert table == server.get(f"/jobs/{job['id']}/events").text and table.count("\n") == job["events"] + 1
    with page.expect_download() as started:
        row.get_by_role("button", name="Heat map").click()
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")
    row.get_by_role("button", name="Delete the scan for dog barking, rain").click()
    row.wait_for(state="detached")
    assert server.get(f"/jobs/{job['id']}").status_code == 404


def test_progress_a_filter_and_cancelling(page: Page, server: Server) -> None:
    """The list's filter is the scan's. The service's answers are made up, so that the scan takes long enough."""
    made = server.post("/jobs", json={"phrases": ["wind"]}).json()
    job = {**made, "state": "running", "done": 42, "total": 1000, "events": 7, "filter": {"channels": 1}}
    sent: list[tuple[str, Any]] = []

    def answer(route: Route) -> None:
        request = route.request
        if request.method != "GET":
            sent.append((request.method, request.post_data_json))
            if request.method == "DELETE":
                job["state"] = "cancelled"
            route.fulfill(status=200 if request.method == "DELETE" else 202, json=job)
        else:
            route.fulfill(json={"jobs": [job]})

    page.route("**/jobs", answer)
    page.route("**/jobs/*", answer)
    page.goto(f"{server.address}/?tab=library&filter={quote(json.dumps({'channels': 1}))}")
    row = page.locator("#jobs > li")
    row.wait_for()
    assert row.locator("progress").get_attribute("value") == "0.042"
    assert row.locator(".about").inner_text() == "42 of 1,000 clips · 7 events · filtered"
    assert "channels" in page.locator("#scan-hint").inner_text()
    page.locator("#scan-phrases").fill("wind, ")
    page.locator("#scan-threshold").fill("0.25")
    page.locator("#scan-start").click()
    page.wait_for_function("document.querySelector('#scan-start').disabled === false")
    body = {"kind": "detect", "phrases": ["wind"], "threshold": 0.25, "filter": {"channels": 1}}
    assert sent == [("POST", body)]
    row.get_by_role("button", name="Cancel the scan for wind").click()
    page.locator("#jobs > li[data-state=cancelled]").wait_for()
    assert sent[1:] == [("DELETE", None)]
    assert row.locator(".about").inner_text().startswith("cancelled · 42 of 1,000")
    server.delete(f"/jobs/{made['id']}")
    server.delete(f"/jobs/{made['id']}")
