"""Many sounds at once, by keys: favourites, collections, tags, a download, teaching, deleting; and renaming."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.common import SOUNDS, Server, encode, load
from tests.e2e.browser.test_search import asked, wait_for_hits

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WIDTHS = pytest.mark.parametrize("width", [1280, 390])
NAMES = ("zz one.wav", "zz three.wav", "zz two.wav")


@pytest.fixture
def added(server: Server) -> Iterator[list[dict[str, Any]]]:
    """Three clips of their own, in the order of their names; what is left of them goes again."""
    sound = load(SOUNDS / "thunder-4ac79b.ogg")
    files = [("files", (name, encode(sound[: 16_000 + 800 * i]))) for i, name in enumerate(NAMES)]
    clips = server.post("/clips", files=files, data={"metadata": '{"tags": ["zz"]}'}).json()["clips"]
    yield clips
    for clip in clips:
        server.delete(f"/clips/{clip['id']}")
    for concept in server.get("/concepts").json()["concepts"]:
        server.delete(f"/concepts/{concept['id']}")


def now(server: Server, clip: dict[str, Any]) -> dict[str, Any]:
    """The clip's metadata."""
    return dict(server.get(f"/clips/{clip['id']}").json()["metadata"])


def open_library(open_page: Callable[..., Page], width: int) -> tuple[Page, Locator]:
    """The Library tab with the three clips, and their rows."""
    from playwright.sync_api import expect

    page = open_page(width, '/?tab=library&sort=filename&filter={"tags":"zz"}')
    rows = page.locator("#clips > li")
    expect(rows.locator(".name")).to_have_text(list(NAMES))
    return page, rows


@WIDTHS
def test_sounds_are_selected_and_put_into_collections_by_keys(
    open_page: Callable[..., Page],
    server: Server,
    added: list[dict[str, Any]],
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
) -> None:
    from playwright.sync_api import expect

    page, rows = open_library(open_page, width)
    bar = page.locator("#selection")
    rows.first.locator("a.title").focus()
    page.keyboard.press("x")
    expect(bar.locator("output")).to_have_text("1 selected")
    page.keyboard.press("Shift+ArrowDown")
    expect(bar.locator("output")).to_have_text("2 selected")
    expect(rows.nth(1).locator("a.title")).to_be_focused()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowUp")
    expect(bar.locator("output")).to_have_text("2 selected")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    page.keyboard.press("Control+a")
    expect(bar.locator("output")).to_have_text("3 selected")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("x")  # all but this one
    expect(bar.locator("output")).to_have_text("2 selected")
    check_accessibility(page)
    shoot(page, f"selection-{width}")

    page.keyboard.press("c")
    dialog = page.locator("dialog.many")
    expect(dialog.get_by_role("heading")).to_have_text("Collections of 2 sounds")
    check_accessibility(page)
    dialog.get_by_label("New collection").fill("storm scene")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("2 sounds: now in storm scene")
    expect(page.locator("#collections")).to_contain_text("storm scene 2")
    inside = [clip["id"] for clip in added if now(server, clip).get("collections") == ["storm scene"]]
    assert len(inside) == 2

    page.keyboard.press("f")
    expect(page.locator("#collections")).to_contain_text("Favourites 2")
    assert sorted(now(server, next(c for c in added if c["id"] == inside[0]))["collections"]) == [
        "Favourites",
        "storm scene",
    ]
    page.keyboard.press("Escape")
    page.locator("#collections").get_by_role("button", name="storm scene").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Rename the collection").click()
    page.locator("dialog.many").get_by_label("Name").fill("gale")
    page.keyboard.press("Enter")
    expect(page.locator("#clips-filter")).to_contain_text("collections: gale")
    expect(rows).to_have_count(2)
    shoot(page, f"collection-{width}")
    page.get_by_role("button", name="Delete the collection").click()
    page.locator("dialog.many").get_by_role("button", name="Delete the collection").click()
    expect(page.locator("#clips-filter")).not_to_contain_text("gale")
    expect(rows).to_have_count(3)
    assert server.get("/collections").json()["collections"] == [{"name": "Favourites", "clips": 2}]


@WIDTHS
def test_selected_sounds_are_tagged_downloaded_taught_and_deleted(
    open_page: Callable[..., Page], server: Server, added: list[dict[str, Any]], width: int
) -> None:
    from playwright.sync_api import expect

    page, rows = open_library(open_page, width)
    bar = page.locator("#selection")
    page.get_by_role("button", name="Select", exact=True).click()
    rows.nth(0).get_by_role("checkbox").check()
    rows.nth(2).get_by_role("checkbox").click(modifiers=["Shift"])
    expect(bar.locator("output")).to_have_text("3 selected")
    bar.get_by_role("button", name="Tag").click()
    page.locator("dialog.many").get_by_label("Add tags").fill("storm, night")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("tags saved")
    expect(rows.first).to_contain_text("night")
    assert all(now(server, clip)["tags"] == ["zz", "storm", "night"] for clip in added)
    expect(bar.locator("output")).to_have_text("3 selected")  # they stay selected

    with page.expect_download() as download:
        bar.get_by_role("button", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {*NAMES, "sounds.csv"} == set(archive.namelist())

    bar.get_by_role("button", name="Teach").click()
    page.locator("dialog.many").get_by_label("Concept").fill("our storm")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("“our storm” has learned from 3 sounds")
    [concept] = server.get("/concepts").json()["concepts"]
    assert concept["name"] == "our storm" and concept["positives"] == 3

    bar.get_by_role("button", name="Detect").click()
    page.locator("dialog.many").get_by_label("Sounds to detect").fill("thunder")
    page.keyboard.press("Enter")
    expect(page.locator("#jobs")).to_contain_text("3 clips")
    for job in server.get("/jobs").json()["jobs"]:
        server.delete(f"/jobs/{job['id']}")

    rows.first.locator("a.title").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#notices .notice", has_text="Deleting 3 sounds")).to_be_visible()
    expect(rows).to_have_count(0)
    page.get_by_role("button", name="Undo deleting 3 sounds").press("Enter")
    expect(rows).to_have_count(3)
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.get_by_role("button", name="Delete 3 sounds now").click()
    expect(page.locator("#no-clips")).to_contain_text("No matches")
    assert server.get("/clips", filter='{"tags": "zz"}').json()["clips"] == []


@WIDTHS
def test_search_results_are_selected_and_starred(
    open_page: Callable[..., Page], server: Server, added: list[dict[str, Any]], width: int
) -> None:
    from playwright.sync_api import expect

    page = open_page(width, "/?q=zz&mode=lexical")
    first = wait_for_hits(page, re.compile("^zz"))
    page.locator("#query").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("f")
    expect(first.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Delete")
    expect(page.locator("#notices .notice", has_text="Deleting 2 sounds")).to_be_visible()
    expect(page.locator("#hits .name", has_text="zz")).to_have_count(1)
    page.keyboard.press("Control+z")
    expect(page.locator("#hits .name", has_text="zz")).to_have_count(3)
    page.click("#filter-toggle")
    facet = page.locator("#facets").get_by_role("button", name="Favourites 1")
    facet.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#hits .name", has_text="zz")).to_have_count(1)
    expect(facet).to_have_attribute("aria-pressed", "true")
    assert asked(page)["filter"] == ['{"collections":"Favourites"}']
    facet.press("Enter")
    expect(page.locator("#filter-chips")).not_to_contain_text("Favourites")
    page.locator("#facets").get_by_role("button", name=re.compile("^under 2 s")).click()
    expect(page.locator("#filter-chips")).to_contain_text("duration: up to 2.00 s")


@WIDTHS
def test_a_sound_is_renamed(
    open_page: Callable[..., Page], server: Server, added: list[dict[str, Any]], width: int
) -> None:
    from playwright.sync_api import expect

    page, rows = open_library(open_page, width)
    rows.first.locator("a.title").focus()
    page.keyboard.press("e")
    page.get_by_label("File name").fill("zz the first.wav")
    page.keyboard.press("Enter")
    expect(rows.first.locator(".name")).to_have_text("zz the first.wav")
    assert server.get(f"/clips/{added[0]['id']}").json()["filename"] == "zz the first.wav"


@WIDTHS
def test_searches_are_remembered_and_saved(open_page: Callable[..., Page], width: int) -> None:
    from playwright.sync_api import expect

    page = open_page(width)
    page.locator("#query").fill("thunder")
    page.keyboard.press("Enter")
    wait_for_hits(page, re.compile("^thunder"))
    page.get_by_role("button", name="Save search").click()
    dialog = page.locator("dialog.many")
    expect(dialog.get_by_label("Name")).to_have_value("thunder")
    dialog.get_by_label("Name").fill("storms")
    page.keyboard.press("Enter")
    page.locator("#query").fill("")
    chips = page.locator("#filter-chips")
    expect(chips.get_by_title("Saved search")).to_have_text("storms")
    expect(chips.get_by_title("Recent search")).to_have_text("thunder")
    page.reload()
    chips.get_by_title("Saved search").click()
    wait_for_hits(page, re.compile("^thunder"))
    assert asked(page) == {"q": ["thunder"]}
    page.locator("#query").fill("")
    page.get_by_role("button", name="Forget storms").click()
    page.get_by_role("button", name="Clear recent").click()
    expect(chips.get_by_title(re.compile("(Saved|Recent) search"))).to_have_count(0)
