"""The CNN encoder: shapes, independence of the batch, and pooling."""

from __future__ import annotations

import pytest
import torch

from model.config import ConfigError, EncoderConfig, MelConfig, WindowConfig
from model.encoders.cnn import AttentionPool, ConvEncoder, StatisticsConvEncoder
from model.encoders.registry import build_encoder

MEL = MelConfig(num_mel_bins=16)
WINDOWS = WindowConfig(mel_frames=256, frames=16)
STAGES = ((8, 4, 2), (16, 2, 2))


def encoder(kind: type[ConvEncoder] = ConvEncoder) -> ConvEncoder:
    torch.manual_seed(0)
    return kind(WINDOWS, MEL, stem=4, stages=STAGES, width=32, heads=4).eval()


@pytest.mark.parametrize("frames", [4, 16])
def test_shapes_of_whole_and_short_windows(frames: int) -> None:
    output = encoder()(torch.randn(3, frames * 16, 16))
    assert output.pooled.shape == (3, 32) and output.frames.shape == (3, frames, 32)


def test_items_of_a_batch_are_independent() -> None:
    model, mel = encoder(), torch.randn(5, 128, 16)
    with torch.no_grad():
        together = model(mel)
        for i in range(5):
            alone = model(mel[i : i + 1])
            torch.testing.assert_close(together.pooled[i], alone.pooled[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.frames[i], alone.frames[0], rtol=0, atol=1e-5)


def test_frames_depend_only_on_nearby_input() -> None:
    model, mel = encoder(), torch.randn(1, 256, 16)
    changed = mel.clone()
    changed[:, :16] += 3.0
    with torch.no_grad():
        difference = (model(mel).frames - model(changed).frames).abs().amax(-1)[0]
    assert difference[0] > 1e-3 and (difference[8:] == 0).all()


def test_attention_pool_is_a_weighted_mean() -> None:
    pool = AttentionPool(8, 2)
    frames = torch.randn(2, 5, 8)
    weights = pool.scores(frames).softmax(1)
    expected = torch.cat([(weights[..., h : h + 1] * frames[..., 4 * h : 4 * h + 4]).sum(1) for h in range(2)], dim=1)
    torch.testing.assert_close(pool(frames), expected)


def test_statistics_are_those_of_the_frames_that_sound() -> None:
    model, mel = encoder(StatisticsConvEncoder), torch.randn(2, 192, 16)
    silence = (MEL.pad_value - MEL.mean) / (2 * MEL.std)
    mel[0, 100:] = silence  # frames of 16 mel frames: the first seven sound
    mel[1] = silence
    with torch.no_grad():
        pooled, frames = model(mel)
        plain = encoder()(mel)
        longer = model(torch.cat([mel, torch.full((2, 64, 16), silence)], dim=1)).pooled
    assert model.pooled_width == 96 and pooled.shape == (2, 96)
    torch.testing.assert_close(pooled[:, :32], plain.pooled)
    torch.testing.assert_close(pooled[0, 32:], torch.cat([frames[0, :7].mean(0), frames[0, :7].amax(0)]))
    torch.testing.assert_close(pooled[1, 32:], torch.cat([frames[1].mean(0), frames[1].amax(0)]))
    torch.testing.assert_close(longer[0, 32:], pooled[0, 32:], msg="padding must not count")


def test_wrong_strides_are_rejected() -> None:
    with pytest.raises(ConfigError, match="every 8 mel frames"):
        ConvEncoder(WINDOWS, MEL, stages=((8, 2, 2), (16, 2, 2)))
    with pytest.raises(ConfigError, match="divisible"):
        AttentionPool(10, 4)


def test_registry_builds_the_encoder() -> None:
    config = EncoderConfig("cnn", {"stem": 4, "stages": [[8, 4, 2], [16, 2, 2]], "width": 32, "heads": 4})
    assert build_encoder(config, WINDOWS, MEL).width == 32
    with pytest.raises(ConfigError, match="colour"):
        build_encoder(EncoderConfig("cnn", {"colour": 1}), WINDOWS, MEL)
