"""Evidence: extra dimensions of the joint space that compare which classes a text names and a sound has.

A cosine between a text and a weighted mean of class embeddings says what a sound is like on average. Whether it has
more of the text's classes than other sounds is a second, complementary score:

    E(text, sound) = softmax(cos(text, anchors) / temperature) · z(sound),

with z the concept head's class logits, standardised per class over many sounds. It is a bilinear form, so it becomes
part of the embeddings: each side is projected to `rank` dimensions and appended to its core vector, and the inner
product of two embeddings is the core's cosine plus weighted evidence.

The labels of the training sounds give evidence in the same way, and they are many more than the classes. Their z is a
linear prediction of which labels a sound could have, standardised as the classes' logits are.
docs/development/log.md has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import EvidenceConfig


@dataclass(frozen=True)
class EvidenceBasis:
    """Fitted projections over K classes: R dimensions hold most of the evidence between texts and sounds.

    `text` and `audio` are (K, R); `mean` and `scale` (K,) standardise the logits.
    """

    text: Tensor
    audio: Tensor
    mean: Tensor
    scale: Tensor


class Evidence(nn.Module):
    """Appends evidence to core embeddings (…, C) of unit length, which become (…, C + `config.dims`) of unit length.

    Sounds are [core, audio_weight · z · audio, 0] and texts [core, text_weight · s · text, rest]. The rest gives all
    texts one length before they are normalised, so that the ranking of sounds is that of the weighted sum. A small
    `audio_weight` keeps sounds close to their core, and so the cosine of two sounds as well.

    With `config.labels`, evidence for labels follows that for classes. A linear map from the encoder's features gives
    its sounds' side, label predictions and their projection in one: P pooled features of a window, F of a frame.
    """

    text_basis: Tensor
    audio_basis: Tensor
    mean: Tensor
    scale: Tensor
    label_anchors: Tensor
    label_basis: Tensor

    def __init__(self, config: EvidenceConfig, classes: int, core: int, features: tuple[int, int]) -> None:
        """`features` are the widths P and F."""
        super().__init__()
        self.config = config
        self.register_buffer("text_basis", torch.zeros(classes, config.rank))
        self.register_buffer("audio_basis", torch.zeros(classes, config.rank))
        self.register_buffer("mean", torch.zeros(classes))
        self.register_buffer("scale", torch.ones(classes))
        if config.labels:
            self.register_buffer("label_anchors", torch.zeros(config.labels, core))
            self.register_buffer("label_basis", torch.zeros(config.labels, config.label_rank))
            self.window_labels = nn.Linear(features[0], config.label_rank)
            self.frame_labels = nn.Linear(features[1], config.label_rank)

    @torch.no_grad()
    def set_basis(self, basis: EvidenceBasis) -> None:
        """Copies the projections of the classes."""
        self.text_basis.copy_(basis.text)
        self.audio_basis.copy_(basis.audio)
        self.mean.copy_(basis.mean)
        self.scale.copy_(basis.scale)

    def extend_clip(self, core: Tensor, logits: Tensor, pooled: Tensor) -> Tensor:
        """Cores (B, C) of unit length, class logits (B, K) and features (B, P) → (B, C + dims) of unit length."""
        return self._sound(core, self._of_window(logits, pooled))

    def extend_frames(self, core: Tensor, logits: Tensor, frames: Tensor, window: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, C), (B, T, K) and features (B, T, F) → (B, T, C + dims) of unit length.

        `window` has the class logits (B, K) and features (B, P) of the whole window; shares `context` and
        `label_context` of a frame's evidence are those of its window. Frames weigh evidence `frame_weight` times as
        much as clips do.
        """
        config, whole = self.config, self._of_window(*window)[:, None]
        parts = [torch.lerp(self._of_classes(logits), whole[..., : config.rank], config.context)]
        if config.labels:
            own = config.audio_weight * self.frame_labels(frames.float())
            parts.append(torch.lerp(own, whole[..., config.rank :], config.label_context))
        return self._sound(core, config.frame_weight * torch.cat(parts, dim=-1))

    def extend_text(self, core: Tensor, anchors: Tensor) -> Tensor:
        """Core embeddings (B, C) of unit length and class anchors (K, C) → (B, C + dims) of unit length."""
        config = self.config
        sides = [(anchors, self.text_basis, config.temperature, config.text_weight)]
        if config.labels:
            sides.append((self.label_anchors, self.label_basis, config.label_temperature, config.label_weight))
        parts, room = [core], torch.zeros_like(core[:, :1])
        for those, basis, temperature, weight in sides:
            weighted = basis.float() * weight
            named = F.softmax(core @ those.float().T / temperature, dim=-1) @ weighted
            # a share is a convex combination of the rows, so no text is longer than the longest of them
            room = room + weighted.square().sum(-1).amax() - named.square().sum(-1, keepdim=True)
            parts.append(named)
        return F.normalize(torch.cat([*parts, room.clamp_min(1e-12).sqrt()], dim=-1), dim=-1)

    def _of_classes(self, logits: Tensor) -> Tensor:
        standardised = (logits.float() - self.mean.float()) / self.scale.float()
        return standardised @ (self.audio_basis.float() * self.config.audio_weight)

    def _of_window(self, logits: Tensor, pooled: Tensor) -> Tensor:
        parts = [self._of_classes(logits)]
        if self.config.labels:
            parts.append(self.config.audio_weight * self.window_labels(pooled.float()))
        return torch.cat(parts, dim=-1)

    def _sound(self, core: Tensor, evidence: Tensor) -> Tensor:
        return F.normalize(torch.cat([core, evidence, torch.zeros_like(core[..., :1])], dim=-1), dim=-1)


def fit_basis(shares: Tensor, logits: Tensor, rank: int) -> EvidenceBasis:
    """The best projections of rank R for texts with class shares (N, K) and sounds with class logits (M, K).

    With C the covariance of the standardised logits z, s · z = (s C^½) · (C^-½ z). The singular vectors of the shares
    after C^½ are the directions that matter; the sounds' side is white.
    """
    mean, scale = logits.mean(0), logits.std(0).clamp_min(1e-6)
    z = ((logits - mean) / scale).double()
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    values = values.clamp_min(values.amax() * 1e-5)
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    _, _, right = torch.linalg.svd(shares.double() @ root, full_matrices=False)
    kept = F.pad(right[:rank], (0, 0, 0, max(0, rank - len(right)))).T  # (K, R)
    return EvidenceBasis((root @ kept).float(), (inverse @ kept).float(), mean, scale)
