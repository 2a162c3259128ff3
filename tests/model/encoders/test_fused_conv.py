"""Fused convolutions equal the plain ones, follow weight changes, and fall back if they differ."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.config import MelConfig, WindowConfig
from model.encoders import fused_conv as fused
from model.encoders.cnn import ConvEncoder, ResidualBlock, fused_trunk
from model.encoders.fused_conv import Fused
from model.finelap import FineLAP

MEL, WINDOWS = MelConfig(num_mel_bins=16), WindowConfig(mel_frames=256, frames=16)
# the second block keeps its shape, so that its shortcut is the identity
STAGES = ((8, 4, 2), (8, 1, 1), (16, 2, 2))


def encoder(seed: int = 0) -> ConvEncoder:
    """Fresh weights with non-trivial batch norms."""
    torch.manual_seed(seed)
    model = ConvEncoder(WINDOWS, MEL, stem=4, stages=STAGES, width=32, heads=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def plain(model: ConvEncoder, mel: Tensor) -> Tensor:
    """The trunk, layer by layer."""
    return model.trunk(mel[:, None])


def is_fused(model: ConvEncoder) -> bool:
    return model._fused._forward is not None


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_plain_trunk(batch: int) -> None:
    model, mel = encoder(), torch.randn(batch, 128, 16)
    assert any(isinstance(b, ResidualBlock) and isinstance(b.shortcut, nn.Identity) for b in model.trunk)
    with torch.no_grad():
        expected = plain(model, mel)
        torch.testing.assert_close(fused_trunk(model.trunk)(mel[:, None]), expected, rtol=1e-5, atol=1e-5)
        first, second = model(mel), model(mel)
    assert is_fused(model)
    assert torch.equal(first.frames, second.frames)


@needs_onednn
def test_the_bundled_checkpoint_gives_the_same_embeddings(repo_dir: Path) -> None:
    model = FineLAP.from_pretrained(repo_dir / "checkpoints" / "finelap-small")
    mel = 0.5 * torch.randn(2, 256, 64)
    clips, frames = model.forward_audio(mel)  # with gradients: the plain network
    with torch.no_grad():
        fast_clips, fast_frames = model.forward_audio(mel)
    assert is_fused(model.audio_encoder)  # type: ignore[arg-type]
    assert (clips * fast_clips).sum(-1).min() > 0.999999
    assert (frames * fast_frames).sum(-1).min() > 0.999999


@needs_onednn
def test_follows_weight_changes() -> None:
    model, mel = encoder(), torch.randn(1, 128, 16)
    with torch.no_grad():
        model(mel)
        model.load_state_dict(encoder(1).state_dict())
        torch.testing.assert_close(model(mel).frames, encoder(1)(mel).frames, rtol=1e-4, atol=1e-4)
        model.trunk[0][0].weight.mul_(2)  # type: ignore[index, union-attr, operator]
        expected = model.neck(plain(model, mel).permute(0, 2, 1, 3).flatten(2))
        torch.testing.assert_close(model(mel).frames, expected, rtol=1e-4, atol=1e-4)


def test_training_and_gradients_use_the_plain_network() -> None:
    model, mel = encoder(), torch.randn(2, 128, 16)
    model(mel).frames.sum().backward()
    assert model.trunk[0][0].weight.grad is not None  # type: ignore[index, union-attr]
    with torch.no_grad():
        model.train()(mel)
    assert not is_fused(model)


def test_a_wrong_or_missing_fusion_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def missing(_: nn.Module) -> fused.Forward:
        raise AttributeError("no such operation")

    layer, x = nn.Conv2d(1, 2, 3).eval(), torch.randn(1, 1, 8, 8)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for build in (missing, lambda module: lambda x: 1.1 * module(x)):
            assert torch.equal(Fused(build)(layer, x), layer(x))
    if torch.backends.mkldnn.is_available():
        assert "does not support it" in caplog.text and "differ by" in caplog.text


def test_copies_and_pickles_omit_the_fused_form() -> None:
    model, mel = encoder(), torch.randn(1, 128, 16)
    with torch.no_grad():
        expected = model(mel).frames
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not is_fused(twin)
            torch.testing.assert_close(twin(mel).frames, expected, rtol=1e-4, atol=1e-4)
