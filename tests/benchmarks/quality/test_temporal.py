"""The rules of the temporal benchmark choose the right scene from clean scores, and scenes are what they are called."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.temporal import QUESTIONS, RULES, SCENES, _scene
from model.config import SAMPLE_RATE

HOP = 0.16


def track(*spans: tuple[float, float]) -> np.ndarray:
    scores = np.full(62, 0.02, np.float32)
    for onset, offset in spans:
        scores[round(onset / HOP) : round(offset / HOP)] = 0.9
    return scores


SCORES = {
    "A then B": (track((1, 3)), track((6, 8))),
    "B then A": (track((6, 8)), track((1, 3))),
    "A while B": (track((1, 3)), track((1, 3))),
    "A": (track((1, 3)), track()),
    "B": (track(), track((1, 3))),
    "two A": (track((1, 3), (6, 8)), track()),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_rules_choose_the_right_scene(question: str) -> None:
    fits = {scene: RULES[question](*SCORES[scene], HOP, 10.0) for scene in SCENES}
    assert max(fits, key=lambda scene: fits[scene]) in QUESTIONS[question][1], fits


def test_scenes_place_the_sounds() -> None:
    a, b = np.full(SAMPLE_RATE, 0.5, np.float32), np.full(SAMPLE_RATE, -0.5, np.float32)
    bed = np.zeros(10 * SAMPLE_RATE, np.float32)
    early, late = slice(SAMPLE_RATE, 2 * SAMPLE_RATE), slice(6 * SAMPLE_RATE, 7 * SAMPLE_RATE)
    signs = {s: tuple(np.sign(_scene(s, a, b, bed)[at].mean()) for at in (early, late)) for s in SCENES}
    assert signs == {
        "A then B": (1, -1),
        "B then A": (-1, 1),
        "A while B": (0, 0),  # the two cancel out
        "A": (1, 0),
        "B": (-1, 0),
        "two A": (1, 1),
    }
