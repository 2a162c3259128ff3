"""Sounds leave the page: previews of files that no browser plays, moments dragged out and downloaded with handles."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import soundfile

from benchmarks.common import Server
from tests.e2e.browser.conftest import Complaints
from tests.e2e.browser.test_search import _LISTEN, wait_for_hits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

RATE = 96_000


@pytest.fixture
def tone(server: Server) -> Iterator[dict[str, Any]]:
    """A clip that Chromium cannot play: 5.1 at 96 kHz in an AIFF file."""
    time = np.arange(3 * RATE) / RATE
    samples = np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], 6, axis=1)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="AIFF", subtype="PCM_24")
    added = server.post("/clips", files={"files": ("zz sine tone.aiff", file.getvalue())}).json()
    yield added["clips"][0]
    httpx.delete(f"{server.address}/clips/{added['clips'][0]['id']}", trust_env=False)


def test_a_file_that_the_browser_cannot_play_is_heard_as_its_preview(page: Page, tone: dict[str, Any]) -> None:
    from playwright.sync_api import expect

    page.evaluate(_LISTEN)
    page.locator("#query").fill("zz sine tone")
    row = wait_for_hits(page, "zz sine tone.aiff")
    row.locator(".play").click()
    expect(row.locator(".play")).to_have_accessible_name("Pause zz sine tone.aiff")
    page.wait_for_function("window.played.length > 0")
    assert page.evaluate("window.played.at(-1).src").endswith(f"/clips/{tone['id']}/preview")
    expect(row.locator(".problem")).to_have_count(0)


def drag(page: Page, selector: str) -> list[str]:
    """What a drag of the node carries: media type, file name, URL."""
    carried = page.evaluate_handle("new DataTransfer()")
    page.locator(selector).first.dispatch_event("dragstart", {"dataTransfer": carried})
    return str(carried.evaluate("data => data.getData('DownloadURL')")).split(":", 2)


def test_sounds_and_moments_are_dragged_and_downloaded(page: Page, server: Server, complaints: Complaints) -> None:
    page.locator("#query").fill("dog barking")
    row = wait_for_hits(page, re.compile("^dog-barking"))
    file = row.locator(".name").text_content() or ""
    stem = file.removesuffix(".ogg")
    page.locator("#hits .hit .stage[draggable=true]").first.wait_for()
    kind, name, url = drag(page, "#hits .hit a.title")
    assert name == file and httpx.get(url, trust_env=False).content[:4] == b"OggS"
    kind, name, url = drag(page, "#hits .hit .stage")
    assert kind == "audio/wav" and name.startswith(stem + "_") and name.endswith("s.wav")
    assert soundfile.info(io.BytesIO(httpx.get(url, trust_env=False).content)).frames > 0
    row.locator("a.title").click()
    page.locator("#clip-dialog .moments .chip").first.wait_for()
    url = drag(page, "#clip-dialog .moments .chip")[2]
    dragged, rate = soundfile.read(io.BytesIO(httpx.get(url, trust_env=False).content))
    save = page.locator("#clip-dialog .moments li").first.get_by_role("button", name="Download")
    with page.expect_download() as plain:
        save.click()
    assert plain.value.suggested_filename.startswith(stem + "_")
    assert abs(soundfile.info(plain.value.path()).frames - len(dragged)) <= 1
    page.get_by_label("Handles around a downloaded moment").select_option("0.5")
    with page.expect_download() as padded:
        save.click()
    clip = soundfile.read(io.BytesIO(httpx.get(url.split("?")[0], trust_env=False).content))[0]
    longer = soundfile.info(padded.value.path()).frames
    assert len(dragged) < longer <= min(len(dragged) + rate + 1, len(clip))
    assert soundfile.info(padded.value.path()).samplerate == rate
    dragged_with_handles = drag(page, "#clip-dialog .moments .chip")[2]
    assert "pad=0.5" in dragged_with_handles
