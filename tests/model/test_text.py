"""The text tower: pooling, projectors, and encoders built from Hugging Face configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.config import ConfigError, FineLAPConfig, TextConfig
from model.text import ResidualProjector, TextTower, build_text_encoder, masked_mean

IDS = torch.tensor([[2, 6, 11, 3, 0, 0], [2, 4, 7, 12, 9, 3]])
MASK = (IDS != 0).long()
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def text_config(tiny_config: Callable[..., FineLAPConfig]) -> TextConfig:
    return tiny_config().text


def built(config: TextConfig, dim: int = 24) -> TextTower:
    torch.manual_seed(0)
    return TextTower(config, dim).eval()


def test_masked_mean_is_the_mean_of_the_real_tokens() -> None:
    hidden = torch.randn(2, 6, 5)
    expected = torch.stack([hidden[0, :4].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(masked_mean(hidden, MASK), expected)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_embedding_is_pooled_projected_and_unit_length(text_config: TextConfig, pooling: str) -> None:
    tower = built(replace(text_config, pooling=pooling))
    with torch.no_grad():
        got = tower(IDS, MASK)
        for i, length in enumerate((4, 6)):  # one text at a time, without padding
            hidden = tower.encoder(input_ids=IDS[i : i + 1, :length]).last_hidden_state[0]
            pooled = hidden[0] if pooling == "first" else hidden.mean(0)
            torch.testing.assert_close(got[i], F.normalize(tower.projector(pooled), dim=-1), atol=1e-5, rtol=1e-4)
    assert got.shape == (2, 24) and got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2))


def test_residual_projector_scales_its_change_by_the_gate(text_config: TextConfig) -> None:
    config = replace(text_config, projector="residual", params={"gate": 0.25, "hidden": 10})
    tower = built(config, dim=32)
    pooled = torch.randn(3, 32)
    unit = pooled / pooled.norm(dim=-1, keepdim=True)
    first, _, last = tower.projector.mlp
    with torch.no_grad():
        moved = unit + 0.25 * (F.gelu(unit @ first.weight.T + first.bias) @ last.weight.T + last.bias)
        torch.testing.assert_close(tower.projector(pooled), moved)
        torch.testing.assert_close(ResidualProjector(32, 10, gate=0.0)(pooled), unit)
    assert first.weight.shape == (10, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "unknown text pooling"),
        ({"projector": "linear"}, "unknown text projector"),
        ({"projector": "residual", "params": {}}, "the tower has 32 and the model 24"),
        ({"params": {"hiden": 3}}, "unknown params hiden"),
        ({"hf_config": {}}, "no model_type"),
        ({"hf_config": {"model_type": "no-such-tower"}}, "no-such-tower"),
        ({"hf_config": {"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}}, "bert"),
    ],
)
def test_configs_that_cannot_be_built_are_rejected(text_config: TextConfig, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(replace(text_config, **changes))


def test_other_kinds_are_built_by_transformers_without_a_pooling_head() -> None:
    electra, _ = build_text_encoder({"model_type": "electra", "vocab_size": 30, "embedding_size": 8, **SMALL})
    assert not [n for n in electra.state_dict() if "pooler" in n]
    distil, config = build_text_encoder({"model_type": "distilbert", "vocab_size": 30, "dim": 16, "n_heads": 2})
    assert config.hidden_size == 16
    assert distil(input_ids=torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 16)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_code_that_a_config_refers_to_is_not_loaded(kind: str) -> None:
    remote = {"AutoModel": "someone/repo--modeling.Model", "AutoConfig": "someone/repo--config.Config"}
    small = SMALL if kind == "bert" else {"dim": 16, "n_heads": 2, "n_layers": 1}
    encoder, _ = build_text_encoder({"model_type": kind, "auto_map": remote, "dtype": "float16", **small})
    assert type(encoder).__module__.startswith(("model.", "transformers."))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
