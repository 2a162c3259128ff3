"""Other takes of a sound: its speed, spectrum, level and room. Waveforms in, waveforms out; knows no labels.

Everything draws from the generator it is given, so a seed fixes the result.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

from training.data.manifests import SAMPLE_RATE


def replay(samples: np.ndarray, octaves: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) played faster or slower, pitch and all, by a factor of up to 2 ** ±octaves."""
    speed = 2 ** rng.uniform(-octaves, octaves)
    at = np.arange(0, len(samples) - 1, speed)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32) if len(at) > 1 else samples


def tilt(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) brighter or duller: up to ±decibels at both ends of the spectrum, linear in frequency between."""
    spectrum = np.fft.rfft(samples)
    slope = rng.uniform(-decibels, decibels) * np.linspace(-1, 1, len(spectrum))
    return np.fft.irfft(spectrum * 10 ** (slope / 20), n=len(samples)).astype(np.float32)


def equalise(samples: np.ndarray, decibels: float, rng: np.random.Generator, bands: int = 6) -> np.ndarray:
    """(n,) through a random equaliser: up to ±decibels at `bands` points an octave apart, from 8 kHz down."""
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    octave = np.log2(np.maximum(frequency, 1.0) / (SAMPLE_RATE / 2))
    gains = np.interp(octave, np.arange(-bands + 1, 1), rng.uniform(-decibels, decibels, bands))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), n=len(samples)).astype(np.float32)


def reverberate(
    samples: np.ndarray, rng: np.random.Generator, seconds: tuple[float, float] = (0.15, 0.9)
) -> np.ndarray:
    """(n,) → (n + tail,) in a room: convolved with decaying noise, the direct sound 0 to 12 dB above the tail."""
    decay = rng.uniform(*seconds)  # until the tail is 60 dB down
    size = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    tail *= 10 ** (-rng.uniform(0, 12) / 20) / np.sqrt((tail**2).sum())
    tail[0] += 1.0
    return fftconvolve(samples, tail).astype(np.float32)


def mild(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A take that keeps its name: 0.8 to 1.25 of the speed, brighter or duller by up to 9 dB."""
    return tilt(replay(samples, 0.32, rng), 9.0, rng)


def wild(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Perhaps another sound altogether, for a teacher to name: 0.57 to 1.74 of the speed, equaliser, room."""
    samples = equalise(replay(samples, 0.8, rng), 12.0, rng)
    return reverberate(samples, rng) if rng.random() < 0.4 else samples
