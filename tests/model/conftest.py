"""Small models for fast tests: a FineLAP of some ten thousand parameters, and an equally small published state."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig
from model.finelap import FineLAP

WORDS = ["a", "the", "dog", "bird", "car", "rain", "bark", "barks", "barking", "sings", "passes", "loud", "quiet"]
WORDS += ["sound", "of", "and", "in", "distance"]


def build_tokenizer() -> Any:
    """A word-level tokenizer with BERT's special tokens, created on the fly."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def build_config(**changes: Any) -> FineLAPConfig:
    """EAT of width 32 and depth 2 over 32 mel bins, a two-layer BERT, 2.56 s windows of 16 frames."""
    values: dict[str, Any] = {
        "name": "tiny",
        "dim": 24,
        "mel": MelConfig(num_mel_bins=32),
        "windows": WindowConfig(mel_frames=256, frames=16, frame_hop=0.16, overlap_frames=4, buckets=(4, 8)),
        "audio_encoder": EncoderConfig("eat", {"dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "patch": 16}),
        "adapter": AdapterConfig("decoupled", {"layers": 1, "heads": 4, "hidden": 48}),
        "text": TextConfig(
            pooling="mean",
            max_tokens=8,
            projector="mlp",
            params={"hidden": 40},
            hf_config={
                "model_type": "bert",
                "vocab_size": 4 + len(WORDS),
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "max_position_embeddings": 16,
            },
        ),
    }
    return FineLAPConfig(**(values | changes))


def fill(model: torch.nn.Module, salt: str = "") -> None:
    """Draws weights from their names, large enough that every part affects the result."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32((salt + name).encode()))
            spread = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            tensor.copy_(centre + spread * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., FineLAPConfig]:
    """Builds the small config, with fields replaced."""
    return build_config


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., FineLAP]:
    """Builds a small model in eval mode with its own weights and tokenizer, for tests that modify it."""

    def make(config: FineLAPConfig | None = None, salt: str = "") -> FineLAP:
        model = FineLAP(config or build_config(), build_tokenizer())
        fill(model, salt)
        with torch.no_grad():
            for parameter, value in zip(
                (model.temp_global, model.b_global, model.temp_local, model.b_local), (0.2, -1.0, 0.3, 0.5), strict=True
            ):
                parameter.fill_(value)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., FineLAP]) -> FineLAP:
    """A small shared model for tests that only read it."""
    return make_tiny()


@dataclass(frozen=True)
class Namings:
    """The three published namings of a checkpoint's tensors."""

    @staticmethod
    def newer(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    @staticmethod
    def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
        def name(new: str) -> str:
            for a, b in (
                ("global_text_proj", "clap_model.text_proj"),
                ("global_audio_proj", "clap_model.audio_proj"),
                ("local_audio_proj", "audio_adapter"),
            ):
                if new.startswith(a + "."):
                    return b + new.removeprefix(a)
            fixed = {"temp_global": "clap_model.temp", "b_global": "clap_model.b"}
            fixed |= {"temp_local": "temp_local", "b_local": "b_local"}
            return fixed.get(new, f"clap_model.{new}")

        return {name(n): t for n, t in state.items()}

    @staticmethod
    def hub(state: dict[str, Tensor]) -> dict[str, Tensor]:
        def name(new: str) -> str:
            new = new.replace("audio_encoder.audio_enc.model.", "audio_encoder.model.")
            new = new.replace("audio_encoder.audio_enc.", "audio_encoder.model.")
            return new.replace("modality_encoders.IMAGE.context_encoder.norm", "pre_norm").replace(
                "modality_encoders.IMAGE.", ""
            )

        return {name(n): t for n, t in state.items()}


@pytest.fixture(scope="session")
def namings() -> Namings:
    return Namings()


def published_shapes(width: int = 64, depth: int = 2, dim: int = 16, words: int = 4 + len(WORDS)) -> dict[str, tuple]:
    """Names and shapes of a published checkpoint for a smaller network."""
    shapes: dict[str, tuple] = {n: () for n in ("temp_global", "b_global", "temp_local", "b_local")}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    eat = "audio_encoder.audio_enc.model"
    image = f"{eat}.modality_encoders.IMAGE"
    shapes[f"{image}.extra_tokens"] = (1, 1, width)
    shapes[f"{image}.local_encoder.proj.weight"] = (width, 1, 16, 16)
    shapes[f"{image}.local_encoder.proj.bias"] = (width,)
    shapes[f"{image}.fixed_positional_encoder.positions"] = (1, 80 * 8, width)
    norm(f"{image}.context_encoder.norm", width)
    for i in range(depth):
        block = f"{eat}.blocks.{i}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", width, 2 * width)
        linear(f"{block}.mlp.fc2", 2 * width, width)
    norm("audio_encoder.audio_enc.fc_norm", width)
    linear("audio_encoder.audio_enc.head", width, 5)
    text = "text_encoder.text_encoder"
    for table, rows in (("word", words), ("token_type", 1), ("position", 34)):
        shapes[f"{text}.embeddings.{table}_embeddings.weight"] = (rows, width)
    norm(f"{text}.embeddings.LayerNorm", width)
    for i in range(depth):
        layer = f"{text}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm", width)
        linear(f"{layer}.intermediate.dense", width, 2 * width)
        linear(f"{layer}.output.dense", 2 * width, width)
        norm(f"{layer}.output.LayerNorm", width)
    for side in ("global_audio_proj", "global_text_proj"):
        linear(f"{side}.0", width, dim)
        linear(f"{side}.2", dim, dim)
    linear("local_audio_proj.0", width, dim)
    for i in range(2):
        layer = f"local_audio_proj.1.layers.{i}"
        shapes[f"{layer}.self_attn.in_proj_weight"] = (3 * dim, dim)
        shapes[f"{layer}.self_attn.in_proj_bias"] = (3 * dim,)
        linear(f"{layer}.self_attn.out_proj", dim, dim)
        linear(f"{layer}.linear1", dim, 2 * dim)
        linear(f"{layer}.linear2", 2 * dim, dim)
        norm(f"{layer}.norm1", dim)
        norm(f"{layer}.norm2", dim)
    return shapes


@pytest.fixture
def small_published() -> dict[str, Tensor]:
    """A published state of width 64 with weights drawn from their names, and the fixed positions."""
    from model.encoders.eat import sincos_positions

    state = {}
    for name, shape in published_shapes().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        spread = torch.tensor(shape[1:]).prod().item() ** -0.5 if len(shape) > 1 else 0.1
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        state[name] = centre + spread * torch.randn(shape, generator=generator)
        if name.endswith("positions"):
            state[name] = sincos_positions(80, 8, 64)
    return state | {"temp_global": torch.tensor(0.1), "b_global": torch.tensor(-2.0), "temp_local": torch.tensor(0.3)}
