"""What a trained model learns in closed form: a direct head from labelled sounds, and class evidence.

Both need one forward pass over the sounds and no gradient. docs/development/log.md has what each of them gives on
packages of sounds that neither the encoder nor the fit has seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapter import ConceptAdapter, ConceptHead
from model.config import AdapterConfig, EvidenceConfig, FineLAPConfig
from model.evidence import fit_basis
from model.finelap import FineLAP
from model.windows import centred, window_samples
from training.data.audio_cache import AudioStore

WINDOWS = 3  # of a long sound, evenly spread
BATCH = 16  # windows
TEMPLATES = ("{}", "the sound of {}")


@dataclass(frozen=True)
class EncodedSounds:
    """N sounds through the audio encoder: pooled features (N, C), clip class logits (N, K), and a label or ""."""

    pooled: Tensor
    logits: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.pooled) == len(self.logits) == len(self.labels)

    @property
    def distinct(self) -> list[str]:
        """The labels, sorted, without ""."""
        return sorted(set(self.labels) - {""})


def encode_sounds(model: FineLAP, store: AudioStore) -> EncodedSounds:
    """Encodes at most WINDOWS windows of each sound and averages them; `model` has a concept adapter."""
    size = window_samples(model.config.windows)
    jobs: list[tuple[int, int, int]] = []  # (sound, start, stop) in samples
    for sound in range(len(store)):
        length = store.length(sound)
        count = min(WINDOWS, -(-length // size))
        starts = np.linspace(0, max(0, length - size), count).astype(int).tolist()
        jobs += [(sound, start, min(length, start + size)) for start in starts]
    jobs.sort(key=lambda job: (model.padded_frames(job[2] - job[1]), job))  # a batch is one pass
    adapter = _concepts(model)
    pooled = torch.zeros(len(store), model.audio_encoder.width)
    logits = torch.zeros(len(store), len(adapter.anchors))
    windows = torch.zeros(len(store), 1)
    per_frame = model.config.windows.mel_frames // model.config.windows.frames
    model.eval()
    with torch.no_grad():
        for at in range(0, len(jobs), BATCH):
            batch = jobs[at : at + BATCH]
            frames = max(model.padded_frames(stop - start) for _, start, stop in batch)
            mel = model.mel([centred(store.get(*job)) for job in batch], frames * per_frame)
            features = model.audio_encoder(mel).pooled
            rows = torch.tensor([sound for sound, _, _ in batch])
            pooled.index_add_(0, rows, features)
            logits.index_add_(0, rows, adapter.clip.logits(features).float())
            windows.index_add_(0, rows, torch.ones(len(rows), 1))
    labels = tuple(item.captions[0] if item.captions else "" for item in store.items)
    return EncodedSounds(pooled / windows, logits / windows, labels)


def with_direct_head(model: FineLAP, sounds: EncodedSounds, *, weight: float = 1.0, penalty: float = 300.0) -> FineLAP:
    """A copy of the model whose concept heads add a linear map from features to text embeddings; see ConceptHead.

    It is a ridge regression from the standardised pooled features of the labelled sounds to the embeddings of their
    labels minus their mean. A label with n sounds has the weight √n. `weight` is the mean length of what is added to
    the head's own embedding of unit length. Frames take the same map: their features lie in the same space.
    """
    distinct = sounds.distinct
    rows = torch.tensor([i for i, label in enumerate(sounds.labels) if label])
    labels = [label for label in sounds.labels if label]
    vectors = core_texts(model, distinct)
    centred_targets = (vectors - vectors.mean(0))[torch.tensor([distinct.index(label) for label in labels])]
    counts = Counter(labels)
    weights = torch.tensor([counts[label] ** -0.5 for label in labels])
    matrix, bias = fit_ridge(sounds.pooled[rows], centred_targets, weights, penalty)
    scale = weight / (sounds.pooled[rows] @ matrix.T + bias).norm(dim=-1).mean()
    config = replace(model.config, adapter=AdapterConfig("concept", {**model.config.adapter.params, "direct": True}))
    extended = _extended(model, config)
    with torch.no_grad():
        for head in (_concepts(extended).clip, _concepts(extended).frames):
            assert isinstance(head, ConceptHead) and head.direct is not None
            head.direct.weight.copy_(matrix * scale)
            head.direct.bias.copy_(bias * scale)
    return extended


def fit_ridge(inputs: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression of targets (N, D) on standardised inputs (N, C): weight (D, C) and bias (D,).

    `weights` are (N,). The penalty applies to the coefficients of the standardised inputs.
    """
    share = (weights / weights.sum())[:, None]
    mean = (inputs * share).sum(0)
    spread = ((inputs - mean).square() * share).sum(0).sqrt().clamp_min(1e-4)
    z = ((inputs - mean) / spread).double()
    weighted = z.T * weights.double()
    system = weighted @ z + penalty * torch.eye(z.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(system, weighted @ targets.double()).float()  # (C, D)
    matrix = (solved / spread[:, None]).T
    return matrix, -(matrix @ mean)


def with_evidence(
    model: FineLAP, sounds: EncodedSounds, config: EvidenceConfig | None = None, *, share: float = 0.3
) -> FineLAP:
    """A copy of the model whose joint space also has class evidence (model.evidence).

    `share` is the spread of the evidence over texts and sounds, in units of the spread of the core's cosines; it sets
    the config's `text_weight`.
    """
    assert model.config.evidence is None, "the model has class evidence already"
    config = config or EvidenceConfig()
    adapter = _concepts(model)
    anchors = adapter.anchors.float()
    texts = core_texts(model, sounds.distinct, TEMPLATES[:1])
    shares = (texts @ anchors.T / config.temperature).softmax(-1)
    basis = fit_basis(shares, sounds.logits, config.rank)
    with torch.no_grad():
        cores = F.normalize(adapter.forward_clip(sounds.pooled), dim=-1)
    evidence = (shares @ basis.text) @ (((sounds.logits - basis.mean) / basis.scale) @ basis.audio).T
    wanted = float(share * (texts @ cores.T).std() / evidence.std())
    config = replace(config, text_weight=wanted / config.audio_weight)
    extended = _extended(model, replace(model.config, dim=model.config.dim + config.rank + 1, evidence=config))
    assert extended.evidence is not None
    extended.evidence.set_basis(basis)
    return extended


def core_texts(model: FineLAP, texts: list[str], templates: tuple[str, ...] = TEMPLATES) -> Tensor:
    """The text tower's embeddings (N, core_dim), the normalised mean over the templates."""
    assert model.config.evidence is None
    total = torch.stack([model.encode_text([template.format(t) for t in texts]) for template in templates]).sum(0)
    return F.normalize(total, dim=-1)


def _concepts(model: FineLAP) -> ConceptAdapter:
    if not isinstance(model.adapter, ConceptAdapter):
        raise TypeError(f"the adapter is {model.config.adapter.kind!r}, not 'concept'")
    return model.adapter


def _extended(model: FineLAP, config: FineLAPConfig) -> FineLAP:
    """A model of `config` with the weights of `model`; parts that are new keep their initial values."""
    extended = FineLAP(config, model.tokenizer).eval()
    unknown = extended.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert not unknown, unknown
    return extended
