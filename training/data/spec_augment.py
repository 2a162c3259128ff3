"""SpecAugment: stripes of time and of frequency hidden from the encoder. Knows nothing of where the mel comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 4  # no stripe hides more than one part in this many of what there is


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Stripes of each kind, and their greatest widths in mel frames and bins. The defaults are the published ones."""

    time_stripes: int = 2
    time_width: int = 64
    frequency_stripes: int = 2
    frequency_width: int = 8

    def __post_init__(self) -> None:
        if min(self.time_stripes, self.time_width, self.frequency_stripes, self.frequency_width) < 0:
            raise ValueError("SpecAugment: numbers and widths of stripes cannot be negative")


def spec_augment(
    mel: Tensor,
    config: SpecAugmentConfig,
    generator: torch.Generator,
    fill: float = 0.0,
    lengths: Tensor | None = None,
) -> Tensor:
    """(B, M, F) → the same with stripes of `fill`, other ones for each row; the argument is left as it was.

    A stripe is 0 to `width` wide, each width as likely, but at most a quarter of the row's `lengths` (B,) mel frames
    (all M unless given) or of its bins, and lies wholly within them. `generator` is of the CPU, so that a seed
    hides the same on every device.
    """
    batch, frames, bins = mel.shape
    heard = torch.full((batch,), frames) if lengths is None else lengths.cpu().clamp(max=frames)
    time = _stripes(heard, frames, config.time_stripes, config.time_width, generator)
    frequency = _stripes(torch.full((batch,), bins), bins, config.frequency_stripes, config.frequency_width, generator)
    hidden = time[:, :, None] | frequency[:, None, :]
    return mel.masked_fill(hidden.to(mel.device), fill)


def _stripes(sizes: Tensor, size: int, stripes: int, width: int, generator: torch.Generator) -> Tensor:
    """(B, size) bool, true in up to `stripes` stripes within each row's first `sizes` places."""
    draws = torch.rand(2, len(sizes), stripes, generator=generator)
    widest = (sizes // MOST).clamp(max=width)[:, None]
    widths = (draws[0] * (widest + 1)).long().clamp(max=widest)
    slack = sizes[:, None] - widths
    starts = (draws[1] * (slack + 1)).long().clamp(max=slack)
    at = torch.arange(size)
    return ((at >= starts[..., None]) & (at < (starts + widths)[..., None])).any(1)
