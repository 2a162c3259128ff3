"""The models to measure: the bundled one, and one of the published size with random weights."""

from __future__ import annotations

import torch

from model import FineLAP
from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, TextConfig, WindowConfig

SMALL, BASE = "finelap-small", "EAT-base"
# RoBERTa-base, the published model's text tower
_ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def base_config() -> FineLAPConfig:
    """The published sizes: EAT-base, two transformer layers over frames, RoBERTa-base, 1,024 dimensions."""
    return FineLAPConfig(
        name="eat-base-random",
        windows=WindowConfig(frame_hop=0.15625),
        audio_encoder=EncoderConfig("eat", {"dim": 768, "depth": 12, "heads": 12}),
        adapter=AdapterConfig("decoupled", {"frames": "transformer"}),
        text=TextConfig(hf_config=_ROBERTA),
    )


def build(size: str, dtype: torch.dtype = torch.float32) -> FineLAP:
    """Builds a model of one of the sizes in eval mode, with the same weights at each call."""
    if size == SMALL:
        from benchmarks import common  # needs libraries that EAT-base does not

        return FineLAP.from_pretrained(common.REPO / "checkpoints" / "finelap-small", dtype=dtype)
    torch.manual_seed(0)
    return FineLAP(base_config()).cast(dtype).eval()
