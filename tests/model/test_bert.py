"""Our BERT and RoBERTa equal those of transformers: tensors, outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.bert import BertConfig, BertEncoder, supports
from model.text import build_hf_encoder, build_text_encoder

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
KINDS = [
    ("bert", {}),
    ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 3, "pad_token_id": None}),
    ("roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    ("roberta", {"pad_token_id": 3}),
]


def both(kind: str, changes: dict[str, Any]) -> tuple[BertEncoder, torch.nn.Module]:
    torch.manual_seed(0)
    ours, _ = build_text_encoder({"model_type": kind, **SIZES, **changes})
    theirs, _ = build_hf_encoder(kind, {**SIZES, **changes})
    assert isinstance(ours, BertEncoder)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def tokens(kind: str, changes: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of 12, 5 and 1 tokens, padded."""
    pad = changes.get("pad_token_id", {"bert": 0, "roberta": 1}[kind])
    mask = torch.arange(12) < torch.tensor([[12], [5], [1]])
    ids = torch.randint(4, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, 0 if pad is None else pad), mask.long()


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_equals_transformers(kind: str, changes: dict[str, Any]) -> None:
    ours, theirs = both(kind, changes)
    ids, mask = tokens(kind, changes)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for given in (mask, None):
        a = ours(input_ids=ids, attention_mask=given).last_hidden_state
        b = theirs(input_ids=ids, attention_mask=given).last_hidden_state
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        a.square().sum().backward()
        b.square().sum().backward()
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(
                ours.get_parameter(name).grad,
                parameter.grad,
                atol=1e-4,
                rtol=1e-3,
                msg=lambda why, n=name: f"{n}: {why}",
            )


def test_dropout_is_configured() -> None:
    ours, _ = both("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    ids, mask = tokens("bert", {})
    with torch.no_grad():
        still = ours(ids, mask).last_hidden_state
        assert torch.equal(ours.train()(ids, mask).last_hidden_state, still)
        for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            moved, _ = both("bert", none | {rate: 0.5})
            assert not torch.allclose(moved.train()(ids, mask).last_hidden_state, still)


def test_fresh_weights_are_initialised_as_in_transformers() -> None:
    torch.manual_seed(0)
    big = SIZES | {"vocab_size": 4000, "hidden_size": 64, "initializer_range": 0.05}
    ours, theirs = build_text_encoder({"model_type": "bert", **big})[0], build_hf_encoder("bert", big)[0]
    assert not ours.embeddings.word_embeddings.weight[0].any()
    with torch.no_grad():
        for name, y in theirs.named_parameters():
            x = ours.get_parameter(name)
            assert abs(float(x.mean() - y.mean())) < 0.02 and abs(float(x.std() - y.std())) < 0.01, name


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("roberta", {"add_cross_attention": True, "is_decoder": True}),
        ("electra", {}),
    ],
)
def test_other_configs_are_left_to_transformers(kind: str, values: dict[str, Any]) -> None:
    assert not supports(kind, values)


def test_defaults_equal_those_of_transformers() -> None:
    from transformers import BertConfig as TheirBert
    from transformers import RobertaConfig as TheirRoberta

    for kind, theirs in (("bert", TheirBert()), ("roberta", TheirRoberta())):
        ours = BertConfig.from_hf(kind, {})
        for name, value in vars(ours).items():
            if name != "kind":
                assert getattr(theirs, name) == value, (kind, name)
