"""Long-form detection: half-hour recordings with up to four simultaneous sounds.

Four voices run beside each other over a steady background. Each plays the sounds of its own labels one after another,
with pauses as long as the sounds on average, so that a label never overlaps itself. An event is found if a detected
event of its phrase overlaps it by any amount, and a detected event is false if it overlaps no event of its phrase; F1
matches at an intersection over union of 0.5. Found events are also counted by the most sounds that are on at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from benchmarks.processes import MemoryWatch, memory
from benchmarks.quality.figures import Figure, f1, ratio, rounded
from benchmarks.quality.recordings import (
    ABSENT,
    METHODS,
    SNR_DB,
    Detected,
    Recording,
    Segment,
    available,
    background_samples,
    choose_sounds,
    detect,
)
from benchmarks.quality.sounds import Sounds
from model.config import SAMPLE_RATE
from model.detection import DetectionSettings
from training.data.activity import active_stretches, peak, rms
from training.data.mixer import FLOOR
from training.evaluation.metrics import match_events

VOICES = 4  # sounds at once, at most
LABELS = 3  # of each voice
PEAK_DB = -1.0
_MB = 1e6


@dataclass(frozen=True)
class Longform:
    """A recording, every one of its events, and how many sounds are on at once at most while each lasts."""

    recording: Recording  # its `events` has one list per label, a segment for each event
    at_once: dict[str, list[int]]  # of each event, itself included


def longform(sounds: Sounds, number: int, minutes: float, voices: int = VOICES, labels: int = LABELS) -> Longform:
    """Recording `number`: `voices` with `labels` each over the next background, with phrases that are not in it."""
    rng = np.random.default_rng([20, number])
    backgrounds = available(sounds)
    under = backgrounds[number % len(backgrounds)]
    alike = sounds.alike(background.label for background in backgrounds)
    items = sounds.store.items
    chosen = choose_sounds(sounds, lambda i: items[i].group != under.package, under.label, alike, rng, voices * labels)
    samples = background_samples(under, sounds, round(minutes * 60 * SAMPLE_RATE), rng)
    events: dict[str, list[Segment]] = {label: [] for label, _ in chosen}
    for voice in range(voices):
        play(samples, chosen[voice::voices], events, rng)
    samples *= 10 ** (PEAK_DB / 20) / max(peak(samples), 1e-4)
    present = [under.label, *events]
    others = [str(label) for label in rng.permutation(sounds.phrases) if not alike(str(label), present)]
    recording = Recording(samples, under.label, events, tuple(others[:ABSENT]))
    return Longform(recording, sounding_at_once(events))


def play(
    samples: np.ndarray,
    chosen: Sequence[tuple[str, np.ndarray]],
    events: dict[str, list[Segment]],
    rng: np.random.Generator,
) -> None:
    """Adds one voice to the samples, and its events: from the first to the last audible moment of each sound."""
    at = 0
    while chosen:
        label, sound = chosen[int(rng.integers(len(chosen)))]
        at += round(rng.uniform(0.5, 1.5) * len(sound))
        if at + len(sound) > len(samples):
            return
        samples[at : at + len(sound)] += FLOOR * 10 ** (rng.uniform(*SNR_DB) / 20) / max(rms(sound), 1e-3) * sound
        stretches = active_stretches(sound)
        if stretches:
            start = at / SAMPLE_RATE
            events[label].append((start + stretches[0][0], start + stretches[-1][1]))
        at += len(sound)


def sounding_at_once(events: dict[str, list[Segment]]) -> dict[str, list[int]]:
    """For each event, the largest number of events that sound at one moment of it."""
    every = np.array([segment for segments in events.values() for segment in segments]).reshape(-1, 2)
    onsets = every[:, 0]
    sounding = ((every[None, :, 0] <= onsets[:, None]) & (onsets[:, None] < every[None, :, 1])).sum(1)

    def most(onset: float, offset: float) -> int:
        # the number only rises where an event begins: here, or at an onset inside
        own = int(((every[:, 0] <= onset) & (onset < every[:, 1])).sum())
        return max([own, *sounding[(onset <= onsets) & (onsets < offset)].tolist()])

    return {label: [most(*segment) for segment in segments] for label, segments in events.items()}


@dataclass(frozen=True)
class Answered:
    """What the service answered, and what that took."""

    longform: Longform  # without samples
    detected: Detected
    seconds: float
    memory_mb: float  # peak over the memory before the request


def ask(client: TestClient, made: Iterator[Longform]) -> list[Answered]:
    """Sends each recording to /detect at its defaults."""
    answers = []
    for one in made:
        before = memory(os.getpid())
        with MemoryWatch(os.getpid()) as watch:
            start = time.perf_counter()
            (detected,) = detect(client, iter([one.recording]))
            seconds = time.perf_counter() - start
        bare = replace(one, recording=detected.recording)
        answers.append(Answered(bare, detected, seconds, (watch.peak - before) / _MB))
    return answers


def counts_of(one: Longform, events: list[list[Segment]], minutes: float) -> np.ndarray:
    """Counts (6 + 2 · VOICES,) of a recording: true events, detections, right ones, matched ones, found ones, minutes;
    then the true and the found events with 1, 2, … VOICES sounds at once."""
    counts = np.zeros(6 + 2 * VOICES)
    for phrase, detections in zip(one.recording.phrases, events, strict=True):
        truth = one.recording.events.get(phrase, [])
        overlap = np.array([[a < d and c < b for c, d in truth] for a, b in detections], bool)
        overlap = overlap.reshape(len(detections), len(truth))
        found = overlap.any(0)
        counts[:5] += len(truth), len(detections), overlap.any(1).sum(), match_events(detections, truth), found.sum()
        for sounding, hit in zip(one.at_once.get(phrase, []), found, strict=True):
            level = 6 + 2 * (min(sounding, VOICES) - 1)
            counts[level : level + 2] += 1, hit
    counts[5] = minutes
    return counts


def longform_figures(answers: list[Answered]) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """The figures of the events at the defaults and of each method at the default threshold; a row for each
    recording."""
    answered = {"the defaults": [a.detected.events for a in answers]}
    for method in METHODS:
        settings = DetectionSettings(method=method)  # type: ignore[arg-type]
        answered[method] = [a.detected.at(settings) for a in answers]
    figures: dict[str, Figure] = {}
    for name, found_events in answered.items():
        pairs = zip(answers, found_events, strict=True)
        counts = [counts_of(answer.longform, events, answer.detected.duration / 60) for answer, events in pairs]
        figures |= {f"{figure}, {name}": found for figure, found in _figures(np.stack(counts)).items()}
    rows = []
    for answer in answers:
        every = [segment for segments in answer.longform.recording.events.values() for segment in segments]
        covered = sum(offset - onset for onset, offset in every) / answer.detected.duration
        rows.append(
            {
                "background": answer.longform.recording.background,
                "minutes": rounded(answer.detected.duration / 60),
                "events": len(every),
                "sounds at once, mean": rounded(covered),
                "sounds at once, most": max((n for ns in answer.longform.at_once.values() for n in ns), default=0),
                "seconds of /detect": rounded(answer.seconds),
                "peak memory over idle, MB": rounded(answer.memory_mb),
            }
        )
    return figures, rows


def _figures(counts: np.ndarray) -> dict[str, Figure]:
    """Figures of counts (recordings, 6 + 2 · VOICES)."""
    true, detections, right, matched, found, minutes = counts.T[:6]
    figures = {
        "F1": f1(matched, detections, true),
        "recall": ratio(found, true),
        "precision": ratio(right, detections),
        "false events per minute": ratio(detections - right, minutes, scale=1.0),
    }
    for level in range(VOICES):
        sounding, hit = counts.T[6 + 2 * level], counts.T[7 + 2 * level]
        figures[f"recall with {level + 1} at once"] = ratio(hit, sounding)
    return figures
