"""Closed-form parts: a direct head that learns labels, and evidence for classes and labels in the joint space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from model import FineLAP
from model.config import SAMPLE_RATE, AdapterConfig, EncoderConfig, EvidenceConfig
from tests.model.conftest import build_config, build_tokenizer, fill
from training.data.audio_cache import AudioStore
from training.data.manifests import Item
from training.init.closed_form import (
    encode_sounds,
    fit_ridge,
    with_direct_head,
    with_evidence,
    with_label_evidence,
    with_statistics,
)

LABELS = ("dog barks", "bird sings", "rain", "")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    """Noises with a spectrum of their own for each label, one of them longer than a window, and unlabelled ones."""
    folder, items = tmp_path_factory.mktemp("noises"), []
    rng = np.random.default_rng(0)
    for number, label in enumerate(LABELS):
        for take in range(6):
            seconds = 6.0 if number == 0 and take == 0 else rng.uniform(0.5, 2.0)
            noise = rng.standard_normal(int(seconds * SAMPLE_RATE))
            tone = np.sin(np.arange(len(noise)) * (0.05 + 0.4 * number))
            path = folder / f"{number}-{take}.wav"
            soundfile.write(path, 0.2 * tone + 0.02 * noise, SAMPLE_RATE)
            items.append(Item(path.name, path, (label,) if label else ()))
    return AudioStore(folder / "store.i16", items)


@pytest.fixture(scope="module")
def model() -> FineLAP:
    model = FineLAP(build_config(adapter=AdapterConfig("concept", {"concepts": 7, "hidden": 8})), build_tokenizer())
    fill(model)
    return model.eval()


def test_sounds_are_encoded_as_the_model_does(model: FineLAP, store: AudioStore) -> None:
    sounds = encode_sounds(model, store)
    assert sounds.distinct == ["bird sings", "dog barks", "rain"] and sounds.labels.count("") == 6
    short = store.get(3)
    with torch.no_grad():
        frames = model.padded_frames(len(short)) * model.config.windows.mel_frames // model.config.windows.frames
        expected = model.audio_encoder(model.mel([short - short.mean()], frames)).pooled[0]
    # a batch is padded to its longest sound
    assert F.cosine_similarity(sounds.pooled[3], expected, dim=0) > 0.98
    assert torch.isfinite(sounds.pooled).all() and torch.isfinite(sounds.logits).all()


def test_the_direct_head_brings_sounds_to_their_labels(model: FineLAP, store: AudioStore) -> None:
    sounds = encode_sounds(model, store)
    extended = with_direct_head(model, sounds, weight=3.0, penalty=1.0)

    def right(m: FineLAP) -> float:
        texts = m.encode_text(sounds.distinct)
        clips = torch.stack([e.clip for e in m.encode_audio([store.get(i) for i in range(18)], SAMPLE_RATE)])
        best = (clips @ texts.T).argmax(1)
        return float(np.mean([sounds.distinct[b] == label for b, label in zip(best, sounds.labels, strict=False)]))

    assert right(extended) > 0.9 > right(model)
    assert extended.config.adapter.params["direct"] is True and extended.stamp != model.stamp
    added = extended.adapter.clip.direct(sounds.pooled[:18])  # type: ignore[union-attr, operator]
    assert float(added.detach().norm(dim=-1).mean()) == pytest.approx(3.0, rel=0.01)


def test_ridge_equals_ordinary_least_squares_without_a_penalty() -> None:
    rng = np.random.default_rng(3)
    inputs = rng.normal(2, [0.1, 1, 30], (200, 3))
    targets = inputs @ rng.normal(size=(3, 2)) + [1.0, -2.0]
    weights = rng.uniform(0.5, 2, 200)
    centre = (targets * weights[:, None]).sum(0) / weights.sum()
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (inputs, targets - centre, weights)]
    matrix, bias = fit_ridge(*tensors, penalty=1e-6)
    torch.testing.assert_close(tensors[0] @ matrix.T + bias, tensors[1], rtol=1e-3, atol=1e-3)
    small, _ = fit_ridge(*tensors, penalty=1e6)
    assert small.norm() < 0.01 * matrix.norm()


def test_evidence_extends_the_space_by_the_requested_share(model: FineLAP, store: AudioStore) -> None:
    sounds = encode_sounds(model, store)
    extended = with_evidence(model, sounds, EvidenceConfig(rank=4, frame_weight=1.0), share=0.5)
    assert extended.dim == model.dim + 5 and extended.config.core_dim == model.dim
    assert extended.config.evidence == replace(
        EvidenceConfig(rank=4, frame_weight=1.0),
        text_weight=extended.config.evidence.text_weight,  # type: ignore[union-attr]
    )
    clips = [e.clip for e in extended.encode_audio([store.get(i) for i in range(6)], SAMPLE_RATE)]
    before = [e.clip for e in model.encode_audio([store.get(i) for i in range(6)], SAMPLE_RATE)]
    for a, b in zip(clips, before, strict=True):
        assert F.cosine_similarity(a[: model.dim], b, dim=0) > 0.999, "the core stays"
    with pytest.raises(AssertionError, match="already"):
        with_evidence(extended, sounds)


STAGES = ((8, 4, 2), (16, 2, 2))


def test_label_evidence_tells_the_labels_apart(store: AudioStore) -> None:
    """With an untrained encoder, classes and core say nothing; what is left to find the sounds is label evidence."""
    encoder = EncoderConfig("cnn", {"stem": 4, "stages": STAGES, "width": 32, "heads": 4})
    adapter = AdapterConfig("concept", {"concepts": 7, "hidden": 8})
    plain = FineLAP(build_config(audio_encoder=encoder, adapter=adapter), build_tokenizer())
    fill(plain)
    model = with_statistics(plain.eval())
    sounds = encode_sounds(model, store)
    assert sounds.pooled.shape == (len(store), 96)
    classes = with_evidence(model, sounds, EvidenceConfig(rank=4, label_rank=3, label_temperature=0.3), share=0.01)
    final = with_label_evidence(model, classes, sounds, share=5.0, penalty=1.0)
    assert final.dim == classes.dim + 3 == model.dim + 8 and final.stamp != classes.stamp

    def right(m: FineLAP) -> float:
        """The share of sounds whose best label is their own."""
        texts = m.encode_text(sounds.distinct)
        found = m.encode_audio([store.get(i) for i in range(18)], SAMPLE_RATE)
        best = torch.stack([e.clip for e in found]) @ texts.T
        return float(np.mean([sounds.distinct[b] == x for b, x in zip(best.argmax(1), sounds.labels, strict=False)]))

    assert right(final) == 1.0 > right(classes)
    evidence, frames = final.evidence, torch.randn(2, 5, 32)
    assert evidence is not None
    window_of_one_frame = torch.cat([frames, frames, frames], dim=-1)
    torch.testing.assert_close(
        evidence.frame_labels(frames), evidence.window_labels(window_of_one_frame), rtol=1e-3, atol=1e-3
    )
