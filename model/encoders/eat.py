"""EAT, the published model's audio encoder, of any size: a post-norm Vision Transformer over log-mel patches.

Source: the FineLAP paper (arXiv 2604.01155) and the behaviour of the published encoder, whose EAT-base weights load
tensor by tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError, MelConfig, WindowConfig
from model.encoders.registry import AudioEncoder, EncoderOutput

NORM_EPS = 1e-6
POSITION_BASE = 10_000.0


def sincos_positions(time_patches: int, freq_patches: int, dim: int) -> Tensor:
    """Fixed 2-D position embeddings, (1, time_patches * freq_patches, dim) float32, time-major.

    The first half of the channels encodes the frequency patch, the second half the time patch. Each half holds sines,
    then cosines, with wavelengths that grow geometrically to 2π · 10,000.
    """
    if dim % 4:
        raise ConfigError(f"2-D sine positions need a width divisible by 4, not {dim}")
    rates = POSITION_BASE ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    freq, time = encode(freq_patches), encode(time_patches)
    grid = torch.cat([freq.repeat(time_patches, 1), time.repeat_interleave(freq_patches, 0)], dim=1)
    return grid.float()[None]


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A post-norm transformer block: the norm follows each residual sum."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.drop_path = 0.0  # probability, while training, of leaving out a branch for an item

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        x = self.norm1(x + self._kept(self.attn(x)))
        return self.norm2(x + self._kept(self.fc2(F.gelu(self.fc1(x)))))

    def _kept(self, branch: Tensor) -> Tensor:
        """The branch, zero for randomly chosen items and scaled for the others, so that its mean stays the same."""
        if not self.training or not self.drop_path:
            return branch
        share = 1 - self.drop_path
        return branch * (torch.rand(len(branch), 1, 1, device=branch.device) < share).to(branch.dtype) / share


@dataclass(frozen=True)
class EATParams:
    """The encoder's params in config.json; the defaults are EAT-base."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16  # mel frames and mel bins along a side
    positions: str = "sincos"  # "sincos": the fixed table is computed; "table": it is stored with the weights
    table_tokens: int | None = None  # rows of a stored table; None: the tokens of a window

    def check(self, windows: WindowConfig, mel: MelConfig) -> None:
        """Raises ConfigError for sizes that do not fit each other, the windows or the mel bins."""
        if self.dim % self.heads:
            raise ConfigError(f"EAT: width {self.dim} is not divisible by {self.heads} heads")
        if mel.num_mel_bins % self.patch:
            raise ConfigError(f"EAT: {mel.num_mel_bins} mel bins are not divisible into patches of {self.patch}")
        if windows.mel_frames != windows.frames * self.patch:
            raise ConfigError(
                f"EAT: patches of {self.patch} make {windows.mel_frames / self.patch:g} frames of {windows.mel_frames} "
                f"mel frames, but the window has {windows.frames}"
            )
        if self.positions not in ("sincos", "table"):
            raise ConfigError(f"EAT: unknown positions {self.positions!r}; known: sincos, table")


class EAT(AudioEncoder):
    """Patch and position embeddings after a CLS token, then post-norm blocks.

    The pooled features are CLS; the features of a frame are the mean of its frequency tokens.
    """

    positions: Tensor
    likes_bfloat16 = True

    def __init__(self, windows: WindowConfig, mel: MelConfig, **params: Any) -> None:
        """`params` are those of EATParams. Raises ConfigError for sizes that do not fit, TypeError for unknown ones."""
        super().__init__()
        sizes = EATParams(**params)
        sizes.check(windows, mel)
        dim, patch = sizes.dim, sizes.patch
        self.width = dim
        self.freq_patches = mel.num_mel_bins // patch
        self.patches = nn.Conv2d(1, dim, kernel_size=patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(dim, sizes.heads, round(dim * sizes.mlp_ratio)) for _ in range(sizes.depth))
        if sizes.positions == "sincos":
            table = sincos_positions(windows.frames, self.freq_patches, dim)
            self.register_buffer("positions", table, persistent=False)
        else:
            tokens = sizes.table_tokens or windows.frames * self.freq_patches
            if tokens < windows.frames * self.freq_patches:
                raise ConfigError(f"EAT: a table of {tokens} positions is too short for a window")
            self.register_buffer("positions", torch.zeros(1, tokens, dim))
        nn.init.normal_(self.cls, std=0.02)

    def set_drop_path(self, rate: float) -> None:
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.drop_path = rate * number / max(len(self.blocks) - 1, 1)

    def forward(self, mel: Tensor) -> EncoderOutput:
        """(B, mel_frames, bins) normalised log-mel → pooled (B, C) and frames (B, T, C)."""
        x = self.patches(mel[:, None])  # (B, C, T, F)
        batch, width, steps, freqs = x.shape
        x = x.flatten(2).transpose(1, 2)  # time-major tokens
        x = x + self.positions[:, : steps * freqs].to(x.dtype)
        x = self.norm(torch.cat([self.cls.to(x.dtype).expand(batch, -1, -1), x], dim=1))
        for block in self.blocks:
            x = block(x)
        return EncoderOutput(x[:, 0], x[:, 1:].view(batch, steps, freqs, width).mean(2))
