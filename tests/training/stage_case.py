"""A pool and a model small enough for a test of the recipe's stages.

The pool's targets are a function of its mel, so that there is something to learn without the real teachers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from model.adapter import ConceptAdapter
from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig
from model.finelap import FineLAP
from training.tasks.distillation import TeacherHeads

CONCEPTS, LABELS = 12, ["dog", "rain", "bell", "car", "wind", "drum"]


class WordTokenizer:
    """A tokenizer with one id per word of a fixed vocabulary; unknown words are 1."""

    def __init__(self) -> None:
        words = [*LABELS, "the", "sound", "of", "a", "recording", "effect", "and", "then"]
        self.ids = {word: i for i, word in enumerate(words, start=2)}

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        rows = [[self.ids.get(w.strip(","), 1) for w in text.split()] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def tiny_model() -> FineLAP:
    torch.manual_seed(0)
    config = FineLAPConfig(
        name="tiny",
        dim=16,
        mel=MelConfig(num_mel_bins=16, pad_value=-15.9),
        windows=WindowConfig(mel_frames=256, frames=16, frame_hop=0.16, overlap_frames=4),
        audio_encoder=EncoderConfig("cnn", {"stem": 4, "stages": [[8, 4, 2], [16, 2, 2]], "width": 32, "heads": 4}),
        adapter=AdapterConfig("concept", {"concepts": CONCEPTS, "hidden": 16}),
        text=TextConfig(
            "mean",
            16,
            "residual",
            {"hidden": 16},
            {
                "model_type": "bert",
                "vocab_size": 32,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
            },
        ),
    )
    model = FineLAP(config, WordTokenizer())
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
        assert isinstance(model.adapter, ConceptAdapter)
        model.adapter.anchors.copy_(torch.nn.functional.normalize(torch.randn(CONCEPTS, 16), dim=-1))
    return model.eval()


def write_pool(folder: Path) -> None:
    """Two shards of 24 scenes of 32 frames; each sound is a band of the spectrum."""
    for shard in range(2):
        rng = np.random.default_rng(shard)
        mel = rng.normal(-8, 0.5, (24, 512, 16)).astype(np.float32)
        logits = np.full((24, 32, CONCEPTS), -5.0, np.float32)
        events = []
        for scene in range(24):
            source, first = int(rng.integers(len(LABELS))), int(rng.integers(0, 16))
            last = first + int(rng.integers(6, 16))
            mel[scene, first * 16 : last * 16, source * 2 : source * 2 + 3] += 6
            logits[scene, first:last, source] = 3.0
            events.append([(source, first * 0.16, last * 0.16)])
        target = folder / f"{shard:03d}"
        target.mkdir(parents=True)
        arrays = {
            "mel": mel,
            "logits": logits,
            "features": np.tile(logits, (1, 1, 86))[..., :1024],
            "active": np.ones((24, 32), bool),
        }
        if shard:
            arrays["aisfx"] = np.tile(logits, (1, 1, 43))[..., :512]
        for name, values in arrays.items():
            np.save(target / f"{name}.npy", values if values.dtype == bool else values.astype(np.float16))
        (target / "events.json").write_text(json.dumps(events))


def heads_of(model: FineLAP) -> TeacherHeads:
    torch.manual_seed(1)
    return TeacherHeads(model.audio_encoder.width)
