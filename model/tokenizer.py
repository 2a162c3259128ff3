"""A checkpoint's tokenizer read by the `tokenizers` library alone, where its files say all that is needed.

transformers takes seconds to load and gives the same tokens; it is asked where the files leave something to it
(tests/model/test_tokenizer.py compares both). Knows no text tower.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
_KEPT = (CONFIG, "special_tokens_map.json", "added_tokens.json")  # written again as they were

# Classes that take tokenizer.json as it is, once what their config says of it is what stands in it.
_PLAIN = {"PreTrainedTokenizerFast", "TokenizersBackend"}
_BERT = {"BertTokenizer", "BertTokenizerFast"}
_ROBERTA = {"RobertaTokenizer", "RobertaTokenizerFast"}


class FastTokenizer:
    """Texts → token ids; called as FineLAP calls those of transformers. Not for two threads at once."""

    def __init__(self, backend: Any, pad_token: str, kept: dict[str, bytes]) -> None:
        """backend: a tokenizers.Tokenizer. kept: files of the folder that belong to it, by name."""
        self._backend, self._pad, self._kept = backend, pad_token, kept
        self._cut_at: int | None = None

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def __call__(
        self, texts: Sequence[str], *, padding: bool, truncation: bool, max_length: int, return_tensors: str
    ) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, N), N the longest text's tokens, at most `max_length`.

        `padding`, `truncation` and `return_tensors` are there for those who know the call: True, True, "pt".
        """
        if not (padding and truncation and return_tensors == "pt"):
            raise ValueError("texts are always padded, cut and returned as PyTorch tensors")
        if self._cut_at != max_length:
            self._backend.enable_truncation(max_length)
            self._backend.enable_padding(pad_id=self._backend.token_to_id(self._pad), pad_token=self._pad)
            self._cut_at = max_length
        encoded = self._backend.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([item.ids for item in encoded], dtype=torch.long),
            "attention_mask": torch.tensor([item.attention_mask for item in encoded], dtype=torch.long),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes its files; how it was used last is no part of them."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._cut_at = None
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._backend.save(str(Path(folder) / TOKENIZER))
        for name, content in self._kept.items():
            (Path(folder) / name).write_bytes(content)


def read_fast(folder: Path) -> FastTokenizer | None:
    """The tokenizer in the folder; None if only transformers can tell what it is. Raises what broken files raise."""
    from tokenizers import Tokenizer

    kept = {name: (folder / name).read_bytes() for name in _KEPT if (folder / name).is_file()}
    if CONFIG not in kept or not (folder / TOKENIZER).is_file():
        return None
    config = json.loads(kept[CONFIG])
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
        or "added_tokens.json" in kept
        or any(backend.token_to_id(token) is None for token in [*added, *special] if token is not None)
    ):
        return None
    return FastTokenizer(backend, pad, kept)


def _token(entry: Any) -> str | None:
    """A token as configs write it: a text, an object with its content, or nothing."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _agree(config: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether tokenizer.json already is what its class would make of it with this config."""
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
        cut = described.get("pre_tokenizer") or {}
        return cut.get("type") == "ByteLevel" and cut.get("add_prefix_space") == config.get("add_prefix_space", False)
    return False
