"""Creates a CLAP with random weights and times its plain loop, in the environment of benchmarks.service.infinity.

    python infinity_clap.py make FOLDER                            writes the model and its processor
    python infinity_clap.py loop FOLDER SECONDS BATCH SAMPLES      prints clips and texts per second as one JSON line

The sizes are transformers' defaults, those of laion/clap-htsat-unfused: HTS-AT with 27.5 million parameters,
RoBERTa-base, 48 kHz. Random weights cost as much as trained ones. Must not import our modules.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

RATE = 48_000  # Hz


def make(folder: str) -> None:
    """Writes the model and a tokenizer trained on the benchmark's words, so that texts have a typical token count."""
    from tokenizers import ByteLevelBPETokenizer

    torch.manual_seed(0)
    model = ClapModel(ClapConfig())
    tokenizer = ByteLevelBPETokenizer()
    words = (" a dog barks while cars pass by in the rain", "a dog barks in the distance while cars pass by")
    tokenizer.train_from_iterator(
        list(words) * 10, vocab_size=500, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    tokenizer.save_model(folder)
    fast = RobertaTokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=77)
    features = ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    model.save_pretrained(folder)
    ClapProcessor(features, fast).save_pretrained(folder)
    print(sum(p.numel() for p in model.audio_model.parameters()), flush=True)


def loop(folder: str, seconds: float, batch: int, samples: int) -> None:
    """Runs the bare model and its processor, batch after batch."""
    model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    audio = [0.1 * rng.standard_normal(10 * RATE).astype(np.float32) for _ in range(batch)]
    texts = [f"a dog barks in the distance while {i} cars pass by" for i in range(batch)]

    def encode_audio() -> Any:
        return model.get_audio_features(**processor(audios=audio, sampling_rate=RATE, return_tensors="pt"))

    def encode_text() -> Any:
        return model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True))

    with torch.no_grad():
        rates = {
            kind: [_rate(once, seconds, batch) for _ in range(samples)]
            for kind, once in (("clips", encode_audio), ("texts", encode_text))
        }
    print(json.dumps(rates), flush=True)


def _rate(once: Callable[[], Any], seconds: float, batch: int) -> float:
    once()
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        once()
        done += batch
    return done / took


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        loop(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
