"""Reads weight files: safetensors, whole or sharded, and PyTorch files that hold only weights.

Errors name the file. PyTorch files are unpickled with weights_only, which runs no code.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
_LISTED = 20  # names of each kind in a message


class CheckpointError(Exception):
    """Raised for an unusable checkpoint. `problems` maps a kind (unknown, missing, wrong shape) to tensor names."""

    def __init__(self, message: str, problems: dict[str, list[str]] | None = None) -> None:
        self.problems = {kind: names for kind, names in (problems or {}).items() if names}
        lines = [message]
        for kind, names in self.problems.items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"{kind}: {', '.join(names[:_LISTED])}{more}")
        super().__init__("; ".join(lines))


def read_folder_weights(folder: Path) -> dict[str, Tensor]:
    """Reads all tensors of a folder: one safetensors file, shards with an index, or one PyTorch file."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    torch_files = sorted(p for p in folder.iterdir() if p.suffix in _TORCH_SUFFIXES)
    if len(torch_files) == 1:
        return read_torch(torch_files[0])
    raise CheckpointError(f"{folder}: contains neither {WEIGHTS} nor {INDEX} nor a single PyTorch file")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{folder / INDEX}: no weight_map")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / INDEX}: {shard!r} is not the name of a file beside it")
        found = read_safetensors(folder / shard)
        listed = {name for name, home in weight_map.items() if home == shard}
        if set(found) != listed:
            problems = {"missing": sorted(listed - set(found)), "unknown": sorted(set(found) - listed)}
            raise CheckpointError(f"{folder / shard} does not match {INDEX}", problems)
        state.update(found)
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file onto the CPU."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: incomplete or not a safetensors file ({error})") from error


def read_torch(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a PyTorch file, also under the keys that trainers wrap it in."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files older than torch 1.6 are not zip archives and cannot be mapped
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not plain weights; unpickling was refused ({reason})") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: incomplete or not a PyTorch file ({error})") from error
    while isinstance(content, dict) and not any(isinstance(v, Tensor) for v in content.values()):
        inner = next((content[k] for k in _STATE_KEYS if isinstance(content.get(k), dict)), None)
        if inner is None:
            keys = ", ".join(map(str, list(content)[:_LISTED])) or "nothing"
            raise CheckpointError(f"{path}: no state dict; found {keys}")
        content = inner
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
