"""A spectrogram of 48 mel bands and waveform peaks, computed from a stream for display.

The model has its own log-mel front end (model.audio). Input is 16 kHz mono in blocks of any length; memory is bounded
by one second of samples and the columns not yet taken.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from app.audio.peaks import reduce_peaks, waveform_peaks
from model.config import SAMPLE_RATE

HOP = 160  # samples: a frame every 10 ms
WINDOW = 512  # samples: 32 ms; also the length of the FFT
BANDS = 48
LOWEST = 20.0  # Hz, start of the lowest band; the highest ends at 8,000 Hz

_LEAD = (WINDOW - HOP) // 2  # samples by which a frame extends past its 10 ms on either side
_BATCH = 100  # frames computed at once
_FULL_SCALE = 32_767  # a sample of 1.0 as a 16-bit integer


class StreamingSpectrogram:
    """A spectrogram of a recording in blocks, one column per `step` frames; independent of the block size.

    Frame i is a Hann window centred on the 10 ms from i × 10 ms; the recording is padded with silence on both sides. A
    column holds, for each band, the highest power of its frames, so that a click stays visible.
    """

    def __init__(self, step: int) -> None:
        """`step`: frames per column, 1 or more."""
        if step < 1:
            raise ValueError(f"a column needs at least one frame; got {step}")
        from model.audio import mel_filters  # imports PyTorch, which must not delay the start of the service

        self._step = step
        self._group = max(
            1, _BATCH // step
        )  # columns computed at once; always the same number, so that rounding is the same
        taper = np.hanning(WINDOW + 1)[:-1]
        self._taper = (taper / (taper.sum() / 2)).astype(np.float32)  # a tone of amplitude 1 has power 1
        self._filters = mel_filters(BANDS, LOWEST).numpy()  # (bins, BANDS)
        self._held = np.zeros(_LEAD, dtype=np.float32)
        self._samples = 0  # received
        self._columns = 0  # returned

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Adds samples (n,) and returns the columns (c, BANDS) uint8 that are now final.

        A value v is a level of v / 2 - 127.5 dB: 255 is a full-scale tone, 0 is 127.5 dB below it or less. Raises
        ValueError if the samples are not mono.
        """
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono (n,); their shape is {samples.shape}")
        self._samples += len(samples)
        self._held = np.concatenate([self._held, samples])
        return self._take_ready()

    def finish(self) -> np.ndarray:
        """Returns the remaining columns (c, BANDS) after the last sample; the last column may cover less time."""
        total = -(-self._samples // (HOP * self._step))
        missing, returned = total - self._columns, self._columns
        groups = -(-missing // self._group)
        needed = groups * self._group * self._step * HOP + WINDOW
        self._held = np.concatenate([self._held, np.zeros(max(0, needed - len(self._held)), dtype=np.float32)])
        rest = self._take_ready()[:missing]
        self._columns = returned + len(rest)
        return rest

    def _take_ready(self) -> np.ndarray:
        frames = self._group * self._step
        parts = [np.empty((0, BANDS), dtype=np.uint8)]
        start = 0
        while len(self._held) - start >= (frames - 1) * HOP + WINDOW:
            parts.append(self._levels(self._held[start : start + (frames - 1) * HOP + WINDOW]))
            start += frames * HOP
        self._held = self._held[start:].copy()  # a view would keep the whole buffer in memory
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


class WaveformPreview:
    """Waveform peaks and a spectrogram on one grid of columns, as the `outline` lines of `POST /detect`.

    Column c covers the seconds from c × step to (c + 1) × step.
    """

    def __init__(self, step: float) -> None:
        """`step` in seconds, rounded to a multiple of 10 ms."""
        self._frames = max(1, round(step * SAMPLE_RATE / HOP))
        self.step = self._frames / (SAMPLE_RATE // HOP)
        self._spectrogram = StreamingSpectrogram(self._frames)
        self._rest = np.empty(0, dtype=np.float32)  # of the waveform: less than a column
        self._peaks = [np.empty((2, 0), dtype=np.float32)]
        self._levels = [np.empty((0, BANDS), dtype=np.uint8)]
        self._taken = 0  # columns

    def header(self) -> dict[str, Any]:
        """Returns what a client needs for drawing: `step` in seconds and `frequencies`, the bands' centres in Hz."""
        low, high = (1127 * np.log1p(f / 700) for f in (LOWEST, SAMPLE_RATE / 2))
        centres = low + np.arange(1, BANDS + 1) * (high - low) / (BANDS + 1)
        return {"step": self.step, "frequencies": np.round(700 * np.expm1(centres / 1127), 1).tolist()}

    def push(self, samples: np.ndarray) -> None:
        """Adds samples (n,) at 16 kHz. Raises ValueError if they are not mono."""
        self._levels.append(self._spectrogram.push(samples))
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) - len(self._rest) % (HOP * self._frames)
        self._add_peaks(whole)

    def finish(self) -> None:
        """Completes the last columns after the last sample."""
        self._levels.append(self._spectrogram.finish())
        self._add_peaks(len(self._rest))

    def take_line(self) -> dict[str, Any] | None:
        """Returns the columns since the last line, or None; docs/reference/http-api.md describes the format."""
        peaks, levels = np.concatenate(self._peaks, axis=1), np.concatenate(self._levels)
        ready = min(peaks.shape[1], len(levels))
        self._peaks, self._levels = [peaks[:, ready:].copy()], [levels[ready:].copy()]
        if not ready:
            return None
        first, self._taken = self._taken, self._taken + ready
        scaled = np.rint(np.clip(peaks[:, :ready].T, -1, 1) * _FULL_SCALE).astype("<i2")
        return {
            "type": "outline",
            "first": first,
            "columns": ready,
            "peaks": _base64(scaled),
            "spectrum": _base64(levels[:ready]),
        }

    def _add_peaks(self, samples: int) -> None:
        if samples:
            part, self._rest = self._rest[:samples], self._rest[samples:].copy()
            self._peaks.append(reduce_peaks(waveform_peaks(part), -(-samples // (HOP * self._frames))))


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
