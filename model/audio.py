"""Audio constants and the Kaldi-compatible log-mel front end, batched and on the model's device.

Knows nothing of files, windows or networks. The numbers are those of Kaldi's `compute-fbank-feats` with
htk_compat, a Hann window, no dither and no energy, as the published FineLAP uses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import MelConfig

SAMPLE_RATE = 16_000  # Hz, of everything the model hears
MEL_WINDOW = 400  # samples: 25 ms
MEL_HOP = 160  # samples: 10 ms
FFT_SIZE = 512
PREEMPHASIS = 0.97
LOG_FLOOR = float(torch.finfo(torch.float32).eps)  # power below this is silence
_TOGETHER = 4  # waveforms
SILENCE = math.log(LOG_FLOOR)  # raw log-mel of digital silence: -15.94


def samples_for(mel_frames: int) -> int:
    """Samples that fill `mel_frames` whole mel frames (edges snipped: every frame lies inside the signal)."""
    return (mel_frames - 1) * MEL_HOP + MEL_WINDOW


def mel_frames_in(samples: int) -> int:
    """Whole mel frames in `samples` samples."""
    return 0 if samples < MEL_WINDOW else 1 + (samples - MEL_WINDOW) // MEL_HOP


def mel_frames_begun_in(samples: int) -> int:
    """Mel frames that begin within `samples` samples, the last ones filled up with zeros."""
    return -(-samples // MEL_HOP)


def mel_filters(num_mel_bins: int, low_freq: float) -> Tensor:
    """Kaldi's triangular filters, (FFT_SIZE // 2 + 1, num_mel_bins) float32, from `low_freq` Hz to Nyquist.

    Triangles are straight in mel (1127 ln(1 + f / 700)), and the Nyquist bin belongs to none, as in Kaldi.
    """

    def mel(f: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(f / 700.0)

    low, high = mel(torch.tensor([low_freq, SAMPLE_RATE / 2], dtype=torch.float64))
    step = (high - low) / (num_mel_bins + 1)
    left = low + torch.arange(num_mel_bins, dtype=torch.float64) * step
    bins = mel(torch.arange(FFT_SIZE // 2, dtype=torch.float64) * (SAMPLE_RATE / FFT_SIZE))[:, None]
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    return nn.functional.pad(filters, (0, 0, 0, 1)).float()


def spectrum_matrix() -> Tensor:
    """(FFT_SIZE, MEL_WINDOW) float32: a frame of samples → the real, then the imaginary half of its spectrum.

    All that Kaldi does to a frame before it takes the power is linear: the mean goes, pre-emphasis, Hann window,
    Fourier transform. So one matrix does it, at the pace of matrix products. The Nyquist bin, which no filter reads,
    is left out.
    """
    frames = torch.eye(MEL_WINDOW, dtype=torch.float64)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
    taper = torch.hann_window(MEL_WINDOW, periodic=False, dtype=torch.float64)
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * previous) * taper, n=FFT_SIZE)[:, : FFT_SIZE // 2]
    return torch.cat([spectrum.real, spectrum.imag], dim=1).T.float().contiguous()


class LogMel(nn.Module):
    """Waveforms to raw log-mel frames; `normalise` brings them to the scale that the encoder was trained on."""

    filters: Tensor
    spectrum: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("filters", mel_filters(config.num_mel_bins, config.low_freq), persistent=False)
        self.register_buffer("spectrum", spectrum_matrix(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, samples) float32 at 16 kHz → (B, mel_frames, num_mel_bins) raw log-mel, float32 whatever the autocast."""
        with torch.autocast(waveforms.device.type, enabled=False):
            # a few windows at a time: what lies between fits the processor's caches
            return torch.cat([self._raw(some) for some in waveforms.float().split(_TOGETHER)])

    def _raw(self, waveforms: Tensor) -> Tensor:
        frames = waveforms.unfold(-1, MEL_WINDOW, MEL_HOP)  # (B, T, MEL_WINDOW)
        real, imaginary = nn.functional.linear(frames, self.spectrum).chunk(2, dim=-1)
        power = real.square().addcmul_(imaginary, imaginary)
        return (power @ self.filters[:-1]).clamp_min(LOG_FLOOR).log()

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Raw log-mel → the encoder's scale, same shape."""
        return (log_mel - self.config.mean) / (2 * self.config.std)

    def pad(self, log_mel: Tensor, mel_frames: int) -> Tensor:
        """(B, mel_frames_in, bins) raw log-mel → exactly `mel_frames` frames: cut, or filled with the pad value."""
        missing = mel_frames - log_mel.shape[1]
        if missing <= 0:
            return log_mel[:, :mel_frames]
        return nn.functional.pad(log_mel, (0, 0, 0, missing), value=self.config.pad_value)
