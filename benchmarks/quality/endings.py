"""Event F1 with and without the rule that an event also ends by its own highest score, model.detection.END_SHARE.

Sounds of the validation packages, in other recordings than those of the sections `frames`, `long` and `longform`:
mixtures of ten seconds and recordings of three minutes in which each sound comes once, and recordings in which sounds
come again and again, one at a time, two at once and four at once. The share was chosen with them
(docs/development/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
from starlette.testclient import TestClient

from benchmarks.model.detection import Method, event_counts
from benchmarks.quality import longform, recordings, retrieval
from benchmarks.quality.figures import Figure, f1
from benchmarks.quality.sounds import CachedModel, Sizes, Sounds
from model.detection import DetectionSettings
from training.evaluation.validation import make_mixtures

_SEED = 7  # of the mixtures, added to the recipe's
_FIRST = 100  # number of the first recording of three minutes, and of the first half hour
_DEFAULTS = DetectionSettings()


@dataclass(frozen=True)
class Repeating:
    """Recordings in which sounds come again: `voices` of them at once, each of one of `labels` labels in turns."""

    first: int  # number of the first recording
    voices: int
    labels: int


REPEATING = {"one at a time": Repeating(300, 1, 2), "two at once": Repeating(200, 2, 2)}  # of two minutes
HALF_HOURS = Repeating(_FIRST, longform.VOICES, longform.LABELS)
_MINUTES = 2.0


def ending_figures(
    client: TestClient, model: CachedModel, sounds: Sounds, sizes: Sizes
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Event F1 at the defaults, without the rule and with it, in each kind of recording."""
    counters = _counters(client, model, sounds, sizes)
    after = {name: f1(*count().T) for name, count in counters.items()}
    with mock.patch("model.detection.END_SHARE", 0.0):
        return {name: f1(*count().T) for name, count in counters.items()}, after


def _counters(
    client: TestClient, model: CachedModel, sounds: Sounds, sizes: Sizes
) -> dict[str, Callable[[], np.ndarray]]:
    """For each kind of recording a function that counts matched, detected and true events (recordings, 3)."""
    config = replace(sounds.recipe.evaluation, mixtures=2 * sizes.mixtures)
    scored = retrieval.score(model, make_mixtures(sounds.store, config, _SEED))
    alike = sounds.alike(background.label for background in recordings.BACKGROUNDS)
    numbers = range(_FIRST, _FIRST + sizes.recordings)
    long = recordings.detect(client, (recordings.over_background(sounds, alike, n, sizes.minutes) for n in numbers))

    def count_mixtures() -> np.ndarray:
        return event_counts(Method("default", _DEFAULTS, None), scored, [_DEFAULTS.threshold])[0]

    def count_long() -> np.ndarray:
        found = [recordings.counts_of(d.recording, d.at(_DEFAULTS), d.duration) for d in long]
        return np.stack(found)[:, [4, 3, 5]]

    counters = {"mixtures, each sound once": count_mixtures, "three minutes, each sound once": count_long}
    kinds = [(f"two minutes, {name}", kind, _MINUTES, sizes.repeating) for name, kind in REPEATING.items()]
    kinds.append(("half hours, four at once", HALF_HOURS, sizes.half_hour, sizes.half_hours))
    for name, kind, minutes, size in kinds:
        made = (
            longform.longform(sounds, number, minutes, kind.voices, kind.labels)
            for number in range(kind.first, kind.first + size)
        )
        counters[name] = _counter(longform.ask(client, made))
    return counters


def _counter(answers: list[longform.Answered]) -> Callable[[], np.ndarray]:
    def count() -> np.ndarray:
        found = [longform.counts_of(a.longform, a.detected.at(_DEFAULTS), 1.0) for a in answers]
        return np.stack(found)[:, [3, 1, 0]]

    return count
