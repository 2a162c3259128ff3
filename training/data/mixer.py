"""Mixes single sounds over backgrounds into recordings with exact labels, reproducibly from a seed.

`Canvas` places sounds at a signal-to-noise ratio without overlapping themselves. Two recipes draw from it: `Mixer`
makes FineLAP-100k mixtures (arXiv 2604.01155, data simulation) and `SceneMaker` the shorter, more varied scenes of the
bundled checkpoint. Both take sounds from memory; `training.simulation.dataset` writes mixtures to disk.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.config import SAMPLE_RATE
from training.data.activity import (
    PEAK,
    ClipConfig,
    SimulationError,
    active_stretches,
    cut,
    first_stretch,
    peak,
    rms,
    trim,
)
from training.data.augment import equalise, mild, reverberate, wild

GAP = 0.1  # seconds: smallest pause between two occurrences of an event in a mixture
FLOOR = 0.05  # RMS of a scene's background, and the reference for its signal-to-noise ratios

CAPTIONS = (
    "{}.",
    "{} can be heard.",
    "A recording of {}.",
    "The sound of {}.",
    "Sounds of {}.",
    "One hears {}.",
    "This is the sound of {}.",
    "In this recording there is {}.",
)
OVER = ("{}, with {} in the background", "{} over {}", "{} while {} goes on")


class Canvas:
    """A recording under construction: `samples` (n,), and the background `level` (RMS) that SNRs refer to."""

    def __init__(self, samples: np.ndarray, level: float) -> None:
        self.samples, self.level = samples, level

    def place(
        self,
        sound: np.ndarray,
        snr_db: float,
        times: int,
        rng: np.random.Generator,
        gap: int = 0,
        quietest: float = 1e-9,
    ) -> list[int]:
        """Adds (m,) samples `times` times, `snr_db` above the background, at least `gap` samples apart.

        Returns the start samples in ascending order. `quietest` is the smallest RMS the gain is computed from.
        """
        gain = self.level * 10 ** (snr_db / 20) / max(rms(sound.astype(self.samples.dtype)), quietest)
        slack = len(self.samples) - times * len(sound) - (times - 1) * gap
        offsets = np.sort(rng.integers(0, slack + 1, times))
        starts = [int(offset) + i * (len(sound) + gap) for i, offset in enumerate(offsets)]
        for start in starts:
            self.samples[start : start + len(sound)] += sound * gain
        return starts


# FineLAP-100k mixtures


@dataclass(frozen=True)
class MixConfig:
    """How mixtures are drawn. Decibels and seconds."""

    events: tuple[int, int] = (1, 5)
    snr_db: tuple[float, float] = (12.0, 20.0)
    short: float = 3.0  # shorter events occur 1 to `repeats` times
    repeats: int = 3
    reverb: float = 0.0  # share of events with reverberation
    equalise_db: float = 0.0  # range of the random equaliser
    swell_db: float = 0.0  # range of the level change over an event
    name_background: bool = False  # whether the background is a phrase and part of the caption
    draw: Literal["labels", "clips"] = "labels"  # what events are drawn uniformly from; clips, as published
    normalise: bool = False  # every mixture to a peak of 1, as published, instead of only those above PEAK

    def __post_init__(self) -> None:
        low, high = self.events
        if not 1 <= low <= high:
            raise SimulationError(f"{low} to {high} events: want 1 <= fewest <= most")
        if not (self.snr_db[0] <= self.snr_db[1] and all(map(math.isfinite, self.snr_db))):
            raise SimulationError(f"SNR {self.snr_db[0]:g} to {self.snr_db[1]:g} dB: want the lower value first")
        if not (0 <= self.reverb <= 1 and self.equalise_db >= 0 and self.swell_db >= 0 and self.repeats >= 1):
            raise SimulationError("want 0 <= reverb <= 1, equalise_db >= 0, swell_db >= 0 and repeats >= 1")


@dataclass(frozen=True)
class SoundClip:
    """A sound to mix; `name` identifies its samples."""

    name: str
    label: str
    seconds: float


@dataclass(frozen=True)
class PlacedEvent:
    """A sound in a mixture: its clip, its SNR over the background, and its segments in seconds."""

    clip: SoundClip
    snr_db: float
    segments: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mixture:
    """A synthetic recording with its labels, events ordered by first onset."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    background: SoundClip
    events: tuple[PlacedEvent, ...]
    caption: str


class Mixer:
    """Draws FineLAP-100k mixtures. `get(clip)` returns a clip's samples, (n,) float32 at 16 kHz.

    Labels are drawn uniformly, then one clip of each label, so that labels with many recordings don't dominate; or, as
    published, clips uniformly. Labels are unique within a mixture and differ from the background's. The same generator
    state gives the same mixture. Samples are at `cutting.sample_rate`.
    """

    def __init__(
        self,
        events: Sequence[SoundClip],
        backgrounds: Sequence[SoundClip],
        get: Callable[[SoundClip], np.ndarray],
        config: MixConfig | None = None,
        cutting: ClipConfig | None = None,
    ) -> None:
        """Raises SimulationError if there are no events or no backgrounds."""
        if not events or not backgrounds:
            raise SimulationError(f"no {'background' if events else 'event'} among the recordings")
        self.get, self.config, self.cutting = get, config or MixConfig(), cutting or ClipConfig()
        self.rate = self.cutting.sample_rate
        if self.rate != SAMPLE_RATE and (self.config.reverb or self.config.equalise_db):
            raise SimulationError(f"reverb and equaliser work at {SAMPLE_RATE} Hz, not at {self.rate}")
        self.backgrounds = tuple(backgrounds)
        by_label: defaultdict[str, list[SoundClip]] = defaultdict(list)
        for clip in events:
            by_label[clip.label].append(clip)
        self.by_label = {label: tuple(by_label[label]) for label in sorted(by_label)}

    def draw(self, rng: np.random.Generator) -> Mixture:
        """One mixture. Raises SimulationError if every event has the background's label."""
        config = self.config
        under = self.backgrounds[rng.integers(len(self.backgrounds))]
        labels = [label for label in self.by_label if label != under.label]
        if not labels:
            raise SimulationError(f"every event has the label of a background, {under.label!r}")
        count = min(int(rng.integers(config.events[0], config.events[1] + 1)), len(labels))
        if config.draw == "clips":
            chosen = self._drawn_clips(labels, count, rng)
        else:
            chosen = [self.by_label[labels[i]] for i in rng.choice(len(labels), count, replace=False)]
        background = self.get(under).astype(np.float64)
        canvas = Canvas(background, rms(background))
        events = []
        for clips in chosen:
            clip = clips[rng.integers(len(clips))]
            samples = self._varied(self.get(clip), rng)[: len(background)]
            snr = float(rng.uniform(*config.snr_db))
            times = self._occurrences(len(samples), len(background), rng)
            starts = canvas.place(samples, snr, times, rng, round(GAP * self.rate))
            segments = tuple((round(s / self.rate, 4), round((s + len(samples)) / self.rate, 4)) for s in starts)
            events.append(PlacedEvent(clip, round(snr, 2), segments))
        loudest = max(peak(canvas.samples), 1e-9)
        mixed = canvas.samples * (1 / loudest if config.normalise else min(1.0, PEAK / loudest))
        events.sort(key=lambda e: (e.segments[0], e.clip.name))
        named = under.label if config.name_background else None
        return Mixture(
            mixed.astype(np.float32), under, tuple(events), caption([e.clip.label for e in events], named, rng)
        )

    def _drawn_clips(self, labels: Sequence[str], count: int, rng: np.random.Generator) -> list[tuple[SoundClip, ...]]:
        """`count` clips, each drawn uniformly from all clips of the labels that are left."""
        left = list(labels)
        chosen: list[tuple[SoundClip, ...]] = []
        for _ in range(count):
            clips = [clip for label in left for clip in self.by_label[label]]
            clip = clips[rng.integers(len(clips))]
            left.remove(clip.label)
            chosen.append((clip,))
        return chosen

    def _varied(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The event after the configured equaliser, swell and reverberation, cut to one continuous stretch."""
        config = self.config
        varied = samples
        if config.equalise_db:
            varied = equalise(varied, config.equalise_db, rng)
        if config.swell_db:
            slope = rng.uniform(-config.swell_db, config.swell_db) * np.linspace(-0.5, 0.5, len(varied))
            varied = (varied * 10 ** (slope / 20)).astype(np.float32)
        if config.reverb and rng.random() < config.reverb:
            varied = reverberate(varied, rng)
        if varied is samples:
            return samples
        stretch = first_stretch(varied, self.cutting)  # the reverberation tail lengthens the event and its label
        return cut(varied, *stretch) if stretch else samples

    def _occurrences(self, length: int, size: int, rng: np.random.Generator) -> int:
        """How often an event occurs: once, or up to `repeats` times if it is short and fits."""
        gap = round(GAP * self.rate)
        short = length < self.config.short * self.rate
        times = int(rng.integers(1, self.config.repeats + 1)) if short else 1
        return max(1, min(times, (size + gap) // (length + gap)))


def caption(names: Sequence[str], background: str | None, rng: np.random.Generator) -> str:
    """A sentence naming the sounds in the given order, and the background unless it is None."""
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    if background:
        listed = OVER[rng.integers(len(OVER))].format(listed, background)
    sentence = CAPTIONS[rng.integers(len(CAPTIONS))].format(listed)
    return sentence[0].upper() + sentence[1:]


# Scenes of the bundled recipe


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are drawn. Probabilities, decibels and seconds."""

    duration: float = 5.12
    mixture: float = 0.6  # share of scenes with several sounds
    max_events: int = 4
    background: float = 0.6  # share of mixtures with a background, a long, steady sound
    snr_db: tuple[float, float] = (0.0, 20.0)
    peak_db: tuple[float, float] = (-24.0, -0.5)
    repeat: float = 0.35  # share of short sounds that occur more than once
    augment: float = 0.6  # share of sounds with changed speed and spectrum
    wild: float = 0.0  # share of those changed so strongly that only a teacher can label them
    noise_floor: float = 0.4  # share of scenes with faint white noise


@dataclass(frozen=True)
class Scene:
    """A synthetic recording and its events."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    events: tuple[tuple[int, float, float], ...]  # (index of the sound, onset, offset), seconds


class SceneMaker:
    """Draws scenes of single sounds. `get(index)` returns a sound's samples, (n,) float32 at 16 kHz.

    `weights` (N,) are the relative frequencies of the N sounds; `steady` holds the indices of those that can serve as
    backgrounds. The same generator state gives the same scene.
    """

    def __init__(
        self,
        get: Callable[[int], np.ndarray],
        weights: np.ndarray,
        steady: np.ndarray,
        config: SceneConfig | None = None,
    ) -> None:
        self.get, self.steady, self.config = get, steady, config or SceneConfig()
        self.odds = np.cumsum(weights / weights.sum())

    def draw_source(self, rng: np.random.Generator) -> int:
        """Index of a sound, drawn by weight."""
        return min(int(np.searchsorted(self.odds, rng.random())), len(self.odds) - 1)

    def sound(self, source: int, rng: np.random.Generator, limit: int) -> np.ndarray:
        """At most `limit` samples of a sound at peak 1: trimmed, possibly augmented, cut from a louder part."""
        samples = trim(self.get(source))
        if len(samples) > 2 * limit:  # shorten before the expensive augmentation
            samples = _loud_cut(samples, 2 * limit, rng)
        if rng.random() < self.config.augment:
            strongly = self.config.wild > 0 and rng.random() < self.config.wild
            samples = (wild if strongly else mild)(samples, rng)
        if len(samples) > limit:
            samples = _loud_cut(samples, limit, rng)
        return samples / max(peak(samples), 1e-4)

    def background(self, rng: np.random.Generator, size: int) -> tuple[int, np.ndarray]:
        """A steady sound's index and `size` samples of it, repeated as often as necessary."""
        under = int(rng.choice(self.steady))
        bed = self.sound(under, rng, size)
        return under, np.tile(bed, -(-size // len(bed)))[:size]

    def scene(self, rng: np.random.Generator, sources: list[int] | None = None) -> Scene:
        """One scene; if `sources` is given, a mixture of exactly these sounds."""
        config, size = self.config, int(self.config.duration * SAMPLE_RATE)
        mixed = sources is not None or rng.random() < config.mixture
        if sources is None:
            count = int(rng.integers(1, config.max_events + 1)) if mixed else 1
            sources = [self.draw_source(rng) for _ in range(count)]
        canvas, events = Canvas(np.zeros(size, np.float32), FLOOR), []
        if mixed and len(self.steady) and rng.random() < config.background:
            under, bed = self.background(rng, size)
            canvas.samples += bed * (FLOOR / max(rms(bed), 1e-4))
            events.append((under, 0.0, config.duration))
        for source in sources:
            samples = self.sound(source, rng, size)
            snr = rng.uniform(*config.snr_db)
            for start in canvas.place(samples, snr, self._occurrences(len(samples), size, rng), rng, quietest=1e-3):
                at = start / SAMPLE_RATE
                events += [(source, at + a, at + b) for a, b in active_stretches(samples)]
        mix = canvas.samples
        mix *= 10 ** (rng.uniform(*config.peak_db) / 20) / max(peak(mix), 1e-4)
        if rng.random() < config.noise_floor:
            mix += rng.standard_normal(size, dtype=np.float32) * 10 ** (rng.uniform(-90, -55) / 20)
        return Scene(mix, tuple((s, round(a, 4), round(min(b, config.duration), 4)) for s, a, b in events))

    def _occurrences(self, length: int, size: int, rng: np.random.Generator) -> int:
        """How often a sound occurs: once, or two or three times for some short ones."""
        return int(rng.integers(2, 4)) if length < size // 3 and rng.random() < self.config.repeat else 1


def _loud_cut(samples: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` samples: the louder of two random cuts, so that long files rarely contribute their pauses."""
    starts = rng.integers(0, len(samples) - length + 1, 2)
    cuts = [samples[s : s + length] for s in starts]
    return max(cuts, key=lambda c: float((c**2).sum()))
