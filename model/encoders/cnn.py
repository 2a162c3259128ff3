"""A small residual CNN over log-mel: the audio encoder of the bundled checkpoint, fast on a CPU.

Plain 3×3 convolutions replace depthwise ones because they measured faster: on two CPU cores they do about twice the
arithmetic per second, and train faster per crop (docs/development/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.config import ConfigError, MelConfig, WindowConfig
from model.encoders.registry import AudioEncoder, EncoderOutput

STEM_STRIDE = 2


def conv_bn(inputs: int, outputs: int, kernel: int, stride: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Convolution over (time, frequency) with same padding, then batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut, which is projected if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == (1, 1)
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, F) → (B, C_out, T / stride, F / stride)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class AttentionPool(nn.Module):
    """Pools frames into one vector: each head weights the frames for its own slice of the channels.

    The weights are learned, so that silence around a short sound does not dilute it as in a mean.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"attention pooling needs a width divisible by its heads: {width} / {heads}")
        self.scores = nn.Linear(width, heads, bias=False)  # a bias has no effect in a softmax over time

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C) → (B, C)."""
        batch, steps, width = frames.shape
        weights = self.scores(frames).float().softmax(dim=1).to(frames.dtype)  # (B, T, H)
        slices = frames.view(batch, steps, weights.shape[-1], -1)
        return (weights[..., None] * slices).sum(1).reshape(batch, width)


def statistics_over(frames: Tensor, sounding: Tensor) -> Tensor:
    """Mean and maximum of the frames that sound: (B, T, C) and bool (B, T) → (B, 2C).

    In a window without such a frame, all frames count.
    """
    counted = (sounding | ~sounding.any(1, keepdim=True))[..., None]
    mean = (frames * counted).sum(1) / counted.sum(1)
    return torch.cat([mean, frames.masked_fill(~counted, float("-inf")).amax(1)], dim=-1)


class ConvEncoder(AudioEncoder):
    """Log-mel → one feature vector per frame hop, and their attention-pooled summary.

    `stages` lists (channels, time stride, frequency stride) of one residual block each. The product of all time
    strides, including the stem's, is the number of mel frames per embedding frame.
    """

    def __init__(
        self,
        windows: WindowConfig,
        mel: MelConfig,
        *,
        stem: int = 32,
        stages: tuple[tuple[int, int, int], ...] = ((64, 2, 2), (128, 2, 2), (256, 2, 2), (512, 1, 2)),
        width: int = 768,
        heads: int = 16,
    ) -> None:
        super().__init__()
        hop, bins = STEM_STRIDE, mel.num_mel_bins // STEM_STRIDE
        blocks: list[nn.Module] = [conv_bn(1, stem, 3, (STEM_STRIDE, STEM_STRIDE)), nn.ReLU()]
        channels = stem
        for outputs, time_stride, freq_stride in stages:
            blocks.append(ResidualBlock(channels, outputs, (time_stride, freq_stride)))
            channels, hop, bins = outputs, hop * time_stride, bins // freq_stride
        if hop * windows.frames != windows.mel_frames or bins < 1:
            raise ConfigError(
                f"stages give a frame every {hop} mel frames; the window has {windows.frames} frames "
                f"in {windows.mel_frames} mel frames of {mel.num_mel_bins} bins"
            )
        self.width = width
        self.trunk = nn.Sequential(*blocks)
        self.neck = nn.Sequential(nn.Linear(channels * bins, width), nn.LayerNorm(width), nn.GELU())
        self.pool = AttentionPool(width, heads)

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel → pooled (B, C) and frames (B, mel_frames / hop, C)."""
        x = mel[:, None].contiguous(memory_format=torch.channels_last)
        x = self.trunk(x)  # (B, C, T, F)
        frames = self.neck(x.permute(0, 2, 1, 3).flatten(2))
        return EncoderOutput(self.pool(frames), frames)


class StatisticsConvEncoder(ConvEncoder):
    """A ConvEncoder whose pooled features (B, 3C) end in mean and maximum of the frames that aren't digital silence."""

    def __init__(self, windows: WindowConfig, mel: MelConfig, **params: Any) -> None:
        super().__init__(windows, mel, **params)
        # normalised log-mel of digital silence, and a little more for low precisions
        self.silence = mel.normalised_padding + 0.02

    @property
    def pooled_width(self) -> int:
        return 3 * self.width

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel → pooled (B, 3C) and frames (B, mel_frames / hop, C)."""
        pooled, frames = super().forward(mel)
        sounding = (mel > self.silence).view(len(mel), frames.shape[1], -1).any(-1)
        return EncoderOutput(torch.cat([pooled, statistics_over(frames, sounding)], dim=-1), frames)
