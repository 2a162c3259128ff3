"""The text tower: a Hugging Face encoder, pooled to one vector and projected into the shared space.

The encoder is built from the config that the checkpoint stores, so nothing is downloaded. BERT and RoBERTa come from
model.bert; every other kind comes from transformers, which is imported only then.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import bert
from model.config import ConfigError, TextConfig


class TextTower(nn.Module):
    """Token ids (B, N) → embeddings (B, D) of unit length in the shared space."""

    def __init__(self, config: TextConfig, dim: int) -> None:
        super().__init__()
        if config.pooling not in ("first", "mean"):
            raise ConfigError(f"unknown text pooling {config.pooling!r}; known: first, mean")
        self.pooling = config.pooling
        encoder, hf_config = build_text_encoder(config.hf_config)
        self.vocabulary = int(hf_config.vocab_size)  # rows of the token table
        self.encoder = encoder
        self.projector = build_projector(config, int(hf_config.hidden_size), dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, N) token ids and (B, N) mask, 1 at real tokens → (B, D) float32, unit length."""
        return F.normalize(self.projector(self.pooled(input_ids, attention_mask)).float(), dim=-1)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's pooled embedding (B, C), before the projector, not normalised."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden[:, 0] if self.pooling == "first" else masked_mean(hidden, attention_mask)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, N, C) and mask (B, N) → (B, C): the mean over tokens where the mask is 1, accumulated in float32."""
    weights = mask.to(torch.float32)[..., None]
    mean = (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)
    return mean.to(hidden.dtype)


class ResidualProjector(nn.Module):
    """e → e + gate · MLP(e) on the normalised pooled embedding; stays close to the encoder's own space."""

    def __init__(self, width: int, hidden: int, gate: float) -> None:
        super().__init__()
        self.gate = gate
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, C) → (B, C), not normalised."""
        unit = F.normalize(pooled, dim=-1)
        return unit + self.gate * self.mlp(unit)


def build_projector(config: TextConfig, width: int, dim: int) -> nn.Module:
    """Builds the projector after pooling, (B, width) → (B, dim). Raises ConfigError for unknown kinds and params."""
    params = dict(config.params)
    if config.projector == "mlp":
        hidden = int(params.pop("hidden", dim))
        projector: nn.Module = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))
    elif config.projector == "residual":
        if width != dim:
            raise ConfigError(
                f"the residual text projector needs equal widths: the tower has {width} and the model {dim}"
            )
        hidden, gate = int(params.pop("hidden", width)), float(params.pop("gate", 0.3))
        projector = ResidualProjector(width, hidden, gate)
    else:
        raise ConfigError(f"unknown text projector {config.projector!r}; known: mlp, residual")
    if params:
        raise ConfigError(f"text projector {config.projector!r}: unknown params {', '.join(sorted(params))}")
    return projector


def build_text_encoder(hf_config: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Builds the encoder of a Hugging Face config, without pooling head, with fresh float32 weights; and its config.

    The returned config has vocab_size and hidden_size. Code that a config refers to is never downloaded or run. Raises
    ConfigError.
    """
    values = {k: v for k, v in hf_config.items() if k not in ("auto_map", "transformers_version")}
    kind = values.pop("model_type", None)
    if kind is None:
        raise ConfigError("text.hf_config has no model_type")
    if not bert.supports(kind, values):
        return build_hf_encoder(kind, values)
    try:
        config = bert.BertConfig.from_hf(kind, values)
        return bert.BertEncoder(config), config
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: invalid sizes, from PyTorch
        raise ConfigError(f"text.hf_config: cannot build {kind!r}: {error}") from error


def build_hf_encoder(kind: str, values: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Builds an encoder of transformers' classes, without pooling head where that is optional; and its config."""
    from transformers.models.auto.configuration_auto import AutoConfig  # slow to import
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, AutoModel

    try:
        config = AutoConfig.for_model(kind, **values)
        options = {"add_pooling_layer": False} if _takes(MODEL_MAPPING[type(config)], "add_pooling_layer") else {}
        encoder = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many types for invalid configs
        raise ConfigError(f"text.hf_config: transformers cannot build this {kind!r}: {error}") from error
    return encoder, config


def _takes(function: Any, argument: str) -> bool:
    return argument in inspect.signature(function).parameters
