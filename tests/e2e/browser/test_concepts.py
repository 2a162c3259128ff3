"""Concepts in a browser: taught from hits, events and open sounds, improved by keys, and used wherever phrases are."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import soundfile

from benchmarks.common import Server
from tests.e2e.browser.conftest import Complaints
from tests.e2e.browser.test_detect import add, write_scene
from tests.e2e.browser.test_search import _LISTEN, wait_for_hits
from tests.e2e.browser.waiting import wait_for_count, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

WATER = "water"  # how the names of the sounds that are taught begin
DOGS = "dog-barking"
# how many colours the first drawing has
_COLOURS = """(() => {
  const canvas = document.querySelector("#concept-examples .sketch canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})()"""


@pytest.fixture(autouse=True)
def forgotten(server: Server) -> Iterator[None]:
    """What a test teaches is forgotten again."""
    yield
    for concept in server.get("/concepts").json()["concepts"]:
        server.delete(f"/concepts/{concept['id']}")


def clip_named(server: Server, start: str) -> dict[str, Any]:
    clips = server.get("/clips", limit=1000).json()["clips"]
    return next(clip for clip in clips if clip["filename"].startswith(start))


def make(server: Server, name: str, **more: Any) -> dict[str, Any]:
    made = server.post("/concepts", json={"name": name, **more})
    assert made.status_code == 201, made.text
    return dict(made.json())


def examples_of(server: Server, concept: str) -> list[dict[str, Any]]:
    return list(server.get(f"/concepts/{concept}/examples").json()["examples"])


def average_precision(server: Server, concept: str, start: str) -> float:
    """Of a search with the concept, where sounds whose names begin so are the right ones."""
    hits = server.post("/search", json={"query": f"concept:{concept}", "k": 1000, "mode": "semantic"}).json()["hits"]
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit["clip"]["filename"].startswith(start)]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)


def tab_to(page: Page, selector: str) -> None:
    """Presses Tab until what fits the selector has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"Tab does not reach {selector}")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_from_a_hit_to_better_results_by_keys_alone(
    open_page: Callable[..., Page],
    server: Server,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
    scheme: str,
) -> None:
    from playwright.sync_api import expect

    page = open_page(width, scheme=scheme)
    page.evaluate(_LISTEN)
    wait_for_hits(page, re.compile("."))
    page.keyboard.type("water", delay=15)
    wait_for_hits(page, re.compile(f"^{WATER}"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("t")
    expect(page.locator("#teach-name")).to_be_focused()
    check_accessibility(page)
    shoot(page, f"teach-{width}-{scheme}")
    page.keyboard.type("our brook")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("“our brook” is a concept now")
    assert [one["label"] for one in examples_of(server, "our brook")] == [True]
    before = average_precision(server, "our brook", WATER)

    page.keyboard.press("4")
    tab_to(page, "#concept-list button")
    page.keyboard.press("Enter")
    expect(page.locator("#concept-title")).to_have_text("our brook")
    wait_for_count(page, "#suggestions > .suggestion", 5)
    tab_to(page, "#suggestions .title")
    page.keyboard.press("Space")
    wait_until(page, "window.played.length > 0")
    assert page.evaluate("window.played.at(-1).src").startswith("blob:")
    expect(page.locator("#suggestions .playing")).to_have_count(0)  # only the stretch is played
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    for answered in range(1, 6):
        name = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("y" if name.startswith(WATER) else "n")
        expect(page.locator("#examples-head")).to_have_text(f"{answered + 1} examples")
        wait_for_count(page, "#suggestions:not([aria-busy]) > .suggestion", 5)  # the list has renewed itself
        assert page.evaluate("document.activeElement.matches('#suggestions .title')")
    check_accessibility(page)
    shoot(page, f"concept-{width}-{scheme}", full_page=True)
    page.keyboard.press("u")  # the last answer was a mistake
    expect(page.locator("#examples-head")).to_have_text("5 examples")
    labels = {(one["filename"].startswith(WATER), one["label"]) for one in examples_of(server, "our brook")}
    assert labels == {(True, True), (False, False)}
    assert average_precision(server, "our brook", WATER) > before + 0.03

    page.keyboard.press("/")
    page.keyboard.type("conc")
    expect(page.get_by_role("option")).to_have_text(re.compile("^our brook"))
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_have_value("concept:our brook")
    wait_for_hits(page, re.compile(f"^{WATER}"))


@pytest.mark.parametrize("width", [1440, 390])
def test_a_concept_chosen_before_the_list_is_renewed_stays_open(
    open_page: Callable[..., Page], server: Server, width: int
) -> None:
    from playwright.sync_api import expect

    for name in ("a hound", "a brook"):  # the newest is what a wide page opens by itself
        make(server, name, text=name)
    page = open_page(width)
    wait_for_hits(page, re.compile("."))
    page.locator("#tab-concepts").click()
    expect(page.locator("#concept-list button")).to_have_count(2)
    page.locator("#tab-search").click()
    held: list[Any] = []
    page.route("**/concepts", lambda route: held.append(route))
    page.locator("#tab-concepts").click()
    page.locator("#concept-list button", has_text="a hound").click()
    expect(page.locator("#concept-title")).to_have_text("a hound")
    assert held
    with page.expect_response("**/concepts"):
        held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#concept")).to_be_visible()
    expect(page.locator("#concept-title")).to_have_text("a hound")
    wait_for_count(page, "#suggestions > .suggestion", 5)


def test_fields_complete_concepts_and_name_them(
    page: Page, server: Server, check_accessibility: Callable[[Page], None], shoot: Callable[..., None]
) -> None:
    """Also that a name that isn't a concept's is not sent: no answer is an error."""
    from playwright.sync_api import expect

    make(server, "our dog", text="dog barking")
    make(server, "a far dog", text="dog barking far away")
    page.reload()
    wait_for_hits(page, re.compile("."))
    expect(page.locator("#filter-chips")).to_contain_text("our dog")
    page.keyboard.type("concept:", delay=20)
    expect(page.get_by_role("option")).to_have_count(2)
    expect(page.locator("#query")).to_have_attribute("aria-expanded", "true")
    check_accessibility(page)
    shoot(page, "completion")
    page.keyboard.type("xyz", delay=20)
    expect(page.get_by_role("option")).to_have_count(0)
    expect(page.locator("#search-message")).to_contain_text("There is no concept “xyz”.")
    page.keyboard.press("Escape")
    page.keyboard.type("concept:dog", delay=20)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_have_value("concept:our dog")
    wait_for_hits(page, re.compile(f"^{DOGS}"))
    page.locator("#without").focus()
    page.keyboard.type("far")
    page.keyboard.press("Enter")
    expect(page.locator("#without-chips")).to_contain_text("a far dog (concept)")
    assert "without=concept%3Aa+far+dog" in page.url

    clip = clip_named(server, DOGS)
    page.goto(f"{server.address}/?tab=detect")
    page.locator("#phrase").focus()
    page.keyboard.type("our")
    page.keyboard.press("Enter")
    expect(page.locator("#phrase-list .of-concept")).to_have_text("concept our dog")
    assert "p=concept%3Aour+dog" in page.url
    page.goto(f"{server.address}/?tab=detect&clip={clip['id']}&p=concept%3Aour+dog")
    expect(page.locator("#strips .names")).to_contain_text("our dog (concept)")
    expect(page.locator("#detect-message")).to_contain_text("Analysed")
    check_accessibility(page)


def test_rename_threshold_labels_and_deletion(
    open_page: Callable[..., Page], server: Server, check_accessibility: Callable[[Page], None]
) -> None:
    from playwright.sync_api import expect

    clip = clip_named(server, DOGS)
    make(server, "rex", text="dog barking", examples=[{"clip_id": clip["id"], "start": 0, "end": 0.3}])
    make(server, "other", text="rain")
    page = open_page(1280, "/?tab=concepts&concept=rex", accept_downloads=True)
    page.evaluate(_LISTEN)
    expect(page.locator("#concept-notes")).to_contain_text("Quality needs positive examples from 3 recordings")
    expect(page.locator("#concept-facts")).to_contain_text("–")

    # the number of sounds above the threshold is that of the scores
    hits = server.post("/search", json={"query": "concept:rex", "k": 1000, "mode": "semantic"}).json()["hits"]
    page.locator("#concept-threshold").fill("0.1")
    above = sum(hit["score"] >= 0.1 for hit in hits)
    reach = "reaches" if above == 1 else "reach"
    expect(page.locator("#scores-about")).to_have_text(f"{above} of {len(hits)} sounds {reach} 0.10")
    assert page.locator("#scores-plot .column.above").count() == 45
    expect(page.locator("#concept-list")).to_contain_text("rex")
    expect(page.locator("#concept-threshold-reset")).to_be_visible()
    assert server.get("/concepts/rex").json()["threshold"] == 0.1
    page.locator("#concept-threshold-reset").click()
    expect(page.locator("#concept-threshold")).to_be_focused()
    expect(page.locator("#concept-threshold")).to_have_value("0.5")
    assert server.get("/concepts/rex").json()["threshold"] == 0.5
    page.locator("#concept-threshold").fill("0.1")
    expect(page.locator("#concept-threshold-reset")).to_be_visible()

    drawn = page.locator("#concept-examples .sketch canvas").first
    expect(drawn).to_be_visible()
    wait_until(page, _COLOURS + " > 2")  # ground, wave and what blends them
    page.locator("#concept-examples").get_by_role("button", name="Play").click()
    expect(page.locator("#concept-examples .playing")).to_have_count(1)
    assert re.search(rf"/clips/{clip['id']}/audio\?start=0&end=0.3", page.evaluate("window.played.at(-1).src"))
    for label, header in (("CSV", "filename,onset"), ("Audacity", "0.000\t0.300\trex"), ("Raven", "Selection\t")):
        with page.expect_download() as started:
            page.locator("#examples-export").get_by_role("button", name=label).click()
        assert started.value.suggested_filename.startswith("rex.")
        assert header in Path(started.value.path()).read_text(encoding="utf-8")

    page.locator("#concept-rename").click()
    check_accessibility(page)
    page.keyboard.type("old rex")
    page.keyboard.press("Enter")
    expect(page.locator("#concept-title")).to_have_text("old rex")
    assert server.get("/concepts/old rex").json()["text"] == "dog barking"
    page.locator("#concept-examples button.play").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#no-examples")).to_be_visible()
    assert examples_of(server, "old rex") == []

    page.locator("#concept-detect").click()
    expect(page.locator("#phrase-list .of-concept")).to_have_text("concept old rex")
    page.goto(f"{server.address}/?tab=detect&clip={clip['id']}&p=concept%3Aold+rex&p=rain")
    expect(page.locator("#detect-message")).to_contain_text("Analysed")
    thresholds = page.locator("#own-thresholds output").all_text_contents()
    assert thresholds == ["0.10", "0.50"], "events of a concept begin at its own threshold"
    page.goto(f"{server.address}/?tab=concepts&concept=old+rex")
    page.locator("#concept-search").click()
    wait_for_hits(page, re.compile(f"^{DOGS}"))
    page.go_back()
    page.locator("#concept-delete").click()
    page.keyboard.press("Enter")  # the button of the dialog
    expect(page.locator("#concept-list li")).to_have_count(1)
    assert server.get("/concepts/old rex").status_code == 404


def test_teach_by_touch(open_page: Callable[..., Page], server: Server) -> None:
    from playwright.sync_api import expect

    page = open_page(390)
    wait_for_hits(page, re.compile("."))
    page.locator("#hits .teaches").first.click()
    expect(page.locator("#teach-name")).to_be_visible()
    page.locator("#teach-name").fill("this")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("“this” is a concept now")


def test_names_with_separators(page: Page, server: Server) -> None:
    """Commas and > within the names of concepts separate nothing, in every field that takes several phrases."""
    from playwright.sync_api import expect

    make(server, "rex, our dog", text="dog barking")
    make(server, "rex > cat", text="cat meowing")
    page.goto(f"{server.address}/?tab=library")
    page.locator("#scan-phrases").focus()
    page.keyboard.type("rain, concept:rex, our dog, wind")
    page.keyboard.press("Escape")
    page.locator("#scan-start").click()
    expect(page.locator("#jobs")).to_contain_text("rain, rex, our dog (concept), wind")
    newest = server.get("/jobs").json()["jobs"][0]
    assert newest["phrases"] == ["rain", "concept:rex, our dog", "wind"]
    server.delete(f"/jobs/{newest['id']}")

    for tab, query, typed, wanted in (
        ("library", "", "concept:rex, our dog, wind", ["concept:rex, our dog", "wind"]),
        ("search", "&mode=moments&q=concept:rex+%3E+cat", None, ["concept:rex > cat"]),  # those of the search
    ):
        page.goto(f"{server.address}/?tab={tab}{query}")
        page.locator("#clips-select, #hits-select").locator("visible=true").click()
        page.locator("li .select input:visible").first.check()
        page.locator("#selection").get_by_role("button", name="Detect").click()
        field = page.locator("dialog.many").get_by_label("Sounds to detect")
        expect(field).to_be_focused()
        if typed:
            page.keyboard.type("concept:rex, o")
            expect(page.locator(".many .completion [role=option]")).to_have_text("rex, our dog0 examples")
            page.keyboard.press("Escape")  # closes the list, not the dialog
            expect(page.locator(".many .completion")).to_be_hidden()
            field.fill("concept:rex, rain")
            page.keyboard.press("Enter")
            expect(page.locator("dialog.many [role=alert]")).to_have_text("There is no concept “rex”.")
            field.fill(typed)
        page.keyboard.press("Enter")
        expect(page.locator("#jobs li")).to_have_count(1)
        [newest] = server.get("/jobs").json()["jobs"]
        assert newest["phrases"] == wanted
        server.delete(f"/jobs/{newest['id']}")

    page.goto(f"{server.address}/?tab=detect")
    page.locator("#phrase").focus()
    page.keyboard.type("rain,concept:rex, our dog")
    page.keyboard.press("Enter")
    expect(page.locator("#phrase-list .chip")).to_have_count(2)
    expect(page.locator("#phrase-list .of-concept")).to_have_text("concept rex, our dog")

    page.goto(f"{server.address}/?mode=moments&q=concept:rex+%3E+cat")
    expect(page.locator("#search-message")).not_to_contain_text("There is no concept")
    wait_for_hits(page, re.compile("."))
    page.locator("#hits a.title").first.click()
    page.locator("#clip-dialog").get_by_role("button", name="Detect sounds in this clip").click()
    expect(page.locator("#phrase-list .of-concept")).to_have_text("concept rex > cat")


def test_a_concept_begins_with_words(page: Page, server: Server, complaints: Complaints) -> None:
    from playwright.sync_api import expect

    page.goto(f"{server.address}/?tab=concepts")
    expect(page.locator("#no-concepts")).to_be_visible()
    page.fill("#concept-name", "storm")
    page.fill("#concept-text", "thunder")
    page.keyboard.press("Enter")
    expect(page.locator("#concept-title")).to_be_focused()
    wait_for_count(page, "#suggestions > .suggestion", 5)
    complaints.allow("409")
    page.fill("#concept-name", "storm")
    page.fill("#concept-text", "wind")
    page.keyboard.press("Enter")
    expect(page.locator("#concepts-message")).to_contain_text("storm")


def test_teach_from_an_open_sound(page: Page, server: Server) -> None:
    """A stretch selected by keys at the position of playback, and by dragging."""
    from playwright.sync_api import expect

    make(server, "rex", text="dog barking")
    clip = clip_named(server, "dog-barking-bd8430")
    page.goto(f"{server.address}/?open={clip['id']}")
    stage = page.locator("#clip-dialog .stage")
    expect(stage).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("i")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("o")
    step = max(clip["duration"] / 20, 0.1)
    expect(page.locator("#clip-dialog .selection")).to_contain_text(f"{step:.2f} s – {3 * step:.2f} s")
    box = stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 40, steps=4)
    page.mouse.up()
    expect(page.locator("#clip-dialog .selection")).not_to_contain_text(f"{step:.2f} s – ")
    page.keyboard.press("t")
    page.locator("#teach-name").fill("rex")
    page.get_by_label("No, it isn’t").check()
    page.keyboard.press("Enter")
    expect(page.locator("#clip-dialog .notice")).to_contain_text("Added to “rex”: 1 example")
    (example,) = examples_of(server, "rex")
    assert example["clip_id"] == clip["id"] and example["label"] is False
    assert abs(example["start"] / clip["duration"] - 0.5) < 0.05
    assert abs(example["end"] / clip["duration"] - 0.7) < 0.05
    page.get_by_role("button", name="Open the concept").click()
    expect(page.locator("#concept-title")).to_have_text("rex")


def test_teach_from_an_event_of_a_local_recording(page: Page, server: Server, tmp_path: Path) -> None:
    """The browser cuts the stretch from the file, which is not in the library."""
    from playwright.sync_api import expect

    page.goto(f"{server.address}/?tab=detect")
    page.set_input_files("#recording", write_scene(tmp_path / "night.wav", 12))
    add(page, "dog barking")
    page.click("#listen")
    wait_until(page, "document.querySelector('#detect-message').textContent.startsWith('Analysed 12')")
    expect(page.locator("#found-teach")).to_be_disabled()
    page.locator("#events button").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("t")
    expect(page.locator("#teach-name")).to_be_focused()
    start, end = (float(page.locator(name).input_value()) for name in ("#teach-start", "#teach-end"))
    assert page.locator("#teach-end").evaluate("node => node.validity.valid")
    page.keyboard.type("night dog")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("“night dog” is a concept now")
    (example,) = examples_of(server, "night dog")
    assert example["clip_id"] is None and example["filename"] == f"night_{start:.2f}s-{end:.2f}s.wav"
    audio = server.get(f"/concepts/night dog/examples/{example['id']}/audio").content
    assert abs(soundfile.info(io.BytesIO(audio)).duration - (end - start)) < 0.01
