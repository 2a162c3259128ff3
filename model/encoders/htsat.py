"""HTS-AT, the paper's other audio encoder, of any size: transformers' CLAP audio model seen as frames.

Knows nothing of waveforms, of recordings longer than a window, or of the text side of CLAP. The network is a Swin
transformer over a square picture of the log-mel: `spec_size² / num_mel_bins` mel frames are folded into stripes of
time, one under the other. Source: FineLAP (arXiv 2604.01155) for its place here, transformers for what it computes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from model.config import ConfigError, MelConfig, WindowConfig
from model.encoders.registry import AudioEncoder, EncoderOutput


class HTSAT(AudioEncoder):
    """Pooled view: the mean over all final tokens, as CLAP has it. A frame is the mean over frequency at its time.

    The network halves time at each stage but the last, so with its usual shape a final token covers 0.32 s. A window
    that asks for a multiple of its own frames gets each of them repeated; it is never asked to make them up.
    A window is always encoded whole: shorter ones are filled up with padding, where the network itself would stretch
    them in time.
    """

    def __init__(
        self,
        windows: WindowConfig,
        mel: MelConfig,
        *,
        spec_size: int = 256,
        patch: int = 4,
        patch_stride: int = 4,
        dim: int = 96,
        depths: tuple[int, ...] | list[int] = (2, 2, 6, 2),
        heads: tuple[int, ...] | list[int] = (4, 8, 16, 32),
        window: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        """`dim` is the width of the first stage; each further one doubles it. Sizes that do not fit: ConfigError."""
        super().__init__()
        bins, stages = mel.num_mel_bins, len(depths)
        if not stages or len(heads) != stages:
            raise ConfigError(f"HTS-AT: {stages} stages and heads for {len(heads)}")
        if any(dim * 2**i % count for i, count in enumerate(heads)):
            raise ConfigError(f"HTS-AT: width {dim}, doubled at each stage, is not divisible by heads {list(heads)}")
        if spec_size % bins:
            raise ConfigError(f"HTS-AT: a picture of {spec_size} rows is not filled by {bins} mel bins")
        stripes = spec_size // bins
        if windows.mel_frames != spec_size * stripes:
            raise ConfigError(
                f"HTS-AT: a picture of {spec_size} by {spec_size} holds {spec_size * stripes} mel frames of {bins} "
                f"bins, and the window has {windows.mel_frames}"
            )
        final = spec_size // (patch_stride * 2 ** (stages - 1))  # tokens along a side of the last stage's picture
        if spec_size != final * patch_stride * 2 ** (stages - 1) or final < stripes or final % stripes:
            raise ConfigError(
                f"HTS-AT: {stages} stages over patches every {patch_stride} do not leave whole tokens for each of "
                f"{stripes} stripes of a picture of {spec_size}"
            )
        own = stripes * final  # frames the network itself tells apart
        if windows.frames % own:
            raise ConfigError(f"HTS-AT: {windows.frames} frames of a window are no multiple of the network's {own}")
        self.repeats = windows.frames // own
        self.window_mel, self.mel_per_frame = windows.mel_frames, windows.mel_frames // windows.frames
        self.padding = (mel.pad_value - mel.mean) / (2 * mel.std)  # what silence after the end looks like
        self.width = dim * 2 ** (stages - 1)

        from transformers.models.clap.configuration_clap import ClapAudioConfig  # slow to import
        from transformers.models.clap.modeling_clap import ClapAudioModel

        self.clap = ClapAudioModel(
            ClapAudioConfig(
                spec_size=spec_size,
                num_mel_bins=bins,
                patch_size=patch,
                patch_stride=[patch_stride, patch_stride],
                patch_embeds_hidden_size=dim,
                hidden_size=self.width,
                depths=list(depths),
                num_attention_heads=list(heads),
                num_hidden_layers=stages,
                window_size=window,
                mlp_ratio=mlp_ratio,
                drop_path_rate=drop_path,
                enable_fusion=False,
            )
        )

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel, at most a window of it → pooled (B, C) and frames (B, T, C)."""
        steps = mel.shape[1] // self.mel_per_frame
        mel = F.pad(mel, (0, 0, 0, self.window_mel - mel.shape[1]), value=self.padding)
        output = self.clap(input_features=mel[:, None])
        frames = output.last_hidden_state.mean(2).transpose(1, 2)  # (B, C, F, T) → (B, T, C)
        return EncoderOutput(output.pooler_output, frames.repeat_interleave(self.repeats, dim=1)[:, :steps])
