"""Checkpoints on disk: ours written and read, the published ones read, and one converted into the other.

Ours is a folder: config.json, model.safetensors (or shards with model.safetensors.index.json) and the tokenizer's
files. Knows no training state. Nothing that is loaded can run code: PyTorch files are read with weights_only, and of a
Hugging Face folder only the weights and the tokenizer are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model import published
from model.config import ConfigError, FineLAPConfig
from model.finelap import FineLAP
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


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did with every tensor of the source."""

    source: str
    folder: Path
    name: str
    tensors: int  # in the source
    used: int  # written, under our names
    computed: tuple[str, ...]  # fixed tables found equal to what the model computes, and so not written
    ignored: tuple[str, ...]  # known to have no part in the forward pass
    parameters: int  # numbers in the written tensors
    tokenizer: str | None  # where it came from; None: texts cannot be encoded
    stamp: str


@dataclass(frozen=True)
class _Read:
    """A checkpoint's content before a network is built."""

    config: FineLAPConfig
    state: dict[str, Tensor]
    folder: Path | None  # where tokenizer files may lie
    tensors: int
    ignored: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    is_published: bool = False


# Loading


def load_checkpoint(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    download: Download | None = None,
) -> FineLAP:
    """A model in eval mode from our folder, a published PyTorch file, its Hugging Face folder, or a hub id.

    `tokenizer` is a folder or hub id that replaces the checkpoint's own. A model without any loads all the same, and
    refuses texts. Raises CheckpointError, which names the file or the tensors at fault.
    """
    content = _read(source, revision, download or hub_download)
    model = _assemble(content, str(source))
    model.tokenizer = _find_tokenizer(content, tokenizer, download or hub_download)[0]
    if model.tokenizer is not None:
        _prepare_tokenizer(model)
    return model.cast(dtype).to(device).eval()


def convert(
    src: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    *,
    revision: str | None = None,
    download: Download | None = None,
) -> ConversionReport:
    """Any source that `load_checkpoint` reads → our folder `out`. Raises CheckpointError."""
    content = _read(src, revision, download or hub_download)
    model = _assemble(content, str(src))
    model.tokenizer, origin = _find_tokenizer(content, tokenizer, download or hub_download)
    if model.tokenizer is not None:
        _prepare_tokenizer(model)
    save_checkpoint(model, out)
    return ConversionReport(
        source=str(src),
        folder=Path(out),
        name=model.name,
        tensors=content.tensors,
        used=len(content.state),
        computed=content.computed,
        ignored=content.ignored,
        parameters=sum(t.numel() for t in content.state.values()),
        tokenizer=origin,
        stamp=model.stamp,
    )


def hub_download(repo: str, revision: str | None, patterns: list[str]) -> str:
    """Fetches those files of a Hugging Face repository that match; the local folder."""
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _read(source: str | Path, revision: str | None, download: Download) -> _Read:
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        return _translated(state, path.parent, path.stem, str(source))
    if not isinstance(source, str) or not _HUB_ID.match(source):
        raise CheckpointError(f"{source}: no such file or folder")
    try:
        folder = Path(download(source, revision, _WEIGHT_PATTERNS))
    except Exception as error:  # the hub client raises many kinds, offline and refused among them
        raise CheckpointError(f"{source}: no such folder here, and the hub did not give it: {error}") from error
    return _read_folder(folder, name=source.rsplit("/", 1)[-1])


def _read_folder(folder: Path, name: str | None = None) -> _Read:
    described = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "format_version" in described:
        try:
            config = FineLAPConfig.from_dict(described)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        state = read_folder_weights(folder)
        return _Read(config, state, folder, len(state))
    return _translated(read_folder_weights(folder), folder, name or folder.resolve().name, str(folder))


def _translated(state: dict[str, Tensor], folder: Path, name: str, source: str) -> _Read:
    try:
        found = published.translate(state, name)
    except published.UnknownLayout as error:
        raise CheckpointError(f"{source}: {error}", error.problems) from error
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return _Read(found.config, found.state, folder, len(state), found.ignored, found.computed, is_published=True)


# Building the network


class _SkipInit(TorchFunctionMode):
    """Leaves parameters as they were allocated: every one of them is about to be replaced."""

    # By name: torch.nn.init hands its functions over whole, and plain tensor methods have the same names.
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


@contextmanager
def _without_init() -> Iterator[None]:
    with _SkipInit(), torch.no_grad():
        yield


def _assemble(content: _Read, source: str) -> FineLAP:
    """The network of a config with exactly the tensors of a state, in float32 whatever they were stored in."""
    try:
        with _without_init():
            model = FineLAP(content.config)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its config cannot be built: {error}") from error
    expected = model.state_dict()
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
        raise CheckpointError(f"{source}: its tensors do not fit its config", problems)
    # Copies, so that nothing of the model depends on the file staying as it is.
    state = {name: content.state[name].to(expected[name].dtype, copy=True) for name in expected}
    model.load_state_dict(state, assign=True)
    model._loaded_stamp = embedding_stamp(content.config, state)
    return model


def embedding_stamp(config: FineLAPConfig, state: dict[str, Tensor]) -> str:
    """Hex sha256 of what decides where things land in the embedding space.

    The config but for its name, and the name, shape and values (as float32) of every floating tensor but the
    temperatures and biases. Storing the same values in another dtype does not change it; rounding them does.
    """
    described = replace(config, name="").to_dict()

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


def _find_tokenizer(content: _Read, asked: str | Path | None, download: Download) -> tuple[Any | None, str | None]:
    """The tokenizer and where it came from: the one asked for, the checkpoint's own, or the published model's."""
    if asked is not None:
        folder = Path(asked)
        if not folder.is_dir():
            if not isinstance(asked, str) or not _HUB_ID.match(asked):
                raise CheckpointError(f"tokenizer {asked}: no such folder")
            try:
                folder = Path(download(asked, None, _TOKENIZER_PATTERNS))
            except Exception as error:
                raise CheckpointError(f"tokenizer {asked}: the hub did not give it: {error}") from error
        return _read_tokenizer(folder), str(asked)
    if content.folder is not None and any((content.folder / f).is_file() for f in TOKENIZER_FILES):
        return _read_tokenizer(content.folder), str(content.folder)
    if not content.is_published:
        return None, None
    try:
        folder = Path(download(published.TOKENIZER_REPO, None, _TOKENIZER_PATTERNS))
    except Exception as error:
        log.warning("texts cannot be encoded: no tokenizer, and %s: %s", published.TOKENIZER_REPO, error)
        return None, None
    return _read_tokenizer(folder), published.TOKENIZER_REPO


def _read_tokenizer(folder: Path) -> Any:
    try:
        if (fast := read_fast(folder)) is not None:
            return fast
        from transformers.models.auto.tokenization_auto import AutoTokenizer  # slow to import

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer class makes of broken files
        raise CheckpointError(f"{folder}: no tokenizer could be read from it: {error}") from error


def _prepare_tokenizer(model: FineLAP) -> None:
    """Checks that the tokenizer fits the tower, and uses it once.

    The first use sets its truncation and padding; later ones only read them, so that threads can share it.
    """
    tokens, rows = len(model.tokenizer or ()), model.text.vocabulary
    if tokens > rows:
        raise CheckpointError(f"the tokenizer has {tokens} tokens and the text tower {rows}")
    model.tokenise(["a sound"])


# Saving


def save_checkpoint(
    model: FineLAP, folder: str | Path, *, shard_text_tower: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Writes our folder; the same model gives the same bytes.

    `dtype` rounds the matrices (vectors, statistics and scalars keep float32). With `shard_text_tower` the text
    tower's own weights make the first shard, which stays the same file as long as the tower does.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(name, tensor, dtype) for name, tensor in sorted(model.state_dict().items())}
    tower = {name: tensor for name, tensor in state.items() if name.startswith(TEXT_TOWER)}
    if shard_text_tower:
        rest = {name: tensor for name, tensor in state.items() if name not in tower}
        shards = {"model-00001-of-00002.safetensors": tower, "model-00002-of-00002.safetensors": rest}
    else:
        shards = {WEIGHTS: state}
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
    _write_json(folder / CONFIG, model.config.to_dict())
    if model.tokenizer is not None:
        _save_tokenizer(model.tokenizer, folder)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} has values that {dtype} cannot hold")
    return tensor.contiguous()


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # what the last call set is no part of the tokenizer
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside `path` and moves it there: a reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what the user's umask says; writers of weights make theirs private
        write(part)
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
