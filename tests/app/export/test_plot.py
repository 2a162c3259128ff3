"""Detection plots: boxes at the events, any script, any number of phrases, several threads."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from app.audio.peaks import waveform_peaks
from app.export.plot import DetectionPlot, detection_png
from model.detection import Event

HOP = 0.16
ACCENT = np.array([0xE8, 0x59, 0x0C]) / 255
TRACK = slice(270, 1217)  # pixel columns of the time axis


@pytest.fixture(autouse=True)
def no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # from objects of other tests that are collected meanwhile
        yield


def picture(
    duration: float,
    phrases: list[str],
    events: list[list[Event]],
    title: str = "a.wav",
    thresholds: list[float] | None = None,
) -> np.ndarray:
    """Renders an image (height, width, 3) with scores of 0.9 inside events and 0.1 elsewhere."""
    frames = max(1, int(np.ceil(duration / HOP)))
    scores = np.full((len(phrases), frames), 0.1, dtype=np.float32)
    for row, found in enumerate(events):
        for event in found:
            scores[row, int(event.onset / HOP) : int(np.ceil(event.offset / HOP))] = 0.9
    samples = np.sin(np.arange(max(1, int(duration * 16_000)), dtype=np.float32) ** 2)
    png = detection_png(
        DetectionPlot(
            title,
            duration,
            waveform_peaks(samples),
            phrases,
            scores,
            HOP,
            events,
            thresholds or [0.5] * len(phrases),
        )
    )
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png))[..., :3]


def accent_seconds(image: np.ndarray, duration: float) -> tuple[float, float]:
    """The leftmost and rightmost pixel of the event colour, in seconds on the time axis."""
    columns = np.flatnonzero((np.abs(image[:, TRACK] - ACCENT).max(axis=-1) < 0.02).any(axis=0))
    width = TRACK.stop - TRACK.start
    return columns[0] / width * duration, (columns[-1] + 1) / width * duration


def test_boxes_match_the_events() -> None:
    image = picture(40.0, ["dog barking", "rain"], [[Event(10.08, 12.0, 0.9)], [Event(20.0, 30.08, 0.9)]])
    onset, offset = accent_seconds(image, 40.0)
    assert onset == pytest.approx(10.08, abs=0.15)
    assert offset == pytest.approx(30.08, abs=0.15)


def test_scores_stay_visible_with_hundreds_of_events() -> None:
    image = picture(3_600.0, ["clock", "dog"], [[Event(t, t + 2.0, 0.9) for t in range(0, 3_600, 4)], []])
    track = image[:, TRACK]
    marked = (np.abs(track - ACCENT).max(axis=-1) < 0.1).mean()
    dark = (track.max(axis=-1) < 0.5).mean()
    assert 0 < marked < dark / 2


def test_each_phrase_may_have_a_threshold() -> None:
    phrases, nothing = ["dog", "rain"], [[], []]
    one = picture(10.0, phrases, nothing, thresholds=[0.3, 0.3])
    own = picture(10.0, phrases, nothing, thresholds=[0.3, 0.7])
    accent = [np.argwhere(np.abs(image - ACCENT).max(axis=-1) < 0.25) for image in (one, own)]
    line, marks = (np.unique(found[:, 0]) for found in accent)
    assert len(line) <= 4  # a line on the colour scale
    assert np.diff(marks).max() > 20 and accent[1][:, 1].min() > TRACK.stop - 60  # a number beside each row


def test_no_boxes_without_events() -> None:
    image = picture(10.0, ["dog barking"], [[]])
    assert not (np.abs(image[:, TRACK] - ACCENT).max(axis=-1) < 0.02).any()


@pytest.mark.parametrize(("duration", "count"), [(0.01, 1), (3.0, 1), (40.0, 8), (600.0, 100)])
def test_height_grows_with_the_phrases(duration: float, count: int) -> None:
    image = picture(duration, [f"phrase {n}" for n in range(count)], [[] for _ in range(count)])
    height, width, _ = image.shape
    assert width == 1320
    assert height >= count * 17  # every label fits its row


def test_single_frame_of_an_hour_is_visible() -> None:
    quiet = picture(3_600.0, ["beep"], [[]])
    beep = picture(3_600.0, ["beep"], [[Event(1_800.0, 1_800.16, 0.9)]])
    assert np.abs(quiet - beep).max() > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "犬が吠える",
        "кошка мяукает",
        "نباح الكلب",
        "สุนัขเห่า",
        "🐕🦺 dog",
        "$\\frac{$",
        "a\nb\x00\x1b[31m",
        "",
        " ",
        "e\u0301\u200d",
        "W" * 500,
    ],
)
def test_any_text_is_drawn_without_a_warning(text: str) -> None:
    assert picture(2.0, [text, "dog"], [[], []], title=text).shape[2] == 3


def test_plotting_is_thread_safe() -> None:
    def draw(_: int) -> bytes:
        return picture(5.0, ["dog", "кошка"], [[Event(1.0, 2.0, 0.9)], []]).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(draw, range(12)))) == 1


def test_mismatched_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="2 phrases"):
        detection_png(DetectionPlot("a.wav", 1.0, np.zeros((2, 10)), ["a", "b"], np.zeros((1, 5)), HOP, [[]], [0.5]))
    with pytest.raises(ValueError, match="2 thresholds"):
        detection_png(DetectionPlot("a.wav", 1.0, np.zeros((2, 10)), ["a"], np.zeros((1, 5)), HOP, [[]], [0.5, 0.6]))


def test_global_matplotlib_state_is_not_used(repo_dir: Path) -> None:
    code = "import sys, app.export.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_dir)
