"""Listening: volume, matched loudness, repeating, the end of a moment, arrow keys that play; duplicates, resolved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.common import SOUNDS, Server, encode, load
from tests.e2e.browser.test_search import hits, wait_for_hits
from tests.e2e.browser.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTHS = pytest.mark.parametrize("width", [1280, 390])
# remembers the players, which are not in the document
_PLAYERS = """() => {
  window.players = new Set();
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    window.players.add(this);
    window.latest = this;
    return play.call(this);
  };
}"""
_JUMPED_BACK = """() => {
  (window.times ??= []).push(latest.currentTime);
  return times.at(-1) < times.at(-2) - 0.5;
}"""
RATE = 16_000


@pytest.fixture
def garden(server: Server) -> Iterator[dict[str, Any]]:
    """A clip of 20 s with a bark after 8 s."""
    sound = np.zeros(20 * RATE, np.float32)
    bark = load(SOUNDS / "dog-barking-bd8430.ogg")
    sound[8 * RATE :][: len(bark)] = bark
    clip = server.post("/clips", files={"files": ("zz garden.wav", encode(sound))}).json()["clips"][0]
    yield clip
    server.delete(f"/clips/{clip['id']}")


@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.slow)])  # it lasts as long as the sound
def test_a_moment_ends_and_repeats(
    open_page: Callable[..., Page],
    garden: dict[str, Any],
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
) -> None:
    from playwright.sync_api import expect

    page = open_page(width, "/?q=zz+garden")
    page.evaluate(_PLAYERS)
    row = wait_for_hits(page, "zz garden.wav")
    page.get_by_role("button", name="Playback").focus()
    page.keyboard.press("Enter")
    panel = page.locator("#playback")
    expect(page.locator("#volume")).to_be_focused()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#volume-value")).to_have_text("50 %")
    panel.get_by_label("Stop at the end of the moment").check()
    check_accessibility(page)
    shoot(page, f"playback-{width}")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()

    row.locator("a.title").focus()
    page.keyboard.press("Space")
    expect(row).to_have_class(re.compile("playing"))
    assert page.evaluate("latest.volume") == 0.5
    start = page.evaluate("latest.currentTime")
    expect(row).not_to_have_class(re.compile("playing"))  # by itself
    end = page.evaluate("latest.currentTime")
    assert 4 < start < end < 19
    page.keyboard.press("l")
    page.keyboard.press("Space")  # the moment again
    expect(row).to_have_class(re.compile("playing"))
    wait_until(page, f"({_JUMPED_BACK})()")
    expect(row).to_have_class(re.compile("playing"))
    assert abs(page.evaluate("Math.min(...times)") - start) < 1
    page.keyboard.press("l")
    expect(row).not_to_have_class(re.compile("playing"))


@pytest.fixture
def levels(server: Server) -> Iterator[None]:
    """Tones of -3.9 and -43 LUFS, the latter with a peak at -40 dBFS, and the quiet one with a click near 0 dBFS."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(10 * RATE) / RATE)
    click = 0.01 * tone
    click[0] = 0.8
    made = (("zz loud.wav", 0.9 * tone), ("zz quiet.wav", 0.01 * tone), ("zz click.wav", click))
    clips = server.post("/clips", files=[("files", (name, encode(sound))) for name, sound in made]).json()["clips"]
    yield
    for clip in clips:
        server.delete(f"/clips/{clip['id']}")


@WIDTHS
def test_loudness_is_matched(open_page: Callable[..., Page], levels: None, width: int) -> None:
    from playwright.sync_api import expect

    page = open_page(width, "/?tab=library&words=zz")
    page.evaluate(_PLAYERS)
    page.evaluate("""() => {
      const create = AudioContext.prototype.createGain;
      AudioContext.prototype.createGain = function () { return (window.boost = create.call(this)); };
    }""")

    def play(name: str) -> float:
        """Plays the sound; its gain."""
        row = page.locator("#clips > li", has_text=name)
        row.locator("a.title").focus()
        page.evaluate("window.boost = null")
        page.keyboard.press("Space")
        expect(row).to_have_class(re.compile("playing"))
        gain = page.evaluate("latest.volume * (window.boost?.gain.value ?? 1)")
        page.keyboard.press("Space")
        return float(gain)

    assert play("zz loud.wav") == play("zz quiet.wav") == 1
    page.get_by_role("button", name="Playback").click()
    page.locator("#playback").get_by_label("Match loudness").check()
    page.keyboard.press("Escape")
    assert play("zz loud.wav") == pytest.approx(0.111, rel=0.03)
    assert play("zz quiet.wav") == pytest.approx(10, rel=0.03)
    assert play("zz click.wav") == pytest.approx(1.11, rel=0.03)  # up to -1 dBFS
    page.locator("#volume").evaluate("(node) => { node.value = 0.5; node.dispatchEvent(new Event('input')); }")
    assert play("zz loud.wav") == pytest.approx(0.0555, rel=0.03)
    page.reload()
    expect(page.locator("#playback-levels")).to_be_checked(checked=True)


@WIDTHS
def test_arrow_keys_play(open_page: Callable[..., Page], width: int) -> None:
    from playwright.sync_api import expect

    page = open_page(width, "/?q=dog+barking")
    page.evaluate(_PLAYERS)
    wait_for_hits(page, re.compile("^dog-barking"))
    page.get_by_role("button", name="Playback").click()
    page.get_by_label("Play while moving with the arrow keys").check()
    page.get_by_label("Repeat").check()
    page.reload()  # settings are kept
    page.evaluate(_PLAYERS)
    wait_for_hits(page, re.compile("^dog-barking"))
    hits(page).first.locator("a.title").focus()
    page.keyboard.press("ArrowDown")
    expect(hits(page).nth(1)).to_have_class(re.compile("playing"))
    page.keyboard.press("ArrowDown")
    expect(hits(page).nth(2)).to_have_class(re.compile("playing"))
    expect(hits(page).nth(1)).not_to_have_class(re.compile("playing"))
    assert page.evaluate("latest.loop")


@WIDTHS
def test_duplicates_are_heard_and_resolved(
    open_page: Callable[..., Page],
    server: Server,
    check_accessibility: Callable[[Page], None],
    shoot: Callable[..., None],
    width: int,
) -> None:
    """The better copy is proposed; it takes over the tags and collections of what goes."""
    from playwright.sync_api import expect

    sound = load(SOUNDS / "thunder-4ac79b.ogg")
    louder = {
        "zz take.flac": (encode(sound, "FLAC"), "{}"),
        "zz take.wav": (encode(0.5 * sound), '{"tags": ["storm"]}'),
    }
    clips = {
        name: server.post("/clips", files={"files": (name, audio)}, data={"metadata": own}).json()["clips"][0]
        for name, (audio, own) in louder.items()
    }
    try:
        page = open_page(width, "/?tab=library")
        page.get_by_role("button", name="Find duplicates").click()
        group = page.locator("#duplicate-groups > li", has_text="zz take")
        expect(group.locator(".name")).to_have_count(3)  # and the demo sound itself
        check_accessibility(page)
        group.scroll_into_view_if_needed()
        shoot(page, f"duplicates-{width}")
        group.get_by_role("radio", name=re.compile("^zz take.flac")).focus()
        page.keyboard.press("Space")
        group.locator(".duplicate", has_text="thunder").get_by_role("button").click()
        expect(group.get_by_role("button", name="Pause thunder-4ac79b.ogg")).to_be_visible()
        group.get_by_role("button", name="Delete the others").press("Enter")
        expect(group).to_have_count(0)
        expect(page.locator("#notices")).to_contain_text("Deleting 2 sounds")
        assert server.get(f"/clips/{clips['zz take.flac']['id']}").json()["metadata"]["tags"][-1] == "storm"
        page.get_by_role("button", name="Undo deleting 2 sounds").click()
        expect(page.locator("#clips .name", has_text="zz take.wav")).to_be_visible()
    finally:
        for clip in clips.values():
            server.delete(f"/clips/{clip['id']}")
