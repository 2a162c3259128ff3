"""What a recording looks like, made while it streams by: a spectrogram of 48 mel bands, and beside it its outline.

For drawing alone; the model has a log-mel of its own. Knows no files, no engine, no HTTP beyond plain JSON types. Takes
16 kHz mono in blocks of any length and holds a second of it, and of the columns those that nobody took yet.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from app.audio.peaks import envelope, reduce
from model.config import SAMPLE_RATE

HOP = 160  # samples: a frame every 10 ms
WINDOW = 512  # samples: 32 ms, the length of the transform too
BANDS = 48
LOWEST = 20.0  # Hz, where the lowest band begins; the highest ends at 8,000

_LEAD = (WINDOW - HOP) // 2  # samples by which a frame reaches past its 10 ms on either side
_TOGETHER = 100  # frames computed at once
_FULL = 32_767  # of 16 bits: a sample of 1.0


class Spectrum:
    """Levels of a recording that comes in blocks, a column for every `step` frames; equal for every way of cutting it.

    Frame i is a Hann window around the middle of the 10 ms from i × 10 ms; before and after the recording all is
    silence. A column has, for each band, the highest power among its frames: a click stays to be seen.
    """

    def __init__(self, step: int) -> None:
        """`step`: frames a column, 1 or more."""
        if step < 1:
            raise ValueError(f"a column needs a frame at least; here {step}")
        from model.audio import mel_filters  # here: a service answers before it has loaded PyTorch

        self._step = step
        self._group = max(1, _TOGETHER // step)  # columns computed at once: always as many, so rounding is the same
        taper = np.hanning(WINDOW + 1)[:-1]
        self._taper = (taper / (taper.sum() / 2)).astype(np.float32)  # a tone of amplitude 1 has power 1
        self._filters = mel_filters(BANDS, LOWEST).numpy()  # (bins, BANDS)
        self._held = np.zeros(_LEAD, dtype=np.float32)
        self._samples = 0  # that came
        self._columns = 0  # that were given

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The next samples (n,) → columns (c, BANDS) uint8 that nothing can change any more.

        A value v is a level of v / 2 - 127.5 dB: 255 is a full-scale tone, 0 is 127.5 dB below it or less. Raises
        ValueError if the samples are not mono.
        """
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono (n,); their shape is {samples.shape}")
        self._samples += len(samples)
        self._held = np.concatenate([self._held, samples])
        return self._ready()

    def finish(self) -> np.ndarray:
        """The rest (c, BANDS), the recording having ended; the last column may stand for less than the others."""
        total = -(-self._samples // (HOP * self._step))
        missing, given = total - self._columns, self._columns
        groups = -(-missing // self._group)
        needed = groups * self._group * self._step * HOP + WINDOW
        self._held = np.concatenate([self._held, np.zeros(max(0, needed - len(self._held)), dtype=np.float32)])
        rest = self._ready()[:missing]
        self._columns = given + len(rest)
        return rest

    def _ready(self) -> np.ndarray:
        frames = self._group * self._step
        parts = [np.empty((0, BANDS), dtype=np.uint8)]
        start = 0
        while len(self._held) - start >= (frames - 1) * HOP + WINDOW:
            parts.append(self._levels(self._held[start : start + (frames - 1) * HOP + WINDOW]))
            start += frames * HOP
        self._held = self._held[start:].copy()  # a view would keep everything alive
        columns = np.concatenate(parts)
        self._columns += len(columns)
        return columns

    def _levels(self, samples: np.ndarray) -> np.ndarray:
        """Samples of one group → its columns (group, BANDS)."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * self._taper
        spectra = np.fft.rfft(frames, axis=1)
        power = (spectra.real**2 + spectra.imag**2) @ self._filters
        loudest = power.reshape(self._group, self._step, BANDS).max(axis=1)
        decibels = 10 * np.log10(np.maximum(loudest, np.float32(1e-13)))
        return np.clip(np.rint(2 * (decibels + 127.5)), 0, 255).astype(np.uint8)


class Sketch:
    """Outline and spectrogram of a recording on one grid of columns, handed out in lines of `POST /detect` as it comes.

    Column c stands for the seconds from c × step to (c + 1) × step.
    """

    def __init__(self, step: float) -> None:
        """`step` in seconds, taken as the nearest whole number of 10 ms."""
        self._frames = max(1, round(step * SAMPLE_RATE / HOP))
        self.step = self._frames / (SAMPLE_RATE // HOP)
        self._spectrum = Spectrum(self._frames)
        self._rest = np.empty(0, dtype=np.float32)  # of the outline: less than a column
        self._outline = [np.empty((2, 0), dtype=np.float32)]
        self._levels = [np.empty((0, BANDS), dtype=np.uint8)]
        self._given = 0  # columns

    def about(self) -> dict[str, Any]:
        """What a reader must know to draw the lines: `step` in seconds, `frequencies`, the bands' middles in Hz."""
        low, high = (1127 * np.log1p(f / 700) for f in (LOWEST, SAMPLE_RATE / 2))
        middles = low + np.arange(1, BANDS + 1) * (high - low) / (BANDS + 1)
        return {"step": self.step, "frequencies": np.round(700 * np.expm1(middles / 1127), 1).tolist()}

    def push(self, samples: np.ndarray) -> None:
        """The next samples (n,) at 16 kHz. Raises ValueError if they are not mono."""
        self._levels.append(self._spectrum.push(samples))
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) - len(self._rest) % (HOP * self._frames)
        self._trace(whole)

    def finish(self) -> None:
        """The recording has ended: the rest can be taken."""
        self._levels.append(self._spectrum.finish())
        self._trace(len(self._rest))

    def line(self) -> dict[str, Any] | None:
        """The columns since the last line, None if there are none: docs/http-api.md has its form."""
        outline, levels = np.concatenate(self._outline, axis=1), np.concatenate(self._levels)
        ready = min(outline.shape[1], len(levels))
        self._outline, self._levels = [outline[:, ready:].copy()], [levels[ready:].copy()]
        if not ready:
            return None
        first, self._given = self._given, self._given + ready
        peaks = np.rint(np.clip(outline[:, :ready].T, -1, 1) * _FULL).astype("<i2")
        return {
            "type": "outline",
            "first": first,
            "columns": ready,
            "peaks": _packed(peaks),
            "spectrum": _packed(levels[:ready]),
        }

    def _trace(self, samples: int) -> None:
        if samples:
            part, self._rest = self._rest[:samples], self._rest[samples:].copy()
            self._outline.append(reduce(envelope(part), -(-samples // (HOP * self._frames))))


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
