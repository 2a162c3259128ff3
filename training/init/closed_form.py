"""What a trained model learns in closed form: a direct head from labelled sounds, and evidence for classes and labels.

All need one forward pass over the sounds and no gradient. docs/development/log.md has what each of them gives on
packages of sounds that neither the encoder nor the fit has seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapter import ConceptAdapter
from model.config import AdapterConfig, EvidenceConfig, FineLAPConfig, TemporalConfig
from model.evidence import EvidenceBasis, fit_basis
from model.finelap import FineLAP
from model.windows import centred, window_samples
from training.data.audio_cache import AudioStore

WINDOWS = 3  # of a long sound, evenly spread
BATCH = 16  # windows
TEMPLATES = ("{}", "the sound of {}")


@dataclass(frozen=True)
class EncodedSounds:
    """N sounds through the audio encoder: pooled features (N, P), clip class logits (N, K), and a label or ""."""

    pooled: Tensor
    logits: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.pooled) == len(self.logits) == len(self.labels)

    @property
    def distinct(self) -> list[str]:
        """The labels, sorted, without ""."""
        return sorted(set(self.labels) - {""})

    @property
    def labelled(self) -> tuple[Tensor, Tensor, Tensor]:
        """The M labelled sounds: their rows (M,), the number of each one's label in `distinct`, and its weight.

        A label with n sounds has the weight √n in all.
        """
        number = {label: i for i, label in enumerate(self.distinct)}
        counts = Counter(self.labels)
        found = [(row, number[label], counts[label] ** -0.5) for row, label in enumerate(self.labels) if label]
        rows, labels, weights = zip(*found, strict=True)
        return torch.tensor(rows), torch.tensor(labels), torch.tensor(weights)


def with_statistics(model: FineLAP) -> FineLAP:
    """A copy of the model whose pooled features include mean and maximum of a window's frames."""
    encoder = model.config.audio_encoder
    assert encoder.kind == "cnn", encoder.kind
    return _extended(model, replace(model.config, audio_encoder=replace(encoder, kind="cnn_statistics")))


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
    pooled = torch.zeros(len(store), model.audio_encoder.pooled_width)
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
            logits.index_add_(0, rows, adapter.clip.class_logits(features))
            windows.index_add_(0, rows, torch.ones(len(rows), 1))
    labels = tuple(item.captions[0] if item.captions else "" for item in store.items)
    return EncodedSounds(pooled / windows, logits / windows, labels)


def with_direct_head(model: FineLAP, sounds: EncodedSounds, *, weight: float = 1.0, penalty: float = 300.0) -> FineLAP:
    """A copy of the model whose concept heads add a linear map from features to text embeddings; see ConceptHead.

    It is a ridge regression from the standardised pooled features of the labelled sounds to the embeddings of their
    labels minus their mean. `weight` is the mean length of what is added to the head's own embedding of unit length.
    Frames take the same map, as their features lie in the same space.
    """
    rows, labels, weights = sounds.labelled
    vectors = core_texts(model, sounds.distinct)
    matrix, bias = fit_ridge(sounds.pooled[rows], (vectors - vectors.mean(0))[labels], weights, penalty)
    scale = weight / (sounds.pooled[rows] @ matrix.T + bias).norm(dim=-1).mean()
    config = replace(model.config, adapter=AdapterConfig("concept", {**model.config.adapter.params, "direct": True}))
    extended = _extended(model, config)
    with torch.no_grad():
        for head, map_ in (
            (_concepts(extended).clip, matrix),
            (_concepts(extended).frames, of_frames(matrix, model.audio_encoder.width)),
        ):
            assert head.direct is not None
            head.direct.weight.copy_(map_ * scale)
            head.direct.bias.copy_(bias * scale)
    return extended


def of_frames(matrix: Tensor, width: int) -> Tensor:
    """A map from pooled features (D, P) as a map from features of a frame (D, C).

    The parts of pooled features, attention, mean and maximum, are each the frame itself if a window is one frame.
    """
    return matrix.view(len(matrix), -1, width).sum(1)


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
    model: FineLAP, sounds: EncodedSounds, config: EvidenceConfig | None = None, share: float = 0.3
) -> FineLAP:
    """A copy of the model whose joint space also has class evidence (model.evidence).

    `share` is the spread of the evidence over texts and sounds, in units of the spread of the core's cosines; it sets
    the config's `text_weight`.
    """
    assert model.config.evidence is None, "the model has evidence already"
    config = replace(config or EvidenceConfig(), labels=0)
    texts = core_texts(model, sounds.distinct, TEMPLATES[:1])
    shares = (texts @ _concepts(model).anchors.float().T / config.temperature).softmax(-1)
    basis = fit_basis(shares, sounds.logits, config.rank)
    wanted = share * _spread(model, sounds, texts) / _evidence_of(basis, shares, sounds.logits).std()
    config = replace(config, text_weight=float(wanted) / config.audio_weight)
    extended = _extended(model, replace(model.config, dim=model.config.dim + config.dims, evidence=config))
    assert extended.evidence is not None
    extended.evidence.set_basis(basis)
    return extended


def with_label_evidence(
    model: FineLAP, extended: FineLAP, sounds: EncodedSounds, *, share: float = 0.3, penalty: float = 3000.0
) -> FineLAP:
    """A copy of `extended`, which is `model` with class evidence, that has evidence for the labels of the sounds too.

    A ridge regression predicts from the standardised pooled features how much of each label is in a sound: for a
    training sound the softmax over the cosines of its label to all labels. `share` is as in `with_evidence`.
    """
    old = extended.config.evidence
    assert old is not None and not old.labels
    config = replace(old, labels=len(sounds.distinct))
    texts, anchors = core_texts(model, sounds.distinct, TEMPLATES[:1]), core_texts(model, sounds.distinct)
    rows, labels, weights = sounds.labelled
    soft = (anchors @ anchors.T / config.label_temperature).softmax(-1)
    matrix, bias = fit_ridge(sounds.pooled[rows], soft[labels], weights, penalty)
    predicted = sounds.pooled @ matrix.T + bias
    shares = (texts @ anchors.T / config.label_temperature).softmax(-1)
    basis = fit_basis(shares, predicted, config.label_rank)
    wanted = share * _spread(model, sounds, texts) / _evidence_of(basis, shares, predicted).std()
    config = replace(config, label_weight=float(wanted) / config.audio_weight)
    final = _extended(extended, replace(extended.config, dim=extended.dim + config.label_rank, evidence=config))
    evidence, project = final.evidence, (basis.audio / basis.scale[:, None]).T  # (R, L)
    assert evidence is not None
    with torch.no_grad():
        evidence.label_anchors.copy_(anchors)
        evidence.label_basis.copy_(basis.text)
        for layer, map_ in (
            (evidence.window_labels, matrix),
            (evidence.frame_labels, of_frames(matrix, model.audio_encoder.width)),
        ):
            layer.weight.copy_(project @ map_)
            layer.bias.copy_(project @ (bias - basis.mean))
    return final


def with_temporal_attention(model: FineLAP, config: TemporalConfig | None = None) -> FineLAP:
    """A copy of the model with temporal attention that is still to be trained; see model.adapter.

    Temperatures shrink as cosines do, which get one more dimension of the texts: scores of clips stay the same.
    """
    extended = _extended(model, replace(model.config, dim=model.dim + 1, temporal=config or TemporalConfig()))
    text = model.encode_text(["a sound"])
    with torch.no_grad():
        assert extended.temporal is not None
        share = extended.temporal.extend_text(text, model.config.core_dim)[0, 0] / text[0, 0]
        for temp in (extended.temp_global, extended.temp_local):
            temp.mul_(share)
    return extended


def _spread(model: FineLAP, sounds: EncodedSounds, texts: Tensor) -> Tensor:
    """The spread of the cosines between texts (N, D) and the sounds, without evidence."""
    with torch.no_grad():
        cores = F.normalize(_concepts(model).forward_clip(sounds.pooled), dim=-1)
    return (texts @ cores.T).std()


def _evidence_of(basis: EvidenceBasis, shares: Tensor, logits: Tensor) -> Tensor:
    """The evidence (N, M) between texts with class shares (N, K) and sounds with class logits (M, K)."""
    return (shares @ basis.text) @ (((logits - basis.mean) / basis.scale) @ basis.audio).T


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
