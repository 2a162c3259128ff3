"""Reads pretrained weights as parts of a FineLAP: EAT, CLAP's HTS-AT, Hugging Face text encoders.

A reader returns the config that the weights imply and their state under our names. Each tensor is either used or listed
as ignored; a file with unknown or missing tensors is rejected. Only plain weights are unpickled, and no code from a
checkpoint is executed.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import published
from model.encoders.eat import sincos_positions
from model.weight_files import CheckpointError, read_folder_weights, read_json, read_safetensors, read_torch

_CLAP_UNUSED = re.compile(r"^(?:text_model|text_projection|audio_projection|logit_scale_[at]$)")
_CLAP_FUSION = re.compile(r"^patch_embed\.(?:fusion_model|mel_conv2d)\.")  # fusion of recordings longer than the window
_CLAP_PREFIX = re.compile(r"^(?:audio_model\.)?audio_encoder\.")
_CLAP_PARAMS = {  # HTSAT's name → CLAP's, with transformers' default
    "spec_size": ("spec_size", 256),
    "patch": ("patch_size", 4),
    "dim": ("patch_embeds_hidden_size", 96),
    "depths": ("depths", [2, 2, 6, 2]),
    "heads": ("num_attention_heads", [4, 8, 16, 32]),
    "window": ("window_size", 8),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "drop_path": ("drop_path_rate", 0.0),
}
_CONFIG_NOISE = ("auto_map", "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_TEXT_UNUSED = re.compile(r"(?:^|\.)(?:pooler\.|embeddings\.(?:position_ids|token_type_ids)$)")


@dataclass(frozen=True)
class Part:
    """One part of a FineLAP: its parameters, its tensors, and the names of ignored source tensors."""

    params: dict[str, Any]
    state: dict[str, Tensor]
    ignored: tuple[str, ...] = ()


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder or file. Raises CheckpointError, also for pickles that need code."""
    if path.is_dir():
        return read_folder_weights(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    # fairseq stores its arguments beside the weights in a Namespace, which holds values and runs no code
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_torch(path)


def read_eat(path: Path, num_mel_bins: int = 128) -> Part:
    """EAT's own checkpoint (fairseq, state under "model") or a folder of its Hugging Face port, for our EAT encoder.

    The number of heads cannot be inferred from shapes; heads have 64 channels, as in every published size. Raises
    CheckpointError.
    """
    state: dict[str, Tensor] = {}
    ignored, unknown = [], []
    for source, tensor in read_weights(path).items():
        name = published.rename(f"audio_encoder.{source}")
        if name == "":
            ignored.append(source)
        elif name is None or name.removeprefix("audio_encoder.") in state:
            unknown.append(source)
        else:
            state[name.removeprefix("audio_encoder.")] = tensor
    sizes = {"patches.weight": 4, "blocks.0.fc1.weight": 2}
    missing = [n for n, ndim in sizes.items() if n not in state or state[n].ndim != ndim]
    if unknown or missing:
        raise CheckpointError(f"{path}: not the weights of an EAT", {"unknown": unknown, "missing": missing})
    width, _, patch, _ = state["patches.weight"].shape
    params: dict[str, Any] = {
        "dim": width,
        "depth": 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", n) for n in state) if m),
        "heads": max(1, width // published.HEAD_WIDTH),
        "mlp_ratio": state["blocks.0.fc1.weight"].shape[0] / width,
        "patch": patch,
    }
    table = state.get("positions")
    if table is not None:
        if _is_sincos(table, num_mel_bins // patch):
            del state["positions"]
            ignored.append("the position table, which is computed")
        else:
            params |= {"positions": "table", "table_tokens": table.shape[1] if table.ndim == 3 else 0}
    return Part(params, state, tuple(ignored))


def _is_sincos(table: Tensor, freq_patches: int) -> bool:
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] % freq_patches or table.shape[2] % 4:
        return False
    computed = sincos_positions(table.shape[1] // freq_patches, freq_patches, table.shape[2])
    return torch.allclose(table.float(), computed, rtol=0, atol=published.POSITION_TOLERANCE)


def read_htsat(path: Path) -> Part:
    """The audio encoder of a CLAP folder (config.json and weights), for our HTSAT encoder. Raises CheckpointError.

    `params` additionally contains `num_mel_bins`, which configures the mel front end.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    described = read_json(path / "config.json")
    audio = described.get("audio_config") or described
    if audio.get("model_type", "clap_audio_model") != "clap_audio_model":
        raise CheckpointError(f"{path}: a {audio['model_type']!r}, not CLAP")
    params = {ours: audio.get(theirs, default) for ours, (theirs, default) in _CLAP_PARAMS.items()}
    stride = audio.get("patch_stride", 4)
    sides = stride if isinstance(stride, list) else [stride]
    if len(set(sides)) != 1:
        raise CheckpointError(f"{path}: a patch stride of {sides} is not supported")
    params |= {"patch_stride": sides[0], "num_mel_bins": audio.get("num_mel_bins", 64)}
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for source, tensor in read_folder_weights(path).items():
        inner = _CLAP_PREFIX.sub("", source)
        if inner == source:
            (ignored if _CLAP_UNUSED.match(source) else unknown).append(source)
        elif _CLAP_FUSION.match(inner):
            ignored.append(source)
        else:
            state[f"clap.audio_encoder.{inner}"] = tensor
    if unknown:
        raise CheckpointError(f"{path}: not the weights of a CLAP", {"unknown": unknown})
    return Part(params, state, tuple(ignored))


def read_text_config(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder's config.json without the keys that don't describe the network."""
    described = read_json(folder / "config.json")
    if "model_type" not in described:
        raise CheckpointError(f"{folder / 'config.json'}: no model_type")
    return {key: value for key, value in described.items() if key not in _CONFIG_NOISE}


def read_text(folder: Path, expected: dict[str, Tensor], base: str) -> Part:
    """A Hugging Face encoder's weights under the names of the bare encoder, `expected`.

    A model with a head stores its encoder under `base`; the head is ignored, as are poolers and stored positions.
    Raises CheckpointError for other unknown tensors.
    """
    source = {re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", n): t for n, t in read_folder_weights(folder).items()}
    source = {re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", n): t for n, t in source.items()}
    headed = any(name.startswith(f"{base}.") for name in source) and not any(name in expected for name in source)
    state: dict[str, Tensor] = {}
    ignored, unknown = [], []
    for name, tensor in source.items():
        inner = name.removeprefix(f"{base}.") if headed else name
        if inner in expected:
            state[inner] = tensor
        elif (headed and inner == name) or _TEXT_UNUSED.search(name):
            ignored.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{folder}: weights that the config does not describe", {"unknown": unknown})
    return Part({}, state, tuple(ignored))


def fill(module: torch.nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copies a state into a module. Raises CheckpointError for missing, unknown or misshapen tensors."""
    expected = module.state_dict()
    shaped = [
        f"{name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    # computed tables, which only files of older versions contain
    missing = [n for n in expected if n not in state and not n.endswith(("relative_position_index", "position_ids"))]
    problems = {"unknown": sorted(set(state) - set(expected)), "missing": sorted(missing), "wrong shape": shaped}
    if any(problems.values()):
        raise CheckpointError(f"{source}: its tensors do not fit", problems)
    module.load_state_dict({n: t.to(expected[n].dtype) for n, t in state.items()}, strict=False)
