"""Augments waveforms (speed, spectrum, reverberation) and log-mel spectrograms (SpecAugment).

All randomness comes from the generator passed in, so a seed determines the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import fftconvolve

from model.config import SAMPLE_RATE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LARGEST_SHARE = 4  # a SpecAugment stripe masks at most one in this many frames or bins


def change_speed(samples: np.ndarray, octaves: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) resampled to a speed and pitch of 2 ** ±octaves at most."""
    speed = 2 ** rng.uniform(-octaves, octaves)
    at = np.arange(0, len(samples) - 1, speed)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32) if len(at) > 1 else samples


def tilt(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) with a spectral tilt: up to ±decibels at both ends of the spectrum, linear in frequency."""
    spectrum = np.fft.rfft(samples)
    slope = rng.uniform(-decibels, decibels) * np.linspace(-1, 1, len(spectrum))
    return np.fft.irfft(spectrum * 10 ** (slope / 20), n=len(samples)).astype(np.float32)


def equalise(samples: np.ndarray, decibels: float, rng: np.random.Generator, bands: int = 6) -> np.ndarray:
    """(n,) through a random equaliser: up to ±decibels at `bands` points, an octave apart from 8 kHz downwards."""
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    octave = np.log2(np.maximum(frequency, 1.0) / (SAMPLE_RATE / 2))
    gains = np.interp(octave, np.arange(-bands + 1, 1), rng.uniform(-decibels, decibels, bands))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), n=len(samples)).astype(np.float32)


def reverberate(
    samples: np.ndarray, rng: np.random.Generator, seconds: tuple[float, float] = (0.15, 0.9)
) -> np.ndarray:
    """(n,) → (n + tail,): convolved with decaying noise, the direct sound 0 to 12 dB above the tail.

    `seconds` is the range of reverberation times (RT60).
    """
    decay = rng.uniform(*seconds)
    size = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    tail *= 10 ** (-rng.uniform(0, 12) / 20) / np.sqrt((tail**2).sum())
    tail[0] += 1.0
    return fftconvolve(samples, tail).astype(np.float32)


def mild(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) varied so that the label still holds: 0.8 to 1.25 of the speed, up to ±9 dB of tilt."""
    return tilt(change_speed(samples, 0.32, rng), 9.0, rng)


def wild(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) varied beyond its label, for a teacher to label: 0.57 to 1.74 of the speed, equaliser, reverberation."""
    samples = equalise(change_speed(samples, 0.8, rng), 12.0, rng)
    return reverberate(samples, rng) if rng.random() < 0.4 else samples


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Number of stripes of each kind, and their largest widths in mel frames and bins; the published defaults."""

    time_stripes: int = 2
    time_width: int = 64
    frequency_stripes: int = 2
    frequency_width: int = 8

    def __post_init__(self) -> None:
        if min(self.time_stripes, self.time_width, self.frequency_stripes, self.frequency_width) < 0:
            raise ValueError("SpecAugment: stripes and widths must not be negative")


def spec_augment(
    mel: Tensor,
    config: SpecAugmentConfig,
    generator: torch.Generator,
    fill: float = 0.0,
    lengths: Tensor | None = None,
) -> Tensor:
    """Log-mel (batch, frames, bins) with stripes set to `fill`, drawn per row; `mel` itself is not modified.

    Widths are uniform from 0 to the configured width, but cover at most a quarter of the row's `lengths` (batch,) mel
    frames (all frames by default) or of its bins. `generator` must be on the CPU, so that a seed gives the same mask
    on every device.
    """
    import torch  # simulation workers import this module and don't need torch

    batch, frames, bins = mel.shape
    valid = torch.full((batch,), frames) if lengths is None else lengths.cpu().clamp(max=frames)
    time = _stripes(valid, frames, config.time_stripes, config.time_width, generator)
    frequency = _stripes(torch.full((batch,), bins), bins, config.frequency_stripes, config.frequency_width, generator)
    masked = time[:, :, None] | frequency[:, None, :]
    return mel.masked_fill(masked.to(mel.device), fill)


def _stripes(sizes: Tensor, size: int, stripes: int, width: int, generator: torch.Generator) -> Tensor:
    """(batch, size) bool: up to `stripes` stripes, all within the first `sizes` (batch,) positions of a row."""
    import torch

    draws = torch.rand(2, len(sizes), stripes, generator=generator)
    widest = (sizes // LARGEST_SHARE).clamp(max=width)[:, None]
    widths = (draws[0] * (widest + 1)).long().clamp(max=widest)
    slack = sizes[:, None] - widths
    starts = (draws[1] * (slack + 1)).long().clamp(max=slack)
    at = torch.arange(size)
    return ((at >= starts[..., None]) & (at < (starts + widths)[..., None])).any(1)
