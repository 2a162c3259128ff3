"""What FineLAP-100k is made by: the sounding stretch of a recording, steady backgrounds, mixtures of both.

Works on samples and names; knows no files and no processes (`training.simulation.dataset` does). Source: arXiv 2604.01155,
data simulation. Everything draws from the generator it is given, so a seed fixes the result. A `Mixer` over sounds in
memory makes mixtures on the fly; it needs nothing written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from training.data.augment import equalise, reverberate
from training.data.manifests import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # samples: 10 ms
FADE = 80  # samples, 5 ms: a stretch that is cut out of a recording neither starts nor ends with a click
SILENT = 1e-4  # a recording with no sample above this, -80 dBFS, has nothing in it
GAP = 0.1  # seconds at least between two occurrences of one event, so that they stay two
CEILING = 0.95  # peak of a mixture, so that nothing in it is clipped

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


class FabricateError(ValueError):
    """Settings or sounds that no mixtures can be made of."""


@dataclass(frozen=True)
class ClipConfig:
    """How recordings are cut. Seconds and decibels; levels are below the recording's own peak."""

    threshold_db: float = -50.0
    window: float = 0.2  # of the envelope; pauses shorter than this do not end a stretch
    shortest: float = 1.0
    longest: float = 7.5
    background: float = 10.0  # length of a piece of background
    backgrounds: tuple[str, ...] = ()  # patterns over labels; empty: whatever is long and steady
    steady_db: float = 10.0  # a steady piece's half-seconds are all within this of each other
    pieces: int = 6  # at most, of one recording

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest:
            raise FabricateError(f"events of {self.shortest:g} to {self.longest:g} s: want 0 < shortest <= longest")
        if self.longest > self.background:
            raise FabricateError(f"events of up to {self.longest:g} s do not fit into {self.background:g} s")
        if not (self.threshold_db < 0 and self.window >= 0.01 and self.pieces >= 1 and self.steady_db > 0):
            raise FabricateError("want a threshold below 0 dB, a window of 0.01 s or more, and at least one piece")


@dataclass(frozen=True)
class MixConfig:
    """How mixtures are drawn. Decibels, and seconds."""

    events: tuple[int, int] = (1, 5)
    snr_db: tuple[float, float] = (12.0, 20.0)
    short: float = 3.0  # an event shorter than this comes 1 to `repeats` times
    repeats: int = 3
    reverb: float = 0.0  # share of events put in a room
    equalise_db: float = 0.0  # events through a random equaliser of up to this
    swell_db: float = 0.0  # events grow or fade by up to this from end to end
    name_background: bool = False  # the background is a phrase, and in the caption, too

    def __post_init__(self) -> None:
        low, high = self.events
        if not 1 <= low <= high:
            raise FabricateError(f"{low} to {high} events: want at least one, and not more at least than at most")
        if not (self.snr_db[0] <= self.snr_db[1] and all(map(math.isfinite, self.snr_db))):
            raise FabricateError(f"SNR {self.snr_db[0]:g} to {self.snr_db[1]:g} dB: want the lower one first")
        if not (0 <= self.reverb <= 1 and self.equalise_db >= 0 and self.swell_db >= 0 and self.repeats >= 1):
            raise FabricateError("want a share of reverberation from 0 to 1, and decibels and repeats not negative")


@dataclass(frozen=True)
class Clip:
    """A sound to mix: `name` says where `get` finds its samples."""

    name: str
    label: str
    seconds: float


@dataclass(frozen=True)
class Event:
    """One sound of a mixture: which, how loud over the background, and each time it is heard, in seconds."""

    clip: Clip
    snr_db: float
    segments: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mixture:
    """A synthetic recording and what is in it, events in order of their first onset."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    background: Clip
    events: tuple[Event, ...]
    caption: str


def log_energy(samples: np.ndarray) -> np.ndarray:
    """(n,) → mean power of every 10 ms in decibels below the peak sample's, (ceil(n / 160),); the last may be short."""
    peak = max(float(np.abs(samples).max(initial=0.0)), 1e-12)
    power = (samples.astype(np.float64) / peak) ** 2
    starts = np.arange(0, len(power), HOP)
    mean = np.add.reduceat(power, starts) / np.diff(np.append(starts, len(power)))
    return 10 * np.log10(mean + 1e-12)


def first_stretch(samples: np.ndarray, config: ClipConfig) -> tuple[float, float] | None:
    """Seconds [onset, offset] of the first continuous active stretch; None in silence.

    A window slides over the log-energy envelope by 10 ms; while its mean power stays above the threshold the sound
    goes on. Both ends are then drawn in to the first and the last 10 ms that are above it by themselves.
    """
    if len(samples) == 0 or np.abs(samples).max() < SILENT:
        return None
    level = log_energy(samples)
    size = min(max(1, round(config.window * 100)), len(level))
    total = np.concatenate([[0.0], np.cumsum(10 ** (level / 10))])
    active = 10 * np.log10(np.maximum(total[size:] - total[:-size], 0) / size + 1e-12) > config.threshold_db
    if not active.any():
        return None
    low = int(active.argmax())
    ends = np.flatnonzero(~active[low:])
    high = (low + int(ends[0]) if len(ends) else len(active)) + size - 1
    loud = low + np.flatnonzero(level[low:high] > config.threshold_db)
    return float(loud[0]) * 0.01, min((int(loud[-1]) + 1) * 0.01, len(samples) / SAMPLE_RATE)


def clip_event(samples: np.ndarray, config: ClipConfig) -> tuple[tuple[float, float] | None, str]:
    """The stretch to keep of a recording of one sound, in seconds, or None and the reason."""
    stretch = first_stretch(samples, config)
    if stretch is None:
        return None, "silent"
    seconds = stretch[1] - stretch[0]
    if seconds < config.shortest - 1e-9:
        return None, f"sounds for less than {config.shortest:g} s"
    if seconds > config.longest + 1e-9:
        return None, f"sounds for more than {config.longest:g} s"
    return stretch, ""


def background_pieces(samples: np.ndarray, config: ClipConfig, any_level: bool) -> list[float]:
    """Starts, in seconds, of the pieces of a recording that can lie under a mixture: side by side, none silent.

    Without `any_level` a piece must be steady: each half-second's level within `steady_db` of every other's.
    """
    size, half = round(config.background * SAMPLE_RATE), SAMPLE_RATE // 2
    starts = []
    for start in range(0, len(samples) - size + 1, size):
        piece = samples[start : start + size]
        level = 10 * np.log10((piece[: size - size % half].reshape(-1, half).astype(np.float64) ** 2).mean(1) + 1e-12)
        if np.abs(piece).max() >= SILENT and (any_level or np.ptp(level) <= config.steady_db):
            starts.append(start / SAMPLE_RATE)
    return starts[: config.pieces]


def is_background(label: str, config: ClipConfig) -> bool:
    """Whether a pattern names the label; `*` and `?` stand for what they do in file names."""
    return any(fnmatchcase(label, pattern.lower()) for pattern in config.backgrounds)


def cut(samples: np.ndarray, onset: float, offset: float) -> np.ndarray:
    """The stretch [onset, offset] of a sound at a peak of 0.95, its first and last 5 ms faded."""
    piece = samples[round(onset * SAMPLE_RATE) : round(offset * SAMPLE_RATE)].astype(np.float32, copy=True)
    fade = min(FADE, len(piece) // 2)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    piece[:fade] *= ramp
    piece[len(piece) - fade :] *= ramp[::-1]
    return piece * (CEILING / max(float(np.abs(piece).max(initial=0.0)), SILENT))


def caption(names: Sequence[str], background: str | None, rng: np.random.Generator) -> str:
    """A sentence that names the sounds in the order given, and the background if there is one to name."""
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    if background:
        listed = OVER[rng.integers(len(OVER))].format(listed, background)
    sentence = CAPTIONS[rng.integers(len(CAPTIONS))].format(listed)
    return sentence[0].upper() + sentence[1:]


class Mixer:
    """Draws mixtures of events over backgrounds. `get(clip)` gives a clip's samples, (n,) float32 at 16 kHz.

    Labels are drawn evenly, then one of the label's clips, so that a label with many recordings is not everywhere. No
    label comes twice in a mixture, and none that is the background's. The same generator state gives the same mixture.
    """

    def __init__(
        self,
        events: Sequence[Clip],
        backgrounds: Sequence[Clip],
        get: Callable[[Clip], np.ndarray],
        config: MixConfig | None = None,
        cutting: ClipConfig | None = None,
    ) -> None:
        if not events or not backgrounds:
            missing = "sound to be an event" if not events else "background"
            raise FabricateError(f"no {missing} among the recordings")
        self.get, self.config, self.cutting = get, config or MixConfig(), cutting or ClipConfig()
        self.backgrounds = tuple(backgrounds)
        by_label: defaultdict[str, list[Clip]] = defaultdict(list)
        for clip in events:
            by_label[clip.label].append(clip)
        self.by_label = {label: tuple(by_label[label]) for label in sorted(by_label)}

    def draw(self, rng: np.random.Generator) -> Mixture:
        """One mixture. Errors: FabricateError where no label is left beside the background's."""
        config = self.config
        under = self.backgrounds[rng.integers(len(self.backgrounds))]
        labels = [label for label in self.by_label if label != under.label]
        if not labels:
            raise FabricateError(f"every sound is called {under.label!r}, as a background is")
        count = min(int(rng.integers(config.events[0], config.events[1] + 1)), len(labels))
        chosen = [self.by_label[labels[i]] for i in rng.choice(len(labels), count, replace=False)]
        canvas = self.get(under).astype(np.float64)
        floor = _rms(canvas)
        events = []
        for clips in chosen:
            clip = clips[rng.integers(len(clips))]
            samples = self._varied(self.get(clip), rng)[: len(canvas)]
            snr = float(rng.uniform(*config.snr_db))
            gain = floor * 10 ** (snr / 20) / max(_rms(samples), 1e-9)
            starts = self._starts(len(samples), len(canvas), rng)
            for start in starts:
                canvas[start : start + len(samples)] += samples * gain
            heard = tuple((s / SAMPLE_RATE, (s + len(samples)) / SAMPLE_RATE) for s in starts)
            events.append(Event(clip, round(snr, 2), tuple((round(a, 4), round(b, 4)) for a, b in heard)))
        canvas *= min(1.0, CEILING / max(float(np.abs(canvas).max()), 1e-9))
        events.sort(key=lambda e: (e.segments[0], e.clip.name))
        named = under.label if config.name_background else None
        sentence = caption([e.clip.label for e in events], named, rng)
        return Mixture(canvas.astype(np.float32), under, tuple(events), sentence)

    def _varied(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The event in another room, spectrum or swell, as far as asked for; still one continuous stretch."""
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
        stretch = first_stretch(varied, self.cutting)  # a room's tail lengthens it, and the label with it
        return cut(varied, *stretch) if stretch else samples

    def _starts(self, length: int, size: int, rng: np.random.Generator) -> list[int]:
        """Sample numbers at which an event starts: once, or if short up to three times, never over itself."""
        gap = round(GAP * SAMPLE_RATE)
        times = int(rng.integers(1, self.config.repeats + 1)) if length < self.config.short * SAMPLE_RATE else 1
        times = max(1, min(times, (size + gap) // (length + gap)))
        slack = size - times * length - (times - 1) * gap
        return [int(at) + i * (length + gap) for i, at in enumerate(np.sort(rng.integers(0, slack + 1, times)))]


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))
