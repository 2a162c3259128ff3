"""Checkpoints: round trips, conversion of published weights, and errors that name what is broken."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import CheckpointError, FineLAP
from model.config import MatchingConfig
from model.conversion import convert
from model.finelap import TokenizerMissing
from model.published import rename, translate

SOUND = (0.2 * np.sin(np.arange(60_000) ** 1.2 / 90)).astype(np.float32)
TEXTS = ["a dog barks", "loud rain in the distance"]
IDS, MASK = [[0, 5, 6, 2], [0, 9, 2, 1]], [[1, 1, 1, 1], [1, 1, 1, 0]]
TABLE = "audio_encoder.audio_enc.model.modality_encoders.IMAGE.fixed_positional_encoder.positions"


def offline(repo: str, revision: str | None, patterns: list[str]) -> str:
    raise OSError(f"no network for {repo}")


class Hub:
    """A fake hub with some folders that records requests."""

    def __init__(self, **repos: Path) -> None:
        self.repos, self.asked = repos, []

    def __call__(self, repo: str, revision: str | None, patterns: list[str]) -> str:
        self.asked.append((repo, revision))
        if repo.split("/")[1] not in self.repos:
            raise OSError("404")
        return str(self.repos[repo.split("/")[1]])


def same(a: FineLAP, b: FineLAP) -> None:
    """Asserts that two models have equal weights and outputs."""
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert torch.equal(a.encode_audio([SOUND], 16_000)[0].frames, b.encode_audio([SOUND], 16_000)[0].frames)


# Ours


def test_save_and_load_round_trip(tiny: FineLAP, tmp_path: Path) -> None:
    assert "matching" not in tiny.config.to_dict()
    tiny.save_pretrained(tmp_path)
    loaded = FineLAP.from_pretrained(tmp_path)
    same(loaded, tiny)
    assert loaded.config == tiny.config and loaded.stamp == tiny.stamp and not loaded.training
    assert torch.equal(loaded.encode_text(TEXTS), tiny.encode_text(TEXTS))
    torch.testing.assert_close(
        loaded.clip_score(torch.ones(24), torch.ones(24)), tiny.clip_score(torch.ones(24), torch.ones(24))
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
    assert all(p.requires_grad for p in loaded.parameters())


def test_the_same_model_gives_the_same_bytes(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    model = make_tiny()
    model.save_pretrained(tmp_path / "a")
    model.encode_text(TEXTS)  # a tokenizer stores the settings of its last call
    model.save_pretrained(tmp_path / "b")
    FineLAP.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        first = (tmp_path / "a" / file).read_bytes()
        assert first == (tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes(), file


def test_a_loaded_model_survives_saving_over_its_folder(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    make_tiny().save_pretrained(tmp_path)
    loaded = FineLAP.from_pretrained(tmp_path)
    expected = loaded.encode_text(TEXTS)
    make_tiny(salt="other").save_pretrained(tmp_path)
    assert torch.equal(loaded.encode_text(TEXTS), expected)
    assert FineLAP.from_pretrained(tmp_path).stamp != loaded.stamp


def test_the_text_tower_has_its_own_shard(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    model = make_tiny()
    model.save_pretrained(tmp_path, shard_text_tower=True)
    tower, rest = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert {n.split(".")[1] for n in load_file(tower)} == {"encoder"}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    same(FineLAP.from_pretrained(tmp_path), model)
    unchanged = tower.read_bytes(), rest.read_bytes()
    with torch.no_grad():
        model.adapter.clip[0].bias.add_(1.0)
        model.text.projector[0].bias.add_(1.0)
    model.save_pretrained(tmp_path, shard_text_tower=True)
    assert tower.read_bytes() == unchanged[0] and rest.read_bytes() != unchanged[1]


def test_files_have_default_permissions(tiny: FineLAP, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    tiny.save_pretrained(tmp_path / "saved")
    assert {p.stat().st_mode for p in (tmp_path / "saved").iterdir()} == {plain.stat().st_mode}


def test_changing_the_layout_removes_stale_files(tiny: FineLAP, tmp_path: Path) -> None:
    for sharded in (False, True, False):
        tiny.save_pretrained(tmp_path, shard_text_tower=sharded)
        weights = {p.name for p in tmp_path.iterdir() if p.name.startswith("model")}
        shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)} | {"model.safetensors.index.json"}
        assert weights == (shards if sharded else {"model.safetensors"})
        same(FineLAP.from_pretrained(tmp_path), tiny)


def test_half_precision_files_load_into_float32(tiny: FineLAP, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.ndim > 1} == {torch.float16}
    assert {t.dtype for t in stored.values() if t.ndim < 2} == {torch.float32}
    loaded = FineLAP.from_pretrained(tmp_path / "half")
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float32}
    close = loaded.encode_audio([SOUND], 16_000)[0], tiny.encode_audio([SOUND], 16_000)[0]
    assert torch.nn.functional.cosine_similarity(close[0].frames, close[1].frames).min() > 0.9999
    # the stamp depends on values, not on the stored dtype
    loaded.save_pretrained(tmp_path / "whole")
    assert FineLAP.from_pretrained(tmp_path / "whole").stamp == loaded.stamp != tiny.stamp
    narrow = FineLAP.from_pretrained(tmp_path / "whole", dtype=torch.float16)
    assert narrow.dtype == torch.float16 and narrow.stamp == loaded.stamp


def test_values_too_large_for_a_dtype_are_rejected(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    model = make_tiny()
    with torch.no_grad():
        model.adapter.clip[0].weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"adapter\.clip\.0\.weight has values that torch\.float16 cannot hold"):
        model.save_pretrained(tmp_path, dtype=torch.float16)


def test_the_stamp_depends_on_what_determines_embeddings(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    model = make_tiny()
    stamp = model.stamp
    assert stamp == make_tiny().stamp and len(stamp) == 64
    with torch.no_grad():
        model.temp_global.fill_(0.5)
        model.b_local.fill_(3.0)
    assert model.stamp == stamp, "only scores are scaled"
    assert make_tiny(replace(model.config, name="renamed")).stamp == stamp
    matching = MatchingConfig(cutoff=0.4, segment=(0.1, -3.0), sound=(0.2, -4.0))
    assert make_tiny(replace(model.config, matching=matching)).stamp == stamp, "only says which scores match"
    windows = replace(model.config.windows, frame_hop=0.15625)
    assert make_tiny(replace(model.config, windows=windows)).stamp != stamp
    model.save_pretrained(tmp_path)
    loaded = FineLAP.from_pretrained(tmp_path)
    assert loaded.stamp == stamp
    loaded.train()
    with torch.no_grad():
        loaded.adapter.frames[0].bias[0] += 1e-3
    assert loaded.stamp != stamp, "training discards the loaded stamp"


def test_other_encoders_and_adapters_round_trip(
    make_tiny: Callable[..., FineLAP], tiny_config: Callable, tmp_path: Path
) -> None:
    from model.config import AdapterConfig, EncoderConfig, TextConfig

    text = tiny_config().text
    config = tiny_config(
        dim=32,
        audio_encoder=EncoderConfig(
            "cnn", {"stem": 4, "stages": [[8, 2, 2], [8, 2, 2], [8, 2, 2]], "width": 32, "heads": 4}
        ),
        adapter=AdapterConfig("concept", {"concepts": 7, "hidden": 16}),
        text=TextConfig("mean", 8, "residual", {"gate": 0.1}, text.hf_config),
    )
    model = make_tiny(config)
    with torch.no_grad():
        model.adapter.anchors.normal_(generator=torch.Generator().manual_seed(0))
        model.audio_encoder.trunk[0][1].running_var.fill_(1e-7)
    model.save_pretrained(tmp_path, shard_text_tower=True, dtype=torch.float16)
    loaded = FineLAP.from_pretrained(tmp_path)
    assert loaded.audio_encoder.trunk[0][1].running_var[0].item() == pytest.approx(1e-7), "statistics are not rounded"
    assert torch.allclose(loaded.adapter.anchors, model.adapter.anchors, atol=1e-2)
    assert loaded.encode_audio([SOUND], 16_000)[0].frames.shape == (24, 32)


# Broken folders


@pytest.fixture
def folder(tiny: FineLAP, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_all_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["audio_encoder.blocks.9.fc1.bias"] = torch.zeros(3)
        del state["temp_local"]
        state["adapter.clip.0.bias"] = torch.zeros(5)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        FineLAP.from_pretrained(folder)
    assert caught.value.problems == {
        "unknown": ["audio_encoder.blocks.9.fc1.bias"],
        "missing": ["temp_local"],
        "wrong shape": ["adapter.clip.0.bias (5,), not (24,)"],
    }
    for names in caught.value.problems.values():
        assert names[0] in str(caught.value)


def test_a_long_list_is_shortened_only_in_the_message(folder: Path) -> None:
    rewrite(folder, lambda state: [state.pop(n) for n in list(state) if n.startswith("text.")])
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more") as caught:
        FineLAP.from_pretrained(folder)
    assert len(caught.value.problems["missing"]) > 30


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_a_truncated_file_is_named(folder: Path, size: int) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: incomplete or not a safetensors file"):
        FineLAP.from_pretrained(folder)


def test_missing_and_swapped_shards_are_named(tiny: FineLAP, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path, shard_text_tower=True)
    first, second = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="00002-of-00002.* does not match") as caught:
        FineLAP.from_pretrained(tmp_path)
    assert "temp_global" in caught.value.problems["missing"]
    second.write_bytes(kept)
    first.unlink()
    with pytest.raises(CheckpointError, match="00001-of-00002.safetensors: the file is missing"):
        FineLAP.from_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"temp_global": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="not the name of a file beside it"):
        FineLAP.from_pretrained(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        FineLAP.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown keys colour"),
        ({"format_version": 99}, "format 99"),
        ({"audio_encoder": {"kind": "nope", "params": {}}}, "unknown audio encoder 'nope'"),
        ({"adapter": {"kind": "decoupled", "params": {"layer": 1}}}, "layer"),
        ({"matching": {"cutoff": 0.5}}, "missing keys segment, sound"),
        ({"matching": {"cutoff": 1.5, "segment": [1, 0], "sound": [1, 0]}}, "cutoff must lie between 0 and 1"),
        ({"matching": {"cutoff": 0.5, "segment": [0, 0], "sound": [1, 0]}}, "segment must be a positive temperature"),
    ],
)
def test_a_config_that_cannot_be_built_is_named(folder: Path, change: dict, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        FineLAP.from_pretrained(folder)


def test_a_config_that_is_not_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        FineLAP.from_pretrained(folder)


def test_broken_missing_and_too_large_tokenizers_are_rejected(folder: Path, tiny: FineLAP, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer could be read"):
        FineLAP.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    model = FineLAP.from_pretrained(folder)
    with pytest.raises(TokenizerMissing):
        model.encode_text(TEXTS)
    from transformers import PreTrainedTokenizerFast

    spare = folder / "spare"
    tiny.tokenizer.save_pretrained(spare)
    same = FineLAP.from_pretrained(folder, tokenizer=spare)
    assert torch.equal(same.encode_text(TEXTS), tiny.encode_text(TEXTS))
    larger = PreTrainedTokenizerFast.from_pretrained(spare)
    larger.add_tokens(["meow"])
    larger.save_pretrained(spare)
    with pytest.raises(CheckpointError, match=f"has {len(larger)} tokens and the text tower {len(larger) - 1}"):
        FineLAP.from_pretrained(folder, tokenizer=spare)
    with pytest.raises(CheckpointError, match="tokenizer .*nowhere: no such folder"):
        FineLAP.from_pretrained(folder, tokenizer=folder / "nowhere")


# Published weights


@pytest.fixture
def reference(small_published: dict[str, Tensor], tmp_path: Path, tiny: FineLAP) -> FineLAP:
    """The small published state in its newer naming, as a loaded model."""
    state = small_published | {"b_local": torch.tensor(-3.0)}
    torch.save(state, tmp_path / "newer.pt")
    return FineLAP.from_pretrained(tmp_path / "newer.pt", download=offline)


def test_published_sizes_are_inferred_from_shapes(reference: FineLAP) -> None:
    config = reference.config
    assert (config.dim, config.windows.frames, config.windows.frame_hop) == (16, 64, 0.15625)
    assert config.audio_encoder.params == {
        "dim": 64,
        "depth": 2,
        "heads": 1,
        "mlp_ratio": 2.0,
        "patch": 16,
        "positions": "sincos",
    }
    assert config.adapter.params == {"layers": 2, "heads": 8, "hidden": 32}
    assert config.text.hf_config["model_type"] == "roberta" and config.text.hf_config["num_hidden_layers"] == 2
    assert reference.b_global.item() == -2.0 and reference.temp_local.item() == pytest.approx(0.3)
    assert len(reference.encode_audio([SOUND], 16_000)[0].frames) == 24


@pytest.mark.parametrize("naming", ["newer", "older", "hub"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "parallel", "legacy"])
def test_every_naming_and_wrapper_gives_the_same_model(
    small_published: dict[str, Tensor], reference: FineLAP, namings: Any, naming: str, wrap: str, tmp_path: Path
) -> None:
    state = getattr(namings, naming)(small_published | {"b_local": torch.tensor(-3.0)})
    content: dict[str, Any] = {
        "plain": state,
        "legacy": state,
        "state_dict": {"epoch": 3, "state_dict": state, "args": {"lr": 0.1}},
        "module": {"module": {"model": state}},
        "parallel": {"model": {f"module.{n}": t for n, t in state.items()}, "optimizer": {"state": {}}},
    }[wrap]
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=wrap != "legacy")
    loaded = FineLAP.from_pretrained(tmp_path / "weights.pt", download=offline)
    same(loaded, reference)
    assert loaded.stamp == reference.stamp
    assert torch.equal(loaded.encode_tokens(IDS, MASK), reference.encode_tokens(IDS, MASK))


def test_hub_folder_converts_with_its_extras_ignored(
    small_published: dict[str, Tensor], reference: FineLAP, namings: Any, tiny: FineLAP, tmp_path: Path
) -> None:
    extras = {
        "text_encoder.text_encoder.pooler.dense.weight": torch.zeros(64, 64),
        "text_encoder.text_encoder.embeddings.position_ids": torch.arange(34)[None],
        "audio_encoder.audio_enc.model.modality_encoders.IMAGE.decoder.blocks.0.0.weight": torch.zeros(2),
    }
    source = tmp_path / "release"
    source.mkdir()
    state = namings.hub(small_published | {"b_local": torch.tensor(-3.0)} | extras)
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "finelap", "auto_map": {"AutoModel": "m.M"}}))
    (source / "modeling_finelap.py").write_text("raise SystemExit('this must not run')")
    words = tmp_path / "words"
    tiny.tokenizer.save_pretrained(words)
    hub = Hub(FineLAP=source, **{"roberta-base": words})
    report = convert("AndreasXi/FineLAP", tmp_path / "out", revision="main", download=hub)
    assert hub.asked == [("AndreasXi/FineLAP", "main"), ("FacebookAI/roberta-base", None)]
    assert report.tokenizer == "FacebookAI/roberta-base" and report.name == "FineLAP"
    assert report.tensors == len(state) == report.used + len(report.computed) + len(report.ignored)
    assert set(report.ignored) == set(namings.hub(extras)) | {
        f"audio_encoder.model.{part}.{kind}" for part in ("head", "fc_norm") for kind in ("weight", "bias")
    }
    loaded = FineLAP.from_pretrained(tmp_path / "out")
    same(loaded, reference)
    assert loaded.stamp == reference.stamp == report.stamp
    assert report.parameters == sum(t.numel() for t in loaded.state_dict().values())
    assert loaded.encode_text(TEXTS).shape == (2, 16)
    # converting the result again changes nothing
    assert convert(tmp_path / "out", tmp_path / "again").stamp == report.stamp
    same(FineLAP.from_pretrained(tmp_path / "again"), loaded)


def test_published_weights_without_a_tokenizer_warn_and_encode_audio(
    reference: FineLAP, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = convert(tmp_path / "newer.pt", tmp_path / "out", download=offline)
    assert report.tokenizer is None and "no network for FacebookAI/roberta-base" in caplog.text
    loaded = FineLAP.from_pretrained(tmp_path / "out")
    same(loaded, reference)
    with pytest.raises(TokenizerMissing):
        loaded.encode_text(TEXTS)


def test_a_custom_position_table_is_stored(
    small_published: dict[str, Tensor], reference: FineLAP, tmp_path: Path
) -> None:
    state = small_published | {"b_local": torch.tensor(-3.0)}
    without = translate({n: t for n, t in state.items() if n != TABLE})
    assert without.computed == () and "audio_encoder.positions" not in without.state
    rounded = translate(state | {TABLE: state[TABLE].to(torch.bfloat16)})
    assert rounded.computed == (TABLE,)
    torch.save(state | {TABLE: state[TABLE].flip(1)}, tmp_path / "flipped.pt")
    report = convert(tmp_path / "flipped.pt", tmp_path / "flipped", download=offline)
    assert report.computed == ()
    flipped = FineLAP.from_pretrained(tmp_path / "flipped")
    assert torch.equal(flipped.audio_encoder.positions, state[TABLE].flip(1))
    heard = [model.encode_audio([SOUND], 16_000)[0].clip for model in (flipped, reference)]
    assert not torch.allclose(*heard)


def test_published_states_that_do_not_fit_name_their_tensors(
    small_published: dict[str, Tensor], reference: FineLAP, tmp_path: Path
) -> None:
    state = small_published | {"b_local": torch.tensor(-3.0)}

    def refused(changed: dict[str, Tensor]) -> CheckpointError:
        torch.save(changed, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=r"bad\.pt") as caught:
            FineLAP.from_pretrained(tmp_path / "bad.pt", download=offline)
        return caught.value

    extra = state | {"audio_encoder.audio_enc.model.blocks.0.attn.gate": torch.zeros(1), "mystery": torch.zeros(1)}
    assert refused(extra).problems["unknown"] == ["audio_encoder.audio_enc.model.blocks.0.attn.gate", "mystery"]
    twice = state | {"module.temp_global": torch.tensor(0.2)}
    assert refused(twice).problems == {"duplicate": ["module.temp_global (also temp_global)"]}
    unit = "text_encoder.text_encoder.encoder.layer.0.attention.self.key.bias"
    assert refused({n: t for n, t in state.items() if n != unit}).problems == {
        "missing": ["text.encoder.encoder.layer.0.attention.self.key.bias"]
    }
    gap = {n: t for n, t in state.items() if ".blocks.0." not in n} | {
        n.replace("blocks.1", "blocks.2"): t for n, t in state.items() if ".blocks.1." in n
    }
    assert "audio_encoder.blocks.0.fc1.weight" in refused(gap).problems["missing"]
    narrow = state | {"global_audio_proj.0.weight": torch.zeros(16, 63)}
    assert refused(narrow).problems == {"wrong shape": ["adapter.clip.0.weight (16, 63), not (16, 64)"]}
    flat = state | {"global_audio_proj.2.weight": torch.zeros(16)}
    assert refused(flat).problems == {"wrong shape": ["adapter.clip.2.weight (16,)"]}


def test_every_published_name_is_known(shared_dir: Path, namings: Any) -> None:
    names = json.loads((shared_dir / "reference" / "published_state.json").read_text())
    targets = {naming: [rename(n) for n in getattr(namings, naming)(names)] for naming in ("newer", "older", "hub")}
    assert targets["newer"] == targets["older"] == targets["hub"]
    assert None not in targets["newer"] and targets["newer"].count("") == 4
    used = [t for t in targets["newer"] if t]
    assert len(used) == len(set(used)) == 385


# Files that are not weights


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw"])
def test_a_pickle_that_needs_code_is_rejected_without_running_it(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    content = {"temp_global": torch.tensor(0.1), "extra": Bomb(f"touch {trace}")}
    if kind == "raw":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"model\.pt: .*unpickling was refused"):
        FineLAP.from_pretrained(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if kind != "raw" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the payload itself works"


@pytest.mark.parametrize("size", [0, 10, 2_000, -100])
def test_a_truncated_pytorch_file_is_named(small_published: dict[str, Tensor], size: int, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(small_published, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"half\.pt: "):
        FineLAP.from_pretrained(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)], {}, torch.zeros(2)])
def test_pytorch_files_without_a_state_dict_are_rejected(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: "):
        FineLAP.from_pretrained(tmp_path / "other.pt")


def test_missing_sources_are_reported_and_only_hub_ids_are_requested(tmp_path: Path) -> None:
    hub = Hub()
    for source in (tmp_path / "nothing", "checkpoints/a/b", "./nothing", "nothing"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            FineLAP.from_pretrained(source, download=hub)
    assert hub.asked == []
    with pytest.raises(
        CheckpointError, match="someone/model: no such folder here, and downloading it from the hub failed: 404"
    ):
        FineLAP.from_pretrained("someone/model", download=hub)
    assert hub.asked == [("someone/model", None)]


def test_loading_does_not_initialise_weights(folder: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    FineLAP.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
