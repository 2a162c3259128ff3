"""`finelap cluster` builds a bank from label lists and reports invalid ones with their location."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.commands import cluster
from training.data import sentence_embeddings as embedders
from training.data.phrase_bank import PhraseBank, PhraseError, read_labels
from training.data.sentence_embeddings import EmbedderError, embedder


def by_letters(texts: list[str]) -> np.ndarray:
    """Unit-length letter counts, under which similar spellings are near."""
    counts = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def run(*arguments: str | Path) -> None:
    parser = argparse.ArgumentParser()
    cluster.add_arguments(parser)
    cluster.run(parser.parse_args([str(a) for a in arguments]))


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embedders, "embedder", lambda name: by_letters)
    (tmp_path / "a.txt").write_text("\ufeffdogs\n\nthe   bell \n", encoding="utf-8")
    manifest = [
        {"audio_id": "1", "audio_path": "1.wav", "caption": "A dog.", "phrases": [{"phrase": "bells", "segments": []}]},
        {"audio_id": "2", "audio_path": "2.wav", "caption": "A cat."},
        {"audio": "3.wav", "label": "rainy", "package": "p"},
        {"audio": "4.wav", "label": None, "package": "p"},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, manifest)))
    (tmp_path / "c.csv").write_text('fname,labels\n1,"Dog,rain"\n')
    (tmp_path / "start.txt").write_text("dog\nbell\nrain\n")
    return tmp_path


def test_all_list_formats_become_one_bank(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [lists / name for name in ("a.txt", "b.jsonl", "c.csv")]
    run(*files, "--out", lists / "bank.jsonl", "--centroids", lists / "start.txt", "--separator", ",")
    bank = PhraseBank.read(lists / "bank.jsonl")
    assert bank.clusters == [("dog", "dogs", "Dog"), ("bell", "the bell", "bells"), ("rain", "rainy")]
    said = capsys.readouterr().out
    assert "6 phrases: 2 known, 4 assigned by embedding" in said and "3 clusters of 8 phrases" in said
    assert "    2  dog" in said


def test_the_bundled_bank_is_the_default(lists: Path) -> None:
    run(lists / "a.txt", "--out", lists / "bank.jsonl")
    bank = PhraseBank.read(lists / "bank.jsonl")
    assert bank.cluster_of["dogs"] == bank.cluster_of["Bark"] and len(bank.clusters) > 500


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"phrases": [{"phrase": " "}]}', "x.jsonl, line 1: an empty phrase"),
        ("x.jsonl", '{"phrases": [{"segments": []}]}', "x.jsonl, line 1: no 'phrase'"),
        ("x.jsonl", '{"label": 3}', "x.jsonl, line 1: 3 is not a phrase"),
        ("x.jsonl", '{"audio": "a"}', "x.jsonl, line 1: neither phrases nor a label"),
        ("x.jsonl", "[1]", "x.jsonl, line 1"),
        ("x.csv", 'label\ndog\n""\n', "x.csv, line 3: an empty phrase"),
        ("x.csv", "name\ndog\n", "x.csv: no column of labels; it has name"),
        ("x.txt", "\n", "x.txt: no phrases"),
    ],
)
def test_invalid_lists_are_reported(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PhraseError, match=message):
        read_labels(tmp_path / name)


def test_a_column_can_be_selected(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("label\tname\n1\tdog bark\n")
    assert read_labels(tmp_path / "x.tsv", "name") == ["dog bark"]


def tiny_sentence_model(folder: Path) -> None:
    """A BERT of one layer with random weights and a vocabulary of four words, in sentence-transformers' layout."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "bell", "a", "big"])
    )
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(folder)
    types = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{t}"} for t in types]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def test_a_folder_of_a_sentence_model_embeds(tmp_path: Path) -> None:
    tiny_sentence_model(tmp_path / "model")
    embed = embedder(tmp_path / "model", nothing_installed)
    both = embed(["dog", "a big bell"])
    assert both.shape == (2, 16) and both.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    # Padding to the longer text has no effect.
    np.testing.assert_allclose(embed(["dog"])[0], both[0], atol=1e-5)
    assert embed([]).shape == (0, 16)
    (tmp_path / "model" / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(EmbedderError, match="Dense needs pip install"):
        embedder(tmp_path / "model", nothing_installed)


def nothing_installed(name: str) -> None:
    """Finds no installed packages."""


def test_without_a_model_the_error_names_the_package_to_install() -> None:
    with pytest.raises(EmbedderError, match="pip install sentence-transformers"):
        embedder(None, nothing_installed)
    with pytest.raises(EmbedderError, match="no embedding model no/such"):
        embedder("no/such", nothing_installed)
