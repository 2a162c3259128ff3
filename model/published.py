"""Translates the published FineLAP's state dict to our tensor names, and infers its config from the shapes.

All three published naming schemes are supported. Every tensor is either used, ignored because the forward pass does
not use it, or reported as unknown. None of the published code is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig

FRAME_HOP = 0.15625  # seconds: 10 s / 64, the grid of the published labels
WINDOW_MEL_FRAMES = 1024
HEAD_WIDTH = 64  # channels per attention head of EAT and RoBERTa, at every published size
ADAPTER_HEADS = 8
POSITION_TOLERANCE = 1e-3  # float32 sines of angles up to 768 rad
TOKENIZER_REPO = "FacebookAI/roberta-base"

_WRAPPERS = re.compile(r"^(?:module\.|model\.|_orig_mod\.)+")  # added by parallel and compiled training

# The older naming → the newer one.
_OLDER = [
    (re.compile(r"^clap_model\.text_proj\."), "global_text_proj."),
    (re.compile(r"^clap_model\.audio_proj\."), "global_audio_proj."),
    (re.compile(r"^clap_model\.temp$"), "temp_global"),
    (re.compile(r"^clap_model\.b$"), "b_global"),
    (re.compile(r"^clap_model\."), ""),
    (re.compile(r"^audio_adapter\."), "local_audio_proj."),
]

# EAT is under `audio_enc.model`, its patch embedding under `modality_encoders.IMAGE`; the Hugging Face port is flat.
_EAT = r"^audio_encoder\.(?:audio_enc\.)?(?:model\.)*(?:modality_encoders\.IMAGE\.)?"
_TEXT = r"^text_encoder\.(?:text_encoder\.|model\.|roberta\.)*"

_UNUSED = [
    re.compile(_TEXT + r"(?:pooler|lm_head)\."),
    re.compile(_TEXT + r"embeddings\.(?:position_ids|token_type_ids)$"),
    re.compile(_EAT + r"(?:fc_norm|head)\."),
    re.compile(_EAT + r"(?:[a-z_]*decoder|recon_proj|_ema)\."),  # used only in EAT's pre-training
]

_RENAMES = [
    (re.compile(_EAT + r"extra_tokens$"), "audio_encoder.cls"),
    (re.compile(_EAT + r"local_encoder\.proj\."), "audio_encoder.patches."),
    (re.compile(_EAT + r"fixed_positional_encoder\.positions$"), "audio_encoder.positions"),
    (re.compile(_EAT + r"(?:context_encoder\.norm|pre_norm)\."), "audio_encoder.norm."),
    (re.compile(_EAT + r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj)\."), r"audio_encoder.blocks.\1.\2."),
    (re.compile(_EAT + r"blocks\.(\d+)\.mlp\.(fc1|fc2)\."), r"audio_encoder.blocks.\1.\2."),
    (re.compile(_TEXT + r"(embeddings|encoder)\."), r"text.encoder.\1."),
    (re.compile(r"^global_audio_proj\."), "adapter.clip."),
    (re.compile(r"^local_audio_proj\."), "adapter.frames."),
    (re.compile(r"^global_text_proj\."), "text.projector."),
    (re.compile(r"^(temp|b)_(global|local)$"), r"\1_\2"),
]


class UnknownLayout(ValueError):
    """Raised for a state dict that is not a published FineLAP's; `problems` maps a kind to tensor names."""

    def __init__(self, problems: dict[str, list[str]]) -> None:
        super().__init__("not the state of a published FineLAP")
        self.problems = problems


@dataclass(frozen=True)
class Translated:
    """A published state dict under our names."""

    config: FineLAPConfig
    state: dict[str, Tensor]
    ignored: tuple[str, ...]  # source names that have no part in the forward pass
    computed: tuple[str, ...]  # source names of tables equal to those our model computes


def translate(state: dict[str, Tensor], name: str = "finelap") -> Translated:
    """Translates a state dict in any of the three namings, with or without training wrappers, to our names.

    Raises UnknownLayout for unknown and duplicate names, and for missing tensors that determine the sizes.
    """
    ours: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored, unknown, duplicates = [], [], []
    for source, tensor in state.items():
        target = rename(source)
        if target is None:
            unknown.append(source)
        elif not target:
            ignored.append(source)
        elif target in ours:
            duplicates.append(f"{source} (also {origin[target]})")
        else:
            ours[target], origin[target] = tensor, source
    problems = {"unknown": unknown, "duplicate": duplicates, "missing": [n for n in _SIZES if n not in ours]}
    if any(problems.values()):
        raise UnknownLayout(problems)
    config = infer_config(ours, name)
    computed = []
    if config.audio_encoder.params["positions"] == "sincos" and "audio_encoder.positions" in ours:
        del ours["audio_encoder.positions"]
        computed.append(origin["audio_encoder.positions"])
    return Translated(config, ours, tuple(sorted(ignored)), tuple(computed))


def rename(source: str) -> str | None:
    """Our name for a published one; "" for one that is known to be unused, None for an unknown one."""
    name = _WRAPPERS.sub("", source)
    for pattern, replacement in _OLDER:
        name, found = pattern.subn(replacement, name)
        if found:
            break
    if any(pattern.search(name) for pattern in _UNUSED):
        return ""
    for pattern, replacement in _RENAMES:
        renamed, found = pattern.subn(replacement, name)
        if found:
            return renamed
    return None


# The tensors that determine the sizes, with their numbers of dimensions.
_SIZES = {
    "audio_encoder.patches.weight": 4,
    "audio_encoder.blocks.0.fc1.weight": 2,
    "adapter.clip.2.weight": 2,
    "adapter.frames.1.layers.0.linear1.weight": 2,
    "text.encoder.embeddings.word_embeddings.weight": 2,
    "text.encoder.embeddings.position_embeddings.weight": 2,
    "text.encoder.embeddings.token_type_embeddings.weight": 2,
    "text.encoder.encoder.layer.0.intermediate.dense.weight": 2,
    "text.projector.0.weight": 2,
}


def infer_config(state: dict[str, Tensor], name: str) -> FineLAPConfig:
    """Infers the config of a state dict under our names; what shapes do not determine is as published."""
    flat = [f"{n} {tuple(state[n].shape)}" for n, ndim in _SIZES.items() if state[n].ndim != ndim]
    if flat:
        raise UnknownLayout({"wrong shape": flat})
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    width, _, patch, _ = shapes["audio_encoder.patches.weight"]
    dim = shapes["adapter.clip.2.weight"][0]
    encoder = {
        "dim": width,
        "depth": _count(state, r"audio_encoder\.blocks\.(\d+)\."),
        "heads": max(1, width // HEAD_WIDTH),
        "mlp_ratio": shapes["audio_encoder.blocks.0.fc1.weight"][0] / width,
        "patch": patch,
        "positions": "sincos",
    }
    mel, windows = MelConfig(), WindowConfig(WINDOW_MEL_FRAMES, WINDOW_MEL_FRAMES // patch, FRAME_HOP)
    table = state.get("audio_encoder.positions")
    if table is not None and not _is_sincos(table, mel.num_mel_bins // patch, width):
        encoder |= {"positions": "table", "table_tokens": table.shape[1] if table.ndim == 3 else 0}
    adapter = {
        "layers": _count(state, r"adapter\.frames\.1\.layers\.(\d+)\."),
        "heads": ADAPTER_HEADS,
        "hidden": shapes["adapter.frames.1.layers.0.linear1.weight"][0],
    }
    vocabulary, text_width = shapes["text.encoder.embeddings.word_embeddings.weight"]
    roberta = {
        "model_type": "roberta",
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "num_hidden_layers": _count(state, r"text\.encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, text_width // HEAD_WIDTH),
        "intermediate_size": shapes["text.encoder.encoder.layer.0.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes["text.encoder.embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes["text.encoder.embeddings.token_type_embeddings.weight"][0],
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    text = TextConfig(
        pooling="first",
        max_tokens=30,
        projector="mlp",
        params={"hidden": shapes["text.projector.0.weight"][0]},
        hf_config=roberta,
    )
    return FineLAPConfig(
        name, dim, mel, windows, EncoderConfig("eat", encoder), AdapterConfig("decoupled", adapter), text
    )


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """The number of layers under a numbered name. Gaps are reported later, as missing tensors."""
    return 1 + max(int(m[1]) for m in (re.match(pattern, n) for n in state) if m)


def _is_sincos(table: Tensor, freq_patches: int, width: int) -> bool:
    """Whether a stored position table equals the one EAT computes."""
    from model.encoders.eat import sincos_positions

    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] % freq_patches or table.shape[2] != width or width % 4:
        return False
    computed = sincos_positions(table.shape[1] // freq_patches, freq_patches, width)
    rounding = torch.finfo(table.dtype).eps if table.is_floating_point() else 0.0
    return torch.allclose(table.float(), computed, rtol=0, atol=max(POSITION_TOLERANCE, rounding))
