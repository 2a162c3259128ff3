"""Small random checkpoints of other families, written by transformers' own `save_pretrained`, and fixtures of them.

A plugin of pytest: tests/conftest.py loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE = 48_000  # Hz, of both families

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "the", "sound", "of", "dog", "barking", "rain", "bell", "rings", "loud"]


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, with the special tokens of RoBERTa."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="</s>", model_max_length=24, **special)
    fast.save_pretrained(folder)


def save_clap(folder: Path, seed: int = 0, **audio: Any) -> Any:
    """A CLAP of random weights with a window of 2 s at 48 kHz; returns transformers' model."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(seed)
    text = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 40, "projection_dim": 24, "pad_token_id": 1}
    sizes = {"spec_size": 128, "num_mel_bins": 64, "window_size": 2, "patch_embeds_hidden_size": 8, "hidden_size": 64}
    sizes |= {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2], "projection_dim": 24, "patch_size": 4}
    sizes |= {"patch_stride": [4, 4], "num_classes": 4}
    config = ClapConfig(text_config=text, audio_config=sizes | audio, projection_dim=24)
    model = ClapModel(config).eval()
    with torch.no_grad():  # the initial weights are so small that all embeddings are alike
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * (0.4 if "embed" in name else 0.3))
    model.save_pretrained(folder)
    fused = bool(audio.get("enable_fusion"))
    extractor = ClapFeatureExtractor(max_length_s=2, truncation="fusion" if fused else "rand_trunc", frequency_min=50)
    extractor.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    return model


def save_pe_audio(folder: Path, seed: int = 0) -> Any:
    """A PE-AV audio model of random weights, frames of 40 ms at 48 kHz; returns transformers' model."""
    import torch
    from transformers import PeAudioConfig, PeAudioFeatureExtractor, PeAudioFrameLevelModel

    torch.manual_seed(seed)
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0}
    text |= {"eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 1}
    dac = {"downsampling_ratios": [2, 8, 10, 12], "encoder_hidden_size": 4, "codebook_dim": 8, "n_codebooks": 2}
    dac |= {"hidden_size": 64}
    audio = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    audio |= {"head_dim": 16, "dac_config": dac}
    model = PeAudioFrameLevelModel(PeAudioConfig(text_config=text, audio_config=audio)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.text_audio_logit_scale.fill_(0.4)
        model.text_audio_logit_bias.fill_(-0.5)
    model.save_pretrained(folder)
    PeAudioFeatureExtractor().save_pretrained(folder)
    save_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def clap(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a CLAP, not to be changed, and transformers' model."""
    folder = tmp_path_factory.mktemp("clap")
    return folder, save_clap(folder)


@pytest.fixture(scope="session")
def pe_audio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a PE-AV audio model, not to be changed, and transformers' model."""
    folder = tmp_path_factory.mktemp("pe-audio")
    return folder, save_pe_audio(folder)


def tokenise(folder: Path, texts: list[str]) -> Any:
    """The tokens of texts (B, L), by the tokenizer in the folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise (n,) float32 at RATE, modulated, another for each seed."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.1 * noise * np.sin(2 * np.pi * (seed + 1) * time) + 0.05).astype(np.float32)


def clap_clips(folder: Path, theirs: Any, windows: Sequence[np.ndarray]) -> Any:
    """Transformers' own embeddings (B, D) of windows (n,), each extracted alone."""
    import torch
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor.from_pretrained(folder)
    made = [extractor(window, sampling_rate=RATE, return_tensors="pt") for window in windows]
    with torch.no_grad():
        return torch.cat([theirs.get_audio_features(**one).pooler_output for one in made])


def clap_texts(folder: Path, theirs: Any, texts: list[str]) -> Any:
    """Transformers' own embeddings (B, D) of texts."""
    import torch

    with torch.no_grad():
        return theirs.get_text_features(**tokenise(folder, texts)).pooler_output
