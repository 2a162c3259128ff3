"""HTS-AT, the paper's other audio encoder, of any size: the audio model of transformers' CLAP, read out per frame.

The network is a Swin transformer over a square image of the log-mel: `spec_size² / num_mel_bins` mel frames are folded
into stripes of time, one below the other. Source: FineLAP (arXiv 2604.01155) for its use, transformers for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from model.config import ConfigError, MelConfig, WindowConfig
from model.encoders.registry import AudioEncoder, EncoderOutput


@dataclass(frozen=True)
class HTSATParams:
    """The encoder's params in config.json; the defaults are the published HTS-AT."""

    spec_size: int = 256  # side of the square image, in mel bins
    patch: int = 4
    patch_stride: int = 4
    dim: int = 96  # width of the first stage; each further stage doubles it
    depths: Sequence[int] = (2, 2, 6, 2)  # blocks of each stage
    heads: Sequence[int] = (4, 8, 16, 32)  # of each stage
    window: int = 8  # tokens along a side of an attention window
    mlp_ratio: float = 4.0
    drop_path: float = 0.0

    def own_frames(self, windows: WindowConfig, mel: MelConfig) -> int:
        """The number of frames per window that the network distinguishes. Raises ConfigError if sizes do not fit."""
        bins, stages = mel.num_mel_bins, len(self.depths)
        if not stages or len(self.heads) != stages:
            raise ConfigError(f"HTS-AT: {stages} stages and heads for {len(self.heads)}")
        if any(self.dim * 2**i % count for i, count in enumerate(self.heads)):
            heads = list(self.heads)
            raise ConfigError(f"HTS-AT: width {self.dim}, doubled at each stage, is not divisible by heads {heads}")
        if self.spec_size % bins:
            raise ConfigError(f"HTS-AT: {bins} mel bins do not fill an image of {self.spec_size} rows")
        stripes = self.spec_size // bins
        if windows.mel_frames != self.spec_size * stripes:
            raise ConfigError(
                f"HTS-AT: an image of {self.spec_size} by {self.spec_size} holds {self.spec_size * stripes} mel frames "
                f"of {bins} bins, but the window has {windows.mel_frames}"
            )
        reduction = self.patch_stride * 2 ** (stages - 1)
        final = self.spec_size // reduction  # tokens along a side of the last stage's image
        if self.spec_size != final * reduction or final < stripes or final % stripes:
            raise ConfigError(
                f"HTS-AT: {stages} stages over patches every {self.patch_stride} do not leave whole tokens for each of "
                f"{stripes} stripes of an image of {self.spec_size}"
            )
        own = stripes * final
        if windows.frames % own:
            raise ConfigError(f"HTS-AT: {windows.frames} frames per window are not a multiple of the network's {own}")
        return own


class HTSAT(AudioEncoder):
    """The pooled features are the mean over all final tokens, as in CLAP; a frame's are the mean over its frequencies.

    Each stage but the last halves the time resolution; with the default sizes a final token covers 0.32 s. If a window
    has a multiple of the network's frames, each is repeated. Windows are always encoded whole: shorter ones are padded,
    where transformers would stretch them in time.
    """

    def __init__(self, windows: WindowConfig, mel: MelConfig, **params: Any) -> None:
        """`params` are those of HTSATParams. Raises ConfigError for sizes that do not fit, TypeError for others."""
        super().__init__()
        sizes = HTSATParams(**params)
        self.repeats = windows.frames // sizes.own_frames(windows, mel)
        self.window_mel, self.mel_per_frame = windows.mel_frames, windows.mel_frames // windows.frames
        self.padding = mel.normalised_padding
        self.width = sizes.dim * 2 ** (len(sizes.depths) - 1)

        from transformers.models.clap.configuration_clap import ClapAudioConfig  # slow to import
        from transformers.models.clap.modeling_clap import ClapAudioModel

        self.clap = ClapAudioModel(
            ClapAudioConfig(
                spec_size=sizes.spec_size,
                num_mel_bins=mel.num_mel_bins,
                patch_size=sizes.patch,
                patch_stride=[sizes.patch_stride, sizes.patch_stride],
                patch_embeds_hidden_size=sizes.dim,
                hidden_size=self.width,
                depths=list(sizes.depths),
                num_attention_heads=list(sizes.heads),
                num_hidden_layers=len(sizes.depths),
                window_size=sizes.window,
                mlp_ratio=sizes.mlp_ratio,
                drop_path_rate=sizes.drop_path,
                enable_fusion=False,
            )
        )

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel, at most a window → pooled (B, C) and frames (B, T, C)."""
        steps = mel.shape[1] // self.mel_per_frame
        mel = F.pad(mel, (0, 0, 0, self.window_mel - mel.shape[1]), value=self.padding)
        output = self.clap(input_features=mel[:, None])
        frames = output.last_hidden_state.mean(2).transpose(1, 2)  # (B, C, F, T) → (B, T, C)
        return EncoderOutput(output.pooler_output, frames.repeat_interleave(self.repeats, dim=1)[:, :steps])
