"""A training run small enough for a test: clips of tones and a model with ten thousand parameters.

As a script, `python trainer_case.py WORK_DIR [STOP_AT]` trains there and kills itself before batch STOP_AT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig
from model.finelap import FineLAP
from training.config import LossConfig, OptimiserConfig, TrainConfig
from training.data.batches import Batch
from training.data.sets import DataConfig, SetConfig
from training.init.build import InitConfig

WORDS = ["low", "deep", "middle", "high", "shrill", "tone", "a"]
TONES = {"low tone": 300.0, "deep tone": 700.0, "middle tone": 1500.0, "high tone": 3000.0, "shrill tone": 6000.0}
FRAMES, HOP = 16, 2560


def tokenizer() -> Any:
    """A word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def tiny_model(**changes: Any) -> FineLAP:
    """A small CNN, the paper's adapter with dropout, and a one-layer text tower."""
    torch.manual_seed(0)
    text = {"model_type": "bert", "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    values: dict[str, Any] = {
        "dim": 16,
        "mel": MelConfig(num_mel_bins=16),
        "windows": WindowConfig(mel_frames=256, frames=FRAMES, overlap_frames=4),
        "audio_encoder": EncoderConfig("cnn", {"stem": 4, "stages": [[8, 4, 2], [16, 2, 2]], "width": 32, "heads": 4}),
        "adapter": AdapterConfig("decoupled", {"layers": 1, "heads": 2, "hidden": 16}),
        "text": TextConfig("mean", 8, "mlp", {}, text),
    }
    return FineLAP(FineLAPConfig(**(values | changes)), tokenizer())


class Tones:
    """Batches of clips with one tone in one half; each batch is a function of its number."""

    epoch_steps = 4

    def __init__(self, size: int = 8, before: Callable[[int], None] | None = None) -> None:
        self.size, self.before = size, before
        self.skipped: dict[str, str] = {}

    def stream(self, start: int) -> Iterator[Batch]:
        number = start
        while True:
            if self.before is not None:
                self.before(number)
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng([5, number])
        names = list(TONES)
        waves, lengths, captions = np.zeros((self.size, FRAMES * HOP), np.float32), [], []
        labels = np.zeros((self.size, len(names), FRAMES), np.float32)
        for row in range(self.size):
            which, late = int(rng.integers(len(names))), bool(rng.integers(2))
            first = FRAMES // 2 * late
            time = np.arange(FRAMES // 2 * HOP) / 16_000
            waves[row, first * HOP : first * HOP + len(time)] = 0.3 * np.sin(2 * np.pi * TONES[names[which]] * time)
            waves[row] += rng.normal(0, 0.01, waves.shape[1])
            length = FRAMES * HOP - int(rng.integers(0, HOP))
            waves[row, length:] = 0
            lengths.append(length)
            captions.append(f"a {names[which]}")
            labels[row, which, first : first + FRAMES // 2] = 1
        strong = torch.from_numpy(rng.random(self.size) < 0.8)
        strong[0] = True
        phrases = [names] * self.size
        truth = torch.from_numpy(labels)
        return Batch(torch.from_numpy(waves), torch.tensor(lengths), captions, phrases, truth, strong)


def tiny_config(work_dir: Path, **changes: Any) -> TrainConfig:
    """Twelve steps of eight clips, logged every step and saved every four."""
    config = TrainConfig(
        init=InitConfig(),
        data=DataConfig(sets=(SetConfig(folder="tones"),)),
        work_dir=str(work_dir),
        name="tones",
        loss=LossConfig(),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup=2, clip_norm=5.0),
        batch=8,
        steps=12,
        log_every=1,
        save_every=4,
        ema=0.9,
        cpu=True,
    )
    return replace(config, **changes)


def main(work_dir: str, stop_at: str | None = None) -> None:
    from training.trainer import train

    def die(number: int) -> None:
        if stop_at is not None and number == int(stop_at):
            os.kill(os.getpid(), signal.SIGKILL)

    train(tiny_config(Path(work_dir)), Path.cwd(), model=tiny_model(), batches=Tones(before=die))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
