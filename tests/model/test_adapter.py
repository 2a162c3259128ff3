"""The adapters: the published one's layout, and how the concept adapter embeds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapter import ConceptAdapter, build_adapter
from model.config import AdapterConfig, ConfigError


def test_decoupled_is_the_published_layout() -> None:
    adapter = build_adapter(AdapterConfig("decoupled", {"layers": 2, "heads": 4, "hidden": 48}), 12, 16).eval()
    names = set(adapter.state_dict())
    assert {"clip.0.weight", "clip.2.weight", "frames.0.weight", "frames.1.layers.1.linear2.weight"} <= names
    assert adapter.forward_clip(torch.randn(3, 12)).shape == (3, 16)
    assert adapter.forward_frames(torch.randn(3, 5, 12)).shape == (3, 5, 16)


def test_a_certain_concept_is_embedded_at_its_anchor() -> None:
    torch.manual_seed(0)
    adapter = ConceptAdapter(8, 6, concepts=4, hidden=8)
    adapter.anchors.copy_(F.normalize(torch.randn(4, 6), dim=-1))
    with torch.no_grad():
        for parameter in adapter.clip.free.parameters():
            parameter.zero_()
        adapter.clip.logits.weight.zero_()
        adapter.clip.logits.bias.copy_(torch.tensor([-30.0, -30.0, 9.0, -30.0]))
    embedding = adapter.forward_clip(torch.randn(2, 8))
    torch.testing.assert_close(embedding, adapter.anchors[2].expand(2, 6), rtol=0, atol=1e-5)


def test_the_free_component_is_gated_and_silence_is_finite() -> None:
    adapter = ConceptAdapter(8, 6, concepts=4, hidden=8)
    adapter.anchors.copy_(F.normalize(torch.randn(4, 6), dim=-1))
    features = torch.randn(5, 8)
    named = F.normalize(adapter.frames.logits(features).sigmoid() @ adapter.anchors, dim=-1)
    torch.testing.assert_close(adapter.forward_frames(features), named + 0.3 * adapter.frames.free(features))
    with torch.no_grad():
        adapter.frames.logits.bias.fill_(-80.0)
    assert torch.isfinite(adapter.forward_frames(features)).all()


def test_unknown_kinds_and_params_are_rejected() -> None:
    with pytest.raises(ConfigError, match="known: concept, decoupled, unified"):
        build_adapter(AdapterConfig("other"), 8, 8)
    with pytest.raises(ConfigError, match="frame adapter 'cnn'; known: bigru, linear, transformer"):
        build_adapter(AdapterConfig("decoupled", {"frames": "cnn"}), 8, 8)
    with pytest.raises(ConfigError, match="heads"):
        build_adapter(AdapterConfig("decoupled", {"frames": "linear", "heads": 2}), 8, 8)
    with pytest.raises(ConfigError, match="divisible"):
        build_adapter(AdapterConfig("decoupled", {"heads": 3}), 8, 8)
    with pytest.raises(ConfigError, match="colour"):
        build_adapter(AdapterConfig("concept", {"concepts": 3, "colour": 1}), 8, 8)


def slow_gru(x: Tensor, state: dict[str, Tensor], layers: int) -> Tensor:
    """The GRU's equations, step by step in both directions, for one recording (T, C)."""
    for layer in range(layers):
        sides = []
        for suffix, order in (("", list(range(len(x)))), ("_reverse", list(range(len(x)))[::-1])):
            w_in, w_h, b_in, b_h = (state[f"frames.gru.{n}_l{layer}{suffix}"] for n in GRU_PARTS)
            hidden, outputs = torch.zeros(w_h.shape[1]), [torch.empty(0)] * len(x)
            for t in order:
                a, b = (w_in @ x[t] + b_in).chunk(3), (w_h @ hidden + b_h).chunk(3)
                reset, update = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
                hidden = (1 - update) * torch.tanh(a[2] + reset * b[2]) + update * hidden
                outputs[t] = hidden
            sides.append(torch.stack(outputs))
        x = torch.cat(sides, dim=-1)
    return x


GRU_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@torch.no_grad()
def test_bigru_frames_equal_the_equations() -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig("decoupled", {"frames": "bigru"}), 5, 6)
    state = adapter.state_dict()
    assert state["frames.gru.weight_hh_l1_reverse"].shape == (9, 3), "two layers, half of the dimensions per direction"
    x = torch.randn(2, 7, 5)
    expected = torch.stack([slow_gru(row, state, layers=2) for row in x])
    torch.testing.assert_close(adapter.forward_frames(x), expected)


def test_bigru_of_another_width_is_projected() -> None:
    adapter = build_adapter(AdapterConfig("decoupled", {"frames": "bigru", "hidden": 4, "layers": 1}), 5, 6)
    assert adapter.state_dict()["frames.out.weight"].shape == (6, 8)
    assert adapter.forward_frames(torch.randn(2, 7, 5)).shape == (2, 7, 6)


@torch.no_grad()
def test_linear_frames_are_independent() -> None:
    adapter = build_adapter(AdapterConfig("decoupled", {"frames": "linear", "hidden": 9}), 5, 6)
    x = torch.randn(2, 7, 5)
    alone = torch.stack([adapter.forward_frames(x[:, t : t + 1])[:, 0] for t in range(7)], dim=1)
    torch.testing.assert_close(adapter.forward_frames(x), alone)
    assert adapter.state_dict()["frames.0.weight"].shape == (9, 5)


@torch.no_grad()
@pytest.mark.parametrize("params", [{}, {"frames": "bigru"}, {"heads": 2, "hidden": 8, "frames": "transformer"}])
def test_unified_clips_and_frames_share_every_weight(params: dict[str, object]) -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig("unified", params), 5, 6).eval()
    assert all(name.startswith("shared.") for name in adapter.state_dict())
    pooled = torch.randn(3, 5)
    torch.testing.assert_close(adapter.forward_clip(pooled), adapter.forward_frames(pooled[:, None])[:, 0])
    assert adapter.forward_frames(torch.randn(3, 4, 5)).shape == (3, 4, 6)
