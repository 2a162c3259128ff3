"""EAT equals a slow encoder written out step by step, at any size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import ConfigError, EncoderConfig, MelConfig, WindowConfig
from model.encoders.eat import EAT, sincos_positions
from model.encoders.registry import AudioEncoder, build_encoder

MEL = MelConfig(num_mel_bins=32)
WINDOWS = WindowConfig(mel_frames=64, frames=8)


def small(**changes: object) -> EAT:
    torch.manual_seed(0)
    eat = EAT(WINDOWS, MEL, **({"dim": 16, "depth": 2, "heads": 4, "mlp_ratio": 3.0, "patch": 8} | changes))
    with torch.no_grad():
        for parameter in eat.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return eat.eval()


def slow_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def slow_eat(eat: EAT, mel: Tensor, patch: int, heads: int) -> tuple[Tensor, Tensor]:
    """One recording (mel_frames, bins) → CLS (C,) and frames (T, C), with loops over patches and heads."""
    state = eat.state_dict()
    steps, freqs = mel.shape[0] // patch, mel.shape[1] // patch
    width = state["cls"].shape[-1]
    positions = sincos_positions(steps, freqs, width)[0]
    tokens = [state["cls"][0, 0]]
    for t in range(steps):
        for f in range(freqs):
            square = mel[t * patch : (t + 1) * patch, f * patch : (f + 1) * patch]
            token = (state["patches.weight"][:, 0] * square).sum((1, 2)) + state["patches.bias"]
            tokens.append(token + positions[t * freqs + f])
    x = slow_norm(torch.stack(tokens), state["norm.weight"], state["norm.bias"])
    for i in range(len(eat.blocks)):
        part = {n.removeprefix(f"blocks.{i}."): v for n, v in state.items() if n.startswith(f"blocks.{i}.")}
        q, k, v = (x @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]).split(width, dim=-1)
        size = width // heads
        mixed = []
        for h in range(heads):
            share = slice(h * size, (h + 1) * size)
            weights = torch.softmax(q[:, share] @ k[:, share].T / math.sqrt(size), dim=-1)
            mixed.append(weights @ v[:, share])
        attended = torch.cat(mixed, dim=-1) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        x = slow_norm(x + attended, part["norm1.weight"], part["norm1.bias"])
        hidden = x @ part["fc1.weight"].T + part["fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = slow_norm(x + hidden @ part["fc2.weight"].T + part["fc2.bias"], part["norm2.weight"], part["norm2.bias"])
    return x[0], torch.stack([x[1 + t * freqs : 1 + (t + 1) * freqs].mean(0) for t in range(steps)])


@pytest.mark.parametrize("mel_frames", [8, 24, 64])
def test_equals_the_slow_encoder_for_whole_and_shorter_windows(mel_frames: int) -> None:
    eat = small()
    mel = torch.randn(2, mel_frames, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = eat(mel)
        for i in range(2):
            cls, frames = slow_eat(eat, mel[i], patch=8, heads=4)
            torch.testing.assert_close(output.pooled[i], cls, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(output.frames[i], frames, atol=1e-4, rtol=1e-4)
    assert output.frames.shape == (2, mel_frames // 8, eat.width)


def test_positions_are_sines_then_cosines_of_frequency_then_time() -> None:
    steps, freqs, width = 5, 3, 16
    table = sincos_positions(steps, freqs, width)[0]
    for t in range(steps):
        for f in range(freqs):
            row = table[t * freqs + f]
            for half, place in ((row[: width // 2], f), (row[width // 2 :], t)):
                for i in range(width // 4):
                    angle = place / 10_000 ** (i / (width / 4))
                    assert half[i] == pytest.approx(math.sin(angle), abs=1e-6)
                    assert half[width // 4 + i] == pytest.approx(math.cos(angle), abs=1e-6)


def test_computed_positions_are_not_stored_and_a_table_is() -> None:
    assert "positions" not in small().state_dict()
    eat = small(positions="table", table_tokens=40)
    assert eat.state_dict()["positions"].shape == (1, 40, 16)
    mel = torch.randn(1, 64, 32)
    with torch.no_grad():
        before = eat(mel).frames
        eat.positions.copy_(sincos_positions(10, 4, 16))
        torch.testing.assert_close(eat(mel).frames, small()(mel).frames)
    assert not torch.allclose(before, eat(mel).frames, atol=1e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"heads": 3}, "not divisible by 3 heads"),
        ({"patch": 5}, "patches of 5"),
        ({"patch": 16}, "the window has 8"),
        ({"positions": "learned"}, "unknown positions"),
        ({"positions": "table", "table_tokens": 31}, "too short"),
        ({"dim": 18, "heads": 3}, "divisible by 4"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**params)


def test_registry_builds_known_kinds_and_rejects_others() -> None:
    config = EncoderConfig("eat", {"dim": 16, "depth": 1, "heads": 2, "patch": 8})
    encoder = build_encoder(config, WINDOWS, MEL)
    assert isinstance(encoder, EAT) and isinstance(encoder, AudioEncoder) and encoder.width == 16
    with pytest.raises(ConfigError, match="unknown audio encoder 'wav'"):
        build_encoder(EncoderConfig("wav"), WINDOWS, MEL)
    with pytest.raises(ConfigError, match="dims"):
        build_encoder(EncoderConfig("eat", {"dims": 16}), WINDOWS, MEL)


def test_drop_path_rises_over_the_blocks_and_is_on_only_while_training() -> None:
    eat, mel = small(depth=3), torch.randn(400, 64, 32, generator=torch.Generator().manual_seed(2))
    whole = eat(mel).frames
    eat.set_drop_path(0.5)
    assert [block.drop_path for block in eat.blocks] == [0.0, 0.25, 0.5]
    assert torch.equal(eat(mel).frames, whole), "in evaluation mode"
    block, x = eat.blocks[2].train(), torch.randn(400, 1, 16).expand(400, 5, 16)
    with torch.no_grad():
        branch = block.attn(x)
        kept = block._kept(branch)
    share = kept.abs().sum((1, 2)) > 0
    assert 0.4 < share.float().mean() < 0.6, "a whole item is skipped or kept"
    assert torch.allclose(kept[share], branch[share] * 2)
    eat.train()
    assert not torch.equal(eat(mel).frames, whole)


def test_drop_path_is_part_of_eat_alone() -> None:
    encoder = build_encoder(EncoderConfig("cnn", {}), WindowConfig(), MelConfig())
    with pytest.raises(ConfigError, match="ConvEncoder has none"):
        encoder.set_drop_path(0.1)
