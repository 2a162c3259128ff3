"""Class evidence: extra dimensions of the joint space that compare which classes a text names and a sound has.

A cosine between a text and a weighted mean of class embeddings says what a sound is like on average. Whether it has
more of the text's classes than other sounds is a second, complementary score:

    E(text, sound) = softmax(cos(text, anchors) / temperature) · z(sound),

with z the concept head's class logits, standardised per class over many sounds. It is a bilinear form, so it becomes
part of the embeddings: each side is projected to `rank` dimensions and appended to its core vector, and the inner
product of two embeddings is the core's cosine plus weighted evidence. docs/development/log.md has the measurements.
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


class ClassEvidence(nn.Module):
    """Appends evidence to core embeddings (…, C) of unit length, which become (…, C + R + 1) of unit length.

    Sounds are [core, audio_weight · z · audio, 0] and texts [core, text_weight · s · text, rest]. The rest gives all
    texts one length before they are normalised, so that the ranking of sounds is that of the weighted sum. A small
    `audio_weight` keeps sounds close to their core, and so the cosine of two sounds as well.
    """

    text_basis: Tensor
    audio_basis: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, config: EvidenceConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("text_basis", torch.zeros(classes, config.rank))
        self.register_buffer("audio_basis", torch.zeros(classes, config.rank))
        self.register_buffer("mean", torch.zeros(classes))
        self.register_buffer("scale", torch.ones(classes))

    @torch.no_grad()
    def set_basis(self, basis: EvidenceBasis) -> None:
        """Copies the projections."""
        self.text_basis.copy_(basis.text)
        self.audio_basis.copy_(basis.audio)
        self.mean.copy_(basis.mean)
        self.scale.copy_(basis.scale)

    def extend_clip(self, core: Tensor, logits: Tensor) -> Tensor:
        """Core embeddings (…, C) of unit length and class logits (…, K) → (…, C + R + 1) of unit length."""
        return self._sound(core, self._projected(logits))

    def extend_frames(self, core: Tensor, logits: Tensor, clip_logits: Tensor) -> Tensor:
        """(B, T, C) and (B, T, K), with the clips' logits (B, K) → (B, T, C + R + 1) of unit length.

        A share `context` of a frame's evidence is that of the whole window. Frames weigh evidence `frame_weight` times
        as much as clips do.
        """
        whole = self._projected(clip_logits)[:, None]
        evidence = torch.lerp(self._projected(logits), whole, self.config.context)
        return self._sound(core, self.config.frame_weight * evidence)

    def extend_text(self, core: Tensor, anchors: Tensor) -> Tensor:
        """Core embeddings (B, C) of unit length and class anchors (K, C) → (B, C + R + 1) of unit length."""
        share = F.softmax(core @ anchors.float().T / self.config.temperature, dim=-1)
        basis = self.text_basis.float() * self.config.text_weight
        named = share @ basis
        # the share is a convex combination of the rows, so no text is longer than the longest of them
        longest = basis.square().sum(-1).amax()
        rest = (longest - named.square().sum(-1, keepdim=True)).clamp_min(1e-12).sqrt()
        return F.normalize(torch.cat([core, named, rest], dim=-1), dim=-1)

    def _projected(self, logits: Tensor) -> Tensor:
        standardised = (logits.float() - self.mean.float()) / self.scale.float()
        return standardised @ (self.audio_basis.float() * self.config.audio_weight)

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
