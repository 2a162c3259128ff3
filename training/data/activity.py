"""Finds where a recording sounds: energy envelopes, active stretches, background pieces, frame labels.

Two detectors live here because the two recipes label differently. `first_stretch` finds the one continuous stretch
that a FineLAP-100k event keeps (arXiv 2604.01155, data simulation). `active_stretches` finds every stretch of a sound,
which is what the scenes of the bundled recipe are labelled with.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from model.config import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # samples, 10 ms: step of `log_energy`
FADE = 80  # samples, 5 ms: fade at both ends of a cut stretch, to avoid clicks
SILENT = 1e-4  # a recording whose peak is below this (-80 dBFS) is silent
PEAK = 0.95  # peak of cut stretches and mixtures, so that nothing clips
ENVELOPE_HOP = 320  # samples, 20 ms: step of `envelope`
ACTIVE_DB = 40.0  # a frame this far below the loudest one is inactive
ENERGY_FRAME = 1024  # samples: step of the published rule
ENERGY_FRAMES = 5  # its sliding window
MERGE_GAP = 0.3  # seconds: shorter pauses don't split an occurrence


class SimulationError(ValueError):
    """Settings or recordings from which no mixture can be made."""


@dataclass(frozen=True)
class ClipConfig:
    """How recordings are cut into events and backgrounds. Seconds, and decibels relative to the recording's peak."""

    threshold_db: float = -50.0
    window: float = 0.2  # averaging window over the envelope; shorter pauses don't end a stretch
    shortest: float = 1.0
    longest: float = 7.5
    background: float = 10.0  # length of a background piece
    backgrounds: tuple[str, ...] = ()  # label patterns; if empty, any long, steady recording is a background
    steady_db: float = 10.0  # largest difference between the half-second levels of a steady piece
    pieces: int = 6  # maximum per recording
    # how loud a sound must be: relative to the recording's peak, or absolute, as published: the sum of squares of
    # ENERGY_FRAME samples, averaged over ENERGY_FRAMES of them
    rule: Literal["relative", "absolute"] = "relative"
    sample_rate: int = SAMPLE_RATE  # Hz, of clips and mixtures

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest:
            raise SimulationError(f"events of {self.shortest:g} to {self.longest:g} s: want 0 < shortest <= longest")
        if self.longest > self.background:
            raise SimulationError(f"events of up to {self.longest:g} s do not fit into {self.background:g} s")
        if not (self.threshold_db < 0 and self.window >= 0.01 and self.pieces >= 1 and self.steady_db > 0):
            raise SimulationError("want a threshold below 0 dB, a window of 0.01 s or more, and at least one piece")


def rms(samples: np.ndarray) -> float:
    """Root mean square of (n,) samples, computed in their own precision."""
    return float(np.sqrt((samples**2).mean()))


def peak(samples: np.ndarray) -> float:
    """Largest absolute value of (n,) samples; 0 if there are none."""
    return float(np.abs(samples).max(initial=0.0))


def envelope(samples: np.ndarray) -> np.ndarray:
    """RMS of (n,) samples in steps of 20 ms, (ceil(n / 320),); a partial last step is padded with zeros."""
    padded = np.pad(samples, (0, -len(samples) % ENVELOPE_HOP))
    return np.sqrt((padded.reshape(-1, ENVELOPE_HOP) ** 2).mean(1) + 1e-12)


def log_energy(samples: np.ndarray) -> np.ndarray:
    """Mean power of (n,) samples in steps of 10 ms, decibels relative to the peak sample, (ceil(n / 160),)."""
    power = (samples.astype(np.float64) / max(peak(samples), 1e-12)) ** 2
    starts = np.arange(0, len(power), HOP)
    mean = np.add.reduceat(power, starts) / np.diff(np.append(starts, len(power)))
    return 10 * np.log10(mean + 1e-12)


def active_stretches(samples: np.ndarray) -> list[tuple[float, float]]:
    """Every [onset, offset] in seconds where a single sound is active; pauses below MERGE_GAP are bridged."""
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
    """(n,) without the silence at both ends; a silent recording is returned unchanged."""
    stretches = active_stretches(samples)
    if not stretches:
        return samples
    return samples[int(stretches[0][0] * SAMPLE_RATE) : int(stretches[-1][1] * SAMPLE_RATE) + 1]


def first_stretch(samples: np.ndarray, config: ClipConfig) -> tuple[float, float] | None:
    """The first continuous active stretch as [onset, offset] in seconds; None for silence.

    A window slides over the log-energy envelope in steps of 10 ms. The stretch lasts while the window's mean power is
    above the threshold; both ends then move inwards to the first and last step above the threshold.
    """
    if config.rule == "absolute":
        return _first_loud_stretch(samples, config)
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


def _first_loud_stretch(samples: np.ndarray, config: ClipConfig) -> tuple[float, float] | None:
    """The published rule: the first run of ENERGY_FRAME samples whose smoothed energy is above the threshold.

    The energy of a frame is the sum of its squares, which over 1,024 samples is 30 dB above their mean, so -50 dB is
    an RMS of about -80 dBFS whatever the recording's level.
    """
    whole = len(samples) // ENERGY_FRAME
    if not whole:
        return None
    energy = (samples[: whole * ENERGY_FRAME].reshape(whole, ENERGY_FRAME).astype(np.float64) ** 2).sum(1)
    size = min(ENERGY_FRAMES, whole)
    smooth = np.convolve(energy, np.ones(size) / size, "same")
    active = 10 * np.log10(smooth + 1e-12) > config.threshold_db
    if not active.any():
        return None
    low = int(active.argmax())
    ends = np.flatnonzero(~active[low:])
    high = low + int(ends[0]) if len(ends) else whole
    stop = len(samples) if high == whole else high * ENERGY_FRAME
    return low * ENERGY_FRAME / config.sample_rate, stop / config.sample_rate


def clip_event(samples: np.ndarray, config: ClipConfig) -> tuple[tuple[float, float] | None, str]:
    """The stretch of a single-sound recording to use as an event, in seconds; or None and the reason."""
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
    """Start times, in seconds, of the adjacent, non-silent pieces of a recording that can serve as backgrounds.

    Unless `any_level`, a piece must be steady: its half-second levels differ by at most `steady_db`.
    """
    size, half = round(config.background * config.sample_rate), config.sample_rate // 2
    starts = []
    for start in range(0, len(samples) - size + 1, size):
        piece = samples[start : start + size]
        level = 10 * np.log10((piece[: size - size % half].reshape(-1, half).astype(np.float64) ** 2).mean(1) + 1e-12)
        if np.abs(piece).max() >= SILENT and (any_level or np.ptp(level) <= config.steady_db):
            starts.append(start / config.sample_rate)
    return starts[: config.pieces]


def is_background(label: str, config: ClipConfig) -> bool:
    """Whether a label matches one of the background patterns; `*` and `?` work as in file names."""
    return any(fnmatchcase(label, pattern.lower()) for pattern in config.backgrounds)


def cut(samples: np.ndarray, onset: float, offset: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """The stretch [onset, offset] (seconds) of (n,) samples, at a peak of 0.95, with 5 ms fades at both ends."""
    piece = samples[round(onset * rate) : round(offset * rate)].astype(np.float32, copy=True)
    fade = min(FADE, len(piece) // 2)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    piece[:fade] *= ramp
    piece[len(piece) - fade :] *= ramp[::-1]
    return piece * (PEAK / max(peak(piece), SILENT))


def frame_labels(segments: list[tuple[float, float]], frames: int, frame_hop: float) -> np.ndarray:
    """[onset, offset] segments in seconds as (frames,) float32 labels of 0 and 1.

    A frame is positive when a segment covers at least half of it. The frame under a segment's midpoint is always
    positive, so that short events keep a label.
    """
    labels = np.zeros(frames, np.float32)
    edges = np.arange(frames + 1) * frame_hop
    for onset, offset in segments:
        covered = np.minimum(edges[1:], offset) - np.maximum(edges[:-1], onset)
        labels[covered >= frame_hop / 2] = 1.0
        labels[min(int((onset + offset) / 2 / frame_hop), frames - 1)] = 1.0
    return labels
