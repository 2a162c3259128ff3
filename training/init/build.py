"""Where training starts: from nothing, from an encoder that others trained, or from a whole FineLAP.

Knows no data and no losses. What a start brings is checked tensor by tensor; what it does not bring is fresh, and the
log says which parts those are.
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

# What makes our log-mel the decibels that CLAP was trained on: 10 log10 x = 4.343 ln x. Its 64 bins lay between 50 Hz
# and 14 kHz at 48 kHz, ours end at 8 kHz, so the first layers have something to learn all the same.
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
    """A start that cannot be made: what is missing, or which tensors do not fit."""


@dataclass(frozen=True)
class InitConfig:
    """A start. Paths may be relative to the root that `build_model` is given."""

    start: Literal["scratch", "eat", "htsat", "finelap"] = "scratch"
    audio: str | None = None  # EAT's .pt, a Hugging Face folder of it, or a CLAP folder
    text: str | None = None  # a Hugging Face folder or id, or an installed package with a folder `model`
    checkpoint: str | None = None  # a published FineLAP's file or folder, or a folder of ours
    model: dict[str, Any] = field(default_factory=dict)  # as in config.json; what is not there is as published


def build_model(config: InitConfig, root: Path, *, download: Download | None = None) -> FineLAP:
    """The model that training starts with, in float32 on the CPU, in training mode. Raises InitError.

    `text` brings tower and tokenizer; with `finelap`, where the tower is there, it names another tokenizer. A text
    folder with a tokenizer alone leaves the tower of `model["text"]["hf_config"]` fresh.
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
        raise InitError(f"start {config.start!r} has no use for {name!r}")


def _finelap(config: InitConfig, root: Path, download: Download) -> FineLAP:
    """A whole model; changes of its config must leave every tensor its place and shape."""
    from model.finelap import FineLAP
    from training.init.pretrained import fill

    assert config.checkpoint is not None
    path = root / config.checkpoint
    source = path if path.exists() else config.checkpoint
    tokenizer = None if config.text is None else _text_source(config.text, root, download)
    model = FineLAP.from_pretrained(source, tokenizer=tokenizer, download=download)
    if model.tokenizer is None:
        raise InitError(f"{config.checkpoint}: no tokenizer, so no text to train on; name a folder of one as 'text'")
    changed = _merged(model.config, config.model)
    if changed != model.config:
        other = FineLAP(changed, model.tokenizer)
        fill(other, model.state_dict(), f"{config.checkpoint}, changed by 'model'")
        model = other
    return model


def _assembled(config: InitConfig, root: Path, download: Download) -> FineLAP:
    """A model of parts: an audio encoder fresh or read, a text tower read or fresh, the rest fresh."""
    from model.config import FineLAPConfig
    from model.finelap import FineLAP
    from training.init.pretrained import fill, read_eat, read_htsat, read_text, read_text_config

    assert config.text is not None
    asked, audio = config.model, None
    implied: dict[str, Any] = {}
    if config.start in ("eat", "htsat"):
        assert config.audio is not None
        kind = asked.get("audio_encoder", {}).get("kind", config.start)
        if kind != config.start:
            raise InitError(f"start {config.start!r} with the audio encoder {kind!r}")
        if config.start == "eat":
            audio = read_eat(root / config.audio, asked.get("mel", {}).get("num_mel_bins", 128))
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
    elif not asked.get("text", {}).get("hf_config"):
        raise InitError(f"{folder}: no weights, and 'model' gives no text.hf_config to build a fresh tower from")
    tokenizer = _tokenizer(folder)
    model = FineLAP(_merged(_merged(FineLAPConfig(), implied), asked), tokenizer)
    fresh = ["the adapters", "the text projector"]
    if audio is not None:
        fill(model.audio_encoder, audio.state, str(config.audio))
        _tell(str(config.audio), len(audio.state), audio.ignored)
    else:
        fresh.append("the audio encoder")
    if pretrained:
        tower = model.text.encoder
        text = read_text(folder, tower.state_dict(), str(getattr(tower, "base_model_prefix", "")))
        fill(tower, text.state, str(folder))
        _tell(str(config.text), len(text.state), text.ignored)
    else:
        fresh.append("the text tower")
    log.info("fresh: %s", ", ".join(fresh))
    if len(tokenizer) > model.text.vocabulary:
        raise InitError(f"{folder}: {len(tokenizer)} tokens, and the tower has {model.text.vocabulary}")
    return model


def _tell(source: str, used: int, ignored: tuple[str, ...]) -> None:
    log.info("%s: %d tensors used, %d ignored%s", source, used, len(ignored), f": {', '.join(ignored)}" * bool(ignored))


def _merged(config: FineLAPConfig, changes: dict[str, Any]) -> FineLAPConfig:
    """A config with some keys replaced: dictionaries key by key, params of another kind and hf_config altogether."""
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
    """The folder of a text encoder: one on disk, one in an installed package, or one of the hub."""
    if (root / text).is_dir():
        return root / text
    if "/" not in text and text.isidentifier():
        found = importlib.util.find_spec(text)
        for place in (found.submodule_search_locations or ()) if found else ():
            if (Path(place) / "model").is_dir():
                return Path(place) / "model"
        raise InitError(f"text {text!r}: neither a folder nor an installed package with a folder 'model'")
    if text.count("/") != 1 or text.startswith(("/", ".")):
        raise InitError(f"text {text!r}: no such folder")
    try:
        return Path(download(text, None, _TEXT_FILES))
    except Exception as error:  # the hub client raises many kinds, offline and refused among them
        raise InitError(f"text {text!r}: no such folder, and the hub did not give it: {error}") from error


def _tokenizer(folder: Path) -> Any:
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # slow to import

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer class makes of broken files
        raise InitError(f"{folder}: no tokenizer could be read from it: {error}") from error
