"""Waveform peaks, for drawing waveforms, and loudness, for playing sounds at one level.

Peaks are the lowest and highest sample of every 10 ms, collected from a stream: an hour of audio is 230 MB of samples,
but 3 MB of peaks. Loudness is measured by FFmpeg's ebur128 filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, log10
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

    from app.audio.sample_reader import SampleReader

STEP = 160  # samples at 16 kHz: 10 ms
_FINE = 1600  # steps of a short recording, so that its waveform has no stairs
MEASURED_WHOLE = 600  # seconds up to which all of a recording is measured
_STRETCH = 10  # seconds of each of the evenly spread stretches of longer ones
_GATING_BLOCK = 0.4  # seconds, of ITU-R BS.1770
_SILENT = -70.0  # LUFS of a recording without a block above the absolute gate of BS.1770
# loudspeakers by number of channels, in the order of WAV files; of others, FFmpeg's usual ones
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}


class WaveformPeaks:
    """Collects the peaks of a recording from blocks of any length; the result does not depend on the block size.

    step: samples of each peak.
    """

    def __init__(self, step: int = STEP) -> None:
        self._step = step
        self._parts: list[np.ndarray] = []
        self._rest = np.empty(0, dtype=np.float32)  # less than a step

    def push(self, samples: np.ndarray) -> None:
        """Adds samples (n,) at 16 kHz. Raises ValueError if they are not mono."""
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono (n,); their shape is {samples.shape}")
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % self._step
        if whole:
            self._parts.append(_min_max(samples[:whole].reshape(-1, self._step)))
        self._rest = samples[whole:].copy()  # a view would keep the block in memory

    def levels(self) -> np.ndarray:
        """(2, n) float32: the lowest and highest sample of every step so far; the last step may be shorter."""
        rest = [_min_max(self._rest[None])] if len(self._rest) else []
        self._parts = [np.concatenate([np.empty((2, 0), dtype=np.float32), *self._parts], axis=1)]
        return np.concatenate([*self._parts, *rest], axis=1)


def fitting_step(duration: float) -> int:
    """Samples at 16 kHz of each peak of a recording of this duration (s): 10 ms, or less if it is short."""
    return max(1, min(STEP, int(duration * 16_000) // _FINE))


def waveform_peaks(samples: np.ndarray) -> np.ndarray:
    """Samples (N,) at 16 kHz → peaks (2, n)."""
    peaks = WaveformPeaks()
    peaks.push(samples)
    return peaks.levels()


def reduce_peaks(levels: np.ndarray, columns: int) -> np.ndarray:
    """Peaks (2, n) → (2, columns): the lowest and highest value within each column's time span.

    With more columns than steps, a step fills several columns; without steps, all columns are 0. Raises ValueError
    for other shapes and for fewer than one column.
    """
    levels = np.asarray(levels, dtype=np.float32)
    if levels.ndim != 2 or len(levels) != 2 or columns < 1:
        raise ValueError(f"peaks must be (2, n) with at least one column; got {levels.shape} and {columns}")
    steps = levels.shape[1]
    if not steps:
        return np.zeros((2, columns), dtype=np.float32)
    starts = np.arange(columns) * steps // columns
    if columns >= steps:
        return levels[:, starts]
    return np.stack([np.minimum.reduceat(levels[0], starts), np.maximum.reduceat(levels[1], starts)])


def _min_max(steps: np.ndarray) -> np.ndarray:
    return np.stack([steps.min(axis=1), steps.max(axis=1)])


@dataclass(frozen=True)
class Loudness:
    """How loud a recording is.

    integrated: LUFS (EBU R128, ITU-R BS.1770); None for silence. peak: the largest sample in dBFS, None for silence and
    for a recording that was measured in parts.
    """

    integrated: float | None
    peak: float | None


def measure_loudness(reader: SampleReader, frames: int) -> Loudness:
    """Measures a recording of `frames` frames. Raises TruncatedAudio.

    One that is shorter than a gating block counts as if it were repeated: silence after it would make it quieter than
    it sounds. One over MEASURED_WHOLE is measured in 60 stretches of 10 seconds.
    """
    stretches = _stretches(frames, reader.rate)
    blocks = (block for start, stop in stretches for block in reader.read(start, stop))
    scale = 2.0**-31 if reader.kind == "int" else 1.0
    samples: Iterator[np.ndarray] = (np.nan_to_num(block.astype(np.float64) * scale) for block in blocks)
    least = ceil(_GATING_BLOCK * reader.rate)
    if frames < least:
        whole = np.concatenate([np.empty((0, reader.channels)), *samples])
        samples = iter([np.resize(whole, (2 * least, reader.channels))] if len(whole) else [])
    meter = _Meter(reader.rate, reader.channels)
    for block in samples:
        meter.push(block)
    loudness = meter.finish()
    peak = 20 * log10(meter.peak) if meter.peak and len(stretches) == 1 else None
    return Loudness(loudness if loudness > _SILENT else None, peak)


def _stretches(frames: int, rate: int) -> list[tuple[int, int]]:
    """The frames (start, stop) to measure of a recording."""
    count = MEASURED_WHOLE // _STRETCH
    if frames <= MEASURED_WHOLE * rate:
        return [(0, frames)]
    starts = [number * (frames - _STRETCH * rate) // (count - 1) for number in range(count)]
    return [(start, start + _STRETCH * rate) for start in starts]


class _Meter:
    """FFmpeg's ebur128 filter. peak: the largest absolute sample so far, full scale 1."""

    def __init__(self, rate: int, channels: int) -> None:
        self.peak = 0.0
        self._rate, self._layout = rate, _LAYOUTS.get(channels, f"{channels}c")
        import av.error  # only workers that decode measure loudness; others needn't load FFmpeg
        import av.filter

        self._av = av
        self._graph, self._pushed, self._integrated = av.filter.Graph(), 0, _SILENT
        self._graph.threads = 1
        source = self._graph.add_abuffer(
            sample_rate=rate, format="dbl", layout=self._layout, time_base=Fraction(1, rate)
        )
        measure = self._graph.add("ebur128", "metadata=1:peak=none")
        source.link_to(measure)
        measure.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, samples: np.ndarray) -> None:
        """Adds samples (n, channels) float64."""
        if not len(samples):
            return
        self.peak = max(self.peak, float(np.abs(samples).max()))
        packed = np.ascontiguousarray(samples).reshape(1, -1)
        frame = self._av.AudioFrame.from_ndarray(packed, format="dbl", layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._pushed
        self._pushed += len(samples)
        self._graph.push(frame)
        self._take()

    def finish(self) -> float:
        """The integrated loudness, LUFS."""
        self._graph.push(None)
        self._take()
        return self._integrated

    def _take(self) -> None:
        for measured in self._measured():
            self._integrated = float(measured.metadata.get("lavfi.r128.I", self._integrated))

    def _measured(self) -> Iterator[av.AudioFrame]:
        while True:
            try:
                frame = self._graph.pull()
            except (self._av.error.BlockingIOError, self._av.error.EOFError):
                return
            assert isinstance(frame, self._av.AudioFrame)
            yield frame
