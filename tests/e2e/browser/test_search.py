"""The Search tab in a browser, as people use it: typing, hearing by keys, filters, sounds as questions, the address."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import soundfile

from benchmarks.common import SOUNDS, Server
from tests.e2e.browser.conftest import Complaints
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BARK = "dog-barking-bd8430.ogg"
# remembers what is played, and from which second: an <audio> that is not in the document cannot be found from outside;
# lets it play until it is paused, for the sounds are shorter than a busy machine may take to look
_LISTEN = """() => {
  window.played = [];
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    window.played.push({ src: this.currentSrc, from: this.currentTime });
    this.loop = true;
    return play.call(this);
  };
}"""


def hits(page: Page) -> Locator:
    return page.locator("#hits .hit")


def wait_for_hits(page: Page, name: str | re.Pattern[str], at: int = 0) -> Locator:
    """The hit at a place, once it is the one with this name and nothing is under way."""
    from playwright.sync_api import expect

    expect(hits(page).nth(at).locator(".name")).to_have_text(name)
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    return hits(page).nth(at)


def asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def focused(page: Page) -> Any:
    return page.evaluate("document.activeElement.id || document.activeElement.textContent")


@pytest.mark.parametrize("width", [1280, 390])
def test_by_keys_alone(open_page: Callable[..., Page], server: Server, width: int) -> None:
    """From the first key to a downloaded file: typing, listening from the moment that answers, opening, going on."""
    from playwright.sync_api import expect

    page = open_page(width)
    page.evaluate(_LISTEN)
    wait_for_hits(page, re.compile("."))
    page.keyboard.press("Tab")  # out of the field
    page.keyboard.press("/")
    assert focused(page) == "query"
    searches = []
    page.on("request", lambda request: searches.append(request) if "/search" in request.url else None)
    page.keyboard.type("dog barking", delay=15)
    expect(page).to_have_url(re.compile(r"q=dog\+barking(&|$)"))  # a beginning of it may have been asked for, and found
    first = wait_for_hits(page, re.compile("^dog-barking"))
    assert 1 <= len(searches) < len("dog barking"), "a request a letter"
    assert asked(page)["q"] == ["dog barking"]

    answer = server.post("/search", json={"query": "dog barking", "k": 20, "moments": True, "mode": "hybrid"}).json()
    names = [hit["clip"]["filename"] for hit in answer["hits"]]
    expect(hits(page).locator(".name")).to_have_text(names)
    for i, hit in enumerate(answer["hits"][:5]):
        exact = hit["score"] < 0.99 or hit["similarity"] >= 0.9995
        shown = f"{hit['score']:.2f}" if exact else f"{math.floor(hit['score'] * 1000) / 1000:.3f}"
        assert shown in hits(page).nth(i).locator(".score").inner_text()
        best = hit["moments"][0]
        about = hits(page).nth(i).locator(".stage").get_attribute("aria-label") or ""
        assert f"best moment {best['start']:.2f} s to {best['end']:.2f} s" in about
    assert first.locator(".tags .chip").all_inner_texts() == ["dog barking"]

    at = names.index(BARK)
    for _ in range(at + 1):
        page.keyboard.press("ArrowDown")
    assert focused(page) == BARK
    page.keyboard.press("Space")
    expect(hits(page).nth(at)).to_have_class(re.compile("playing"))
    start = answer["hits"][at]["moments"][0]["start"]
    [played] = page.evaluate("window.played")
    assert abs(played["from"] - start) < 0.01, (played, start)
    assert played["src"].endswith(f"/clips/{answer['hits'][at]['clip']['id']}/audio")
    page.keyboard.press("ArrowDown")  # what plays hands over
    expect(hits(page).nth(at + 1)).to_have_class(re.compile("playing"))
    expect(hits(page).nth(at)).not_to_have_class(re.compile("playing"))
    page.keyboard.press("Space")
    expect(hits(page).nth(at + 1)).not_to_have_class(re.compile("playing"))
    page.keyboard.press("ArrowUp")

    page.keyboard.press("Enter")
    dialog = page.locator("#clip-dialog[open]")
    expect(dialog.locator("#clip-title")).to_have_text(BARK)
    assert asked(page)["open"] == [answer["hits"][at]["clip"]["id"]]
    page.keyboard.press("Space")
    expect(dialog.get_by_role("button", name="Pause")).to_be_visible()
    assert abs(page.evaluate("window.played.at(-1).from") - start) < 0.01
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page).not_to_have_url(re.compile("open="))  # a dialog says late that it is closed
    assert focused(page) == BARK

    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename == BARK
    assert download.value.path().read_bytes() == (SOUNDS / BARK).read_bytes()

    page.keyboard.press("s")
    expect(page.locator("#query-chip")).to_contain_text(f"similar to {BARK}")
    wait_for_hits(page, re.compile("^dog-barking"))
    assert BARK not in hits(page).locator(".name").all_inner_texts()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert focused(page) == "query"
    page.keyboard.press("Backspace")
    expect(page.locator("#query-chip")).to_be_hidden()


def test_the_address_says_what_is_asked(open_page: Callable[..., Page]) -> None:
    from playwright.sync_api import expect

    page = open_page(path="/?q=thunder&mode=semantic&without=birds")
    wait_for_hits(page, re.compile("^thunder"))
    expect(page.locator("#query")).to_have_value("thunder")
    assert page.is_checked("input[value=semantic]")
    expect(page.locator("#without-chips")).to_have_text("birds")
    expect(page.locator("#filter-chips")).to_have_text("by sound only")

    page.locator("#hits .chip", has_text="thunder").first.click()  # only this tag
    expect(page.locator("#filter-chips")).to_contain_text("label: thunder")
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    tagged = hits(page).locator(".name").all_inner_texts()
    assert all(name.startswith("thunder") for name in tagged)
    times = sorted(float(time.removesuffix(" s")) for time in hits(page).locator(".time").all_inner_texts())
    assert times[0] + 0.1 < times[-1], times
    longest = times[0] + 0.05
    page.click("#filter-toggle")
    page.fill("#longest", f"{longest:.2f}")
    page.keyboard.press("Enter")
    expect(page.locator("#filter-chips")).to_contain_text(f"duration: up to {longest:.2f} s")
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    short = hits(page).locator(".time").all_inner_texts()
    assert 0 < len(short) < len(tagged) and all(float(time.removesuffix(" s")) <= longest for time in short)
    address = page.url
    page.reload()
    expect(hits(page).locator(".time")).to_have_text(short)
    assert page.url == address

    page.go_back()
    expect(page.locator("#filter-chips")).not_to_contain_text("duration")
    expect(hits(page).locator(".name")).to_have_text(tagged)
    page.go_back()
    expect(page.locator("#filter-chips")).to_have_text("by sound only")
    expect(hits(page)).to_have_count(20)
    page.go_forward()
    page.go_forward()
    expect(hits(page).locator(".time")).to_have_text(short)
    for _ in range(2):
        page.locator("#filter-chips button").first.click()
    expect(page.locator("#filter-chips")).to_have_text("by sound only")
    page.locator("#without-chips button").click()
    assert asked(page) == {"q": ["thunder"], "mode": ["semantic"]}
    page.get_by_role("button", name="Remove by sound only").click()
    expect(page.locator("#filter-chips")).to_be_empty()
    assert asked(page) == {"q": ["thunder"]}


@pytest.mark.parametrize("width", [1280, 390])
def test_one_search_says_why_each_sound_is_there(
    open_page: Callable[..., Page],
    server: Server,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
) -> None:
    """By name, tag and sound, or by a moment; single kinds and a least score are behind Filters, by keys alone."""
    from playwright.sync_api import expect

    long = io.BytesIO()
    bark, rate = soundfile.read(SOUNDS / BARK)
    silence = np.zeros(8 * rate)
    soundfile.write(long, np.concatenate([silence, bark, silence]), rate, format="FLAC")
    added = server.post("/clips", files={"files": ("a quiet garden.flac", long.getvalue())}).json()["clips"][0]
    page = open_page(width, "/?q=dog+barking")
    first = wait_for_hits(page, re.compile("^dog-barking"))
    expect(page.locator("#mode")).to_be_hidden()
    try:
        expect(first.locator(".why")).to_have_text("by name, tag and sound")
        assert first.locator(".name mark").all_inner_texts() == ["dog", "barking"]
        assert first.locator(".tags mark").all_inner_texts() == ["dog", "barking"]
        garden = page.locator("#hits .hit", has_text="a quiet garden")
        expect(garden.locator(".why")).to_have_text(re.compile(r"^by a moment at (7\.\d\d|8\.\d\d) s$"))
        check_accessibility(page)
        shoot(page, f"reasons-{width}")

        page.locator("#filter-toggle").focus()
        page.keyboard.press("Enter")
        page.locator("#least-score").focus()
        for _ in range(12):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#least-score-value")).to_have_text("0.60")
        expect(page.locator("#filter-chips")).to_have_text("score from 0.60")
        expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
        assert asked(page)["score"] == ["0.6"]
        scores = [float(text.split()[-1]) for text in hits(page).locator(".score").all_inner_texts()]
        assert scores and min(scores) >= 0.6
        page.locator("#mode input:checked").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#filter-chips")).to_contain_text("by sound only")
        expect(hits(page).first.locator(".why")).to_have_text(re.compile("^by (sound|a moment at .*)$"))
        expect(page.locator("#filter-toggle")).to_have_accessible_name("Filters 2 set")
        check_accessibility(page)
        shoot(page, f"filters-{width}")
    finally:
        server.delete(f"/clips/{added['id']}")


def test_words_that_are_not_wanted(page: Page) -> None:
    from playwright.sync_api import expect

    page.fill("#query", "water")
    expect(page).to_have_url(re.compile("q=water"))
    wait_for_hits(page, re.compile("^water|^swimming"))
    before = hits(page).locator(".name").all_inner_texts()
    page.fill("#without", "a splash")
    page.keyboard.press("Enter")
    expect(page.locator("#without-chips")).to_have_text("a splash")
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    splash = before.index(next(name for name in before if name.startswith("water-splash")))
    expect(hits(page).nth(splash).locator(".name")).not_to_have_text(before[splash])
    page.keyboard.press("Backspace")
    expect(page.locator("#without-chips")).to_be_empty()
    expect(hits(page).locator(".name")).to_have_text(before)


def test_moments_and_one_sound_after_another(page: Page, server: Server) -> None:
    from playwright.sync_api import expect

    def found(**question: Any) -> list[str]:
        answer = server.post("/search/moments", json={"k": 20, **question}).json()
        return [hit["clip"]["filename"] for hit in answer["hits"]]

    page.click("#filter-toggle")
    page.fill("#query", "thunder")
    page.get_by_role("radio", name="Moments").check(force=True)  # before the words have been asked for
    expect(page.locator("#search-message")).to_contain_text("moments, best first")
    expect(hits(page).locator(".name")).to_have_text(found(query="thunder"))
    page.get_by_role("button", name="Remove by moments only").click()
    page.fill("#query", "dog barking > dog barking")  # says itself that moments are meant
    twice = found(sequence=["dog barking", "dog barking"])
    assert twice
    expect(hits(page).locator(".name")).to_have_text(twice)


def test_a_sound_as_the_question(page: Page, complaints: Complaints) -> None:
    """Chosen, or dropped; a page loaded anew no longer has the file, and says so."""
    from playwright.sync_api import expect

    page.set_input_files("#example", SOUNDS / BARK)
    wait_for_hits(page, BARK)
    expect(page.locator("#query-chip")).to_have_text(BARK)
    dropped = SOUNDS / "thunder-4ac79b.ogg"
    drop(page, "#search-box", dropped)
    wait_for_hits(page, dropped.name)
    page.go_back()
    wait_for_hits(page, BARK)
    page.reload()
    expect(page.locator("#search-message")).to_contain_text(f"Choose {BARK} again")
    complaints.allow("415")
    drop(page, "#search-box", Path(__file__))
    expect(page.locator("#search-message")).to_contain_text("test_search.py")
    expect(page.locator("#search-message")).to_have_class(re.compile("wrong"))


def drop(page: Page, where: str, file: Path) -> None:
    """Drops a file, as from a file manager."""
    data = page.evaluate_handle(
        """([name, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], name));
          return data;
        }""",
        [file.name, list(file.read_bytes())],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event(where, event, {"dataTransfer": data})


def test_what_fails_says_so_and_can_be_tried_again(page: Page, complaints: Complaints) -> None:
    from playwright.sync_api import expect

    wait_for_hits(page, re.compile("."))
    complaints.allow("503")
    busy = {"title": "Service Unavailable", "status": 503, "detail": "The service is being stopped."}
    page.route("**/search", lambda route: route.fulfill(status=503, json=busy))
    page.fill("#query", "thunder")
    expect(page.locator("#search-message")).to_contain_text("The service is being stopped.")
    expect(hits(page)).to_have_count(0)
    page.unroute("**/search")
    page.get_by_role("button", name="Try again").click()
    wait_for_hits(page, re.compile("^thunder"))

    page.click("#filter-toggle")
    page.fill("#filter-value", "no such label")
    page.keyboard.press("Enter")
    expect(page.locator("#no-hits")).to_contain_text("No sounds match the filters")
    page.get_by_role("button", name="Clear filters").click()
    wait_for_hits(page, re.compile("^thunder"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_results_and_a_sound_are_accessible(
    open_page: Callable[..., Page],
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
    scheme: str,
) -> None:
    from playwright.sync_api import expect

    page = open_page(width, "/?q=dog+barking", scheme=scheme)
    wait_for_hits(page, re.compile("^dog-barking"))
    page.wait_for_load_state("networkidle")  # the outlines of the sounds
    if scheme == "dark":
        red, green, blue = map(
            int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
        )
        assert red + green + blue < 150
    check_accessibility(page)
    shoot(page, f"search-{width}-{scheme}")
    page.locator("#hits .title", has_text=BARK).click()
    dialog = page.locator("#clip-dialog[open]")
    expect(dialog.locator("#clip-title")).to_have_text(re.compile("^dog-barking"))
    page.wait_for_load_state("networkidle")
    check_accessibility(page)
    shoot(page, f"clip-{width}-{scheme}")


def test_the_key_is_asked_for_once(
    open_page: Callable[..., Page], small_checkpoint: Path, complaints: Complaints
) -> None:
    """And sounds, that an <audio> would ask for without it, are heard all the same."""
    from playwright.sync_api import expect

    complaints.allow("401")
    with Server({"api_keys": "the key"}) as guarded:
        with (SOUNDS / BARK).open("rb") as file:
            headers = {"Authorization": "Bearer the key"}
            assert guarded.post("/clips", files={"files": (BARK, file)}, headers=headers).status_code == 201
        page = open_page(server=guarded)
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.keyboard.type("another")
        page.keyboard.press("Enter")
        expect(page.locator("#key-message")).to_have_text("The service rejected this key.")
        page.keyboard.type("the key")
        page.keyboard.press("Enter")
        hit = wait_for_hits(page, BARK)
        expect(dialog).to_be_hidden()
        page.evaluate(_LISTEN)
        hit.locator(".play").click()
        expect(hit).to_have_class(re.compile("playing"))
        expect(hit.locator(".problem")).to_have_count(0)

        hit.locator("a.title").dispatch_event("pointerdown")  # the address is signed while the button is down
        carried = page.evaluate_handle("new DataTransfer()")

        def dragged() -> str:
            hit.locator("a.title").dispatch_event("dragstart", {"dataTransfer": carried})
            return str(carried.evaluate("data => data.getData('text/uri-list')"))

        wait_until(dragged)
        assert "signature=" in dragged()
        assert httpx.get(dragged(), trust_env=False).content == (SOUNDS / BARK).read_bytes()
        page.reload()
        wait_for_hits(page, BARK)
        expect(dialog).to_be_hidden()
        page.wait_for_load_state("networkidle")
        page.context.close()  # before the server goes
