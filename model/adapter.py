"""The audio projectors: from the encoder's features to the embedding space shared with text.

`decoupled` is the paper's adapter (arXiv 2604.01155), with separate projectors for clips and frames; frames take a
transformer, a BiGRU or an MLP. `unified` is its ablation, one projector for both. `concept` ties a small model to an
existing text space by predicting named concepts whose text embeddings are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AdapterConfig, ConfigError, TemporalConfig

GATE = 0.3  # of a concept head's free component
DILATIONS = (1, 2, 4)  # of the convolutions before the temporal attention
ATTENTION_WIDTH = 32


class Adapter(nn.Module):
    """Base class of the adapters. Outputs are not normalised."""

    def forward_clip(self, pooled: Tensor) -> Tensor:
        """(B, P) → (B, D)."""
        raise NotImplementedError

    def forward_frames(self, frames: Tensor) -> Tensor:
        """(B, T, C) → (B, T, D)."""
        raise NotImplementedError


def clip_mlp(width: int, dim: int, hidden: int | None = None) -> nn.Sequential:
    """Linear, ReLU, Linear: (…, width) → (…, dim); `hidden` defaults to `dim`."""
    return nn.Sequential(nn.Linear(width, hidden or dim), nn.ReLU(), nn.Linear(hidden or dim, dim))


def transformer_frames(width: int, dim: int, *, layers: int = 2, heads: int = 8, hidden: int = 4096) -> nn.Module:
    """The paper's frame projector: a linear layer, then post-norm transformer layers; (B, T, width) → (B, T, dim)."""
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(width, dim), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False))


class BiGRUFrames(nn.Module):
    """A bidirectional GRU over time with `hidden` units per direction (512 in the paper, for 1024 dimensions).

    A linear layer follows if both directions together do not have `dim` dimensions.
    """

    def __init__(self, width: int, dim: int, *, layers: int = 2, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or dim // 2
        self.gru = nn.GRU(width, hidden, layers, batch_first=True, bidirectional=True)
        self.out = nn.Identity() if 2 * hidden == dim else nn.Linear(2 * hidden, dim)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, width) → (B, T, dim)."""
        return self.out(self.gru(frames)[0])


def linear_frames(width: int, dim: int, *, hidden: int | None = None) -> nn.Module:
    """Linear, ReLU, Linear for each frame independently; (B, T, width) → (B, T, dim)."""
    return clip_mlp(width, dim, hidden)


# values of `frames` in an adapter's params; the other params are passed to the function
FRAME_PARTS: dict[str, Callable[..., nn.Module]] = {
    "transformer": transformer_frames,
    "bigru": BiGRUFrames,
    "linear": linear_frames,
}


def build_frames(kind: str, width: int, dim: int, params: dict[str, Any]) -> nn.Module:
    """Builds a frame projector, (B, T, width) → (B, T, dim). Raises ConfigError for an unknown kind."""
    if kind not in FRAME_PARTS:
        raise ConfigError(f"unknown frame adapter {kind!r}; known: {', '.join(sorted(FRAME_PARTS))}")
    return FRAME_PARTS[kind](width, dim, **params)


class DecoupledAdapter(Adapter):
    """The paper's adapter: an MLP for clips and a separate projector for frames."""

    def __init__(
        self, width: int, dim: int, *, pooled: int | None = None, frames: str = "transformer", **params: Any
    ) -> None:
        super().__init__()
        self.clip = clip_mlp(pooled or width, dim)
        self.frames = build_frames(frames, width, dim, params)

    def forward_clip(self, pooled: Tensor) -> Tensor:
        return self.clip(pooled)

    def forward_frames(self, frames: Tensor) -> Tensor:
        return self.frames(frames)


class UnifiedAdapter(Adapter):
    """The paper's ablation: one projector for both; a clip is projected as a sequence of one frame."""

    def __init__(
        self, width: int, dim: int, *, pooled: int | None = None, frames: str = "linear", **params: Any
    ) -> None:
        super().__init__()
        if pooled not in (None, width):
            raise ConfigError(f"one projector for clips and frames needs features of one width: {pooled}, {width}")
        self.shared = build_frames(frames, width, dim, params)

    def forward_clip(self, pooled: Tensor) -> Tensor:
        return self.shared(pooled[:, None])[:, 0]

    def forward_frames(self, frames: Tensor) -> Tensor:
        return self.shared(frames)


class ConceptHead(nn.Module):
    """Predicts the probabilities of K named concepts and combines the concepts' text embeddings.

    The output is the normalised sum of the text embeddings weighted by probability, plus a gated free component that
    separates sounds the concepts confuse without leaving the text space. If `direct` is not 0, it is normalised and a
    linear map from `direct` features to text embeddings is added, which training.init.closed_form fits. All other
    parts use the first `width` features.
    """

    def __init__(self, width: int, dim: int, concepts: int, hidden: int, direct: int = 0) -> None:
        super().__init__()
        self.width = width
        self.direct = nn.Linear(direct, dim) if direct else None
        self.logits = nn.Linear(width, concepts)
        nn.init.constant_(self.logits.bias, -5.0)  # most concepts are absent from most sounds
        self.free = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """(…, P) features and (K, D) anchors → embeddings (…, D) and class logits (…, K), float32."""
        logits = self.class_logits(features)
        free = self.free(features[..., : self.width]).float()
        named = F.normalize(logits.sigmoid() @ anchors.float(), dim=-1) + GATE * free
        if self.direct is not None:
            named = F.normalize(named, dim=-1) + self.direct(features).float()
        return named, logits

    def class_logits(self, features: Tensor) -> Tensor:
        """(…, P) features → class logits (…, K), float32."""
        # float32, because the tiny sum for silence must not underflow before it is normalised
        return self.logits(features[..., : self.width]).float()


class ConceptAdapter(Adapter):
    """One concept head for clips and one for frames over the same K anchors, which the checkpoint stores."""

    anchors: Tensor

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        concepts: int,
        pooled: int | None = None,
        hidden: int = 512,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.zeros(concepts, dim))
        self.clip = ConceptHead(width, dim, concepts, hidden, (pooled or width) if direct else 0)
        self.frames = ConceptHead(width, dim, concepts, hidden, width if direct else 0)

    def forward_clip(self, pooled: Tensor) -> Tensor:
        return self.clip(pooled, self.anchors)[0]

    def forward_frames(self, frames: Tensor) -> Tensor:
        return self.frames(frames, self.anchors)[0]


class TemporalAttention(nn.Module):
    """Frames of a window attend to their neighbours, and tell in a dimension of its own how much is going on.

    What a frame takes from the others are their embeddings, which stay in the joint space, so that nothing is learned
    about single labels: which neighbours belong to the same sound, and whether there is any over the background. Texts
    have a constant in the dimension of the activity. docs/development/log.md has what it gives.
    """

    def __init__(self, config: TemporalConfig, features: int) -> None:
        """`features` is the width C of the encoder's frames."""
        super().__init__()
        self.config, width = config, config.width
        self.norm = nn.LayerNorm(features)
        self.enter = nn.Linear(features, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in DILATIONS)
        self.query, self.key = nn.Linear(width, ATTENTION_WIDTH), nn.Linear(width, ATTENTION_WIDTH)
        self.distance = nn.Parameter(-0.5 * torch.arange(-config.reach, config.reach + 1).abs().float())
        self.activity = nn.Linear(width, 1)
        nn.init.zeros_(self.activity.weight)
        nn.init.zeros_(self.activity.bias)
        self.dropout = nn.Dropout(0.2)

    def forward(self, frames: Tensor, embeddings: Tensor) -> Tensor:
        """The encoder's frames (B, T, C) and embeddings (B, T, D) of unit length → (B, T, D + 1) of unit length."""
        hidden = F.gelu(self.enter(self.dropout(self.norm(frames.float())))).transpose(1, 2)
        for conv in self.convs:
            hidden = hidden + F.gelu(conv(self.dropout(hidden)))
        hidden = hidden.transpose(1, 2)
        affinity = self.query(hidden) @ self.key(hidden).transpose(1, 2) / ATTENTION_WIDTH**0.5
        mixed = (affinity + self._near(frames.shape[1])).softmax(-1) @ embeddings
        return F.normalize(torch.cat([mixed, self.activity(hidden)], dim=-1), dim=-1)

    def extend_clip(self, clips: Tensor) -> Tensor:
        """Clips (B, D) of unit length → (B, D + 1) of unit length: a whole window has no activity of its own."""
        return F.pad(clips, (0, 1))

    def extend_text(self, texts: Tensor, core: int) -> Tensor:
        """Texts (B, D) of unit length, the first `core` dimensions their core → (B, D + 1) of unit length."""
        constant = self.config.activity_weight * texts[:, :core].norm(dim=-1, keepdim=True)
        return F.normalize(torch.cat([texts, constant], dim=-1), dim=-1)

    def _near(self, steps: int) -> Tensor:
        """What is added to the affinity of two frames by their distance, (T, T): those out of reach have no share."""
        reach, at = self.config.reach, torch.arange(steps, device=self.distance.device)
        apart = at[None] - at[:, None]
        return torch.where(apart.abs() <= reach, self.distance[(apart + reach).clamp(0, 2 * reach)], -torch.inf)


ADAPTERS: dict[str, type[Adapter]] = {
    "decoupled": DecoupledAdapter,
    "unified": UnifiedAdapter,
    "concept": ConceptAdapter,
}


def build_adapter(config: AdapterConfig, width: int, dim: int, pooled: int | None = None) -> Adapter:
    """Builds an adapter with fresh weights. Raises ConfigError for unknown kinds and params.

    `width` is that of frame features, and of pooled ones unless `pooled` is given.
    """
    if config.kind not in ADAPTERS:
        raise ConfigError(f"unknown adapter {config.kind!r}; known: {', '.join(sorted(ADAPTERS))}")
    params: dict[str, Any] = dict(config.params)
    try:
        return ADAPTERS[config.kind](width, dim, pooled=pooled, **params)
    except ConfigError:
        raise
    except (TypeError, ValueError, AssertionError) as error:  # torch asserts that heads divide the width
        raise ConfigError(f"adapter {config.kind!r}: {error}") from error
