"""Builds the initial model of a training run: random, from pretrained encoders, or from a FineLAP checkpoint.

Pretrained weights are checked tensor by tensor. Parts without pretrained weights are initialised randomly and logged.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from model.config import FineLAPConfig
    from model.finelap import FineLAP

log = logging.getLogger(__name__)

Download = Callable[[str, str | None, list[str]], str]  # (hub id, revision, file patterns) → folder

# Scales our log-mel to the decibels that CLAP was trained on: 10 log10 x = 4.343 ln x. CLAP's 64 bins cover 50 Hz to
# 14 kHz at 48 kHz and ours end at 8 kHz, so the first layers still have to adapt.
_CLAP_MEL = {"low_freq": 50.0, "mean": 0.0, "std": 0.1151293, "pad_value": -15.942385, "snip_edges": False}
_TEXT_FILES = ["*.safetensors", "*.json", "*.txt", "tokenizer*", "vocab.*", "merges.txt"]
_TEXT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_USES = {
    "scratch": {"text", "model"},
    "eat": {"audio", "text", "model"},
    "htsat": {"audio", "text", "model"},
    "finelap": {"checkpoint", "text", "model"},
}


class InitError(ValueError):
    """An initial model that cannot be built, with what is missing or which tensors don't fit."""


@dataclass(frozen=True)
class InitConfig:
    """The initial model. Relative paths start at the root passed to `build_model`."""

    start: Literal["scratch", "eat", "htsat", "finelap"] = "scratch"
    audio: str | None = None  # EAT's .pt file, a Hugging Face folder of EAT, or a CLAP folder
    text: str | None = None  # a Hugging Face folder or id, or an installed package with a folder `model`
    checkpoint: str | None = None  # a published FineLAP file or folder, or a checkpoint folder
    model: dict[str, Any] = field(
        default_factory=dict
    )  # overrides in the form of config.json; defaults are the published values


def build_model(config: InitConfig, root: Path, *, download: Download | None = None) -> FineLAP:
    """The initial model, float32 on the CPU, in training mode. Raises InitError.

    `text` provides the text tower and tokenizer; with `finelap`, whose checkpoint has a tower, it replaces the
    tokenizer. For a text folder with only a tokenizer, a tower of `model["text"]["hf_config"]` is initialised randomly.
    """
    from model.checkpoint import hub_download
    from model.config import ConfigError
    from model.weight_files import CheckpointError

    _check_uses(config)
    try:
        make = _finelap if config.start == "finelap" else _assembled
        return make(config, root, download or hub_download).train()
    except (CheckpointError, ConfigError, TypeError) as error:
        raise InitError(f"start {config.start!r}: {error}") from error


def _check_uses(config: InitConfig) -> None:
    if config.start not in _USES:
        raise InitError(f"unknown start {config.start!r}; known: {', '.join(_USES)}")
    uses = _USES[config.start]
    given = {name for name in ("audio", "text", "checkpoint") if getattr(config, name) is not None}
    needed = uses & {"audio", "checkpoint"}
    if config.start != "finelap":
        needed.add("text")
    for name in sorted(needed - given):
        raise InitError(f"start {config.start!r} needs {name!r}")
    for name in sorted(given - uses):
        raise InitError(f"start {config.start!r} does not use {name!r}")


def _finelap(config: InitConfig, root: Path, download: Download) -> FineLAP:
    """A checkpoint; changes to its config must preserve the name and shape of every tensor."""
    from model.finelap import FineLAP
    from training.init.pretrained import fill

    assert config.checkpoint is not None
    path = root / config.checkpoint
    source = path if path.exists() else config.checkpoint
    tokenizer = None if config.text is None else _text_source(config.text, root, download)
    model = FineLAP.from_pretrained(source, tokenizer=tokenizer, download=download)
    if model.tokenizer is None:
        raise InitError(f"{config.checkpoint}: no tokenizer; set 'text' to a folder with one")
    changed = _merged(model.config, config.model)
    if changed != model.config:
        other = FineLAP(changed, model.tokenizer)
        fill(other, model.state_dict(), f"{config.checkpoint}, changed by 'model'")
        model = other
    return model


def _assembled(config: InitConfig, root: Path, download: Download) -> FineLAP:
    """A model with a random or pretrained audio encoder and text tower; everything else is random."""
    from model.config import FineLAPConfig
    from model.finelap import FineLAP
    from training.init.pretrained import fill, read_eat, read_htsat, read_text, read_text_config

    assert config.text is not None
    overrides, audio = config.model, None
    implied: dict[str, Any] = {}
    if config.start in ("eat", "htsat"):
        assert config.audio is not None
        kind = overrides.get("audio_encoder", {}).get("kind", config.start)
        if kind != config.start:
            raise InitError(f"start {config.start!r} does not fit the audio encoder {kind!r}")
        if config.start == "eat":
            audio = read_eat(root / config.audio, overrides.get("mel", {}).get("num_mel_bins", 128))
            implied = {"audio_encoder": {"kind": "eat", "params": audio.params}}
        else:
            audio = read_htsat(root / config.audio)
            sizes = dict(audio.params)
            mel = _CLAP_MEL | {"num_mel_bins": sizes.pop("num_mel_bins")}
            implied = {"audio_encoder": {"kind": "htsat", "params": sizes}, "mel": mel}
    folder = _text_source(config.text, root, download)
    pretrained = any((folder / name).is_file() for name in _TEXT_WEIGHTS)
    if pretrained:
        implied["text"] = {"hf_config": read_text_config(folder)}
    elif not overrides.get("text", {}).get("hf_config"):
        raise InitError(f"{folder}: no weights, and 'model' has no text.hf_config to build a tower from")
    tokenizer = _tokenizer(folder)
    model = FineLAP(_merged(_merged(FineLAPConfig(), implied), overrides), tokenizer)
    random = ["the adapters", "the text projector"]
    if audio is not None:
        fill(model.audio_encoder, audio.state, str(config.audio))
        _log_tensors(str(config.audio), len(audio.state), audio.ignored)
    else:
        random.append("the audio encoder")
    if pretrained:
        tower = model.text.encoder
        text = read_text(folder, tower.state_dict(), str(getattr(tower, "base_model_prefix", "")))
        fill(tower, text.state, str(folder))
        _log_tensors(str(config.text), len(text.state), text.ignored)
    else:
        random.append("the text tower")
    log.info("randomly initialised: %s", ", ".join(random))
    if len(tokenizer) > model.text.vocabulary:
        raise InitError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the tower {model.text.vocabulary}")
    return model


def _log_tensors(source: str, used: int, ignored: tuple[str, ...]) -> None:
    log.info("%s: %d tensors used, %d ignored%s", source, used, len(ignored), f": {', '.join(ignored)}" * bool(ignored))


def _merged(config: FineLAPConfig, changes: dict[str, Any]) -> FineLAPConfig:
    """The config with `changes` merged in; params of a different kind and a full hf_config are replaced, not merged."""
    from model.config import FineLAPConfig

    def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        result = dict(old)
        if "kind" in new and new["kind"] != old.get("kind"):
            result["params"] = {}
        if "projector" in new and new["projector"] != old.get("projector"):
            result["params"] = {}
        for key, value in new.items():
            inner = result.get(key)
            if (
                isinstance(inner, dict)
                and isinstance(value, dict)
                and not (key == "hf_config" and "model_type" in value)
            ):
                result[key] = merge(inner, value)
            else:
                result[key] = value
        return result

    return FineLAPConfig.from_dict(merge(config.to_dict(), changes))


def _text_source(text: str, root: Path, download: Download) -> Path:
    """The folder of a text encoder: on disk, in an installed package, or downloaded from the hub."""
    if (root / text).is_dir():
        return root / text
    if "/" not in text and text.isidentifier():
        found = importlib.util.find_spec(text)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (Path(folder) / "model").is_dir():
                return Path(folder) / "model"
        raise InitError(f"text {text!r}: neither a folder nor an installed package with a folder 'model'")
    if text.count("/") != 1 or text.startswith(("/", ".")):
        raise InitError(f"text {text!r}: no such folder")
    try:
        return Path(download(text, None, _TEXT_FILES))
    except Exception as error:  # the hub client raises many types of errors
        raise InitError(f"text {text!r}: no such folder, and the download failed: {error}") from error


def _tokenizer(folder: Path) -> Any:
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # slow to import

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes raise arbitrary errors for broken files
        raise InitError(f"{folder}: the tokenizer cannot be read: {error}") from error
