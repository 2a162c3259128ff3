"""The Kaldi-compatible log-mel front end, batched, on the model's device.

Equal to Kaldi's `compute-fbank-feats` with htk_compat, a Hann window, no dither and no energy, as in the published
FineLAP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import MEL_HOP, MEL_WINDOW, SAMPLE_RATE, MelConfig

FFT_SIZE = 512  # samples
PREEMPHASIS = 0.97
LOG_FLOOR = float(torch.finfo(torch.float32).eps)  # lowest power that is distinguished from silence
SILENCE = math.log(LOG_FLOOR)  # raw log-mel of digital silence: -15.94
_BLOCK = 4  # waveforms transformed at once, so that intermediate results fit the CPU caches


def samples_for(mel_frames: int) -> int:
    """The number of samples in which exactly `mel_frames` whole mel frames fit."""
    return (mel_frames - 1) * MEL_HOP + MEL_WINDOW


def mel_frames_in(samples: int) -> int:
    """The number of mel frames that lie wholly inside `samples` samples (Kaldi's snip_edges)."""
    return 0 if samples < MEL_WINDOW else 1 + (samples - MEL_WINDOW) // MEL_HOP


def mel_frames_begun_in(samples: int) -> int:
    """The number of mel frames that begin within `samples` samples; the last ones are padded with zeros."""
    return -(-samples // MEL_HOP)


def mel_filters(num_mel_bins: int, low_freq: float) -> Tensor:
    """Kaldi's triangular filters, (FFT_SIZE // 2 + 1, num_mel_bins) float32, from `low_freq` Hz to Nyquist.

    The triangles are linear in mel, 1127 ln(1 + f / 700), and none includes the Nyquist bin, as in Kaldi.
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
    """The matrix (FFT_SIZE, MEL_WINDOW) float32 that maps a frame of samples to its spectrum: real, then imaginary.

    Every step before the power is linear: mean removal, pre-emphasis, Hann window, Fourier transform. One matrix
    product does them all. The Nyquist bin is omitted because no filter reads it.
    """
    frames = torch.eye(MEL_WINDOW, dtype=torch.float64)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
    taper = torch.hann_window(MEL_WINDOW, periodic=False, dtype=torch.float64)
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * previous) * taper, n=FFT_SIZE)[:, : FFT_SIZE // 2]
    return torch.cat([spectrum.real, spectrum.imag], dim=1).T.float().contiguous()


class LogMel(nn.Module):
    """Waveforms to raw log-mel frames; `normalise` scales them as the encoder was trained."""

    filters: Tensor
    spectrum: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("filters", mel_filters(config.num_mel_bins, config.low_freq), persistent=False)
        self.register_buffer("spectrum", spectrum_matrix(), persistent=False)
        self.transform: nn.Module | None = None  # a faster product with `spectrum`, see model.cpu.layers

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, samples) at 16 kHz → (B, mel_frames, num_mel_bins) raw log-mel, float32 even under autocast."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return torch.cat([self._raw(block) for block in waveforms.float().split(_BLOCK)])

    def _raw(self, waveforms: Tensor) -> Tensor:
        frames = waveforms.unfold(-1, MEL_WINDOW, MEL_HOP)  # (B, T, MEL_WINDOW)
        spectra = nn.functional.linear(frames, self.spectrum) if self.transform is None else self.transform(frames)
        real, imaginary = spectra.chunk(2, dim=-1)
        power = real.square().addcmul_(imaginary, imaginary)
        return (power @ self.filters[:-1]).clamp_min(LOG_FLOOR).log()

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Raw log-mel → the encoder's scale; same shape."""
        return (log_mel - self.config.mean) / (2 * self.config.std)

    def pad(self, log_mel: Tensor, mel_frames: int) -> Tensor:
        """(B, T, bins) raw log-mel → (B, mel_frames, bins), cut or padded with the config's pad value."""
        missing = mel_frames - log_mel.shape[1]
        if missing <= 0:
            return log_mel[:, :mel_frames]
        return nn.functional.pad(log_mel, (0, 0, 0, missing), value=self.config.pad_value)
