"""The pictures of the page in the documentation, made by using it.

    FINELAP_SCREENSHOTS=docs/images python -m pytest tests/e2e/browser/test_pictures.py

The picture of the microphone is made by test_live.py in the same way, whose browser has one. Without the variable
nothing is kept; that the page comes to what the pictures show is tested all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.common import SOUNDS, Server, encode, load
from model.config import SAMPLE_RATE
from tests.e2e.browser.waiting import wait_for_count, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHARP = 1.5  # pixels of the picture for one of the page
NIGHT = (("dog-barking-7ddbed", 6), ("glass-shattering-cd90fe", 15), ("thunder-4ac79b", 24), ("dog-barking-7ddbed", 33))
PHRASES = ("dog barking", "breaking glass", "thunder")
SPLASHES = ("water-splash-383785", "water-splash-bb9562", "water-splash-c1ca1c")
FIELD = ("rain-9a5405", "crow-5da38b", "water-drip-e697f4")


@pytest.fixture
def look(open_page: Callable[..., Page]) -> Callable[[str], Page]:
    """Opens the page as the pictures have it."""

    def look(path: str) -> Page:
        page = open_page(1280, path, device_scale_factor=SHARP)
        page.set_viewport_size({"width": 1180, "height": 660})
        page.wait_for_selector("#status[data-state=ready]")
        return page

    return look


@pytest.fixture
def added(server: Server) -> Iterator[None]:
    """What a test added goes again."""
    before = {clip["id"] for clip in server.get("/clips", limit=1000).json()["clips"]}
    yield
    for clip in server.get("/clips", limit=1000).json()["clips"]:
        if clip["id"] not in before:
            server.delete(f"/clips/{clip['id']}")


def test_search(look: Callable[[str], Page], shoot: Callable[..., None]) -> None:
    page = look("/?q=dog+barking")
    page.wait_for_selector("#hits .name:has-text('dog-barking')")
    page.wait_for_load_state("networkidle")  # the waveforms
    assert page.locator("#hits canvas").count() >= 5
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.innerText").startswith("dog-barking")
    shoot(page, "page-search")


def test_many(look: Callable[[str], Page], shoot: Callable[..., None]) -> None:
    page = look("/?q=water")
    page.wait_for_selector("#hits .name:has-text('water')")
    page.wait_for_load_state("networkidle")
    for key in ("ArrowDown", "x", "Shift+ArrowDown", "Shift+ArrowDown"):
        page.keyboard.press(key)
    page.wait_for_selector("#selection:has-text('3 selected')")
    page.mouse.move(0, 0)
    shoot(page, "page-many")


def test_detect(look: Callable[[str], Page], shoot: Callable[..., None]) -> None:
    night = np.random.default_rng(1).normal(0, 0.001, 40 * SAMPLE_RATE).astype(np.float32)
    for name, at in NIGHT:
        sound = load(SOUNDS / f"{name}.ogg")
        night[at * SAMPLE_RATE :][: len(sound)] += sound
    page = look("/?tab=detect")
    page.set_input_files(
        "#recording", {"name": "night.flac", "mimeType": "audio/flac", "buffer": encode(night, "FLAC")}
    )
    while page.locator("#phrase-list .chip").count():
        page.locator("#phrase-list .chip button").first.click()
    for phrase in PHRASES:
        page.fill("#phrase", phrase)
        page.keyboard.press("Enter")
    page.click("#listen")
    page.wait_for_selector("#detect-progress", state="hidden")
    page.wait_for_selector("#events tr")
    heard = page.locator("#events").inner_text()
    assert all(phrase in heard for phrase in PHRASES)
    page.evaluate("document.getElementById('found-bar').scrollIntoView()")
    page.mouse.move(0, 0)
    page.evaluate("scrollBy(0, -75)")  # below the header
    shoot(page, "page-detect")


def test_library(look: Callable[[str], Page], added: None, shoot: Callable[..., None]) -> None:
    def take(number: int, name: str) -> dict[str, object]:
        sound = encode(load(SOUNDS / f"{name}.ogg"))
        return {"name": f"{name.rpartition('-')[0]}, take {number}.wav", "mimeType": "audio/wav", "buffer": sound}

    page = look("/?tab=library")
    page.wait_for_selector("#clips > li")
    page.fill("#add-tags", "garden, May")
    known = SOUNDS / "thunder-4ac79b.ogg"
    page.set_input_files("#add-files", [take(i, name) for i, name in enumerate(FIELD, 1)])
    page.wait_for_selector("#uploads-clear:visible")
    page.set_input_files("#add-files", known)
    wait_for_count(page, "#upload-list > li[data-state=there]", 1)
    wait_until(page, "document.querySelector('#clips .name').innerText.includes('take')")
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    shoot(page, "page-library")


def test_scan(look: Callable[[str], Page], server: Server, shoot: Callable[..., None]) -> None:
    page = look("/?tab=library")
    for phrases in ("rain, thunder", "dog barking, breaking glass, birds singing"):
        page.fill("#scan-phrases", phrases)
        page.keyboard.press("Enter")
        page.locator("#jobs > li[data-state=done]", has_text=phrases).wait_for()
    page.evaluate("document.activeElement.blur()")
    page.locator("#scan-phrases").evaluate("field => field.scrollIntoView({ block: 'center' })")
    page.mouse.move(0, 0)
    shoot(page, "page-scan")
    for job in server.get("/jobs").json()["jobs"]:
        assert job["events"] > 0
        server.delete(f"/jobs/{job['id']}")


def test_concepts(look: Callable[[str], Page], server: Server, shoot: Callable[..., None]) -> None:
    clips = {clip["filename"]: clip["id"] for clip in server.get("/clips", limit=1000).json()["clips"]}
    labels = {name: True for name in SPLASHES} | {"glass-shattering-cd90fe": False}
    examples = [{"clip_id": clips[f"{name}.ogg"], "label": label} for name, label in labels.items()]
    made = [
        server.post("/concepts", json={"name": "our pond", "text": "splash in water", "examples": examples}).json(),
        server.post("/concepts", json={"name": "gate", "text": "a wooden gate creaks"}).json(),
    ]
    try:
        page = look("/?tab=concepts&concept=our+pond")
        wait_for_count(page, "#suggestions > .suggestion", 5)
        quality = f"{made[0]['quality']['average_precision']:.2f}"
        assert page.locator("#concept-facts dd").first.inner_text() == quality
        page.wait_for_load_state("networkidle")  # the suggestions' sounds
        page.locator("#suggestions .title").first.focus()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(300)  # they are drawn with the next frame
        shoot(page, "page-concepts")
    finally:
        for concept in made:
            server.delete(f"/concepts/{concept['id']}")
