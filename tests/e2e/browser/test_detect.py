"""The Detect tab in a browser: a recording drawn while it is heard, cut anew by a slider, played, saved as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import soundfile

from benchmarks.common import SOUNDS, Server
from model.config import SAMPLE_RATE
from tests.e2e.browser.conftest import Complaints

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHRASES = ["dog barking", "breaking glass", "birds singing"]
HEARD = dict(zip(PHRASES, ["dog-barking-bd8430", "glass-shattering-cd90fe", "birds-singing-53ac0e"], strict=True))
# remembers how many events were on the page with each change of their number, and whether the service was still at it
_WATCH = """() => {
  window.seen = [];
  const head = document.getElementById("events-head");
  const note = () => window.seen.push([parseInt(head.textContent) || 0, document.getElementById("stop").hidden]);
  new MutationObserver(note).observe(head, { childList: true, characterData: true, subtree: true });
}"""


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """The machine may be busy."""
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=60_000)
    yield
    expect.set_options(timeout=5_000)


def write_scene(path: Path, seconds: int) -> Path:
    """A sound of the library every five seconds, in faint noise."""
    samples = np.random.default_rng(3).normal(0, 0.001, seconds * SAMPLE_RATE).astype(np.float32)
    sounds = {}
    for phrase, name in HEARD.items():
        sound, rate = soundfile.read(SOUNDS / f"{name}.ogg", dtype="float32")
        places = np.arange(0, len(sound) - 1, rate / SAMPLE_RATE)[: 4 * SAMPLE_RATE]
        sounds[phrase] = np.interp(places, np.arange(len(sound)), sound).astype(np.float32)
    for i, start in enumerate(range(1, seconds - 5, 5)):
        sound = sounds[PHRASES[i % len(PHRASES)]]
        samples[start * SAMPLE_RATE : start * SAMPLE_RATE + len(sound)] += sound
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 seconds with the sounds of the phrases."""
    return write_scene(tmp_path_factory.mktemp("detect") / "a street, at night.wav", 35)


def add(page: Page, *phrases: str) -> None:
    for phrase in phrases:
        page.fill("#phrase", phrase)
        page.press("#phrase", "Enter")


def wait_until_heard(page: Page) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#detect-message")).to_have_text(re.compile("^Analysed .* in "))


def wait_until_played(page: Page, offset: str) -> None:
    """Waits until an event has been played to its end, and not on to the next: a busy browser stops a little late."""
    end = seconds(offset)
    onsets = map(seconds, page.locator("#events td:first-child").all_inner_texts())
    late = min((onset for onset in onsets if onset > end + 1), default=end + 1)
    for _ in range(600):
        at = seconds(page.inner_text("#found-time").split(" / ")[0])
        if at >= end and page.get_attribute("#found-play", "aria-label") == "Play":
            break
        page.wait_for_timeout(100)
    assert end <= at < late, f"it is at {at} and not at {offset}"


def listen(page: Page, file: Path, *phrases: str) -> None:
    page.set_input_files("#recording", file)
    add(page, *phrases)
    page.click("#listen")
    wait_until_heard(page)


def shown(page: Page) -> int:
    """The number of events by the heading, which is that of the rows."""
    number = int(page.inner_text("#events-head").split()[0])
    assert page.locator("#events tr").count() == min(number, 50)
    return number


def answered(server: Server, file: Path, **settings: Any) -> Any:
    """What the service says of it, asked by itself."""
    with file.open("rb") as opened:
        files = {"file": (file.name, opened, "audio/wav")}
        response = server.post("/detect", files=files, data={"phrases": PHRASES, **settings})
    assert response.status_code == 200, response.text
    return response.text if "format" in settings else response.json()


def found(answer: Any) -> int:
    return sum(len(phrase["events"]) for phrase in answer["phrases"])


@pytest.mark.parametrize("width", [1280, 390])
def test_by_keys_alone(open_page: Callable[..., Page], scene: Path, server: Server, width: int) -> None:
    """All but the choice of the file, which is the browser's own dialog."""
    from playwright.sync_api import expect

    page = open_page(width)
    page.keyboard.press("Tab")
    page.keyboard.press("2")
    expect(page.locator("#detect")).to_be_visible()
    page.set_input_files("#recording", scene)
    expect(page.locator("#source-about")).to_contain_text("35.0 s")
    while page.evaluate("document.activeElement.id") != "phrase":
        page.keyboard.press("Tab")
    page.keyboard.type("dog barking, breaking glass,")
    page.keyboard.type("birds")
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")  # the last one again, to be mended
    page.keyboard.type(" singing")
    page.keyboard.press("Enter")
    assert page.locator("#phrase-list .chip span").all_inner_texts() == PHRASES
    page.keyboard.press("Enter")
    wait_until_heard(page)
    assert shown(page) == found(answered(server, scene)) > 3

    while not page.evaluate("document.activeElement.closest('#events')"):
        page.keyboard.press("Tab")
    rows = page.locator("#events tr")
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_have_attribute("data-chosen", "")
    page.keyboard.press("Enter")
    offset = rows.nth(1).locator("td").nth(2).text_content() or ""
    wait_until_played(page, offset)
    page.keyboard.press("]")
    expect(rows.nth(2)).to_have_attribute("data-chosen", "")
    page.keyboard.press("[")
    expect(rows.nth(1)).to_have_attribute("data-chosen", "")
    wait_until_played(page, offset)

    page.focus("#strips .scroll")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(page.locator("#found-play")).to_have_accessible_name("Pause")
    page.keyboard.press("Space")
    expect(page.locator("#found-play")).to_have_accessible_name("Play")
    page.keyboard.press("End")
    expect(page.locator("#strips .scroll")).to_have_attribute("aria-valuetext", "35.0 s of 35.0 s")
    page.keyboard.press("+")
    page.keyboard.press("+")
    expect(page.locator("#strips .axis")).to_have_css("width", re.compile(r"^(\d{3,4})"))
    wide, window = page.evaluate(
        "['.axis', '.scroll'].map((name) => document.querySelector(`#strips ${name}`).clientWidth)"
    )
    assert wide > 2 * window
    page.keyboard.press("0")
    expect(page.locator("#strips .axis")).to_have_css("width", re.compile(rf"^{window}"))


def test_a_slider_cuts_again_without_the_service(
    page: Page, scene: Path, server: Server, complaints: Complaints
) -> None:
    from playwright.sync_api import expect

    page.click("#tab-detect")
    listen(page, scene, *PHRASES)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/detect" in request.url else None)
    page.focus("#threshold")
    before = shown(page)
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#threshold-value")).to_have_text("0.20")
    lower = shown(page)
    assert lower != before
    page.keyboard.press("End")
    expect(page.locator("#threshold-value")).to_have_text("0.98")
    highest = shown(page)
    page.fill("#threshold", "0.2")
    page.click("#cutting-toggle")
    page.fill("#joined", "3")
    joined = shown(page)
    page.fill("#least", "3")
    page.locator("#own-thresholds input").first.fill("0.9")
    own = shown(page)
    assert not requests

    assert lower == found(answered(server, scene, threshold=0.2))
    assert highest == found(answered(server, scene, threshold=0.98)) <= lower
    assert joined == found(answered(server, scene, threshold=0.2, max_gap=3)) <= lower
    settings = {"threshold": [0.9, 0.2, 0.2], "max_gap": 3, "min_duration": 3}
    assert own == found(answered(server, scene, **settings)) < joined
    page.click("#cutting-reset")
    assert shown(page) == before
    assert "t" not in parse_qs(urlsplit(page.url).query)


def test_no_score_at_the_threshold_is_said_with_the_highest(page: Page, scene: Path, complaints: Complaints) -> None:
    from playwright.sync_api import expect

    page.click("#tab-detect")
    listen(page, scene, "violin")
    page.focus("#threshold")
    page.keyboard.press("End")
    expect(page.locator("#no-events")).to_contain_text(
        re.compile(r"No score reaches the threshold\. The highest is 0\.\d\d")
    )


def test_events_are_seen_while_it_is_heard(page: Page, tmp_path: Path, complaints: Complaints) -> None:
    """Minutes long, so that there is a while."""
    long = write_scene(tmp_path / "long.wav", 400)
    page.click("#tab-detect")
    page.evaluate(_WATCH)
    listen(page, long, *PHRASES)
    seen = page.evaluate("window.seen")
    meanwhile = [number for number, done in seen if not done]
    whole = shown(page)
    assert whole > 20 and any(0 < number < whole for number in meanwhile), seen


def test_what_was_heard_before_it_is_stopped_stays(page: Page, tmp_path: Path, complaints: Complaints) -> None:
    """Half an hour, so that a fast machine is not done before it is stopped."""
    from playwright.sync_api import expect

    page.click("#tab-detect")
    page.set_input_files("#recording", write_scene(tmp_path / "long.wav", 1800))
    add(page, *PHRASES)
    page.click("#listen")
    page.wait_for_selector("#events tr")
    page.click("#stop")
    expect(page.locator("#detect-message")).to_contain_text("Stopped after")
    assert 0 < shown(page) < 359  # of that many sounds
    expect(page.locator("#listen")).to_be_visible()


def test_files_are_those_of_the_service(page: Page, scene: Path, server: Server) -> None:
    page.click("#tab-detect")
    listen(page, scene, *PHRASES)
    for kind, name in {"csv": ".csv", "audacity": ".labels.txt", "raven": ".selections.txt"}.items():
        with page.expect_download() as download:
            page.click(f"[data-export={kind}]")
        assert download.value.suggested_filename == scene.stem + name
        assert download.value.path().read_text(encoding="utf-8") == answered(server, scene, format=kind)
    with page.expect_download() as download:
        page.click("[data-export=png]")
    assert download.value.suggested_filename == scene.stem + ".png"
    picture = download.value.path().read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 10_000


def test_an_event_in_the_drawing_is_heard(page: Page, scene: Path) -> None:
    from playwright.sync_api import expect

    page.click("#tab-detect")
    listen(page, scene, *PHRASES)
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#events tr").all()]
    at, (onset, phrase, offset, *_) = next((i, row) for i, row in enumerate(rows) if row[1] == "breaking glass")
    middle = (seconds(onset) + seconds(offset)) / 2
    box = page.locator("#strips .pane").bounding_box()
    lane = page.locator("#strips .names > div", has_text=phrase).bounding_box()
    assert box and lane
    page.mouse.click(box["x"] + middle / 35 * box["width"], lane["y"] + lane["height"] / 2)
    expect(page.locator("#events tr").nth(at)).to_have_attribute("data-chosen", "")
    wait_until_played(page, offset)


def seconds(text: str) -> float:
    minutes, rest = text.split(":")
    return 60 * int(minutes) + float(rest)


def test_the_address_says_what_is_listened_for(open_page: Callable[..., Page], server: Server) -> None:
    """A sound of the library with phrases in the address is heard at once; so is one sent over from the search."""
    from playwright.sync_api import expect

    hit = server.get("/search", q="dog barking", k=1).json()["hits"][0]["clip"]
    page = open_page(path=f"/?tab=detect&clip={hit['id']}&p=dog+barking&p=rain&t=0.05")
    wait_until_heard(page)
    expect(page.locator("#source-name")).to_have_text(hit["filename"])
    expect(page.locator("#threshold-value")).to_have_text("0.05")
    assert page.locator("#strips .names .name").all_inner_texts()[2:] == ["dog barking", "rain"]
    assert shown(page) >= 1

    page.keyboard.press("/")
    with page.expect_response(lambda answer: '"query":"thunder"' in (answer.request.post_data or "")) as answered:
        page.keyboard.type("thunder")  # what is found for its beginning is gone when this is answered
    name = answered.value.json()["hits"][0]["clip"]["filename"]
    title = page.locator("#hits .title").first
    expect(title).to_have_text(name)
    title.click()
    page.get_by_role("button", name="Detect sounds in this clip").click()
    expect(page.locator("#source-name")).to_have_text(name)
    page.go_back()
    expect(page.locator("#clip-title")).to_have_text(name)


def test_what_fails_says_so(page: Page, complaints: Complaints) -> None:
    from playwright.sync_api import expect

    page.click("#tab-detect")
    page.click("#listen")
    expect(page.locator("#detect-message")).to_have_text("Choose a recording first.")
    complaints.allow("415")
    page.set_input_files("#recording", Path(__file__))
    page.click("#listen")
    expect(page.locator("#detect-message")).to_contain_text("Enter or choose a sound")
    assert page.evaluate("document.activeElement.id") == "phrase"
    page.keyboard.type("rain")
    page.click("#listen")
    expect(page.locator("#detect-message")).to_contain_text("test_detect.py")
    expect(page.locator("#detect-message")).to_have_class("wrong")
    expect(page.locator("#found")).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_result_is_accessible(
    open_page: Callable[..., Page],
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    scene: Path,
    width: int,
    scheme: str,
) -> None:
    page = open_page(width, "/?tab=detect", scheme=scheme)
    listen(page, scene, *PHRASES)
    check_accessibility(page)
    shoot(page, f"detect-{width}-{scheme}", full_page=True)
    page.click("#cutting-toggle")
    check_accessibility(page)
