"""The audio encoders' common interface, and the registry that builds one from a checkpoint's config.

To add an encoder, write a module with a subclass of AudioEncoder and enter it in ENCODERS. Each kind's module is
imported only when a config names it.
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
    "cnn_statistics": "model.encoders.cnn:StatisticsConvEncoder",
}


class EncoderOutput(NamedTuple):
    """The features of a window, from one pass."""

    pooled: Tensor  # (B, P), one vector per window
    frames: Tensor  # (B, T, C), one vector per frame hop


class AudioEncoder(nn.Module):
    """Base class of the encoders. `width` is C; the input is the normalised log-mel of a whole number of frames.

    P, the width of the pooled features, is C unless the encoder says otherwise.

    The number of mel frames is T × `mel_frames / frames` of the WindowConfig. `likes_bfloat16` states that embeddings
    in bfloat16 agree with float32 (cosine at least 0.999, single frames included), so that model.cpu.bfloat16 may use
    it.
    """

    width: int
    likes_bfloat16: bool = False

    @property
    def pooled_width(self) -> int:
        """P, the width of the pooled features."""
        return self.width

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel → EncoderOutput."""
        raise NotImplementedError

    def set_drop_path(self, rate: float) -> None:
        """While training, skips residual branches at random, from never in the first block to `rate` in the last.

        Raises ConfigError if the encoder cannot do that.
        """
        raise ConfigError(f"drop_path: {type(self).__name__} has none; it is part of EAT")


def build_encoder(config: EncoderConfig, windows: WindowConfig, mel: MelConfig) -> AudioEncoder:
    """Builds an encoder with fresh weights. Raises ConfigError for unknown kinds and params."""
    if config.kind not in ENCODERS:
        raise ConfigError(f"unknown audio encoder {config.kind!r}; known: {', '.join(sorted(ENCODERS))}")
    module, _, name = ENCODERS[config.kind].partition(":")
    encoder_class: type[AudioEncoder] = getattr(importlib.import_module(module), name)
    try:
        return encoder_class(windows, mel, **config.params)
    except TypeError as error:
        raise ConfigError(f"audio encoder {config.kind!r}: {error}") from error
