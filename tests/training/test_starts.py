"""`finelap train` from a YAML file to a checkpoint: fine-tuning a published FineLAP, and starting from EAT weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
import yaml

from app.cli.main import main
from model.encoders.eat import sincos_positions
from model.finelap import FineLAP
from training.data.phrase_bank import PhraseBank

NAMES = ["dog bark", "loud rain", "car passes"]
EAT = "audio_encoder.audio_enc.model."


def _models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parents[1] / "model" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A published state of width 64 whose text tower has the words of `NAMES`."""
    state = {}
    generator = torch.Generator().manual_seed(3)
    for name, shape in _models().published_shapes().items():
        spread = 0.1 * torch.randn(shape, generator=generator)
        state[name] = spread + 1 if "norm" in name.lower() and name.endswith("weight") else spread
        if name.endswith("positions"):
            state[name] = sincos_positions(80, 8, 64)
    scores = {"temp_global": 0.1, "b_global": -2.0, "temp_local": 0.3, "b_local": -3.0}
    return state | {name: torch.tensor(value) for name, value in scores.items()}


@pytest.fixture
def work(tmp_path: Path, published: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with sounds, a manifest, a bank and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for i, name in enumerate(NAMES):
        wave = 0.2 * np.sin(2 * np.pi * 300 * (i + 1) * np.arange(12_000) / 16_000)
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000)
        phrases = [{"phrase": name, "segments": [[0.1, 0.6]]}]
        rows.append({"audio_id": str(i), "audio_path": f"{i}.wav", "caption": f"the {name}", "phrases": phrases})
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    PhraseBank([[name] for name in NAMES]).write(tmp_path / "bank.jsonl")
    _models().build_tokenizer().save_pretrained(tmp_path / "words")
    return tmp_path


def configured(init: dict, **more: object) -> str:
    """Writes a run of two steps of two clips to run.yaml."""
    content = {
        "kind": "train",
        "name": "tuned",
        "work_dir": "run",
        "init": init,
        "data": {"sets": [{"manifest": "m.jsonl"}], "bank": "bank.jsonl", "phrases": 2, "workers": 0},
        "validation": {"manifest": "m.jsonl", "every": 1},
        "optimiser": {"learning_rate": 1e-3, "warmup": 1, "groups": [{"prefix": "text.encoder.", "frozen": True}]},
        "batch": 2,
        "steps": 2,
        "cpu": True,
    }
    Path("run.yaml").write_text(yaml.safe_dump(content | more))
    return "run.yaml"


def test_a_published_checkpoint_is_fine_tuned(work: Path, published: dict[str, torch.Tensor]) -> None:
    torch.save(published, "published.pt")
    file = configured({"start": "finelap", "checkpoint": "published.pt", "text": "words"})
    assert main(["train", "--config", file]) == 0
    before = FineLAP.from_pretrained("published.pt", tokenizer="words")
    for folder in ("run/best", "run/last"):
        after = FineLAP.from_pretrained(folder)
        assert after.name == "tuned" and after.frame_hop == before.frame_hop == 0.15625
        moved = {n for n, t in before.state_dict().items() if not torch.equal(t, after.state_dict()[n])}
        assert not [n for n in moved if n.startswith("text.encoder.")]
        assert {n.split(".")[0] for n in moved} >= {"audio_encoder", "adapter", "text", "temp_global", "b_local"}
    assert main(["train", "--config", file]) == 0, "a complete run is not repeated"
    assert main(["train", "--config", configured({"start": "finelap", "checkpoint": "published.pt"})]) == 1


def test_a_run_starts_from_eat_weights(work: Path, published: dict[str, torch.Tensor]) -> None:
    encoder = {n.removeprefix(EAT): t for n, t in published.items() if n.startswith(EAT)}
    torch.save({"args": None, "model": encoder}, "eat.pt")
    tower = {"model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40}
    adapter = {"kind": "decoupled", "params": {"frames": "linear"}}
    shape = {"dim": 16, "adapter": adapter, "text": {"hf_config": tower}}
    file = configured({"start": "eat", "audio": "eat.pt", "text": "words", "model": shape}, steps=1, validation=None)
    assert main(["train", "--config", file]) == 0
    made = FineLAP.from_pretrained("run/last")
    assert made.config.audio_encoder.params["dim"] == 64
    weight = made.state_dict()["audio_encoder.blocks.1.fc1.weight"]
    gap = (weight - encoder["blocks.1.mlp.fc1.weight"]).abs().max()
    assert 0 < gap < 1.1e-3, "one step of Adam from the EAT weights, not from fresh ones"
