"""Every initial model has the expected weights, and invalid ones raise a clear error."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import EncoderConfig, MelConfig, WindowConfig
from model.encoders.registry import build_encoder
from training.init.build import InitConfig, InitError, build_model

WORDS = ["a", "the", "dog", "rain", "barks", "falls"]
BERT = {"model_type": "bert", "vocab_size": 10, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "max_position_embeddings": 40}
EAT = {"dim": 64, "depth": 2, "heads": 1, "mlp_ratio": 2.0, "patch": 16}
SMALL = {"dim": 8, "adapter": {"params": {"layers": 1, "heads": 2, "hidden": 12}}}
CLAP = {"spec_size": 32, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "window_size": 4}
CLAP |= {"num_attention_heads": [2, 2], "hidden_size": 16, "num_hidden_layers": 2, "projection_dim": 6}
CLAP_SMALL = SMALL | {"windows": {"mel_frames": 64, "frames": 8, "frame_hop": 0.08}}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its language-modelling head, so that names have the prefix of real folders."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eat() -> Any:
    torch.manual_seed(2)
    encoder = build_encoder(EncoderConfig("eat", EAT), WindowConfig(), MelConfig())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder.eval()


def fairseq_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    image = "modality_encoders.IMAGE."
    heads = {"cls.": "extra_tokens.", "patches.": "local_encoder.proj.", "norm.": "context_encoder.norm."}
    named = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            named[name.replace(".fc", ".mlp.fc")] = tensor
        else:
            ours = next(h for h in heads if f"{name}.".startswith(h))
            named[image + f"{name}.".replace(ours, heads[ours], 1).rstrip(".")] = tensor
    return named


def hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "model." + n.replace("modality_encoders.IMAGE.context_encoder.norm", "pre_norm").split("IMAGE.")[-1]: t
        for n, t in fairseq_names(state).items()
    }


def save_fairseq(path: Path, state: dict[str, Tensor], **more: Any) -> None:
    extra = {"modality_encoders.IMAGE.decoder.proj.weight": torch.ones(2, 2)}
    torch.save({"model": fairseq_names(state) | extra, "args": argparse.Namespace(lr=[0.1]), **more}, path)


def assert_same_output(encoder: Any, expected: Any, mel: Tensor) -> None:
    with torch.no_grad():
        got, want = encoder.eval()(mel), expected(mel)
    torch.testing.assert_close(got.pooled, want.pooled)
    torch.testing.assert_close(got.frames, want.frames)


def test_eat_from_its_own_checkpoint(
    tmp_path: Path, eat: Any, text_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_fairseq(tmp_path / "eat.pt", eat.state_dict())
    with caplog.at_level(logging.INFO):
        model = build_model(InitConfig("eat", "eat.pt", str(text_folder), model=SMALL), tmp_path)
    assert model.training and model.dtype == torch.float32 and model.config.audio_encoder.params == EAT
    assert_same_output(model.audio_encoder, eat, torch.randn(1, 1024, 128))
    assert "modality_encoders.IMAGE.decoder.proj.weight" in caplog.text, "what is not used is named"
    assert "cls.predictions" in caplog.text


def test_eat_from_a_hub_folder_with_its_table(tmp_path: Path, eat: Any, text_folder: Path) -> None:
    from model.encoders.eat import sincos_positions

    state = hub_names(eat.state_dict())
    assert {"model.pre_norm.bias", "model.extra_tokens", "model.blocks.1.mlp.fc2.weight"} <= set(state)
    save_file(
        state | {"model.fixed_positional_encoder.positions": sincos_positions(80, 8, 64)},
        tmp_path / "model.safetensors",
    )
    model = build_model(InitConfig("eat", ".", str(text_folder), model=SMALL), tmp_path)
    assert_same_output(model.audio_encoder, eat, torch.randn(1, 1024, 128))


def test_a_learned_position_table_is_preserved(tmp_path: Path, eat: Any, text_folder: Path) -> None:
    table = torch.randn(1, 512, 64)
    save_file(
        hub_names(eat.state_dict()) | {"model.fixed_positional_encoder.positions": table},
        tmp_path / "model.safetensors",
    )
    model = build_model(InitConfig("eat", ".", str(text_folder), model=SMALL), tmp_path)
    assert model.config.audio_encoder.params["positions"] == "table"
    torch.testing.assert_close(model.audio_encoder.state_dict()["positions"], table)


def test_the_text_tower_is_read_from_the_folder(text_folder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    changes = SMALL | {"audio_encoder": {"params": EAT}, "text": {"hf_config": {"hidden_dropout_prob": 0.0}}}
    model = build_model(InitConfig(text=str(text_folder), model=changes), tmp_path).eval()
    ids, mask = model.tokenise(["the dog barks", "rain"])
    expected = BertModel.from_pretrained(text_folder).eval()(ids, mask).last_hidden_state[:, 0]
    torch.testing.assert_close(model.text.pooled(ids, mask), expected)
    assert model.config.text.hf_config["hidden_dropout_prob"] == 0.0, "'model' has the last word"


def test_a_folder_with_only_a_tokenizer_initialises_the_tower_randomly(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "words")
    changes = SMALL | {"audio_encoder": {"params": EAT}, "text": {"hf_config": BERT, "pooling": "mean"}}
    model = build_model(InitConfig(text="words", model=changes), tmp_path)
    assert model.text.vocabulary == 10 and model.encode_text(["rain falls"]).shape == (1, 8)
    with pytest.raises(InitError, match="no weights, and 'model' has no text.hf_config"):
        build_model(InitConfig(text="words", model=SMALL), tmp_path)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ClapConfig, ClapModel

    folder = tmp_path_factory.mktemp("clap")
    text = {k: v for k, v in BERT.items() if k != "model_type"} | {"projection_dim": 6}
    torch.manual_seed(3)
    ClapModel(ClapConfig(text_config=text, audio_config=CLAP, projection_dim=6)).save_pretrained(folder)
    return folder


def test_htsat_from_a_clap_folder(clap_folder: Path, text_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import ClapModel

    with caplog.at_level(logging.INFO):
        model = build_model(
            InitConfig("htsat", str(clap_folder), str(text_folder), model=CLAP_SMALL), Path("nowhere")
        ).eval()
    clap = ClapModel.from_pretrained(clap_folder).eval().audio_model
    mel = torch.randn(2, 64, 16)
    with torch.no_grad():
        output, expected = model.audio_encoder(mel), clap(input_features=mel[:, None])
    torch.testing.assert_close(output.pooled, expected.pooler_output)
    torch.testing.assert_close(output.frames[:, 3], expected.last_hidden_state[:, :, :, 3].mean(2))
    assert model.config.mel.num_mel_bins == 16, "the mel front end matches the weights"
    assert "audio_projection.linear1.weight" in caplog.text


def test_clap_input_is_in_decibels(clap_folder: Path, text_folder: Path) -> None:
    model = build_model(InitConfig("htsat", str(clap_folder), str(text_folder), model=CLAP_SMALL), Path("nowhere"))
    raw = torch.tensor([1.0, 10.0, 1000.0]).log()
    torch.testing.assert_close(model.log_mel.normalise(raw), torch.tensor([0.0, 10.0, 30.0]), rtol=1e-5, atol=1e-4)


@pytest.fixture
def ours(tmp_path: Path, eat: Any, text_folder: Path) -> tuple[Any, Path]:
    save_fairseq(tmp_path / "eat.pt", eat.state_dict())
    model = build_model(InitConfig("eat", "eat.pt", str(text_folder), model=SMALL), tmp_path)
    model.save_pretrained(tmp_path / "ours")
    return model, tmp_path


def test_a_checkpoint_accepts_changes_that_preserve_its_weights(ours: tuple[Any, Path]) -> None:
    model, root = ours
    changes = {"name": "next", "text": {"max_tokens": 6}}
    again = build_model(InitConfig("finelap", checkpoint="ours", model=changes), root)
    assert again.training and again.name == "next" and again.config.text.max_tokens == 6
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    with pytest.raises(InitError, match="changed by 'model'.*wrong shape: adapter.clip.0.weight"):
        build_model(InitConfig("finelap", checkpoint="ours", model={"dim": 10}), root)


def test_a_published_checkpoint_can_be_trained(ours: tuple[Any, Path], text_folder: Path) -> None:
    model, root = ours
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("audio_encoder."):
            inner = {name.removeprefix("audio_encoder."): tensor}
            state["audio_encoder.audio_enc.model." + next(iter(fairseq_names(inner)))] = tensor
        else:
            renames = {"adapter.clip.": "global_audio_proj.", "adapter.frames.": "local_audio_proj."}
            renames |= {"text.encoder.": "text_encoder.text_encoder.", "text.projector.": "global_text_proj."}
            old = next((o for o in renames if name.startswith(o)), "")
            state[renames.get(old, "") + name.removeprefix(old)] = tensor
    # the published adapter has 8 heads, which divide our 8 dimensions, and RoBERTa's names are BERT's
    torch.save(state, root / "published.pt")
    config = InitConfig("finelap", checkpoint="published.pt", text=str(text_folder))
    again = build_model(config, root)
    assert again.frame_hop == 0.15625
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    clip, frames = again.forward_audio(torch.randn(1, 1024, 128))
    (clip.sum() + frames.sum()).backward()
    assert again.audio_encoder.cls.grad.abs().sum() > 0

    def offline(repo: str, revision: str | None, patterns: list[str]) -> str:
        raise OSError("offline")

    with pytest.raises(InitError, match="published.pt: no tokenizer"):
        build_model(InitConfig("finelap", checkpoint="published.pt"), root, download=offline)


class Payload:
    """The payload of a hostile pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_rejected_and_not_run(tmp_path: Path, eat: Any, text_folder: Path) -> None:
    save_fairseq(tmp_path / "eat.pt", eat.state_dict(), harm=Payload(tmp_path / "harm"))
    with pytest.raises(InitError, match="eat.pt: not plain weights"):
        build_model(InitConfig("eat", "eat.pt", str(text_folder), model=SMALL), tmp_path)
    assert not (tmp_path / "harm").exists()


def test_tensors_that_do_not_fit_are_reported(tmp_path: Path, eat: Any, text_folder: Path) -> None:
    def start() -> None:
        build_model(InitConfig("eat", "eat.pt", str(text_folder), model=SMALL), tmp_path)

    state = eat.state_dict()
    save_fairseq(tmp_path / "eat.pt", {n: t for n, t in state.items() if n != "blocks.1.fc1.bias"})
    with pytest.raises(InitError, match="missing: blocks.1.fc1.bias$"):
        start()
    save_fairseq(tmp_path / "eat.pt", state | {"blocks.1.fc1.bias": torch.zeros(3)})
    with pytest.raises(InitError, match=r"wrong shape: blocks.1.fc1.bias \(3,\), not \(128,\)$"):
        start()
    torch.save({"model": fairseq_names(state) | {"blocks.0.extra": torch.zeros(1)}}, tmp_path / "eat.pt")
    with pytest.raises(InitError, match="unknown: blocks.0.extra$"):
        start()


def test_a_text_folder_with_a_missing_tensor(tmp_path: Path, text_folder: Path) -> None:
    for file in text_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(n for n in weights if n.endswith("word_embeddings.weight"))
    save_file({n: t for n, t in weights.items() if n != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    changes = SMALL | {"audio_encoder": {"params": EAT}}
    with pytest.raises(InitError, match="missing: embeddings.word_embeddings.weight$"):
        build_model(InitConfig(text=str(tmp_path), model=changes), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InitConfig("eat", "gone.pt", "TEXT"), "gone.pt: no such file"),
        (InitConfig("htsat", "gone", "TEXT"), "gone: no such folder"),
        (InitConfig("finelap", checkpoint="./gone/none/x"), "no such file or folder"),
        (InitConfig("eat", text="TEXT"), "start 'eat' needs 'audio'"),
        (InitConfig(), "start 'scratch' needs 'text'"),
        (InitConfig("scratch", "eat.pt", "TEXT"), "start 'scratch' does not use 'audio'"),
        (InitConfig(text="no_such_package"), "neither a folder nor an installed package"),
        (InitConfig(text="./no/such/place"), "no such folder"),
        (InitConfig(text="TEXT", model={"colour": 1}), "unknown keys colour"),
        (InitConfig(text="TEXT", model={"audio_encoder": {"kind": "wav"}}), "unknown audio encoder 'wav'"),
        (InitConfig("other", text="TEXT"), "unknown start 'other'"),  # type: ignore[arg-type]
    ],
)
def test_invalid_starts_are_rejected(config: InitConfig, message: str, text_folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    if config.text == "TEXT":
        config = replace(config, text=str(text_folder))
    with pytest.raises(InitError, match=message):
        build_model(config, tmp_path)
