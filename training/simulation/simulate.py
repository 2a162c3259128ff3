"""Synthetic scenes with exact labels, made on the fly: events from single sounds, placed over a background.

Knows nothing of models or files. Follows the FineLAP-100k recipe in outline (arXiv 2604.01155: active stretch of a
clip, short events repeated, signal-to-noise ratio against the background) at the scale that a CPU can stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.data.augment import mild, wild
from training.data.manifests import SAMPLE_RATE

ENVELOPE_HOP = 320  # samples: 20 ms
ACTIVE_DB = 40.0  # below its loudest 20 ms a sound counts as over
MERGE_GAP = 0.3  # seconds of quiet inside one occurrence


@dataclass(frozen=True)
class Scene:
    """A synthetic recording and where each of its sounds can be heard."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    events: tuple[tuple[int, float, float], ...]  # (source, onset, offset): index of the source sound, seconds


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are drawn. Probabilities, decibels and seconds."""

    duration: float = 5.12
    mixture: float = 0.6  # of scenes have several sounds
    max_events: int = 4
    background: float = 0.6  # of mixtures lie over a long, steady sound
    snr_db: tuple[float, float] = (0.0, 20.0)
    peak_db: tuple[float, float] = (-24.0, -0.5)
    repeat: float = 0.35  # of short sounds come more than once
    augment: float = 0.6  # of sounds are varied: another speed, another spectrum
    wild: float = 0.0  # of those so strongly that only a teacher can say what they are now
    noise_floor: float = 0.4  # of scenes have faint white noise


def envelope(samples: np.ndarray) -> np.ndarray:
    """(n,) → RMS of each whole or partial 20 ms, (ceil(n / 320),)."""
    padded = np.pad(samples, (0, -len(samples) % ENVELOPE_HOP))
    return np.sqrt((padded.reshape(-1, ENVELOPE_HOP) ** 2).mean(1) + 1e-12)


def active_stretches(samples: np.ndarray) -> list[tuple[float, float]]:
    """Seconds [onset, offset] in which a single sound can be heard; gaps of less than MERGE_GAP are bridged."""
    level = envelope(samples)
    active = level > max(level.max() * 10 ** (-ACTIVE_DB / 20), 1e-4)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    hop, duration = ENVELOPE_HOP / SAMPLE_RATE, len(samples) / SAMPLE_RATE
    merged: list[tuple[float, float]] = []
    for low, high in edges.reshape(-1, 2) * hop:
        if merged and low - merged[-1][1] < MERGE_GAP:
            merged[-1] = (merged[-1][0], min(float(high), duration))
        else:
            merged.append((float(low), min(float(high), duration)))
    return merged


def trim(samples: np.ndarray) -> np.ndarray:
    """Without the silence at both ends; silence alone comes back as it is."""
    stretches = active_stretches(samples)
    if not stretches:
        return samples
    return samples[int(stretches[0][0] * SAMPLE_RATE) : int(stretches[-1][1] * SAMPLE_RATE) + 1]


class SceneMaker:
    """Draws scenes from single sounds. `get(source)` gives a sound's samples; `weights` how often each is drawn.

    `steady` are the sources that may lie underneath as a background. The same generator state gives the same scene.
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
        """Index of a source, by weight."""
        return min(int(np.searchsorted(self.odds, rng.random())), len(self.odds) - 1)

    def sound(self, source: int, rng: np.random.Generator, limit: int) -> np.ndarray:
        """A sound of at most `limit` samples at unit peak: trimmed, perhaps varied, and cut from its louder part."""
        samples = trim(self.get(source))
        if len(samples) > 2 * limit:  # cut before the costly part
            samples = _loud_cut(samples, 2 * limit, rng)
        if rng.random() < self.config.augment:
            strongly = self.config.wild > 0 and rng.random() < self.config.wild
            samples = (wild if strongly else mild)(samples, rng)
        if len(samples) > limit:
            samples = _loud_cut(samples, limit, rng)
        return samples / max(float(np.abs(samples).max()), 1e-4)

    def scene(self, rng: np.random.Generator, sources: list[int] | None = None) -> Scene:
        """One scene; with `sources`, of exactly these sounds, as a mixture."""
        config, size = self.config, int(self.config.duration * SAMPLE_RATE)
        mixed = sources is not None or rng.random() < config.mixture
        if sources is None:
            count = int(rng.integers(1, config.max_events + 1)) if mixed else 1
            sources = [self.draw_source(rng) for _ in range(count)]
        canvas, events = np.zeros(size, np.float32), []
        floor = 0.05
        if mixed and len(self.steady) and rng.random() < config.background:
            under = int(rng.choice(self.steady))
            bed = self.sound(under, rng, size)
            bed = np.tile(bed, -(-size // len(bed)))[:size]
            canvas += bed * (floor / max(float(np.sqrt((bed**2).mean())), 1e-4))
            events.append((under, 0.0, config.duration))
        for source in sources:
            samples = self.sound(source, rng, size)
            loud = float(np.sqrt((samples**2).mean()))
            gain = floor * 10 ** (rng.uniform(*config.snr_db) / 20) / max(loud, 1e-3)
            for start in self._places(len(samples), size, rng):
                canvas[start : start + len(samples)] += samples * gain
                at = start / SAMPLE_RATE
                events += [(source, at + a, at + b) for a, b in active_stretches(samples)]
        canvas *= 10 ** (rng.uniform(*config.peak_db) / 20) / max(float(np.abs(canvas).max()), 1e-4)
        if rng.random() < config.noise_floor:
            canvas += rng.standard_normal(size, dtype=np.float32) * 10 ** (rng.uniform(-90, -55) / 20)
        return Scene(canvas, tuple((s, round(a, 4), round(min(b, config.duration), 4)) for s, a, b in events))

    def _places(self, length: int, size: int, rng: np.random.Generator) -> list[int]:
        """Where a sound starts: once, or for a short one sometimes two or three times without overlapping itself."""
        times = 1
        if length < size // 3 and rng.random() < self.config.repeat:
            times = int(rng.integers(2, 4))
        slack = size - times * length
        gaps = np.sort(rng.integers(0, slack + 1, times))
        return [int(gap) + i * length for i, gap in enumerate(gaps)]


def _loud_cut(samples: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` samples: the louder of two random cuts, so that long files rarely give their pauses."""
    starts = rng.integers(0, len(samples) - length + 1, 2)
    cuts = [samples[s : s + length] for s in starts]
    return max(cuts, key=lambda c: float((c**2).sum()))


def frame_labels(events: list[tuple[float, float]], frames: int, frame_hop: float) -> np.ndarray:
    """[onset, offset] in seconds → (frames,) float32 of 0 and 1.

    A frame counts when the event covers at least half of it, and the frame under a shorter event's middle always does.
    """
    labels = np.zeros(frames, np.float32)
    edges = np.arange(frames + 1) * frame_hop
    for onset, offset in events:
        covered = np.minimum(edges[1:], offset) - np.maximum(edges[:-1], onset)
        labels[covered >= frame_hop / 2] = 1.0
        labels[min(int((onset + offset) / 2 / frame_hop), frames - 1)] = 1.0
    return labels
