"""Tokenizers read without transformers give equal tokens; uncertain ones are left to transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.finelap import FineLAP
from model.tokenizer import CONFIG, TOKENIZER, FastTokenizer, read_fast

TEXTS = [
    "a dog barking",
    "",
    "  Rain,   on a TIN roof!? ",
    "Ünïcode ☂ 犬が吠える\t\n don't",
    "[SEP] [MASK] [PAD] </s> <pad>",
    "the birds sing in the distance " * 40,
    "supercalifragilisticexpialidocious",
    "🎺🐶",
]


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def roberta(folder: Path, **settings: Any) -> Path:
    """A byte-level RoBERTa tokenizer, as saved by transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import RobertaTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    made = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in made["merges"]]
    RobertaTokenizerFast(vocab=made["vocab"], merges=merges, **settings).save_pretrained(folder)
    return folder


def agree(folder: Path) -> None:
    ours = read_fast(folder)
    assert ours is not None
    other = theirs(folder)
    assert len(ours) == len(other)
    for longest in (64, 7):
        how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        for texts in (TEXTS, TEXTS[:1], TEXTS[:3]):
            a, b = ours(texts, **how), other(texts, **how)
            assert torch.equal(a["input_ids"], b["input_ids"]), texts
            assert torch.equal(a["attention_mask"], b["attention_mask"]), texts


def test_the_bundled_tokenizer_equals_transformers(repo_dir: Path) -> None:
    agree(repo_dir / "checkpoints/finelap-small")


def test_a_roberta_tokenizer_equals_transformers(tmp_path: Path) -> None:
    agree(roberta(tmp_path))


def test_a_plain_fast_tokenizer_equals_transformers(tiny: FineLAP, tmp_path: Path) -> None:
    tiny.tokenizer.save_pretrained(tmp_path)
    agree(tmp_path)


def test_saving_writes_the_files_that_were_read(repo_dir: Path, tmp_path: Path) -> None:
    source = repo_dir / "checkpoints/finelap-small"
    ours = read_fast(source)
    assert isinstance(ours, FastTokenizer)
    ours(TEXTS, padding=True, truncation=True, max_length=9, return_tensors="pt")
    ours.save_pretrained(tmp_path)
    for name in (TOKENIZER, CONFIG):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 9, "return_tensors": "pt"}
    assert torch.equal(ours(TEXTS, **how)["input_ids"], theirs(source)(TEXTS, **how)["input_ids"])
    with pytest.raises(ValueError, match="always padded"):
        ours(TEXTS, **how | {"padding": False})


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "T5Tokenizer"},
        {"tokenizer_class": None},
        {"do_lower_case": False},
        {"strip_accents": True},
        {"padding_side": "left"},
        {"truncation_side": "left"},
        {"pad_to_multiple_of": 8},
        {"pad_token": None},
        {"mask_token": "<not in the vocabulary>"},
        {"added_tokens_decoder": {"40000": {"content": "<new>"}}},
    ],
)
def test_other_tokenizers_are_left_to_transformers(
    changes: dict[str, Any], repo_dir: Path, tmp_path: Path, copy_tokenizer: Callable[[Path, Path], None]
) -> None:
    copy_tokenizer(repo_dir / "checkpoints/finelap-small", tmp_path)
    assert read_fast(tmp_path) is not None
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | changes))
    assert read_fast(tmp_path) is None
    (tmp_path / CONFIG).unlink()
    assert read_fast(tmp_path) is None


@pytest.fixture
def copy_tokenizer() -> Callable[[Path, Path], None]:
    def copy(source: Path, target: Path) -> None:
        for name in (TOKENIZER, CONFIG):
            (target / name).write_bytes((source / name).read_bytes())

    return copy
