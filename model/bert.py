"""BERT and RoBERTa text encoders. Importing transformers' own costs 7 s of a core at start, measured; this costs none.

A post-norm transformer encoder (Devlin et al. 2019, section 3; Liu et al. 2019) with the tensor names and the outputs
of Hugging Face's BertModel and RobertaModel. Relative positions, decoders and other activations are left to
transformers; `supports` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 30522, "pad_token_id": 0},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}


@dataclass(frozen=True)
class BertConfig:
    """The sizes, with Hugging Face's names and defaults."""

    kind: str  # "bert" or "roberta"
    vocab_size: int
    pad_token_id: int | None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_hf(cls, kind: str, values: Mapping[str, Any]) -> BertConfig:
        """Reads the values of a config.json for which `supports` is true. Raises ValueError."""
        known = {field.name for field in fields(cls)}
        config = cls(kind, **_DEFAULTS[kind] | {name: value for name, value in values.items() if name in known})
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads"
            )
        return config


def supports(kind: str, values: Mapping[str, Any]) -> bool:
    """Whether this module builds the encoder of this model_type and config exactly as transformers would."""
    return (
        kind in _DEFAULTS
        and values.get("hidden_act", "gelu") in _ACTIVATIONS
        and values.get("position_embedding_type", "absolute") == "absolute"
        and not values.get("is_decoder")
        and not values.get("add_cross_attention")
        and not values.get("pruned_heads")
        and "embedding_size" not in values
    )


class Hidden(NamedTuple):
    """The output of an encoder."""

    last_hidden_state: Tensor  # (B, N, C)


class BertEncoder(nn.Module):
    """Token ids (B, N) → one vector (C,) per token. Fresh weights are normal, biases 0, as in transformers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.base_model_prefix = config.kind  # prefix of the tensor names in weight files
        self.embeddings = _Embeddings(config)
        self.encoder = _Stack(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Hidden:
        """(B, N) token ids and mask, 1 at real tokens (None: all are) → Hidden."""
        hidden = self.embeddings(input_ids)
        allowed = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        return Hidden(self.encoder(hidden, allowed))


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        pad, width = config.pad_token_id, config.hidden_size
        # RoBERTa numbers positions from after the padding token's id; padding itself has that id
        self.position_offset = pad if config.kind == "roberta" else None
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=self.position_offset)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor) -> Tensor:
        if self.position_offset is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        else:
            real = (ids != self.position_offset).long()
            positions = real.cumsum(1) * real + self.position_offset
        words = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))  # a single text: type 0
        embedded: Tensor = self.dropout(self.LayerNorm(words + self.position_embeddings(positions)))
        return embedded


class _Residual(nn.Module):
    """Linear, dropout, residual sum, LayerNorm."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, new: Tensor, before: Tensor) -> Tensor:
        added: Tensor = self.LayerNorm(self.dropout(self.dense(new)) + before)
        return added


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, nn.Dropout(config.attention_probs_dropout_prob)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Residual(config, config.hidden_size)

    def forward(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        attended: Tensor = self.output(self.self(hidden, allowed), hidden)
        return attended


class _Inner(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Inner(config)
        self.output = _Residual(config, config.intermediate_size)

    def forward(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        attended = self.attention(hidden, allowed)
        result: Tensor = self.output(self.intermediate(attended), attended)
        return result


class _Stack(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, allowed)
        return hidden
