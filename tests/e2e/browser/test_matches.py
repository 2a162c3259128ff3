"""What the Search tab says about matches, and results as examples. The service's answers are made here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.common import SOUNDS, Server
from tests.e2e.browser.test_search import asked, focused, hits, wait_for_hits
from tests.e2e.browser.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Route

LONG = {"duration": 61.5}


class Service:
    """Answers POST /search of a page with four hits, and remembers the requests."""

    def __init__(self, page: Page, hits: list[dict[str, Any]]) -> None:
        self.hits = hits
        self.requests: list[Request] = []
        self.matches: int | None = None
        self.corrected: str | None = None
        self.marks: list[bool | None] = [None] * 4
        page.route(re.compile("/search$"), self._answer)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the last request."""
        return json.loads(self.requests[-1].post_data or "")

    @property
    def fields(self) -> dict[str, str]:
        """The form of the last request, without its file."""
        form = (self.requests[-1].post_data_buffer or b"").decode("utf-8", "replace")
        return dict(re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n', form))

    def _answer(self, route: Route) -> None:
        self.requests.append(route.request)
        found = [{**hit, "match": mark} for hit, mark in zip(self.hits, self.marks, strict=True)]
        answer = {"query": "", "took_ms": 1.0, "matches": self.matches, "did_you_mean": self.corrected, "hits": found}
        route.fulfill(json=answer)


@pytest.fixture
def found(server: Server) -> list[dict[str, Any]]:
    """Four hits; the third is of a long recording."""
    answer = server.post("/search", json={"query": "dog barking", "k": 4, "moments": True}).json()
    found: list[dict[str, Any]] = answer["hits"]
    found[2]["clip"] |= LONG
    return found


@pytest.fixture
def start(open_page: Callable[..., Page], found: list[dict[str, Any]]) -> Callable[..., tuple[Page, Service]]:
    """Opens the page of `server` with a service that answers its searches."""

    def start(width: int = 1280, **options: Any) -> tuple[Page, Service]:
        page = open_page(width, path="/", **options)
        return page, Service(page, found)

    return start


@pytest.fixture(params=["1280-light", "1280-dark", "390-light", "390-dark"])
def everywhere(
    request: pytest.FixtureRequest,
    start: Callable[..., tuple[Page, Service]],
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
) -> tuple[Page, Service, Callable[[str], None]]:
    """The page in each width and scheme, its service, and a function that checks accessibility and takes a picture."""
    width, scheme = request.param.split("-")
    page, service = start(int(width), scheme=scheme)

    def inspect(name: str) -> None:
        page.wait_for_load_state("networkidle")
        check_accessibility(page)
        shoot(page, f"{name}-{request.param}")

    return page, service, inspect


def search(page: Page, query: str) -> None:
    """Types a query and waits for its answer."""
    with page.expect_response(re.compile("/search$")):
        page.fill("#query", query)
        page.keyboard.press("Enter")
    wait_until(page, "!document.getElementById('search').classList.contains('busy')")


def test_no_close_match(everywhere: tuple[Page, Service, Callable[[str], None]]) -> None:
    from playwright.sync_api import expect

    page, service, inspect = everywhere
    service.matches, service.marks = 0, [False] * 4
    search(page, "asdfgh")
    expect(page.get_by_role("status").filter(has_text="No close match")).to_be_visible()
    expect(page.locator("#notes")).to_contain_text("The nearest sounds are shown below. Try other words.")
    expect(page.locator("#search-message")).to_have_text("Nearest sounds")
    expect(page.locator("#hits .unlikely")).to_have_count(4)
    expect(page.locator("#hits .divider")).to_have_count(0)
    inspect("no-match")

    service.matches, service.marks = 4, [True] * 4
    search(page, "dog")
    expect(page.locator("#notes")).to_be_empty()
    expect(page.locator("#hits .unlikely")).to_have_count(0)


def test_a_line_separates_less_likely_results(everywhere: tuple[Page, Service, Callable[[str], None]]) -> None:
    from playwright.sync_api import expect

    page, service, inspect = everywhere
    names = [hit["clip"]["filename"] for hit in service.hits]
    service.matches, service.marks = 2, [True, False, True, False]
    search(page, "dog barking")
    expect(page.locator("#search-message")).to_have_text("2 matches, best first")
    order = [names[0], names[2], "Less likely", names[1], names[3]]
    lines = page.locator("#hits > li")
    expect(lines).to_have_count(5)
    for i, text in enumerate(order):
        expect(lines.nth(i)).to_contain_text(text)
    expect(page.locator("#hits .unlikely .name")).to_have_text(order[3:])
    expect(page.locator("#hits .unlikely .score").first).to_contain_text("less likely")
    inspect("less-likely")


def test_the_heading_counts_matches_of_the_library(start: Callable[..., tuple[Page, Service]]) -> None:
    from playwright.sync_api import expect

    page, service = start()
    service.marks = [True, False, False, False]
    for matches, heading in ((1, "1 match, best first"), (999, "999 matches, best first")):
        service.matches = matches
        search(page, f"dog {matches}")
        expect(page.locator("#search-message")).to_have_text(heading)
    service.matches, service.marks = 1000, [True] * 4
    search(page, "dog")
    expect(page.locator("#search-message")).to_have_text("1,000+ matches, best first")
    service.matches, service.marks = None, [None] * 4  # no claim
    search(page, "a dog")
    expect(page.locator("#search-message")).to_have_text("4 sounds, best first")
    expect(page.locator("#hits .unlikely, #hits .divider")).to_have_count(0)


def test_a_corrected_query(start: Callable[..., tuple[Page, Service]]) -> None:
    from playwright.sync_api import expect

    page, service = start()
    service.corrected = "dog barking"
    search(page, "dog barkng")
    expect(page.locator("#notes")).to_contain_text("Showing results for “dog barking” instead of “dog barkng”.")
    expect(page.locator("#query")).to_have_value("dog barkng")
    service.corrected = None
    page.get_by_role("button", name="Correct the query").click()
    expect(page.locator("#query")).to_have_value("dog barking")
    expect(page.locator("#notes")).to_be_empty()
    assert service.body["query"] == "dog barking" and asked(page)["q"] == ["dog barking"]
    assert focused(page) == "query"


@pytest.mark.parametrize("width", [1280, 390])
def test_results_as_examples(start: Callable[..., tuple[Page, Service]], width: int) -> None:
    from playwright.sync_api import expect

    page, service = start(width)
    clips = [hit["clip"] for hit in service.hits]
    expect(hits(page).first).to_be_visible()
    expect(page.locator("#hits .example")).to_have_count(0)  # nothing is asked yet
    search(page, "dog barking")
    assert service.body["mode"] == "hybrid" and "like" not in service.body
    page.get_by_role("button", name=f"More like {clips[0]['filename']}").click()
    chips = page.locator("#filter-chips .chip")
    expect(chips).to_have_text([f"more like {clips[0]['filename']}"])
    page.get_by_role("button", name=f"Less like {clips[2]['filename']}").click()
    expect(chips).to_have_count(2)
    expect(chips.nth(1)).to_have_text(re.compile(f"^less like {clips[2]['filename']}, "))
    best, stretch = service.hits[2]["moments"][0], re.compile(f"^less like {clips[2]['filename']}, ")
    assert service.body["query"] == "dog barking"
    assert service.body["like"] == [{"clip_id": clips[0]["id"]}]
    assert service.body["unlike"] == [{"clip_id": clips[2]["id"], "start": best["start"], "end": best["end"]}]
    more = page.get_by_role("button", name=f"More like {clips[0]['filename']}", exact=True)
    expect(more).to_have_attribute("aria-pressed", "true")

    with page.expect_response(re.compile("/search$")):
        page.reload()  # the address has them
    expect(chips).to_have_text([f"more like {clips[0]['filename']}", stretch])
    assert service.body["like"] == [{"clip_id": clips[0]["id"]}]
    more.click()  # again: no longer
    expect(chips).to_have_count(1)
    page.get_by_role("button", name="Remove less like").click()
    expect(chips).to_have_count(0)
    assert service.body.keys().isdisjoint({"like", "unlike"})


def test_examples_by_keys(start: Callable[..., tuple[Page, Service]]) -> None:
    from playwright.sync_api import expect

    page, service = start()
    search(page, "dog barking")
    names = [hit["clip"]["filename"] for hit in service.hits]
    chips = page.locator("#filter-chips .chip")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("+")
    expect(chips).to_have_text([f"more like {names[0]}"])
    expect(hits(page).nth(0).locator(".title")).to_be_focused()
    page.keyboard.press("-")  # a clip is one or the other
    expect(chips).to_have_text([f"less like {names[0]}"])
    search(page, "thunder")  # another question
    expect(chips).to_have_count(0)
    assert "unlike" not in service.body
    page.click("#filter-toggle")
    page.check("input[value=lexical]", force=True)
    expect(page.locator("#hits .example")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_sound_and_words_together(
    start: Callable[..., tuple[Page, Service]], check_accessibility: Callable[[Page], None], width: int
) -> None:
    from playwright.sync_api import expect

    page, service = start(width)
    bark = SOUNDS / "dog-barking-bd8430.ogg"
    search(page, "far away")
    page.set_input_files("#example", bark)
    expect(page.locator("#query-chip")).to_have_text(bark.name)
    expect(page.locator("#query")).to_have_value("far away")
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    assert service.fields.items() >= {"query": "far away", "mode": "hybrid", "moments": "true"}.items()
    search(page, "in a hall")
    assert service.fields["query"] == "in a hall"
    page.get_by_role("button", name=f"More like {service.hits[0]['clip']['filename']}").click()
    expect(page.locator("#filter-chips .chip")).to_have_count(1)
    assert json.loads(service.fields["like"]) == [{"clip_id": service.hits[0]["clip"]["id"]}]
    check_accessibility(page)
    box, remove = page.locator("#query-chip").bounding_box(), page.get_by_role("button", name=f"Remove {bark.name}")
    place = remove.bounding_box()
    assert box and place and place["x"] + place["width"] <= box["x"] + box["width"]  # not cut off
    remove.click()
    expect(page.locator("#query-chip")).to_be_hidden()
    expect(page.locator("#search")).not_to_have_class(re.compile("busy"))
    assert service.body["query"] == "in a hall"


def test_only_the_same_sound_has_a_score_of_one(page: Page, found: list[dict[str, Any]]) -> None:
    from playwright.sync_api import expect

    wait_for_hits(page, re.compile("."))
    pairs = ((0.9997, 1.0), (0.98, 0.99994), (0.9, 0.9963), (0.5, 0.8712))
    alike = [
        {**hit, "similarity": similarity, "score": score} for hit, (similarity, score) in zip(found, pairs, strict=True)
    ]
    page.route("**/similar?*", lambda route: route.fulfill(json={"query": "a.wav", "took_ms": 1.0, "hits": alike}))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("s")
    expect(hits(page)).to_have_count(4)
    scores = [text.split()[-1] for text in hits(page).locator(".score").all_inner_texts()]
    assert scores == ["1.00", "0.999", "0.996", "0.87"]
