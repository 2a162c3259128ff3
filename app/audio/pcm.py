"""Raw audio samples that arrive in pieces, to mono float32 at 16 kHz."""

from __future__ import annotations

import numpy as np

from app.audio.downmix import Downmix
from app.audio.errors import InvalidSamples
from model.config import SAMPLE_RATE

STREAM = "stream"  # the name of a live stream in messages
_MAX_PEAK = 1e6  # |sample|
_TYPES: dict[str, np.dtype[np.int16] | np.dtype[np.float32]] = {
    "pcm_s16le": np.dtype("<i2"),
    "pcm_f32le": np.dtype("<f4"),
}
_S16_SCALE = np.float32(1 / 32768)


class PcmDecoder:
    """Decodes one stream of interleaved samples, piece by piece."""

    def __init__(self, encoding: str, sample_rate: int, channels: int) -> None:
        """`encoding`: pcm_s16le or pcm_f32le. `sample_rate` in Hz."""
        self._encoding, self._type, self._channels = encoding, _TYPES[encoding], channels
        self._rate, self._read = sample_rate, 0
        self._downmix = Downmix(channels, sample_rate, live=True) if channels > 1 else None
        self._resampler = None
        if sample_rate != SAMPLE_RATE:
            import soxr  # not needed at start-up

            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, data: bytes) -> np.ndarray:
        """The samples (n,) of the next piece. Raises ValueError unless it has whole samples, and InvalidSamples."""
        size = self._type.itemsize * self._channels
        if len(data) % size:
            each = f"{self._type.itemsize} bytes" + (f" × {self._channels} channels" if self._channels > 1 else "")
            raise ValueError(
                f"A message of {len(data)} bytes does not hold whole samples of {self._encoding} ({each})."
            )
        samples = np.frombuffer(data, self._type).astype(np.float32)
        if self._type.kind == "i":
            samples *= _S16_SCALE
        elif len(samples):
            peak = float(np.abs(samples).max())
            if not peak <= _MAX_PEAK:
                at = f"in the message at {self._read / self._rate:.3f} s"
                value = f"samples as large as {peak:.3g}" if np.isfinite(peak) else "samples that are not finite"
                raise InvalidSamples(STREAM, f"it has {value} ({at}).")
        self._read += len(samples) // self._channels
        return self._resample(
            samples if self._downmix is None else self._downmix.push(samples.reshape(-1, self._channels))
        )

    def finish(self) -> np.ndarray:
        """The last samples (n,), which the downmix and the resampler still had."""
        last = np.empty(0, dtype=np.float32) if self._downmix is None else self._downmix.finish()
        return self._resample(last, last=True)

    def _resample(self, mono: np.ndarray, last: bool = False) -> np.ndarray:
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=last)
