"""Long recordings: events in three minutes of background, and the search for a sound in two minutes of faint noise.

Both go through the service. An event counts as found if a detected event of its phrase overlaps it by any amount, and
a detected event as false if it overlaps no event of its phrase; F1 matches at an intersection over union of 0.5.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from benchmarks.common import encode, load
from benchmarks.quality.figures import Figure, best, f1, ratio, rounded
from benchmarks.quality.sounds import Alike, Sizes, Sounds
from model.config import SAMPLE_RATE
from model.detection import DetectionSettings, find_events
from training.data.activity import active_stretches, peak, rms, trim
from training.data.mixer import FLOOR
from training.evaluation.metrics import match_events

EVENTS = 8  # in a recording with a background, each of another label
ABSENT = 8  # phrases asked of it that are not in it
SEARCHED_EVENTS = 6  # in a recording that is searched for
SEARCHED_SECONDS = 120.0
EVENT_SECONDS = (0.3, 8.0)  # shorter sounds are not used, longer ones are cut
SNR_DB = (0.0, 20.0)  # of an event over the background
PEAK_DB = (-24.0, -0.5)  # of a recording
FAINT_DB = -60.0  # of silence, relative to the level that events over it refer to
CROSSFADE = 0.5  # seconds, between two rounds of a looped background
METHODS = ("threshold", "sebb")
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
UPLOAD = 25  # clips in one request
FALSE_PER_MINUTE = 1.0  # the limit for the recall that is comparable between thresholds

Segment = tuple[float, float]


# Backgrounds


@dataclass(frozen=True)
class Background:
    """A steady sound: a file of the folder, `audio`, of another package than the events, or one that is synthesised."""

    label: str
    audio: str | None = None
    level_db: float = 0.0  # relative to the level that the events' SNR refers to

    @property
    def package(self) -> str | None:
        return None if self.audio is None else self.audio.split("/")[0]


BACKGROUNDS = (
    Background("wind", "openclonk-data/wind-1c5314.ogg"),
    Background("room tone"),
    Background("rain", "0ad-data/rain-4406ae.ogg"),
    Background("silence", level_db=FAINT_DB),
    Background("wind", "ufoai-sound/arctic-wind-8c0abc.ogg"),
    Background("mains hum"),
    Background("river", "0ad-data/river-slow-d7e876.ogg"),
    Background("night crickets", "megaglest-data/night-ambience-dce16e.ogg"),
    Background("fan"),
    Background("rain", "openclonk-data/liquid-stereo-rain-9a5405.ogg"),
    Background("wind", "megaglest-data/wind-be1b24.ogg"),
    Background("hum", "flightgear-data-base/avionics-hum-400-hz-34924f.ogg"),
    Background("ocean waves", "scorched3d-data/ocean-waves-2ba008.ogg"),
    Background("silence", level_db=FAINT_DB),
    Background("jet engine inside", "searchandrescue-data/jet-engine-inside-055135.ogg"),
    Background("wind", "flare-game/wind-9aec29.ogg"),
    Background("water fountain", "ufoai-sound/water-fountain-dddbc8.ogg"),
    Background("wind turbine", "ufoai-sound/wind-turbine-19c9bb.ogg"),
    # of a validation package, so that no checkpoint has trained on them; the events are of the other packages
    Background("river", "supertuxkart-data/river-4e8b8b.ogg"),
    Background("waterfall", "supertuxkart-data/waterfall-3af3c7.ogg"),
)
SILENCE = Background("silence", level_db=FAINT_DB)


def available(sounds: Sounds) -> list[Background]:
    """The backgrounds that are synthesised or in the folder."""
    return [b for b in BACKGROUNDS if b.audio is None or b.audio in sounds.manifest]


def background_samples(background: Background, sounds: Sounds, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` samples of a background, at its level relative to FLOOR."""
    if background.audio is not None:
        samples = looped(load(sounds.folder / background.audio), size)
    else:
        samples = _synthesised(background.label, size, rng)
    return (samples * (FLOOR * 10 ** (background.level_db / 20) / max(rms(samples), 1e-9))).astype(np.float32)


def looped(samples: np.ndarray, size: int) -> np.ndarray:
    """`size` samples of a recording (n,), repeated with crossfades of equal power."""
    fade = min(round(CROSSFADE * SAMPLE_RATE), len(samples) // 4)
    rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
    if size <= len(samples):
        return samples[:size]
    step = len(samples) - fade
    whole = np.zeros(size + len(samples), np.float32)
    piece = samples.astype(np.float32, copy=True)
    piece[:fade] *= rise
    piece[step:] *= rise[::-1]
    for start in range(-fade, size, step):  # the first fade lies before the recording
        at = max(start, 0)
        whole[at : start + len(piece)] += piece[at - start :]
    return whole[:size]


def _synthesised(label: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with the spectrum of a quiet room, a fan or silence, or a mains hum of 50 Hz in faint noise."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    slope = {"room tone": 1.0, "fan": 0.7, "mains hum": 0.5, "silence": 0.0}[label]
    noise = np.fft.irfft(spectrum * hz**-slope, size)
    noise /= rms(noise)
    if label == "mains hum":
        t = np.arange(size) / SAMPLE_RATE
        noise = 0.1 * noise + sum(np.sin(2 * np.pi * 50 * n * t + n) / n for n in (1, 2, 3, 4, 6, 8, 12))
    if label == "fan":
        t = np.arange(size) / SAMPLE_RATE
        noise = noise + 0.2 * np.sin(2 * np.pi * 118 * t)
    return noise.astype(np.float32)


# Recordings


@dataclass(frozen=True)
class Recording:
    """A recording with one event of each label in `events`, and phrases that are not in it."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    background: str
    events: dict[str, list[Segment]]  # label → stretches in which the event is audible; the event spans all of them
    absent: tuple[str, ...] = ()

    @property
    def phrases(self) -> list[str]:
        return [*self.events, *self.absent]


def compose(bed: np.ndarray, chosen: Sequence[tuple[str, np.ndarray]], rng: np.random.Generator) -> Recording:
    """A recording of labelled sounds over a background, one after the other at random times, none overlapping."""
    samples, slot = bed.copy(), len(bed) // max(1, len(chosen))
    events: dict[str, list[Segment]] = {}
    for number in rng.permutation(len(chosen)).tolist():
        label, sound = chosen[number]
        sound = sound[:slot]
        start = len(events) * slot + int(rng.integers(0, slot - len(sound) + 1))
        gain = FLOOR * 10 ** (rng.uniform(*SNR_DB) / 20) / max(rms(sound), 1e-3)
        samples[start : start + len(sound)] += gain * sound
        at = start / SAMPLE_RATE
        events[label] = [(at + onset, at + offset) for onset, offset in active_stretches(sound)]
    samples *= 10 ** (rng.uniform(*PEAK_DB) / 20) / max(peak(samples), 1e-4)
    return Recording(samples, "", events)


def choose_sounds(
    sounds: Sounds, allowed: Callable[[int], bool], background: str, alike: Alike, rng: np.random.Generator, count: int
) -> list[tuple[str, np.ndarray]]:
    """`count` sounds of the store for one recording, trimmed, whose labels are not alike each other or the background.

    `allowed(i)` tells whether sound i of the store may be used.
    """
    chosen: list[tuple[str, np.ndarray]] = []
    known = set(sounds.phrases)
    shortest, longest = (round(s * SAMPLE_RATE) for s in EVENT_SECONDS)
    for i in rng.permutation(len(sounds.store)).tolist():
        label = sounds.label[i]
        if len(chosen) == count:
            break
        if label not in known or not allowed(i):
            continue
        samples = trim(sounds.store.get(i))[:longest]
        if len(samples) >= shortest and not alike(label, [background, *(other for other, _ in chosen)]):
            chosen.append((label, samples))
    return chosen


def over_background(sounds: Sounds, alike: Alike, number: int, minutes: float) -> Recording:
    """Recording `number`: events over the next of BACKGROUNDS, with phrases that are not in it."""
    rng = np.random.default_rng([16, number])
    backgrounds = available(sounds)
    under = backgrounds[number % len(backgrounds)]
    items = sounds.store.items
    chosen = choose_sounds(sounds, lambda i: items[i].group != under.package, under.label, alike, rng, EVENTS)
    bed = background_samples(under, sounds, round(minutes * 60 * SAMPLE_RATE), rng)
    recording = compose(bed, chosen, rng)
    present = [under.label, *recording.events]
    others = [str(label) for label in rng.permutation(sounds.phrases) if not alike(str(label), present)]
    return replace(recording, background=under.label, absent=tuple(others[:ABSENT]))


# Detection


@dataclass(frozen=True)
class Detected:
    """What the service answers for a recording: events of each phrase at its defaults, and the frames' scores."""

    recording: Recording  # without samples
    events: list[list[Segment]]
    scores: np.ndarray  # (phrases, frames)
    frame_hop: float
    duration: float

    def at(self, settings: DetectionSettings) -> list[list[Segment]]:
        """The events of each phrase with other settings."""
        found = [find_events(row, settings, self.frame_hop, self.duration) for row in self.scores]
        return [[(event.onset, event.offset) for event in events] for events in found]


def detect(client: TestClient, recordings: Iterator[Recording]) -> list[Detected]:
    """Sends each recording to the service, with the default settings."""
    results = []
    for recording in recordings:
        fields = {"phrases": recording.phrases, "frames": "true", "encoding": "base64"}
        answer = client.post("/detect", data=fields, files={"file": ("recording.wav", encode(recording.samples))})
        answer.raise_for_status()
        body = answer.json()
        rows = [np.frombuffer(base64.b64decode(p["frame_scores"]), "<f4") for p in body["phrases"]]
        events = [[(e["onset"], e["offset"]) for e in p["events"]] for p in body["phrases"]]
        bare = replace(recording, samples=np.empty(0, np.float32))
        results.append(Detected(bare, events, np.stack(rows), body["frame_hop"], body["duration"]))
    return results


def long_figures(detected: list[Detected]) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """The figures at the default settings and at comparable thresholds, and a row for each method and threshold."""
    counts = np.stack([counts_of(d.recording, d.events, d.duration) for d in detected])
    figures = {f"{name} at the default settings": figure for name, figure in _figures(counts).items()}
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        at_threshold = []
        for threshold in GRID:
            settings = DetectionSettings(threshold=threshold, method=method)  # type: ignore[arg-type]
            counts = np.stack([counts_of(d.recording, d.at(settings), d.duration) for d in detected])
            found = _figures(counts)
            values = {name: rounded(figure.value) for name, figure in found.items()}
            rows.append({"method": method, "threshold": threshold} | values)
            at_threshold.append(found)
        within = [_within(found["recall"], found["false events per minute"]) for found in at_threshold]
        figures[f"recall with one false event a minute, {method}"] = best(within)
        figures[f"F1 at the best threshold, {method}"] = best([found["F1"] for found in at_threshold])
    return figures, rows


def counts_of(recording: Recording, events: list[list[Segment]], duration: float) -> np.ndarray:
    """Counts (7,) of one recording: events found and true, detections right and all, stretches matched and true,
    minutes."""
    counts = np.zeros(7)
    for phrase, detections in zip(recording.phrases, events, strict=True):
        stretches = recording.events.get(phrase, [])
        span = (stretches[0][0], stretches[-1][1]) if stretches else None
        right = sum(span is not None and onset < span[1] and span[0] < offset for onset, offset in detections)
        counts += [
            right > 0,
            span is not None,
            right,
            len(detections),
            match_events(detections, stretches),
            len(stretches),
            0,
        ]
    counts[6] = duration / 60
    return counts


def _figures(counts: np.ndarray) -> dict[str, Figure]:
    """Figures of counts (recordings, 7)."""
    found, true, right, detections, matched, stretches, minutes = counts.T
    return {
        "recall": ratio(found, true),
        "precision": ratio(right, detections),
        "false events per minute": ratio(detections - right, minutes, scale=1.0),
        "F1": f1(matched, detections, stretches),
    }


def _within(recall: Figure, false_per_minute: Figure) -> Figure:
    """The recall, or 0 where there are more false events than FALSE_PER_MINUTE."""
    return Figure(
        recall.units,
        lambda weights: recall.of(weights) if false_per_minute.of(weights) <= FALSE_PER_MINUTE else 0.0,
    )


# Search


@dataclass(frozen=True)
class SearchSet:
    """Recordings to be found by the sounds in them, and single clips of other sounds."""

    recordings: Callable[[], Iterator[Recording]]
    distractors: list[str]  # audio paths


def search_set(sounds: Sounds, sizes: Sizes) -> SearchSet:
    """Recordings of validation sounds in faint noise, no label in more than three, and clips of other packages."""
    alike = sounds.alike([SILENCE.label, *(item.captions[0] for item in sounds.others)])

    def recordings() -> Iterator[Recording]:
        used: dict[str, int] = {}
        for number in range(sizes.searched):
            rng = np.random.default_rng([17, number])
            chosen = choose_sounds(
                sounds, lambda i: used.get(sounds.label[i], 0) < 3, SILENCE.label, alike, rng, SEARCHED_EVENTS
            )
            used.update((label, used.get(label, 0) + 1) for label, _ in chosen)
            bed = background_samples(SILENCE, sounds, round(SEARCHED_SECONDS * SAMPLE_RATE), rng)
            yield compose(bed, chosen, rng)

    one_of_each = {item.captions[0]: item.audio_id for item in sounds.others}
    labels = sorted(label for label in one_of_each if not alike(label, sounds.phrases))
    order = np.random.default_rng(18).permutation(labels)[: sizes.distractors]
    return SearchSet(recordings, [one_of_each[str(label)] for label in order])


def search_figures(client: TestClient, sounds: Sounds, searched: SearchSet) -> dict[str, Figure]:
    """How often a recording is among the first ten for a sound in it: of /search, and of /search/moments."""
    pairs: list[tuple[str, str]] = []
    for number, recording in enumerate(searched.recordings()):
        (clip,) = add(client, [(f"recording {number + 1}.wav", encode(recording.samples))])
        pairs += [(clip, label) for label in recording.events]
    clips = [(sounds.folder / audio).read_bytes() for audio in searched.distractors]
    add(client, [(f"clip {number + 1}.ogg", clip) for number, clip in enumerate(clips)])
    found = {}
    for path in ("/search", "/search/moments"):
        hits = []
        for clip, label in pairs:
            answer = client.post(path, json={"query": label, "k": 10})
            answer.raise_for_status()
            hits.append(clip in [hit["clip"]["id"] for hit in answer.json()["hits"]])
        found[path] = np.array(hits)
    return figures_of_search(found["/search"], found["/search/moments"])


def figures_of_search(plain: np.ndarray, moments: np.ndarray) -> dict[str, Figure]:
    """The shares found by each, and how many of those that the moments find a plain search finds too, as a ratio."""
    return {
        "recording in the first ten, /search": ratio(plain, np.ones(len(plain))),
        "recording in the first ten, /search/moments": ratio(moments, np.ones(len(moments))),
        "/search, of those that /search/moments finds": ratio(plain & moments, moments),
        "ratio of the two shares": ratio(plain, moments),
    }


def add(client: TestClient, files: Sequence[tuple[str, bytes]]) -> list[str]:
    """Adds clips, file names and content, to the service's library; returns their ids."""
    ids = []
    for start in range(0, len(files), UPLOAD):
        answer = client.post("/clips", files=[("files", file) for file in files[start : start + UPLOAD]])
        answer.raise_for_status()
        if answer.json()["errors"]:
            raise RuntimeError(f"the service refused clips: {answer.json()['errors']}")
        ids += [str(clip["id"]) for clip in answer.json()["clips"]]
    return ids
