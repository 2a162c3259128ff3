"""What every audio encoder gives, and the registry that builds one from a checkpoint's config.

Knows no particular encoder: each kind's module is imported only when a config names it. To add an encoder, write a
module of that shape and enter it in ENCODERS.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from torch import Tensor, nn

from model.config import ConfigError, EncoderConfig, MelConfig, WindowConfig

# kind → "module:class"; the class is called as Class(windows, mel, **params)
ENCODERS = {
    "eat": "model.encoders.eat:EAT",
    "htsat": "model.encoders.htsat:HTSAT",
    "cnn": "model.encoders.cnn:ConvEncoder",
}


class EncoderOutput(NamedTuple):
    """Both views of a window, from one pass."""

    pooled: Tensor  # (B, C), the whole window
    frames: Tensor  # (B, T, C), one per frame hop


class AudioEncoder(nn.Module):
    """Base of the encoders: `width` is C, and `forward` takes the normalised log-mel of whole frames.

    The number of mel frames given is a multiple of `mel_frames / frames` of the WindowConfig, and T is that multiple.
    `likes_bfloat16`: its embeddings stay the same in bfloat16 (cosine 0.999 and more, single frames included), so that
    a service may choose that by itself.
    """

    width: int
    likes_bfloat16: bool = False

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel → EncoderOutput."""
        raise NotImplementedError


def build_encoder(config: EncoderConfig, windows: WindowConfig, mel: MelConfig) -> AudioEncoder:
    """An encoder with fresh weights. An unknown kind, or params its class does not take, raises ConfigError."""
    if config.kind not in ENCODERS:
        raise ConfigError(f"unknown audio encoder {config.kind!r}; known: {', '.join(sorted(ENCODERS))}")
    module, _, name = ENCODERS[config.kind].partition(":")
    encoder_class: type[AudioEncoder] = getattr(importlib.import_module(module), name)
    try:
        return encoder_class(windows, mel, **config.params)
    except TypeError as error:
        raise ConfigError(f"audio encoder {config.kind!r}: {error}") from error
