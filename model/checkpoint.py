"""Reads and writes checkpoints: our folders, and the published PyTorch files and Hugging Face folders.

Our folder holds config.json, model.safetensors (or shards with model.safetensors.index.json) and tokenizer files.
Loading never runs code from a checkpoint: PyTorch files are read with weights_only, and only the weights and the
tokenizer are read from a Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model import published
from model.config import ConfigError, FineLAPConfig
from model.tokenizer import read_fast
from model.weight_files import (
    INDEX,
    WEIGHTS,
    CheckpointError,
    read_folder_weights,
    read_json,
    read_safetensors,
    read_torch,
)

log = logging.getLogger(__name__)

CONFIG = "config.json"
TEXT_TOWER = "text.encoder."
SCORE_PARAMETERS = frozenset({"temp_global", "b_global", "temp_local", "b_local"})

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_WEIGHT_PATTERNS = ["*.safetensors", "*.json", "*.txt"]
_TOKENIZER_PATTERNS = ["tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json", "config.json"]

Download = Callable[[str, str | None, list[str]], str]  # (hub id, revision, file patterns) → folder
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content under our tensor names, before a network is built from it."""

    source: str  # as given by the caller; messages name it
    config: FineLAPConfig
    state: dict[str, Tensor]
    folder: Path  # where its tokenizer files are, if it has any
    tensors: int  # in the source
    ignored: tuple[str, ...] = ()  # source names that have no part in the forward pass
    computed: tuple[str, ...] = ()  # source names of fixed tables equal to what the network computes
    is_published: bool = False


# Loading


def hub_download(repo: str, revision: str | None, patterns: list[str]) -> str:
    """Downloads the matching files of a Hugging Face repository; returns the local folder."""
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def read_checkpoint(
    source: str | Path, *, revision: str | None = None, download: Download = hub_download
) -> Checkpoint:
    """Reads our folder, a published PyTorch file, its Hugging Face folder, or a hub id.

    Raises CheckpointError, which names the file or the tensors at fault.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, str(source))
    if path.is_file():
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        return _translated(state, path.parent, path.stem, str(source))
    if not isinstance(source, str) or not _HUB_ID.match(source):
        raise CheckpointError(f"{source}: no such file or folder")
    try:
        folder = Path(download(source, revision, _WEIGHT_PATTERNS))
    except Exception as error:  # the hub client raises many types, for example when offline or refused
        raise CheckpointError(
            f"{source}: no such folder here, and downloading it from the hub failed: {error}"
        ) from error
    return _read_folder(folder, source, name=source.rsplit("/", 1)[-1])


def _read_folder(folder: Path, source: str, name: str | None = None) -> Checkpoint:
    described = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "format_version" in described:
        try:
            config = FineLAPConfig.from_dict(described)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        state = read_folder_weights(folder)
        return Checkpoint(source, config, state, folder, len(state))
    return _translated(read_folder_weights(folder), folder, name or folder.resolve().name, source)


def _translated(state: dict[str, Tensor], folder: Path, name: str, source: str) -> Checkpoint:
    try:
        found = published.translate(state, name)
    except published.UnknownLayout as error:
        raise CheckpointError(f"{source}: {error}", error.problems) from error
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return Checkpoint(
        source, found.config, found.state, folder, len(state), found.ignored, found.computed, is_published=True
    )


# Building the network


class _SkipInit(TorchFunctionMode):
    """Leaves parameters as allocated, because every one of them is about to be replaced."""

    # By name: torch.nn.init dispatches its functions as a whole, and plain tensor methods share their names.
    _RANDOM = frozenset(
        f"{kind}_"
        for kind in ("uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal")
        + ("kaiming_uniform", "kaiming_normal", "orthogonal")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_network(content: Checkpoint, network: Callable[[FineLAPConfig], Network]) -> Network:
    """Builds `network` from the checkpoint's config and loads its tensors, as float32 regardless of their stored dtype.

    Raises CheckpointError if the config cannot be built or the tensors do not fit it exactly.
    """
    try:
        with _SkipInit(), torch.no_grad():
            built = network(content.config)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{content.source}: its config cannot be built: {error}") from error
    expected = built.state_dict()
    problems = {
        "unknown": sorted(set(content.state) - set(expected)),
        "missing": sorted(set(expected) - set(content.state)),
        "wrong shape": [
            f"{name} {tuple(content.state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in content.state and content.state[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        raise CheckpointError(f"{content.source}: its tensors do not fit its config", problems)
    # Copies, so that the network does not depend on the file remaining unchanged.
    state = {name: content.state[name].to(expected[name].dtype, copy=True) for name in expected}
    built.load_state_dict(state, assign=True)
    return built


def embedding_stamp(config: FineLAPConfig, state: dict[str, Tensor]) -> str:
    """The hex SHA-256 of everything that determines the embedding space.

    That is the config without its name and `matching`, and the name, shape and values (as float32) of every
    floating-point tensor except temperatures and biases. Storing equal values in another dtype keeps the stamp;
    rounding them changes it.
    """
    described = replace(config, name="", matching=None).to_dict()

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        values = tensor.detach().cpu().float().contiguous().numpy()
        return f"{name} {list(tensor.shape)} {hashlib.sha256(values.data).hexdigest()}\n".encode()

    counted = sorted((n, t) for n, t in state.items() if t.is_floating_point() and n not in SCORE_PARAMETERS)
    whole = hashlib.sha256(json.dumps(described, sort_keys=True).encode() + b"\n")
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for line in pool.map(digest, counted):
            whole.update(line)
    return whole.hexdigest()


# Tokenizers


def find_tokenizer(
    content: Checkpoint, requested: str | Path | None, download: Download = hub_download
) -> tuple[Any | None, str | None]:
    """Loads the requested tokenizer, the checkpoint's own, or the published model's; returns it with its origin.

    `requested` is a folder or a hub id. Returns (None, None) if there is no tokenizer. Raises CheckpointError.
    """
    if requested is not None:
        folder = Path(requested)
        if not folder.is_dir():
            if not isinstance(requested, str) or not _HUB_ID.match(requested):
                raise CheckpointError(f"tokenizer {requested}: no such folder")
            try:
                folder = Path(download(requested, None, _TOKENIZER_PATTERNS))
            except Exception as error:
                raise CheckpointError(f"tokenizer {requested}: downloading it from the hub failed: {error}") from error
        return _read_tokenizer(folder), str(requested)
    if any((content.folder / f).is_file() for f in TOKENIZER_FILES):
        return _read_tokenizer(content.folder), str(content.folder)
    if not content.is_published:
        return None, None
    try:
        folder = Path(download(published.TOKENIZER_REPO, None, _TOKENIZER_PATTERNS))
    except Exception as error:
        log.warning(
            "texts cannot be encoded: no tokenizer in the checkpoint, and %s: %s", published.TOKENIZER_REPO, error
        )
        return None, None
    return _read_tokenizer(folder), published.TOKENIZER_REPO


def _read_tokenizer(folder: Path) -> Any:
    try:
        if (fast := read_fast(folder)) is not None:
            return fast
        from transformers.models.auto.tokenization_auto import AutoTokenizer  # slow to import

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes raise many types for broken files
        raise CheckpointError(f"{folder}: no tokenizer could be read from it: {error}") from error


# Saving


def save_checkpoint(
    folder: str | Path,
    config: FineLAPConfig,
    state: dict[str, Tensor],
    tokenizer: Any | None,
    *,
    shard_text_tower: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes our folder; equal content gives equal bytes.

    `dtype` rounds the matrices; vectors, statistics and scalars stay float32. With `shard_text_tower` the text tower's
    own weights form the first shard, so that file stays identical while the tower is unchanged. Each file is replaced
    atomically. Raises CheckpointError for values that `dtype` cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(name, tensor, dtype) for name, tensor in sorted(state.items())}
    shards = _shards(state) if shard_text_tower else {WEIGHTS: state}
    for file, tensors in shards.items():
        _replace(folder / file, lambda path, content=tensors: save_file(content, path, {"format": "pt"}))  # type: ignore[misc]
    files = set(shards)
    if shard_text_tower:
        size = sum(t.numel() * t.element_size() for t in state.values())
        homes = {name: file for file, tensors in shards.items() for name in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(homes.items()))}
        _write_json(folder / INDEX, index)
        files.add(INDEX)
    for stale in (INDEX, WEIGHTS, *(p.name for p in folder.glob("model-*-of-*.safetensors"))):
        if stale not in files:
            (folder / stale).unlink(missing_ok=True)
    _write_json(folder / CONFIG, config.to_dict())
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder)


def _shards(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    tower = {name: tensor for name, tensor in state.items() if name.startswith(TEXT_TOWER)}
    rest = {name: tensor for name, tensor in state.items() if name not in tower}
    return {"model-00001-of-00002.safetensors": tower, "model-00002-of-00002.safetensors": rest}


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} has values that {dtype} cannot hold")
    return tensor.contiguous()


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # the last call's settings are not part of the tokenizer
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a temporary file and renames it to `path`, so that readers see the old file or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # from the user's umask; save_file makes its files private
        write(part)
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
