"""The Library tab in a browser: files in, metadata changed, clips deleted with a way back, by pointer and by keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from benchmarks.common import SOUNDS, Server, encode
from model.config import SAMPLE_RATE
from tests.e2e.browser.waiting import wait_for_count, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.e2e.browser.conftest import Complaints

KEY = "correct horse battery staple"
REFUSED = r"status of 415.*/clips\)"


def tone(frequency: float, seconds: float = 1.0) -> bytes:
    """A WAV file, another one for each frequency."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return encode((0.3 * np.sin(2 * np.pi * frequency * t)).astype(np.float32))


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "audio/wav", "buffer": content}


def clips(server: Server, **params: Any) -> dict[str, dict[str, Any]]:
    """All clips of the library by name."""
    answer = server.get("/clips", limit=1000, **params).json()
    return {clip["filename"]: clip for clip in answer["clips"]}


def add(server: Server, name: str, content: bytes, metadata: str = "{}") -> str:
    """Adds a clip by the API; its id."""
    answer = server.post("/clips", files={"files": (name, content)}, data={"metadata": metadata})
    assert answer.status_code == 201, answer.text
    id: str = answer.json()["clips"][0]["id"]
    return id


@pytest.fixture(autouse=True)
def as_before(server: Server) -> Iterator[None]:
    """The library is left as it was found."""
    before = {clip["id"] for clip in clips(server).values()}
    yield
    for clip in clips(server).values():
        if clip["id"] not in before:
            server.delete(f"/clips/{clip['id']}")


def shown(page: Page) -> list[str]:
    return page.locator("#clips .name").all_inner_texts()


def wait_for_first(page: Page, name: str) -> None:
    page.wait_for_selector(f"#clips > li:first-child .name:text-is('{name}')")


def sorted_by(page: Page) -> dict[str, str]:
    """The column that the list is sorted by, and how."""
    headers = page.locator("#clips-head [aria-sort]")
    orders = {header.inner_text(): str(header.get_attribute("aria-sort")) for header in headers.all()}
    return {name: order for name, order in orders.items() if order != "none"}


def wait_until_done(page: Page) -> dict[str, str]:
    """Once nothing is left to upload: what became of each file."""
    page.wait_for_selector("#uploads-clear:visible")
    rows = page.locator("#upload-list > li")
    names, outcomes = rows.locator(".name").all_inner_texts(), rows.locator(".outcome").all_inner_texts()
    return dict(zip(names, outcomes, strict=True))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_clips_life(
    open_page: Callable[..., Page],
    server: Server,
    complaints: Complaints,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
    scheme: str,
) -> None:
    """Good, broken and known files go in; one is edited, found, deleted, kept after all, and deleted for good."""
    complaints.allow(REFUSED)
    known = min(SOUNDS.glob("dog-barking-*.ogg"))
    before = clips(server)
    page = open_page(width, "/?tab=library", scheme=scheme)
    page.wait_for_selector("#clips > li")
    page.fill("#add-tags", "made here, sine")
    given = [file("low.wav", tone(200)), file("höhe ♪.wav", tone(900)), file("broken.wav", b"RIFF, or so it says")]
    page.set_input_files("#add-files", [*given, file("same again.ogg", known.read_bytes())])
    outcomes = wait_until_done(page)
    assert outcomes["low.wav"] == outcomes["höhe ♪.wav"] == "added"
    assert "not an audio file" in outcomes["broken.wav"]
    assert outcomes["same again.ogg"] == f"already in the library as {known.name}"
    about = page.inner_text("#uploads-about")
    assert about == "4 of 4 files · 2 added · 1 already in the library · 1 failed", about
    there = clips(server)
    assert set(there) - set(before) == {"low.wav", "höhe ♪.wav"}
    assert there["low.wav"]["metadata"]["tags"] == ["made here", "sine"]
    wait_until(page, f"document.querySelector('#facts').innerText.includes('{len(before) + 2} sounds')")
    wait_until(page, "document.querySelector('#health-text').innerText === 'Ready'")
    check_accessibility(page)
    shoot(page, f"library-{width}-{scheme}")

    page.click("#clips > li:has(.name:text-is('low.wav')) button[aria-label='Edit low.wav']")
    page.wait_for_selector("dialog.edit[open]")
    page.fill("#edit-tags", "Brummton")
    page.fill("#edit-key", "location")
    page.fill("#edit-value", "cellar")
    check_accessibility(page)
    shoot(page, f"library-edit-{width}-{scheme}")
    page.click("dialog.edit button:text-is('Save')")
    page.wait_for_selector("dialog.edit", state="hidden")
    changed = server.get(f"/clips/{there['low.wav']['id']}").json()["metadata"]
    assert changed == {"tags": ["made here", "sine", "Brummton"], "location": "cellar"}

    page.fill("#words", "brummton")
    wait_for_count(page, "#clips > li", 1)
    assert shown(page) == ["low.wav"] and page.is_disabled("#clips-head button >> nth=0")
    assert page.inner_text("#clips-about") == "1 sound" and sorted_by(page) == {}
    assert "words=brummton" in page.url
    page.click("#tab-search")
    page.click("#filter-toggle")
    page.click("#mode label:has([value=lexical])")
    page.fill("#query", "brummton")
    page.wait_for_selector("#hits .name:text-is('low.wav')")
    page.click("#tab-library")

    page.click("#clips button[aria-label='Delete low.wav']")
    page.hover(".notice:has-text('low.wav')")  # time stands still
    assert shown(page) == []
    check_accessibility(page)
    shoot(page, f"library-delete-{width}-{scheme}")
    page.click(".notice button:text-is('Undo')")
    page.wait_for_selector("#clips .name:text-is('low.wav')")
    assert server.get(f"/clips/{there['low.wav']['id']}").json()["metadata"] == changed
    page.click("#clips button[aria-label='Delete low.wav']")
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as answer:
        page.click(".notice button[aria-label='Delete low.wav now']")
    assert answer.value.status == 204
    assert server.get(f"/clips/{there['low.wav']['id']}").status_code == 404
    wait_until(page, f"document.querySelector('#facts').innerText.includes('{len(before) + 1} sounds')")


def test_by_keys_alone(page: Page, server: Server, check_accessibility: Callable[[Page], None]) -> None:
    """From the top of the page to a clip; edited, deleted, brought back, deleted: nothing but keys."""
    id = add(server, "keyboard only.wav", tone(310, 30), '{"tags": ["first"], "bpm": 90, "note": "old"}')
    press = page.keyboard.press

    def active() -> str:
        return str(page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.innerText).trim()"))

    def tab_to(wanted: Callable[[], bool]) -> None:
        for _ in range(20):
            if wanted():
                return
            press("Tab")
        raise AssertionError(f"not reached; the focus is on {active()}")

    page.wait_for_selector("#status[data-state=ready]")
    page.focus("#help-button")  # the search field, which has the focus at the start, would take the 3
    press("3")
    tab_to(lambda: page.evaluate("document.activeElement.id") == "words")
    page.keyboard.type("keyboard only")
    wait_for_count(page, "#clips > li", 1)
    press("ArrowDown")
    assert active() == "keyboard only.wav"
    press("Space")
    page.wait_for_selector("#clips li.playing")
    press("e")
    page.wait_for_selector("dialog.edit[open]")
    assert page.evaluate("document.activeElement.id") == "edit-tags"
    press("Backspace")
    page.keyboard.type("second,third")
    tab_to(lambda: "bpm" in str(page.evaluate("document.activeElement.id")))
    press("Control+a")
    page.keyboard.type("120")
    tab_to(lambda: active() == "Remove note")
    press("Enter")
    press("Enter")  # saves
    page.wait_for_selector("dialog.edit", state="hidden")
    assert server.get(f"/clips/{id}").json()["metadata"] == {"tags": ["second", "third"], "bpm": 120}
    assert active() == "keyboard only.wav"

    press("Delete")
    page.hover(".notice")  # only to let time stand still: the machine may be slow with so many keys
    assert page.evaluate("document.activeElement.id") == "words"
    tab_to(lambda: active() == "Undo deleting keyboard only.wav")
    press("Enter")
    page.wait_for_selector("#clips .name:text-is('keyboard only.wav')")
    assert active() == "keyboard only.wav"
    press("Delete")
    page.hover(".notice")
    tab_to(lambda: active() == "Undo deleting keyboard only.wav")
    press("Control+z")
    page.wait_for_selector("#clips .name:text-is('keyboard only.wav')")
    press("Enter")
    page.wait_for_selector("#clip-dialog[open]")
    press("Escape")
    page.wait_for_selector("#clip-dialog", state="hidden")
    assert active() == "keyboard only.wav"
    press("Delete")
    page.hover(".notice")
    tab_to(lambda: active() == "Delete keyboard only.wav now")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        press("Enter")
    assert server.get(f"/clips/{id}").status_code == 404


def test_deleted_when_the_time_is_over_or_the_page_is_left(open_page: Callable[..., Page], server: Server) -> None:
    first, second, third = (add(server, f"gone {i}.wav", tone(400 + i)) for i in range(3))
    page = open_page(path=None)
    page.clock.install()
    page.goto(server.address + "/?tab=library")
    wait_for_first(page, "gone 2.wav")
    page.click("button[aria-label='Delete gone 0.wav']")
    page.hover(".notice")  # time stands still
    page.clock.run_for(60_000)
    assert server.get(f"/clips/{first}").status_code == 200
    page.hover("#words")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.clock.run_for(8_500)
    assert server.get(f"/clips/{first}").status_code == 404

    page.click("button[aria-label='Delete gone 1.wav']")
    page.wait_for_selector(".notice:has-text('gone 1.wav')")
    assert server.get(f"/clips/{second}").status_code == 200
    page.goto("about:blank")
    for _ in range(200):
        if server.get(f"/clips/{second}").status_code == 404:
            break
        page.wait_for_timeout(50)
    assert server.get(f"/clips/{second}").status_code == 404
    assert server.get(f"/clips/{third}").status_code == 200


def test_pages_order_filter_and_words(page: Page, server: Server) -> None:
    add(server, "zz short.wav", tone(500, 0.3), '{"tags": ["rare thing", "common thing"]}')
    add(server, "zz long.wav", tone(501, 0.4), '{"tags": ["common thing"]}')
    total = len(clips(server))
    assert total > 100
    page.wait_for_selector("#status[data-state=ready]")
    page.click("#tab-library")
    wait_for_first(page, "zz long.wav")
    page.wait_for_selector(f"#clips-about:text-is('50 of {total} sounds')")
    for number in range(100, total + 50, 50):
        page.click("#clips-more")
        wait_for_count(page, "#clips > li", min(number, total))
    assert not page.is_visible("#clips-more") and page.inner_text("#clips-about") == f"{total} sounds"
    names = shown(page)
    assert len(set(names)) == total
    assert page.evaluate("document.activeElement.innerText") == names[(total - 1) // 50 * 50]

    assert sorted_by(page) == {"Added": "descending"}
    page.click("#clips-head button:text-is('Name')")
    wait_for_first(page, min(names))
    page.focus("#clips-head button:text-is('Length')")
    page.keyboard.press("Enter")
    wait_for_first(page, next(iter(clips(server, sort="-duration"))))
    assert sorted_by(page) == {"Length": "descending"}
    page.keyboard.press("Space")
    wait_for_first(page, next(iter(clips(server, sort="duration"))))
    assert sorted_by(page) == {"Length": "ascending"}
    assert "sort=duration" in page.url
    page.go_back()
    page.go_back()
    wait_for_first(page, min(names))
    assert sorted_by(page) == {"Name": "ascending"}

    page.fill("#words", "zz")
    wait_for_count(page, "#clips > li", 2)
    page.click("#clips button.chip:has-text('rare thing')")
    wait_for_count(page, "#clips > li", 1)
    page.fill("#words", "")
    wait_until(page, "!new URLSearchParams(location.search).has('words')")
    wait_for_first(page, "zz short.wav")
    assert shown(page) == ["zz short.wav"] and sorted_by(page) == {"Name": "ascending"}
    page.reload()
    wait_for_first(page, "zz short.wav")
    assert shown(page) == ["zz short.wav"]
    page.click("#clips-filter button")
    wait_for_first(page, min(names))
    page.fill("#words", "xyzzy")
    page.wait_for_selector("#no-clips:visible")
    page.click("#no-clips button")
    wait_for_first(page, min(names))


def test_folders_drops_and_a_slow_line(page: Page, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "take 1"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.wav").write_bytes(tone(600))
    (folder / "notes.txt").write_text("nothing to hear")
    page.click("#tab-library")
    page.wait_for_selector("#clips > li")
    page.set_input_files("#add-folder", folder)
    assert wait_until_done(page) == {"a.wav": "added"}
    assert page.inner_text("#add-message") == "Skipped 1 file that is not audio."
    assert clips(server)["a.wav"]["metadata"]["path"] == "inner/a.wav"
    page.click("#uploads-clear")
    assert not page.is_visible("#uploads")

    transfer = page.evaluate_handle(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.wav"));
          return transfer;
        }""",
        list(tone(601)),
    )
    page.dispatch_event("#clips-box", "drop", {"dataTransfer": transfer})
    assert wait_until_done(page) == {"dropped.wav": "added"}
    page.click("#uploads-clear")

    line = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 50_000}
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#add-files", [file(f"slow {i}.wav", tone(610 + i, 15)) for i in range(3)])
    wait_until(
        page, "[...document.querySelectorAll('#upload-list progress')].some(({value}) => value > 0 && value < 1)"
    )
    part = page.evaluate("document.getElementById('uploads-progress').value")
    assert 0 < part < 1 and re.fullmatch(r"\d+ %", page.inner_text("#upload-list .outcome >> nth=0"))
    page.click("#uploads-stop")
    page.wait_for_selector("#uploads-clear:visible")
    assert "3 stopped" in page.inner_text("#uploads-about")
    line.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    page.click("#uploads-again")
    wait_until(page, "document.getElementById('uploads-about').innerText === '3 of 3 files · 3 added'")
    assert {"slow 0.wav", "slow 1.wav", "slow 2.wav"} <= set(clips(server))


@pytest.fixture(scope="module")
def locked(server: Server, small_checkpoint: Path) -> Iterator[Server]:
    """A server that wants a key, with nothing in its library."""
    with Server({"api_keys": f"another, {KEY}"}) as running:
        yield running


def test_the_key_is_asked_for_once(
    open_page: Callable[..., Page],
    locked: Server,
    complaints: Complaints,
    check_accessibility: Callable[[Page], None],
) -> None:
    complaints.allow(r"status of 401")
    page = open_page(path=None, server=locked)
    page.add_init_script("window.asked = 0; document.addEventListener('finelap:key', () => (window.asked += 1));")
    page.goto(locked.address + "/?tab=library")
    page.wait_for_selector("#key-dialog[open]")
    check_accessibility(page)
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-message:text-matches('rejected')")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#no-clips:visible")
    page.set_input_files("#add-files", [file(f"locked {i}.wav", tone(700 + i, 30)) for i in range(3)])
    assert set(wait_until_done(page).values()) == {"added"}
    page.wait_for_selector("#clips > li")
    page.click("#clips > li:first-child .play")
    page.wait_for_selector("#clips li.playing")
    page.reload()
    wait_for_count(page, "#clips > li", 3)
    assert page.evaluate("window.asked") == 0
    page.click("#clips > li:first-child button[aria-label^=Delete]")
    page.goto("about:blank")  # deletes, and gives the key to do so
    headers = {"Authorization": f"Bearer {KEY}"}
    for _ in range(200):
        left = httpx.get(f"{locked.address}/info", headers=headers, trust_env=False).json()["clips"]
        if left == 2:
            break
        page.wait_for_timeout(50)
    assert left == 2
