"""Reads a checkpoint's tokenizer with the `tokenizers` library, without importing transformers (7 s of a core).

The tokens equal those of transformers (tests/model/test_tokenizer.py compares both), which is still used for
tokenizers whose files do not define them completely.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
_EXTRA_FILES = (CONFIG, "special_tokens_map.json", "added_tokens.json")  # saved again unchanged

# Classes that use tokenizer.json unchanged if it agrees with their config.
_PLAIN = {"PreTrainedTokenizerFast", "TokenizersBackend"}
_BERT = {"BertTokenizer", "BertTokenizerFast"}
_ROBERTA = {"RobertaTokenizer", "RobertaTokenizerFast"}


class FastTokenizer:
    """Texts → token ids, with the call signature of a transformers tokenizer. Not thread-safe."""

    def __init__(self, backend: Any, pad_token: str, extra_files: dict[str, bytes]) -> None:
        """`backend` is a tokenizers.Tokenizer, `extra_files` the other files of its folder by name."""
        self._backend, self._pad, self._extra_files = backend, pad_token, extra_files
        self._max_length: int | None = None

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def __call__(
        self, texts: Sequence[str], *, padding: bool, truncation: bool, max_length: int, return_tensors: str
    ) -> dict[str, Tensor]:
        """Returns input_ids and attention_mask (B, N), padded to the longest text, truncated to `max_length` tokens.

        `padding`, `truncation` and `return_tensors` must be True, True and "pt".
        """
        if not (padding and truncation and return_tensors == "pt"):
            raise ValueError("texts are always padded, cut and returned as PyTorch tensors")
        if self._max_length != max_length:
            self._backend.enable_truncation(max_length)
            self._backend.enable_padding(pad_id=self._backend.token_to_id(self._pad), pad_token=self._pad)
            self._max_length = max_length
        encoded = self._backend.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([item.ids for item in encoded], dtype=torch.long),
            "attention_mask": torch.tensor([item.attention_mask for item in encoded], dtype=torch.long),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, without the settings of its last call."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._max_length = None
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._backend.save(str(Path(folder) / TOKENIZER))
        for name, content in self._extra_files.items():
            (Path(folder) / name).write_bytes(content)


def read_fast(folder: Path) -> FastTokenizer | None:
    """Reads the folder's tokenizer; None if it needs transformers. Errors of broken files propagate."""
    from tokenizers import Tokenizer

    extra = {name: (folder / name).read_bytes() for name in _EXTRA_FILES if (folder / name).is_file()}
    if CONFIG not in extra or not (folder / TOKENIZER).is_file():
        return None
    config = json.loads(extra[CONFIG])
    described = json.loads((folder / TOKENIZER).read_bytes())
    backend = Tokenizer.from_file(str(folder / TOKENIZER))
    pad = _token(config.get("pad_token"))
    added = [_token(entry) for entry in config.get("added_tokens_decoder", {}).values()]
    special = [_token(config.get(f"{name}_token")) for name in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")]
    if (
        pad is None
        or not _agree(config, described)
        or config.get("padding_side", "right") != "right"
        or config.get("truncation_side", "right") != "right"
        or config.get("pad_to_multiple_of")
        or "added_tokens.json" in extra
        or any(backend.token_to_id(token) is None for token in [*added, *special] if token is not None)
    ):
        return None
    return FastTokenizer(backend, pad, extra)


def _token(entry: Any) -> str | None:
    """The token of a config entry, which is a string, an object with `content`, or null."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _agree(config: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether tokenizer.json already is what its class would produce from it with this config."""
    kind = config.get("tokenizer_class")
    if kind in _PLAIN:
        return True
    if kind in _BERT:
        normalizer = described.get("normalizer") or {}
        return normalizer.get("type") == "BertNormalizer" and (
            normalizer.get("lowercase") == config.get("do_lower_case", True)
            and normalizer.get("strip_accents") == config.get("strip_accents")
            and normalizer.get("handle_chinese_chars") == config.get("tokenize_chinese_chars", True)
        )
    if kind in _ROBERTA:
        split = described.get("pre_tokenizer") or {}
        prefix = config.get("add_prefix_space", False)
        return split.get("type") == "ByteLevel" and split.get("add_prefix_space") == prefix
    return False
