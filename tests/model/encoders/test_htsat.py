"""HTS-AT as a FineLAP encoder: frames align with sounds, sizes are checked, checkpoints round-trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ConfigError, EncoderConfig, FineLAPConfig, MelConfig, WindowConfig
from model.encoders.htsat import HTSAT
from model.encoders.registry import build_encoder
from model.finelap import FineLAP

MEL = MelConfig(num_mel_bins=16, mean=-4.0, std=2.0, pad_value=-8.0)
WINDOWS = WindowConfig(mel_frames=64, frames=8)
PARAMS = {"spec_size": 32, "dim": 8, "depths": [1, 1], "heads": [2, 2], "window": 4}  # 2 stripes, 4 × 4 final tokens


def small(windows: WindowConfig = WINDOWS, **changes: object) -> HTSAT:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig("htsat", PARAMS | changes), windows, MEL)
    assert isinstance(encoder, HTSAT)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return encoder.eval()


@torch.no_grad()
def test_shapes_and_pooling() -> None:
    output = small()(torch.randn(3, 64, 16))
    assert output.pooled.shape == (3, 16) and output.frames.shape == (3, 8, 16)
    torch.testing.assert_close(output.frames.mean(1), output.pooled)


@torch.no_grad()
def test_frames_align_with_sounds() -> None:
    # One stage of one block with small attention windows: nothing mixes beyond neighbouring frames.
    encoder = small(WindowConfig(mel_frames=64, frames=16), depths=[1], heads=[2], window=2)
    quiet = torch.zeros(1, 64, 16)
    for at in (0, 5, 9, 15):  # stripes of time change between frames 7 and 8
        loud = quiet.clone()
        loud[:, 4 * at : 4 * at + 4] = 3.0
        change = (encoder(loud).frames - encoder(quiet).frames).abs().sum(-1)[0]
        assert int(change.argmax()) == at
        assert set(change.nonzero()[:, 0].tolist()) <= {at - at % 2, at - at % 2 + 1}


@torch.no_grad()
def test_frames_are_repeated_for_a_finer_grid() -> None:
    mel = torch.randn(2, 64, 16)
    own, finer = small()(mel), small(WindowConfig(mel_frames=64, frames=16))(mel)
    torch.testing.assert_close(finer.frames, own.frames.repeat_interleave(2, dim=1))
    torch.testing.assert_close(finer.pooled, own.pooled)


@torch.no_grad()
def test_a_shorter_window_equals_a_padded_one() -> None:
    encoder, mel = small(), torch.randn(2, 24, 16)
    whole = torch.full((2, 64, 16), (-8.0 + 4.0) / 4.0)
    whole[:, :24] = mel
    short, expected = encoder(mel), encoder(whole)
    torch.testing.assert_close(short.frames, expected.frames[:, :3])
    torch.testing.assert_close(short.pooled, expected.pooled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": [2]}, "2 stages and heads for 1"),
        ({"heads": [3, 2]}, "not divisible by heads"),
        ({"spec_size": 40}, "16 mel bins do not fill"),
        ({"spec_size": 64}, "holds 256 mel frames"),
        ({"depths": [1] * 4, "heads": [2] * 4}, "do not leave whole tokens"),
        ({"colour": 1}, "colour"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(EncoderConfig("htsat", PARAMS | changes), WINDOWS, MEL)


def test_windows_with_incompatible_frames_are_rejected() -> None:
    with pytest.raises(ConfigError, match="12 frames per window are not a multiple of the network's 8"):
        build_encoder(EncoderConfig("htsat", PARAMS), WindowConfig(mel_frames=64, frames=12), MEL)


def test_a_checkpoint_round_trips(
    tmp_path: Path, tiny_config: Callable[..., FineLAPConfig], make_tiny: Callable[..., FineLAP]
) -> None:
    windows = replace(tiny_config().windows, mel_frames=64, frames=8, frame_hop=0.08, buckets=(4,))
    model = make_tiny(tiny_config(mel=MEL, windows=windows, audio_encoder=EncoderConfig("htsat", PARAMS)))
    model.save_pretrained(tmp_path)
    again = FineLAP.from_pretrained(tmp_path)
    waveform = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    (before,), (after,) = model.encode_audio([waveform], 16_000), again.encode_audio([waveform], 16_000)
    assert before.frames.shape == (13, 24)
    torch.testing.assert_close(after.frames, before.frames)
    torch.testing.assert_close(after.clip, before.clip)


def test_gradients_reach_every_weight() -> None:
    encoder = small().train()
    output = encoder(torch.randn(2, 64, 16))
    (output.frames.square().sum() + output.pooled.sum()).backward()
    still = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not still
