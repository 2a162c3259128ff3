"""Class evidence: the inner product of extended embeddings is the core's cosine plus weighted evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model import FineLAP
from model.config import AdapterConfig, ConfigError, EvidenceConfig
from model.evidence import Evidence, fit_basis
from tests.model.conftest import build_config, build_tokenizer, fill

CLASSES, CORE, POOLED, FRAME = 9, 12, 10, 5
UNUSED = torch.zeros(0)  # features, where there is no label evidence


def fitted(config: EvidenceConfig, seed: int = 0) -> tuple[Evidence, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchors = F.normalize(torch.randn(CLASSES, CORE, generator=generator), dim=-1)
    logits = 3 * torch.randn(400, CLASSES, generator=generator) + torch.arange(CLASSES)
    shares = torch.randn(50, CLASSES, generator=generator).mul(4).softmax(-1)
    evidence = Evidence(config, CLASSES, CORE, (POOLED, FRAME))
    evidence.set_basis(fit_basis(shares, logits, config.rank))
    return evidence, anchors


def test_the_inner_product_adds_evidence_to_the_cosine() -> None:
    config = EvidenceConfig(rank=CLASSES, temperature=0.1, text_weight=30.0, audio_weight=0.01)
    evidence, anchors = fitted(config)
    texts, clips = F.normalize(torch.randn(20, CORE), dim=-1), F.normalize(torch.randn(30, CORE), dim=-1)
    logits = 3 * torch.randn(30, CLASSES) + torch.arange(CLASSES)
    z = (logits - evidence.mean) / evidence.scale
    expected = texts @ clips.T + 0.3 * (texts @ anchors.T / 0.1).softmax(-1) @ z.T
    joint_clips = evidence.extend_clip(clips, logits, UNUSED)
    found = evidence.extend_text(texts, anchors) @ joint_clips.T
    lengths = torch.sqrt(1 + (0.01 * z @ evidence.audio_basis).square().sum(-1))
    ratio = expected / (found * lengths)
    assert ratio.std() / ratio.mean() < 1e-4, "equal but for one factor, which does not change any ranking"
    assert lengths.max() < 1.01, "two sounds keep the cosine of their cores"
    torch.testing.assert_close(joint_clips @ joint_clips.T, clips @ clips.T, rtol=0, atol=0.02)


def test_every_embedding_has_unit_length() -> None:
    evidence, anchors = fitted(EvidenceConfig(rank=4, text_weight=100.0, audio_weight=0.1, context=0.5))
    core = F.normalize(torch.randn(3, 5, CORE), dim=-1)
    window = torch.randn(3, CLASSES), UNUSED
    frames = evidence.extend_frames(core, torch.randn(3, 5, CLASSES), UNUSED, window)
    texts = evidence.extend_text(F.normalize(torch.randn(8, CORE), dim=-1), anchors)
    assert frames.shape == (3, 5, CORE + 5) and texts.shape == (8, CORE + 5)
    for vectors in (frames, texts):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    weights = texts[:, :CORE].norm(dim=-1)
    assert weights.std() < 1e-6, "all texts weigh their core alike"


def test_a_smaller_rank_keeps_most_of_the_evidence() -> None:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(3, CLASSES, generator=generator)
    logits = torch.randn(500, 3, generator=generator) @ mixing + 0.05 * torch.randn(500, CLASSES, generator=generator)
    shares = torch.randn(60, CLASSES, generator=generator).mul(2).softmax(-1)
    basis = fit_basis(shares, logits, 3)
    z = (logits - basis.mean) / basis.scale
    whole, reduced = shares @ z.T, (shares @ basis.text) @ (z @ basis.audio).T
    assert (whole - reduced).square().mean() < 0.02 * whole.square().mean()
    torch.testing.assert_close((z @ basis.audio).std(0), torch.ones(3), rtol=0.02, atol=0)


def test_context_mixes_the_window_into_its_frames() -> None:
    core, logits, clip = (
        F.normalize(torch.randn(1, 4, CORE), dim=-1),
        torch.randn(1, 4, CLASSES),
        torch.randn(1, CLASSES),
    )
    parts = {}
    for context in (0.0, 0.4, 1.0):
        evidence, _ = fitted(EvidenceConfig(rank=6, audio_weight=1e-4, frame_weight=1.0, context=context))
        parts[context] = evidence.extend_frames(core, logits, UNUSED, (clip, UNUSED))[..., CORE:-1]
    torch.testing.assert_close(parts[0.4], 0.6 * parts[0.0] + 0.4 * parts[1.0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(parts[1.0][:, 0], parts[1.0][:, 3], rtol=1e-3, atol=1e-7)


def test_labels_add_evidence_of_their_own() -> None:
    """The inner product is the core's cosine plus both evidences, up to a factor; frames have their own map."""
    labels, rank = 7, 3
    config = replace(
        EvidenceConfig(rank=CLASSES, temperature=0.1, text_weight=30.0, audio_weight=0.01, frame_weight=2.0),
        **{
            "context": 0.5,
            "label_context": 0.25,
            "labels": labels,
            "label_rank": rank,
            "label_temperature": 0.2,
            "label_weight": 40.0,
        },
    )
    evidence, anchors = fitted(config)
    fill(evidence)
    torch.nn.init.normal_(evidence.label_anchors)
    torch.nn.init.normal_(evidence.label_basis)
    texts, clips = F.normalize(torch.randn(20, CORE), dim=-1), F.normalize(torch.randn(30, CORE), dim=-1)
    logits, pooled = torch.randn(30, CLASSES), torch.randn(30, POOLED)
    shares = (texts @ evidence.label_anchors.T / 0.2).softmax(-1)
    by_class = 0.3 * (texts @ anchors.T / 0.1).softmax(-1) @ ((logits - evidence.mean) / evidence.scale).T
    by_label = 0.4 * (shares @ evidence.label_basis) @ evidence.window_labels(pooled).T
    joint = evidence.extend_clip(clips, logits, pooled)
    assert joint.shape == (30, CORE + config.dims) and config.dims == CLASSES + rank + 1
    ratio = (texts @ clips.T + by_class + by_label) / (evidence.extend_text(texts, anchors) @ joint.T)
    spread_by_text = ratio.std(0) / ratio.mean(0)
    assert spread_by_text.abs().max() < 1e-4, "one factor for all texts of a clip, which its length is"

    frames, features = clips[:, None], torch.randn(30, 1, FRAME)
    track = evidence.extend_frames(frames, logits[:, None], features, (logits, pooled))
    own, window = evidence.frame_labels(features)[:, 0], evidence.window_labels(pooled)
    mixed = track[:, 0, CORE + CLASSES : -1] / track[:, 0, :1] * clips[:, :1]
    torch.testing.assert_close(mixed, 0.02 * torch.lerp(own, window, 0.25), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", [0, 6])
def test_a_model_with_evidence_round_trips(tmp_path: object, labels: int) -> None:
    config = build_config(adapter=AdapterConfig("concept", {"concepts": 5, "hidden": 8, "direct": True}))
    evidence = EvidenceConfig(rank=3, text_weight=5.0, labels=labels)
    config = replace(config, dim=config.dim + evidence.dims, evidence=evidence)
    model = FineLAP(config, build_tokenizer())
    fill(model)
    assert model.evidence is not None
    model.evidence.set_basis(fit_basis(torch.rand(9, 5).softmax(-1), torch.randn(40, 5), 3))
    model.eval().save_pretrained(str(tmp_path))
    loaded = FineLAP.from_pretrained(str(tmp_path))
    assert loaded.config == config and loaded.dim == config.core_dim + evidence.dims and loaded.stamp == model.stamp
    sound = torch.randn(30_000).mul(0.1).numpy()
    (before,), (after,) = model.encode_audio([sound], 16_000), loaded.encode_audio([sound], 16_000)
    torch.testing.assert_close(after.clip, before.clip)
    torch.testing.assert_close(after.frames, before.frames)
    assert loaded.encode_text(["a dog"]).shape == (1, loaded.dim) == (1, len(before.clip))
    other = FineLAP(replace(config, evidence=replace(evidence, text_weight=6.0)), build_tokenizer())
    other.load_state_dict(model.state_dict())
    assert other.stamp != model.stamp, "the weights of evidence are part of the space"
    described = config.to_dict()["evidence"]
    assert ("label_rank" in described) == bool(labels), "older checkpoints keep their stamp"


def test_evidence_needs_concepts() -> None:
    config = build_config()
    with pytest.raises(ConfigError, match="evidence needs the adapter 'concept'; this one is"):
        FineLAP(replace(config, evidence=EvidenceConfig(rank=3)), None)
    with pytest.raises(ConfigError, match="evidence: want rank"):
        EvidenceConfig(rank=0)
    with pytest.raises(ConfigError, match="evidence: want temperatures"):
        EvidenceConfig(label_temperature=0.0)
