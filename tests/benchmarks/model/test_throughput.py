"""The model benchmark: its baseline equals one pass, and its operation count is that of the layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.model import log_mel, throughput
from benchmarks.model.sizes import base_config
from model import FineLAP

_TEXT = {"model_type": "bert", "vocab_size": 10, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def small_of_the_same_kind() -> FineLAP:
    """The published shape with a narrow encoder of two layers."""
    config = base_config().to_dict() | {"dim": 64}
    config["audio_encoder"] = {"kind": "eat", "params": {"dim": 64, "depth": 2, "heads": 2}}
    config["text"]["hf_config"] = _TEXT | {"intermediate_size": 32}
    torch.manual_seed(0)
    return FineLAP(type(base_config()).from_dict(config)).eval()


def test_two_passes_equal_one() -> None:
    model = small_of_the_same_kind()
    waveforms = throughput.sounds(10.0, 2)
    clips, frames = throughput.two_passes(model, waveforms)
    for i, (clip, track) in enumerate(model.encode_windows(waveforms)):
        np.testing.assert_allclose(clips[i], clip, atol=1e-5)
        np.testing.assert_allclose(frames[i], track, atol=1e-5)


def test_the_operations_of_a_window_are_those_of_its_layers() -> None:
    model = small_of_the_same_kind()
    tokens, width = 513, 64
    blocks = 2 * (2 * tokens * width * (3 + 1 + 4 + 4) * width + 4 * tokens * tokens * width)
    assert blocks < throughput.operations(model) < 1.6 * blocks


def test_turns_omit_the_first_run() -> None:
    calls: list[str] = []
    found = throughput.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and set(found) == {"a", "b"}


def test_the_log_mel_equals_its_baseline(small_checkpoint: Path) -> None:
    found = log_mel.compare(FineLAP.from_pretrained(small_checkpoint))
    assert found["same"] < 1e-3
    assert 300e6 < found["operations"] < 600e6
